"""A cost in other units of length."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from brenier.costs._base import Cost
from brenier.errors import InputError
from brenier.typing import Point, Scalar


class FramedCost(Cost):
    """`L(s w) / κ`, a cost seen in coordinates with the unit of length `s` and with costs in units of `κ`.

    Its Legendre transform is `H(κ p / s) / κ`.

    Attributes:
        outer: `L`, in the user's units.
        length: `s`.
        unit: `κ`.
    """

    outer: Cost
    length: float = eqx.field(static=True)
    unit: float = eqx.field(static=True)

    def lagrangian(self, v: Point) -> Scalar:
        return self.outer.lagrangian(self.length * v) / self.unit

    def hamiltonian(self, p: Point) -> Scalar:
        return self.outer.hamiltonian((self.unit / self.length) * p) / self.unit

    def grad_lagrangian(self, v: Point) -> Point:
        return (self.length / self.unit) * self.outer.grad_lagrangian(self.length * v)

    def grad_hamiltonian(self, p: Point) -> Point:
        return self.outer.grad_hamiltonian((self.unit / self.length) * p) / self.length


def framed(cost: Cost, length: float, dim: int) -> Cost:
    """The cost in coordinates with this unit of length, where moves of length 1 cost about ½.

    A homogeneous cost is its own, up to a factor.

    Raises:
        InputError: a move of this length, in `dim` dimensions, costs nothing or overflows.
    """
    if cost.degree is not None:
        return cost
    # The least of several shares of the length, each as if it were quadratic: a cost that explodes at some
    # speed, beyond which nothing will move, is judged below it.
    moves = length * np.concatenate([np.eye(dim), -np.eye(dim)])
    costs = [
        2.0 * float(jnp.mean(jax.vmap(cost.lagrangian)(jnp.asarray(share * moves)))) / share**2
        for share in (1.0, 0.5, 0.25, 0.125)
    ]
    unit = min((c for c in costs if np.isfinite(c)), default=np.inf)
    if not 0.0 < unit < np.inf:
        raise InputError(
            f"Expected moves of the length of the data's spread, {length:.3g}, to have a positive and finite "
            f"{type(cost).__name__} cost, found {unit:.3g}; rescale the data or the cost's own length."
        )
    return FramedCost(cost, float(length), unit)


def unframed(cost: Cost) -> Cost:
    """The cost behind a framed one."""
    return cost.outer if isinstance(cost, FramedCost) else cost


def price(cost: Cost, length: Any) -> Any:
    """What one unit of this cost, in coordinates with this unit of length, is in the user's units."""
    if isinstance(cost, FramedCost):
        return cost.unit
    return 1.0 if cost.degree is None else length**cost.degree
