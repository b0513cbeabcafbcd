"""Powers of a norm.

With `1/a + 1/a' = 1`, `L` grows like the power `a` and `L*` like `a'`; unless both are 2, one of them has infinite
curvature at 0. There it is replaced by the parabola that continues it, within `_CORE`, and the other one,
flat at 0, within the image of that neighbourhood. Both stay conjugate to each other and exact outside.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from brenier.costs._base import Cost, check_parameter
from brenier.typing import Point, Scalar

_CORE = 1e-6
_NOT_STRICT = (
    " With the exponent 1 the cost is not strictly convex: many plans are equally cheap and the velocity is no "
    "function of the potential. Take an exponent just above 1, or PseudoHuber."
)


class _OfExponent(Cost):
    """A family of costs with an exponent, in which the conjugate exponent gives the Legendre transform."""

    exponent: float = eqx.field(static=True)

    def __init__(self, exponent: float):
        self.exponent = check_parameter(exponent, "the exponent", above=1.0, why=_NOT_STRICT)

    @property
    def _transform(self) -> Cost:
        return type(self)(_conjugate(self.exponent))

    def hamiltonian(self, p: Point) -> Scalar:
        return self._transform.lagrangian(p)

    def grad_hamiltonian(self, p: Point) -> Point:
        return self._transform.grad_lagrangian(p)

    @property
    def degree(self) -> float:
        return self.exponent


class Power(_OfExponent):
    """`L(v) = |v|^a / a` with the Euclidean norm: far moves are dear for large `a`, cheap for `a` near 1.

    Moves shorter than `1e-6^(1/(a-1))`, for `a > 2`, cost as a parabola would: 0.001 at `a = 3`, 0.01 at `a = 4`.

    Args:
        exponent: `a > 1`.

    Raises:
        InputError: `a <= 1`, for which the cost is not strictly convex.

    Example:
        >>> import jax.numpy as jnp
        >>> round(Power(3).lagrangian(jnp.array([3.0, 4.0])).item(), 4)
        41.6667
    """

    def lagrangian(self, v: Point) -> Scalar:
        return _value(v @ v, self.exponent)

    def grad_lagrangian(self, v: Point) -> Point:
        return _slope(v @ v, self.exponent) * v


class CoordinatewisePower(_OfExponent):
    """`L(v) = Σ |v_i|^a / a`: every coordinate moves on its own account.

    Args:
        exponent: `a > 1`.

    Raises:
        InputError: `a <= 1`, for which the cost is not strictly convex.

    Example:
        >>> import jax.numpy as jnp
        >>> CoordinatewisePower(4).lagrangian(jnp.array([1.0, -1.0])).item()
        0.5
    """

    def lagrangian(self, v: Point) -> Scalar:
        return jnp.sum(_value(v * v, self.exponent))

    def grad_lagrangian(self, v: Point) -> Point:
        return _slope(v * v, self.exponent) * v


class SquaredNorm(_OfExponent):
    """`L(v) = ½‖v‖_a²`, half the square of the ℓ_a norm.

    Coordinates below a share of 1e-6 of the norm are rounded off.

    Args:
        exponent: `a > 1`.

    Raises:
        InputError: `a <= 1`, for which the cost is not strictly convex.

    Example:
        >>> import jax.numpy as jnp
        >>> round(SquaredNorm(1.5).lagrangian(jnp.array([1.0, 1.0])).item(), 4)
        1.2599
    """

    def lagrangian(self, v: Point) -> Scalar:
        return _half_square(v, self.exponent)

    def grad_lagrangian(self, v: Point) -> Point:
        return _grad_half_square(v, self.exponent)

    @property
    def degree(self) -> float:
        return 2.0


def _conjugate(a: float) -> float:
    """`a'` with `1/a + 1/a' = 1`."""
    return a / (a - 1.0)


def _squared_core(a: float) -> float:
    """The square of the radius within which the power `a` is a parabola."""
    return _CORE**2 if a <= 2.0 else _CORE ** (2.0 * (_conjugate(a) - 1.0))


def _value(squared: jax.Array, a: float) -> jax.Array:
    """`r^a / a` from `r²`."""
    core = _squared_core(a)
    power = jnp.maximum(squared, core) ** (a / 2) / a
    parabola = 0.5 * core ** (a / 2 - 1) * squared + (1 / a - 0.5) * core ** (a / 2)
    return jnp.where(squared > core, power, parabola)


def _slope(squared: jax.Array, a: float) -> jax.Array:
    """`r^(a-2)` from `r²`."""
    return jnp.maximum(squared, _squared_core(a)) ** (a / 2 - 1)


def _norm(v: Point, a: float) -> Scalar:
    """`‖v‖_a`, without overflow, and with a derivative at 0."""
    tiny = float(jnp.finfo(v.dtype).tiny) ** 0.25
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.max(jnp.abs(v)), tiny))
    total = jnp.sum(jnp.abs(v / largest) ** a)
    return largest * jnp.maximum(total, 0.5) ** (1 / a)  # at least 1, but for v = 0


def _grad_half_square(v: Point, a: float) -> Point:
    shares = v / _norm(v, a)
    return _slope(shares * shares, a) * v


def _half_square(v: Point, a: float) -> Scalar:
    # By Euler's theorem ½ v·∇L; its derivative is then the rounded gradient's own, finite at every v.
    @jax.custom_jvp
    def value(v: Point) -> Scalar:
        return 0.5 * (v @ _grad_half_square(v, a))

    @value.defjvp
    def _(primals: tuple[Point], tangents: tuple[Point]) -> tuple[Scalar, Scalar]:
        return value(*primals), _grad_half_square(primals[0], a) @ tangents[0]

    return value(v)
