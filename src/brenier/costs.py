"""Costs of a velocity: the Lagrangian `L`, its Legendre transform `L*` and both gradients.

All functions take one vector of shape (d,); use `jax.vmap` for a batch. With time horizon 1 the static cost
of moving `x` to `y` is `c(x, y) = L(y - x)`.
"""

from __future__ import annotations

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.typing import Point, Scalar


class Cost(eqx.Module):
    """A strictly convex cost `L(v)` of a velocity `v`, with its Legendre transform `L*(p)`.

    Implementations keep `grad_hamiltonian(grad_lagrangian(v)) == v` and
    `lagrangian(v) + hamiltonian(p) == p @ v` for `p = grad_lagrangian(v)`.
    """

    @abc.abstractmethod
    def lagrangian(self, v: Point) -> Scalar:
        """`L(v)`."""

    @abc.abstractmethod
    def hamiltonian(self, p: Point) -> Scalar:
        """`L*(p) = sup_v p @ v - L(v)`; the state cost is not part of it."""

    @abc.abstractmethod
    def grad_lagrangian(self, v: Point) -> Point:
        """`∇L(v)`: the momentum of a velocity."""

    @abc.abstractmethod
    def grad_hamiltonian(self, p: Point) -> Point:
        """`∇L*(p)`: the velocity of a momentum."""

    @property
    @abc.abstractmethod
    def galilean(self) -> bool:
        """Whether a uniform motion can be split off, `L(v + q) = L(v) + q @ v + L(q)`.

        True for the quadratic cost only. The two sides may then be centred separately.
        """

    def static(self, x: Point, y: Point) -> Scalar:
        """`c(x, y) = L(y - x)`, the cost of moving `x` to `y` in unit time."""
        return self.lagrangian(y - x)

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """`c(x_i, y_j)` for points (n, d) and (m, d)."""
        return jax.vmap(lambda x: jax.vmap(lambda y: self.static(x, y))(y))(x)


class Quadratic(Cost):
    """`L(v) = ½|v|²`, hence `c(x, y) = ½|x - y|²`: **with** the ½, so the optimal cost is `W₂²/2`.

    Example:
        >>> import jax.numpy as jnp
        >>> Quadratic().lagrangian(jnp.array([3.0, 4.0])).item()
        12.5
    """

    def lagrangian(self, v: Point) -> Scalar:
        return 0.5 * (v @ v)

    def hamiltonian(self, p: Point) -> Scalar:
        return 0.5 * (p @ p)

    def grad_lagrangian(self, v: Point) -> Point:
        return v

    def grad_hamiltonian(self, p: Point) -> Point:
        return p

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        squares = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :]
        return 0.5 * squares - x @ y.T  # A matrix product: a second dimension less to go through.

    @property
    def galilean(self) -> bool:
        return True
