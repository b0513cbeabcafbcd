from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.networks._activations import activation
from brenier.networks._normals import normals
from brenier.typing import Key, Point, Scalar


class MLP(eqx.Module):
    """A plain network of `(t, x)` with activation `a ↦ σ(β a) / β`.

    The published 2-D network has five hidden layers of width 64 and a softplus (NCF, appendix on 2-D experiments).
    A large sharpness β suits potentials with kinks (several modes), a small one smooth data.

    Example:
        >>> u = MLP(2, key=jax.random.key(0))
        >>> u(jnp.asarray(0.5), jnp.ones(2)).shape
        ()
    """

    weights: tuple[Float[Array, "in out"], ...]
    biases: tuple[Float[Array, "out"], ...]
    head: Float[Array, "width"]
    activation: str = eqx.field(static=True)
    sharpness: float = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        widths: Sequence[int] = (64,) * 5,
        *,
        activation: str = "softplus",
        sharpness: float = 1.0,
        key: Key,
    ):
        sizes = [dim + 1, *widths]
        shapes = [*pairwise(sizes), (sizes[-1],)]
        drawn = normals(jax.random.split(key, len(sizes)), shapes)
        *weights, self.head = (w / len(w) ** 0.5 for w in drawn)
        self.weights = tuple(weights)
        self.biases = tuple(jnp.zeros(m) for m in sizes[1:])
        self.activation = activation
        self.sharpness = sharpness

    def __call__(self, t: Scalar, x: Point) -> Scalar:
        act, beta = activation(self.activation), self.sharpness
        h = jnp.concatenate([t[None], x])
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = act(beta * (h @ weight + bias)) / beta
        return h @ self.head
