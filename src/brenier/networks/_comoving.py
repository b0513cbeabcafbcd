from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.typing import Point, Potential, Scalar

_MATRICES = (
    16  # dimension up to which the coordinates are those of the covariance; beyond, a number
)
_FLATTEST = 0.05  # deviation of a coordinate, in units of that of all


class Comoving(eqx.Module):
    """`s(t) f(t, W(t) (x - m(t)))`: a potential in the frame of a moving cloud, which it sees at unit covariance.

    A cloud that is a hundredth of its way wide, or squeezed through a gap, is a point to a network of `x`. `m`, `s` and
    `W` are linear between nodes at equal distances of time, from 0 to 1, and are not trained.

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
        return self._at(t, self.centers)

    def _at(self, t: Scalar, nodes: Float[Array, "nodes ..."]) -> Float[Array, "..."]:
        nodes, last = jax.lax.stop_gradient(nodes), len(nodes) - 1
        node = jnp.clip(jnp.floor(last * jax.lax.stop_gradient(t)).astype(int), 0, last - 1)
        return nodes[node] + (last * t - node) * (nodes[node + 1] - nodes[node])


def frames(
    x: Float[Array, "nodes n d"], weights: Float[Array, "nodes n"], least: float
) -> tuple[Float[Array, "nodes d"], Float[Array, "nodes"], Float[Array, "nodes b b"]]:
    """`m`, `s` and `W` of `Comoving` for weighted points; `s` at `least` so much."""
    shares = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
    centers = jnp.einsum("kn,knd->kd", shares, x)
    away = x - centers[:, None]
    variances = jnp.einsum("kn,knd->k", shares, away**2) / x.shape[-1] + least**2
    scales = jnp.sqrt(variances)
    if x.shape[-1] > _MATRICES:
        return centers, scales, (1.0 / scales)[:, None, None]
    covariances = jnp.einsum("kn,kni,knj->kij", shares, away, away)
    values, vectors = jnp.linalg.eigh(covariances)
    values = jnp.maximum(values, _FLATTEST**2 * variances[:, None])
    return centers, scales, jnp.einsum("kij,kj,klj->kil", vectors, values**-0.5, vectors)
