from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.networks._activations import activation
from brenier.networks._normals import normals
from brenier.typing import ArrayLike, Key, Point


class ResidualMap(eqx.Module):
    """A map of points, `x A + b + f(x)`, that starts as a linear one: the last layer of `f` starts at zero.

    Args:
        dim: d.
        widths: of the hidden layers of `f`.
        matrix: `A` at the start, shape (d, d); the identity when left out.

    Example:
        >>> T = ResidualMap(2, key=jax.random.key(0))
        >>> T(jnp.array([1.0, 2.0])).tolist()
        [1.0, 2.0]
    """

    matrix: Float[Array, "d d"]
    shift: Float[Array, "d"]
    weights: tuple[Float[Array, "in out"], ...]
    biases: tuple[Float[Array, "out"], ...]
    head: Float[Array, "width d"]
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        widths: Sequence[int] = (128,) * 3,
        *,
        activation: str = "silu",
        matrix: ArrayLike | None = None,
        key: Key,
    ):
        sizes = [dim, *widths]
        self.matrix = jnp.eye(dim) if matrix is None else jnp.asarray(matrix)
        self.shift = jnp.zeros(dim)
        shapes = list(pairwise(sizes))
        drawn = normals(jax.random.split(key, len(widths)), shapes)
        self.weights = tuple(w / len(w) ** 0.5 for w in drawn)
        self.biases = tuple(jnp.zeros(m) for m in widths)
        self.head = jnp.zeros((sizes[-1], dim))
        self.activation = activation

    def __call__(self, x: Point) -> Point:
        act, h = activation(self.activation), x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = act(h @ weight + bias)
        return x @ self.matrix + self.shift + h @ self.head
