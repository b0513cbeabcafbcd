"""A cost of the user's own, of which only `L` is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from brenier.costs._base import Cost, check_parameter
from brenier.errors import InputError
from brenier.typing import Point, Scalar

_TRIED = 64  # velocities at which the function is checked
_SLOWEST = 1e-4  # of them, as a share of the reach
_STRICT = 1e-6  # least relative growth of the gradient, above the round-off of float32
_ITERATIONS = 60
_RIDGE = 1e-8  # in units of the mean curvature; what a flat point adds to its neighbours' inverse


class ConvexCost(Cost):
    """Any strictly convex, differentiable `L`, given alone: `L*` and `∇L*` are found by solving `∇L(v) = p`.

    The solver is Newton's method with a Levenberg–Marquardt safeguard, and its result is differentiated by the implicit
    function theorem, any number of times. It takes several evaluations of `L` and its derivatives and as many (d, d)
    systems; a subclass of `brenier.costs.Cost` with the formulas is faster. Beyond the speed `reach` a quartic is added
    to `L`, so that `L*` is finite for every `p`.

    Args:
        function: `L` of one velocity (d,), traceable and twice differentiable by JAX. Write kinks round:
            `(v @ v + 1e-12) ** 0.75`, not `jnp.linalg.norm(v) ** 1.5`.
        dim: d.
        reach: the largest speed that matters, in units of the data; `L` is checked up to it.

    Raises:
        InputError: `L` does not return one number; it, its gradient or its curvature is not finite at 0 or at
            some velocity up to `reach`; it is not strictly convex.

    Example:
        >>> import jax.numpy as jnp
        >>> cost = ConvexCost(lambda v: jnp.sum(v**4) / 4 + 0.5 * v @ v, dim=2)
        >>> jnp.round(cost.grad_hamiltonian(jnp.array([10.0, 2.0])), 4).tolist()
        [2.0, 1.0]
    """

    function: Callable[[Point], Scalar] = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    reach: float = eqx.field(static=True)
    stiffness: float = eqx.field(static=True)

    def __init__(self, function: Callable[[Point], Any], dim: int, *, reach: float = 100.0):
        self.function, self.dim = function, int(dim)
        self.reach = check_parameter(reach, "reach")
        self.stiffness = _check(function, self.dim, self.reach)

    def lagrangian(self, v: Point) -> Scalar:
        beyond = jnp.maximum(v @ v / self.reach**2 - 1.0, 0.0)
        return self.function(v) + 0.25 * self.stiffness * self.reach**2 * beyond**2

    def grad_lagrangian(self, v: Point) -> Point:
        return jax.grad(self.lagrangian)(v)

    def grad_hamiltonian(self, p: Point) -> Point:
        def misfit(v: Point) -> Point:
            return self.grad_lagrangian(v) - p

        def tangent(linear: Callable[[Point], Point], y: Point) -> Point:
            ridge = _RIDGE * self.stiffness * jnp.eye(len(y), dtype=y.dtype)
            return jnp.linalg.solve(jax.jacobian(linear)(y) + ridge, y)

        # As if L were quadratic, with its mean curvature.
        guess = jax.lax.stop_gradient(p / self.stiffness)
        speed = jnp.sqrt(guess @ guess + float(jnp.finfo(p.dtype).tiny))
        guess = guess * jnp.minimum(1.0, self.reach / speed)
        least = 1e-3 * self.stiffness * _SLOWEST * self.reach
        return jax.lax.custom_root(misfit, guess, lambda f, v: _levenberg(f, v, p, least), tangent)

    def hamiltonian(self, p: Point) -> Scalar:
        # By the envelope theorem the derivative needs none of the solver.
        @jax.custom_jvp
        def value(p: Point) -> Scalar:
            v = self.grad_hamiltonian(p)
            return p @ v - self.lagrangian(v)

        @value.defjvp
        def _(primals: tuple[Point], tangents: tuple[Point]) -> tuple[Scalar, Scalar]:
            return value(*primals), self.grad_hamiltonian(primals[0]) @ tangents[0]

        return value(p)


def _levenberg(misfit: Callable[[Point], Point], v: Point, p: Point, least: float) -> Point:
    """The root of a monotone map: no step is taken that does not bring its norm down."""
    p = jax.lax.stop_gradient(p)
    tolerance = 32.0 * float(jnp.finfo(v.dtype).eps) * (jnp.sqrt(p @ p) + least)

    def unfinished(carry: Any) -> Any:
        k, _, f, damping = carry
        return (k < _ITERATIONS) & (f @ f > tolerance**2) & (damping < 1e9)

    def iterate(carry: Any) -> Any:
        k, v, f, damping = carry
        curvature = jax.jacobian(misfit)(v)
        size = jnp.sqrt(f @ f)
        # Where there is no curvature, as in |v|⁴ at 0, the misfit itself says how short a step must be.
        shift = damping * (jnp.trace(curvature) / len(v) + size / (1.0 + jnp.sqrt(v @ v)))
        step = jnp.linalg.solve(curvature + shift * jnp.eye(len(v), dtype=v.dtype), f)
        f_new = misfit(v - step)
        gained = size - jnp.sqrt(f_new @ f_new)
        # Of a linear map shift * step would be left. One that falls short of that by far has overshot, and with no more
        # damping the next step would go back.
        promise = gained / (size - shift * jnp.sqrt(step @ step))
        factor = jnp.where(promise > 0.5, 0.1, jnp.where(promise > 0.1, 1.0, 10.0))
        v, f = jnp.where(gained > 0.0, v - step, v), jnp.where(gained > 0.0, f_new, f)
        return k + 1, v, f, damping * factor.astype(v.dtype)

    first = (jnp.zeros((), jnp.int32), v, misfit(v), jnp.full((), 1e-3, v.dtype))
    return jax.lax.while_loop(unfinished, iterate, first)[1]


def _check(function: Callable[[Point], Any], dim: int, reach: float) -> float:
    """The mean curvature of `function` between rest and `reach`, or `InputError`."""
    if dim < 1:
        raise InputError(f"Expected dim to be at least 1, found {dim}.")
    rng = np.random.default_rng(0)
    ways = rng.normal(size=(_TRIED, dim))
    ways[: 2 * dim] = np.concatenate([np.eye(dim), -np.eye(dim)])[:_TRIED]
    speeds = reach * np.exp(np.linspace(np.log(_SLOWEST), 0.0, _TRIED))
    v = speeds[rng.permutation(_TRIED), None] * ways / np.linalg.norm(ways, axis=1, keepdims=True)
    v = jnp.asarray(np.concatenate([np.zeros((1, dim)), v]))
    try:
        shape = jax.eval_shape(function, v[0])
        scalar = getattr(shape, "shape", None) == () and jnp.issubdtype(shape.dtype, jnp.floating)
    except Exception as error:
        raise InputError(
            f"Expected L to be a function of one velocity of shape ({dim},) that JAX can trace; it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not scalar:
        raise InputError(
            f"Expected L to return one real number for a velocity ({dim},), found {shape}."
        )
    gradient = jax.grad(function)
    for name, derivative in {
        "L": function,
        "the gradient of L": gradient,
        "the curvature of L": jax.jacobian(gradient),
    }.items():
        values = np.asarray(jax.vmap(derivative)(v)).reshape(len(v), -1)
        if (bad := ~np.isfinite(values).all(axis=1)).any():
            where = np.asarray(v[np.flatnonzero(bad)[0]]).tolist()
            raise InputError(
                f"{name} is not finite at the velocity {where}; lower reach={reach:g} where L ends before it, "
                "and write kinks round, as in (v @ v + 1e-12) ** 0.75."
            )
    slopes = jax.vmap(gradient)
    for w in (0.5 * v, v[::-1], -v):
        a, b = (np.asarray(slopes(side), np.float64) for side in (v, w))
        apart = np.asarray(v - w, np.float64)
        growth = np.sum((a - b) * apart, axis=1)
        size = (np.linalg.norm(a, axis=1) + np.linalg.norm(b, axis=1)) * np.linalg.norm(
            apart, axis=1
        )
        flat = (growth <= _STRICT * size) & (apart != 0.0).any(axis=1)
        if flat.any():
            pair = [np.asarray(side[np.flatnonzero(flat)[0]]).tolist() for side in (v, w)]
            raise InputError(
                "Expected a strictly convex L, whose gradient grows along every line; it does not between the "
                f"velocities {pair[0]} and {pair[1]}. Then the velocity is no function of the momentum."
            )
    typical = np.asarray(
        slopes(jnp.asarray(0.1 * reach * ways / np.linalg.norm(ways, axis=1)[:, None]))
    )
    return float(np.mean(np.linalg.norm(typical, axis=1)) / (0.1 * reach))
