"""Costs with a length of their own: pseudo-Huber, relativistic and hyperbolic cosine.

The first two are one pair of functions read both ways, in units of their length,

    B(r) = √(1 + r²) - 1,    B*(r) = 1 - √(1 - r²) for r < 1.

`B*` ends at the unit sphere, beyond which potentials on their way to the solution stray. From 0.999 on it is
continued as a parabola with the same slope, and `B` beyond 22.3, where it is straight to one part in a thousand, as
the conjugate of that. So both are finite everywhere, and a potential that has strayed feels the way back, which a
projection onto the sphere would hide from it.
"""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from brenier.costs._base import Cost, check_parameter
from brenier.typing import Point, Scalar

_RIM = 0.999
_FAR = _RIM / math.sqrt(1.0 - _RIM**2)

# Curvatures of the continued B*. In a velocity it must not explode when a momentum strays by one per cent; a speed
# limit may be as steep as it is there.
_GENTLE = _FAR
_STEEP = (1.0 - _RIM**2) ** -1.5


class PseudoHuber(Cost):
    """`L(v) = δ² (√(1 + |v|²/δ²) - 1)`: quadratic for short moves, like `δ|v|` for long ones.

    `L*` is finite for `|p| < δ` only and continued beyond `0.999 δ`; `L` is what the formula says up to `|v| = 22 δ`,
    and grows like a parabola beyond. A `δ` far below the distances makes momenta that differ in their last digits.

    Args:
        delta: `δ > 0`, in units of the data.

    Raises:
        InputError: `δ` is not a positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> PseudoHuber(4.0).lagrangian(jnp.array([3.0])).item()
        4.0
    """

    delta: float = eqx.field(static=True)

    def __init__(self, delta: float = 1.0):
        self.delta = check_parameter(delta, "delta")

    def lagrangian(self, v: Point) -> Scalar:
        return self.delta**2 * _open(v @ v / self.delta**2, _GENTLE)

    def hamiltonian(self, p: Point) -> Scalar:
        return self.delta**2 * _closed(p @ p / self.delta**2, _GENTLE)

    def grad_lagrangian(self, v: Point) -> Point:
        return _open_slope(v @ v / self.delta**2, _GENTLE) * v

    def grad_hamiltonian(self, p: Point) -> Point:
        return _closed_slope(p @ p / self.delta**2, _GENTLE) * p


class Relativistic(Cost):
    """`L(v) = c² (1 - √(1 - |v|²/c²))`: no speed reaches `c`.

    `L` is infinite from `c` on; here it is continued, steeply, from `0.999 c`, so that a problem that cannot be solved
    within the speed limit gives a map that exceeds it, and no overflow.

    Args:
        speed: `c > 0`, in units of the data.

    Raises:
        InputError: `c` is not a positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> round(Relativistic(5.0).lagrangian(jnp.array([3.0])).item(), 4)
        5.0
    """

    speed: float = eqx.field(static=True)

    def __init__(self, speed: float = 1.0):
        self.speed = check_parameter(speed, "speed")

    def lagrangian(self, v: Point) -> Scalar:
        return self.speed**2 * _closed(v @ v / self.speed**2, _STEEP)

    def hamiltonian(self, p: Point) -> Scalar:
        return self.speed**2 * _open(p @ p / self.speed**2, _STEEP)

    def grad_lagrangian(self, v: Point) -> Point:
        return _closed_slope(v @ v / self.speed**2, _STEEP) * v

    def grad_hamiltonian(self, p: Point) -> Point:
        return _open_slope(p @ p / self.speed**2, _STEEP) * p


class Cosh(Cost):
    """`L(v) = b² Σ (cosh(v_i / b) - 1)`: quadratic for short moves, exponential for long ones.

    Args:
        width: `b > 0`, in units of the data.

    Raises:
        InputError: `b` is not a positive number.

    Example:
        >>> import jax.numpy as jnp
        >>> round(Cosh().lagrangian(jnp.array([1.0])).item(), 4)
        0.5431
    """

    width: float = eqx.field(static=True)

    def __init__(self, width: float = 1.0):
        self.width = check_parameter(width, "width")

    def lagrangian(self, v: Point) -> Scalar:
        # cosh(z) - 1 without its cancellation.
        return 2.0 * self.width**2 * jnp.sum(jnp.sinh(0.5 * v / self.width) ** 2)

    def hamiltonian(self, p: Point) -> Scalar:
        z = p / self.width
        return self.width**2 * jnp.sum(z * jnp.arcsinh(z) - z * z / (1.0 + jnp.sqrt(1.0 + z * z)))

    def grad_lagrangian(self, v: Point) -> Point:
        return self.width * jnp.sinh(v / self.width)

    def grad_hamiltonian(self, p: Point) -> Point:
        return self.width * jnp.arcsinh(p / self.width)


def _open(squared: jax.Array, curvature: float) -> jax.Array:
    """`B(r)` from `r²`."""
    near = jnp.minimum(squared, _FAR**2)
    beyond = jnp.sqrt(jnp.maximum(squared, _FAR**2)) - _FAR
    return near / (1.0 + jnp.sqrt(1.0 + near)) + _RIM * beyond + beyond**2 / (2.0 * curvature)


def _open_slope(squared: jax.Array, curvature: float) -> jax.Array:
    """`B'(r) / r` from `r²`."""
    far = jnp.sqrt(jnp.maximum(squared, _FAR**2))
    beyond = (_RIM + (far - _FAR) / curvature) / far
    return jnp.where(squared < _FAR**2, 1.0 / jnp.sqrt(1.0 + squared), beyond)


def _closed(squared: jax.Array, curvature: float) -> jax.Array:
    """`B*(r)` from `r²`."""
    near = jnp.minimum(squared, _RIM**2)
    beyond = jnp.sqrt(jnp.maximum(squared, _RIM**2)) - _RIM
    return near / (1.0 + jnp.sqrt(1.0 - near)) + _FAR * beyond + 0.5 * curvature * beyond**2


def _closed_slope(squared: jax.Array, curvature: float) -> jax.Array:
    """`B*'(r) / r` from `r²`."""
    near, far = jnp.minimum(squared, _RIM**2), jnp.sqrt(jnp.maximum(squared, _RIM**2))
    beyond = (_FAR + curvature * (far - _RIM)) / far
    return jnp.where(squared < _RIM**2, 1.0 / jnp.sqrt(1.0 - near), beyond)
