"""Muon over the matrices of one shape at once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib


@functools.cache  # the same object: what it compiles is compiled once
def muon(learning_rate: float, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """`optax.contrib.muon`, whose Newton–Schulz iterations run for all matrices of one shape together.

    A network has several matrices of a shape, each of them small: one by one their fifteen products cost more to
    start than to compute, and as many times to compile.

    References:
        Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024.
    """

    def of(stacks: list[jax.Array]) -> optax.GradientTransformation:
        matrices: Any = [
            optax.contrib.MuonDimensionNumbers(1, 2) if s.ndim == 3 else None for s in stacks
        ]
        return optax.contrib.muon(
            learning_rate,
            weight_decay=weight_decay,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=matrices,
        )

    def init(params: Any) -> Any:
        stacks = _stacked(params)
        return of(stacks).init(stacks)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        stacks = _stacked(updates)
        together = None if params is None else _stacked(params)
        found, state = of(stacks).update(stacks, state, together)
        return _unstacked(found, updates), state

    return optax.GradientTransformation(init, update)


def _groups(tree: Any) -> list[list[int]]:
    """The numbers of the leaves of one shape and precision."""
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        groups.setdefault((leaf.shape, leaf.dtype), []).append(i)
    return list(groups.values())


def _stacked(tree: Any) -> list[jax.Array]:
    leaves = jax.tree.leaves(tree)
    return [jnp.stack([leaves[i] for i in group]) for group in _groups(tree)]


def _unstacked(stacks: Any, like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    for stack, group in zip(stacks, _groups(like), strict=True):
        for i, leaf in zip(group, stack, strict=True):
            leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)
