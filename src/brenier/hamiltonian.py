"""Hamilton–Jacobi operators: pure functions of a potential `u(t, x)`, a cost and one point.

The convention of the whole library: `∂t u + f·∇u + H(∇u) - U + ½σ² Δu = 0` on t in [0, 1] with `H = L*`, state cost
`U >= 0`, noise `σ`, base drift `f` and velocity `v = ∇H(∇u)` beside it. Without these three the characteristics are
straight lines along which `∇u` is constant and `u` grows at rate `p·∇H(p) - H(p) = L(∇H(p))`. Everything here acts on
one point `x` of shape (d,) and one time; use `jax.vmap`.

References:
    Park, Liu, Zhou and Osher, *Neural Hamilton–Jacobi Characteristic Flows for Optimal Transport*, ICLR 2026.
    Park and Osher, *Neural Implicit Solution Formula for Hamilton–Jacobi Equations*, 2025 (arXiv 2501.19351).
    Buzun, Shlenskii, Bobrin and Dylov, *HOTA: Hamiltonian framework for Optimal Transport Advection*, ICLR 2026.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.costs import Cost
from brenier.typing import Point, Potential, Scalar


def value_and_momentum(u: Potential, t: Scalar, x: Point) -> tuple[Scalar, Point]:
    """`u(t, x)` and `p = ∇ₓu(t, x)`."""
    return jax.value_and_grad(u, argnums=1)(t, x)


def velocity(u: Potential, cost: Cost, t: Scalar, x: Point) -> Point:
    """`v(t, x) = ∇H(∇u(t, x))`, the optimal velocity."""
    return cost.grad_hamiltonian(jax.grad(u, argnums=1)(t, x))


def characteristic(u: Potential, cost: Cost, t: Scalar, x: Point, s: Scalar) -> Point:
    """The position at time `s` of the characteristic through `(t, x)`: `x + (s - t) ∇H(∇u(t, x))`.

    `t=0, s=1` is the forward map `T`, `t=1, s=0` the backward map `S`.
    """
    return x + (s - t) * velocity(u, cost, t, x)


def forward_map(u: Potential, cost: Cost, x: Point) -> Point:
    """`T(x) = x + ∇H(∇u(0, x))`."""
    return characteristic(u, cost, jnp.zeros((), x.dtype), x, jnp.ones((), x.dtype))


def backward_map(u: Potential, cost: Cost, y: Point) -> Point:
    """`S(y) = y - ∇H(∇u(1, y))`."""
    return characteristic(u, cost, jnp.ones((), y.dtype), y, jnp.zeros((), y.dtype))


def implicit_residual(
    u: Potential,
    cost: Cost,
    t: Scalar,
    x: Point,
    anchor: Scalar,
    momentum: tuple[Scalar, Point] | None = None,
) -> Scalar:
    """The implicit (Hopf–Lax) residual `u(t, x) - u(a, foot) - (t - a) L(∇H(p))` with `p = ∇u(t, x)`.

    `foot` is where the characteristic through `(t, x)` meets time `a`. Anchored at `a = 0` it is the published
    residual `u + tH(p) - t p·∇H(p) - u(0, x - t∇H(p))`; at `a = 1` its backward twin. It vanishes for every
    `(t, x)` exactly when `u` solves the Hamilton–Jacobi equation along its own characteristics.

    Args:
        anchor: `a`, 0 or 1 as a scalar array.
        momentum: `value_and_momentum(u, t, x)` where the caller has it already.
    """
    value, p = value_and_momentum(u, t, x) if momentum is None else momentum
    v = cost.grad_hamiltonian(p)
    elapsed = t - anchor
    return value - u(anchor, x - elapsed * v) - elapsed * (p @ v - cost.hamiltonian(p))


def pde_residual(
    u: Potential,
    cost: Cost,
    t: Scalar,
    x: Point,
    *,
    state_cost: Callable[[Point], Scalar] | None = None,
    noise: float = 0.0,
    drift: Callable[[Scalar, Point], Point] | None = None,
) -> Scalar:
    """The plain Hamilton–Jacobi residual `∂t u + f·∇u + H(∇u) - U(x) + ½σ² Δu`, with `H = L*` of the cost.

    Args:
        state_cost: `U >= 0`, evaluated and never differentiated in `t` or `u`.
        noise: `σ`.
        drift: `f(t, x)`, likewise.
    """
    du_dt, p = jax.grad(u, argnums=(0, 1))(t, x)
    residual = du_dt + cost.hamiltonian(p)
    if drift is not None:
        residual = residual + drift(t, x) @ p
    if state_cost is not None:
        residual = residual - state_cost(x)
    if noise:
        residual = residual + 0.5 * noise**2 * laplacian(u, t, x)
    return residual


def laplacian(
    u: Potential, t: Scalar, x: Point, probes: Float[Array, "k d"] | None = None
) -> Scalar:
    """`Δu(t, x)`, the trace of the Hessian in `x`: d forward passes over the gradient, or an estimate.

    Args:
        probes: independent random vectors with unit covariance, for Hutchinson's unbiased estimate
            `mean vᵀ ∇²u v`. Two factors of one product need probes of their own.
    """
    directions = jnp.eye(len(x), dtype=x.dtype) if probes is None else probes
    gradient = jax.grad(lambda x: u(t, x))

    def curvature(v: Point) -> Scalar:
        return v @ jax.jvp(gradient, (x,), (v,))[1]

    curvatures = jax.vmap(curvature)(directions)
    return jnp.sum(curvatures) if probes is None else jnp.mean(curvatures)


def turning(
    u: Potential,
    cost: Cost,
    t: Scalar,
    x: Point,
    drift: Callable[[Scalar, Point], Point] | None = None,
) -> Point:
    """How fast the direction of `v` turns along the flow, `d/dt (v / |v|)`: zero on straight lines.

    The angular acceleration of HOTA's regulariser; the flow is that of `v`, and of the base drift where there is one.
    """

    def direction(t: Scalar, x: Point) -> Point:
        v = velocity(u, cost, t, x)
        return v / (jnp.sqrt(v @ v + jnp.finfo(x.dtype).eps) + 1e-8)

    motion = velocity(u, cost, t, x)
    if drift is not None:
        motion = motion + drift(t, x)
    return jax.jvp(direction, (t, x), (jnp.ones_like(t), motion))[1]
