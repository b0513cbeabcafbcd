"""What a cost is."""

from __future__ import annotations

import abc
import math
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from brenier.errors import InputError
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
    def galilean(self) -> bool:
        """Whether a uniform motion can be split off, `L(v + q) = L(v) + ∇L(q) @ v + L(q)`.

        True for quadratic forms only. The two sides may then be centred separately.
        """
        return False

    @property
    def degree(self) -> float | None:
        """`a` where `L(s v) = s^a L(v)` for every `s > 0`: the cost looks the same in every unit of length."""
        return None

    def static(self, x: Point, y: Point) -> Scalar:
        """`c(x, y) = L(y - x)`, the cost of moving `x` to `y` in unit time."""
        return self.lagrangian(y - x)

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """`c(x_i, y_j)` for points (n, d) and (m, d)."""
        return jax.vmap(lambda x: jax.vmap(lambda y: self.static(x, y))(y))(x)


def check_parameter(value: Any, name: str, *, above: float = 0.0, why: str = "") -> float:
    """`value` as a float, or `InputError` unless it is a finite number `> above`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not above < number < math.inf:
        raise InputError(
            f"Expected {name} to be a finite number > {above:g}, found {value!r}.{why}"
        )
    return number
