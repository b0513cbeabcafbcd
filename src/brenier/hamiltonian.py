"""Hamilton–Jacobi operators: pure functions of a potential `u(t, x)`, a cost and one point.

The convention of the whole library: `∂t u + H(∇u) = 0` on t in [0, 1] with `H = L*`, velocity `v = ∇H(∇u)`.
Without a state cost the characteristics are straight lines along which `∇u` is constant and `u` grows at rate
`p·∇H(p) - H(p) = L(∇H(p))`. Everything here acts on one point `x` of shape (d,) and one time; use `jax.vmap`.

References:
    Park, Liu, Zhou and Osher, *Neural Hamilton–Jacobi Characteristic Flows for Optimal Transport*, ICLR 2026.
    Park and Osher, *Neural Implicit Solution Formula for Hamilton–Jacobi Equations*, 2025 (arXiv 2501.19351).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

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


def pde_residual(u: Potential, cost: Cost, t: Scalar, x: Point) -> Scalar:
    """The plain Hamilton–Jacobi residual `∂t u + H(∇u)`."""
    du_dt, p = jax.grad(u, argnums=(0, 1))(t, x)
    return du_dt + cost.hamiltonian(p)
