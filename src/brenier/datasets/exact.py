"""Transport problems whose optimal map, inverse and cost are known in closed form.

All are for the quadratic cost ½|x - y|². Samples are drawn by JAX and unlimited: a score need never
see those of the fit. The maps are references: NumPy, in float64 whatever comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import quad
from scipy.special import ndtr, ndtri

from brenier.datasets.toys import Sampler
from brenier.gaussian import GaussianPotential, gaussian_cost
from brenier.typing import ArrayLike, Key, Points, Potential

Map = Callable[[ArrayLike], np.ndarray]

_RIM = 2.0**-24
"""Mass at the edge of a bounded set that float32 cannot resolve; its image stays finite."""


@dataclass(frozen=True)
class ExactProblem:
    """Two distributions and the optimal transport between them, cost ½|x - y|².

    Attributes:
        name: a short name for tables.
        dim: dimension d of the points.
        source, target: `(key, n) -> points (n, d)`, traceable by JAX.
        forward: the optimal map `T`, points (n, d) to points (n, d).
        inverse: its inverse `S`.
        cost: the optimal cost `½ E|x - T(x)|²`, that is `W₂²/2`.
        potential: the Hamilton–Jacobi potential `u(t, x)` where it has a closed form.

    Example:
        >>> exact = gaussian_to_cube(dim=1)
        >>> x = exact.source(jax.random.key(0), 3)
        >>> bool(np.allclose(exact.inverse(exact.forward(x)), x))
        True
    """

    name: str
    dim: int
    source: Sampler
    target: Sampler
    forward: Map
    inverse: Map
    cost: float
    potential: Potential | None = None


def gaussian_pair(
    dim: int,
    key: Key | int = 0,
    *,
    log_eigenvalues: tuple[float, float] = (-float(np.log(2)), float(np.log(2))),
    mean: float = 0.0,
) -> ExactProblem:
    """Two random Gaussians: uniform eigenvectors, eigenvalues uniform in the logarithm.

    Args:
        dim: dimension d.
        key: random key, or an integer seed, of the two covariances and means.
        log_eigenvalues: interval of the logarithms of the eigenvalues of both covariances.
        mean: standard deviation of the coordinates of both means; 0 centres both.

    Example:
        >>> gaussian_pair(2, key=1).forward(np.zeros((1, 2))).tolist()
        [[0.0, 0.0]]

    Reference:
        Park, Liu, Zhou & Osher 2026, "Neural Hamilton-Jacobi Characteristic Flows for Optimal
        Transport", the experiments on Gaussians.
    """
    key = jax.random.key(key) if isinstance(key, int) else key
    sides = [_random_gaussian(k, dim, log_eigenvalues, mean) for k in jax.random.split(key)]
    (m0, S0, source), (m1, S1, target) = sides
    potential = GaussianPotential.from_moments(m0, S0, m1, S1)
    return ExactProblem(
        name=f"gaussian_pair_{dim}",
        dim=dim,
        source=source,
        target=target,
        forward=potential.forward,
        inverse=potential.inverse,
        cost=gaussian_cost(m0, S0, m1, S1),
        potential=potential,
    )


def translation(source: Sampler, shift: ArrayLike) -> ExactProblem:
    """Any distribution and itself moved by `shift`, shape (d,): `T(x) = x + shift`."""
    shift = np.asarray(shift, np.float64)
    squared = float(shift @ shift)

    def target(key: Key, n: int) -> Points:
        points = source(key, n)
        return points + shift.astype(points.dtype)[None, :]

    return ExactProblem(
        name="translation",
        dim=len(shift),
        source=source,
        target=target,
        forward=lambda x: np.asarray(x) + shift,
        inverse=lambda y: np.asarray(y) - shift,
        cost=0.5 * squared,
        potential=lambda t, x: jnp.dot(x, shift.astype(x.dtype)) - 0.5 * t * squared,
    )


def gaussian_to_cube(dim: int = 1) -> ExactProblem:
    """Standard Gaussian to the uniform distribution on the cube `[-√3, √3]^d`, of equal covariance.

    The quantile map acts on each coordinate, `T(x) = √3 (2Φ(x) - 1)`; in one dimension this is the
    monotone rearrangement, which is optimal for every convex cost. The linear map between the two
    is the identity, so it explains nothing.
    """
    side = float(np.sqrt(3))
    return ExactProblem(
        name=f"gaussian_to_cube_{dim}",
        dim=dim,
        source=lambda key, n: jax.random.normal(key, (n, dim)),
        target=lambda key, n: jax.random.uniform(key, (n, dim), minval=-side, maxval=side),
        forward=lambda x: side * (2 * ndtr(np.asarray(x, np.float64)) - 1),
        inverse=lambda y: ndtri(
            np.clip((np.asarray(y, np.float64) / side + 1) / 2, _RIM, 1 - _RIM)
        ),
        # E x T(x) = √3 E T'(x)/√3 by Stein's lemma, = 2 √3 E φ(x) = √(3/π)
        cost=dim * (1 - float(np.sqrt(3 / np.pi))),
    )


def gaussian_to_disc() -> ExactProblem:
    """Standard Gaussian in the plane to the uniform distribution on the disc of radius 2.

    Both are radial and have the identity as covariance; the map sends each circle to the circle
    that encloses the same mass, `|T(x)| = 2 √(1 - exp(-|x|²/2))`.
    """

    def on_disc(key: Key, n: int) -> Points:
        area, around = jax.random.split(key)
        radius = 2 * jnp.sqrt(jax.random.uniform(area, (n,)))
        angle = 2 * jnp.pi * jax.random.uniform(around, (n,))
        return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=1)

    # ½ E(|x| - |T(x)|)² = 2 - E|x||T(x)|, with the mass outside the circle uniform on [0, 1]
    overlap, _ = quad(lambda outside: np.sqrt(-8 * np.log(outside) * (1 - outside)), 0, 1)
    return ExactProblem(
        name="gaussian_to_disc",
        dim=2,
        source=lambda key, n: jax.random.normal(key, (n, 2)),
        target=on_disc,
        forward=lambda x: _radial(x, lambda r: 2 * np.sqrt(-np.expm1(-(r**2) / 2)), np.sqrt(2)),
        inverse=lambda y: _radial(
            y, lambda r: np.sqrt(-2 * np.log1p(-np.minimum(r**2 / 4, 1 - _RIM))), np.sqrt(0.5)
        ),
        cost=2 - overlap,
    )


def _radial(x: ArrayLike, radius: Callable[[np.ndarray], np.ndarray], slope: float) -> np.ndarray:
    """Moves points at distance r from the origin to `radius(r)`, whose slope at 0 is given."""
    x = np.asarray(x, np.float64)
    r = np.linalg.norm(x, axis=1, keepdims=True)
    return x * np.divide(radius(r), r, out=np.full_like(r, slope), where=r > 0)


def _random_gaussian(
    key: Key, dim: int, log_eigenvalues: tuple[float, float], mean: float
) -> tuple[np.ndarray, np.ndarray, Sampler]:
    """Mean, covariance and sampler of one random Gaussian, the same whatever the default dtype."""
    along, across, where = jax.random.split(key, 3)
    low, high = log_eigenvalues
    eigenvalues = jnp.exp(jax.random.uniform(along, (dim,), jnp.float32, low, high))
    # the sign convention of the decomposition makes the orthogonal factor Haar distributed
    Q, R = np.linalg.qr(np.asarray(jax.random.normal(across, (dim, dim), jnp.float32), np.float64))
    Q = Q * np.sign(np.diag(R))
    centre = mean * np.asarray(jax.random.normal(where, (dim,), jnp.float32), np.float64)
    root = Q * np.sqrt(np.asarray(eigenvalues, np.float64))

    def sampler(key: Key, n: int) -> Points:
        z = jax.random.normal(key, (n, dim))
        full = jax.lax.Precision.HIGHEST  # a covariance that is exact on every device
        spread = jnp.matmul(z, root.T.astype(z.dtype), precision=full)
        return spread + centre.astype(z.dtype)[None, :]

    return centre, root @ root.T, sampler
