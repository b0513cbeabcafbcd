from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from brenier.typing import Point, Potential, Scalar

MATRICES = 16
"""Dimension up to which the coordinates are those of the covariance; beyond, a number scales them."""
_FLATTEST = 0.05  # deviation of a coordinate, in units of that of all


class Comoving(eqx.Module):
    """`s(t) f(t, W(t) (x - m(t)))`: a potential in the frame of a moving cloud, which it sees at unit covariance.

    A cloud that is a hundredth of its way wide, or squeezed through a gap, is a point to a network of `x`. Nodes are at
    equal distances of time, from 0 to 1. Between them `s` and `W` are linear, so that they stay positive, and `m` is
    cubic with slopes of central differences (Catmull and Rom), for where it turns a corner the velocity jumps, and a
    solver's long steps would cut it. None of the three is trained.

    Attributes:
        potential: `f`.
        centers: `m` at the nodes, two at least.
        scales: `s` at the nodes, > 0.
        whitening: `W` at the nodes; a number for a multiple of the identity.

    Example:
        >>> nodes = jnp.array([[0.0], [8.0]]), jnp.array([1.0, 3.0]), jnp.ones((2, 1, 1))
        >>> u = Comoving(lambda t, x: jnp.sum(x**2), *nodes)
        >>> u(jnp.asarray(0.5), jnp.array([8.0])).item()
        32.0
    """

    potential: Potential
    centers: Float[Array, "nodes d"]
    scales: Float[Array, "nodes"]
    whitening: Float[Array, "nodes b b"]

    def __call__(self, t: Scalar, x: Point) -> Scalar:
        matrix, away = self._at(t, self.whitening), x - self.center(t)
        inside = matrix[0] * away if len(matrix) == 1 else matrix @ away
        return self._at(t, self.scales) * self.potential(t, inside)

    def center(self, t: Scalar) -> Point:
        """`m(t)`."""
        nodes = jax.lax.stop_gradient(self.centers)
        node, share = _place(t, len(nodes))
        step, slopes = nodes[node + 1] - nodes[node], jnp.gradient(nodes, axis=0)
        early, late = slopes[node] - step, step - slopes[node + 1]
        bend = share * (1.0 - share) * ((1.0 - share) * early + share * late)
        return nodes[node] + share * step + bend

    def _at(self, t: Scalar, nodes: Float[Array, "nodes ..."]) -> Float[Array, "..."]:
        nodes = jax.lax.stop_gradient(nodes)
        node, share = _place(t, len(nodes))
        return nodes[node] + share * (nodes[node + 1] - nodes[node])


def _place(t: Scalar, nodes: int) -> tuple[Int[Array, ""], Scalar]:
    """The node before `t`, and which share of the way to the next one is over."""
    last = nodes - 1
    node = jnp.clip(jnp.floor(last * jax.lax.stop_gradient(t)).astype(int), 0, last - 1)
    return node, last * t - node


def frames(
    x: Float[Array, "nodes n d"], weights: Float[Array, "nodes n"], least: float
) -> tuple[Float[Array, "nodes d"], Float[Array, "nodes"], Float[Array, "nodes b b"]]:
    """`m`, `s` and `W` of `Comoving` for weighted points; `s` at `least` so much."""
    shares = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
    centers = jnp.einsum("kn,knd->kd", shares, x)
    away = x - centers[:, None]
    variances = jnp.einsum("kn,knd->k", shares, away**2) / x.shape[-1] + least**2
    scales = jnp.sqrt(variances)
    if x.shape[-1] > MATRICES:
        return centers, scales, (1.0 / scales)[:, None, None]
    covariances = jnp.einsum("kn,kni,knj->kij", shares, away, away)
    values, vectors = jnp.linalg.eigh(covariances)
    values = jnp.maximum(values, _FLATTEST**2 * variances[:, None])
    return centers, scales, jnp.einsum("kij,kj,klj->kil", vectors, values**-0.5, vectors)
