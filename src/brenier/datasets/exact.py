"""Transport problems whose optimal map, inverse and cost are known in closed form or to round-off.

All are for the quadratic cost ½|x - y|². Samples are drawn by JAX and unlimited: a score need never
see those of the fit. The maps are references: NumPy, in float64 whatever comes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import quad
from scipy.special import gammainc, gammainccinv, gammaincinv, gammaln, ndtr, ndtri

from brenier.datasets.toys import Sampler
from brenier.errors import InputError
from brenier.gaussian import GaussianPotential, gaussian_cost
from brenier.typing import ArrayLike, Key, Points, Potential

Map = Callable[[ArrayLike], np.ndarray]

Modes = Sequence[tuple[float, float, float]]
"""A Gaussian mixture on the line: weight, mean and standard deviation of each component."""

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
        expected_cost: computes `cost`.
        potential: the Hamilton–Jacobi potential `u(t, x)` where it has a closed form.
        cost: the optimal cost `½ E|x - T(x)|²`, that is `W₂²/2`, computed when it is first read.

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
    expected_cost: Callable[[], float]
    potential: Potential | None = None

    @cached_property
    def cost(self) -> float:
        return self.expected_cost()


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
        expected_cost=lambda: gaussian_cost(m0, S0, m1, S1),
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
        expected_cost=lambda: 0.5 * squared,
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
        expected_cost=lambda: dim * (1 - float(np.sqrt(3 / np.pi))),
    )


def gaussian_to_ball(dim: int = 2) -> ExactProblem:
    """Standard Gaussian to the uniform distribution on the ball of radius `√(d + 2)`.

    Both are radial and have the identity as covariance, so the linear map between them explains
    nothing. The optimal map sends each sphere to the sphere that encloses the same mass:
    `|T(x)| = √(d + 2) P(d/2, |x|²/2)^{1/d}` with the regularised incomplete gamma function `P`. In
    the plane this is `2 √(1 - exp(-|x|²/2))`. The cost is a one-dimensional integral, to 1e-8.

    Args:
        dim: dimension d.

    Raises:
        InputError: `dim` is not positive.

    Example:
        >>> round(float(gaussian_to_ball(2).forward(np.array([[1.0, 0.0]]))[0, 0]), 6)
        1.254543
    """
    _check_dim(dim)
    half, radius = dim / 2, float(np.sqrt(dim + 2))
    # the mass near the origin is (r²/2)^{d/2} / Γ(d/2 + 1)
    slope = radius / np.sqrt(2) * np.exp(-gammaln(half + 1) / dim)

    def in_ball(key: Key, n: int) -> Points:
        outwards, around = jax.random.split(key)
        direction = jax.random.normal(around, (n, dim))
        direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
        return radius * jax.random.uniform(outwards, (n, 1)) ** (1 / dim) * direction

    def outer(r: np.ndarray) -> np.ndarray:
        return radius * gammainc(half, r**2 / 2) ** (1 / dim)

    def inner(r: np.ndarray) -> np.ndarray:
        inside = (r / radius) ** dim
        outside = -np.expm1(dim * np.log(np.clip(r / radius, 1e-300, 1)))
        # each branch keeps the digits of the smaller of the two masses
        halved = np.where(
            inside < 0.5,
            gammaincinv(half, np.minimum(inside, 0.5)),
            gammainccinv(half, np.clip(outside, _RIM, 0.5)),
        )
        return np.sqrt(2 * halved)

    def expected_cost() -> float:
        def overlap(distance: float) -> float:
            r = np.full(1, distance)
            log_density = (dim - 1) * np.log(r) - r * r / 2 - (half - 1) * np.log(2)
            return (r * outer(r) * np.exp(log_density - gammaln(half))).item()

        # 12 deviations of |x|, which is at most 1 wide, on either side
        middle = float(np.sqrt(dim))
        low = max(middle - 12, 0.0)
        # ½ E(|x| - |T(x)|)² = d - E|x||T(x)|
        return dim - quad(overlap, low, middle + 12, points=[middle], epsabs=1e-10)[0]

    return ExactProblem(
        name=f"gaussian_to_ball_{dim}",
        dim=dim,
        source=lambda key, n: jax.random.normal(key, (n, dim)),
        target=in_ball,
        forward=lambda x: _radial(x, outer, slope),
        inverse=lambda y: _radial(y, inner, 1 / slope),
        expected_cost=expected_cost,
    )


def quantile_1d(
    source: Modes = ((1.0, 0.0, 1.0),),
    target: Modes = ((0.3, -1.2, 0.15), (0.5, 0.2, 0.2), (0.2, 1.3, 0.1)),
) -> ExactProblem:
    """One Gaussian mixture on the line to another, by the monotone rearrangement.

    `T = G⁻¹ ∘ F` with the two distribution functions, optimal for every convex cost. `G⁻¹` is found
    by bisection, on whichever tail is the lighter, to the last digit that the density of the target
    supports: the error is about 1e-16 divided by the density at the image. The cost is a
    one-dimensional integral, to 1e-10 of it.

    Args:
        source: weight, mean and standard deviation of each component; weights are normalised. Left
            out, the standard Gaussian.
        target: likewise. Left out, three peaks of different sizes, centred.

    Raises:
        InputError: no component, a weight or deviation that is not positive, a value not finite.

    Example:
        >>> stretched = quantile_1d([(1, 0, 1)], [(1, 5, 2)])
        >>> np.round(stretched.forward(np.array([[-1.0], [3.0]])), 12).tolist()
        [[3.0], [11.0]]
        >>> round(stretched.cost, 10)
        13.0
    """
    mu, nu = _Line.of(source, "source"), _Line.of(target, "target")

    def forward(x: ArrayLike) -> np.ndarray:
        return nu.quantile(*mu.mass(np.asarray(x, np.float64)))

    def inverse(y: ArrayLike) -> np.ndarray:
        return mu.quantile(*nu.mass(np.asarray(y, np.float64)))

    def expected_cost() -> float:
        # the map is smooth between the deviations of both sides; panels that end there converge
        ends = np.concatenate([mu.deviations(), inverse(nu.deviations())])
        ends = np.unique(np.clip(ends, *mu.deviations()[[0, -1]]))
        nodes, weights = np.polynomial.legendre.leggauss(16)
        widths = np.diff(ends)[:, None] / 2
        x = (ends[:-1, None] + widths * (nodes + 1)).reshape(-1, 1)
        squared = (forward(x) - x) ** 2 * mu.density(x)
        return float(0.5 * np.sum((widths * weights).reshape(-1, 1) * squared))

    return ExactProblem(
        name="quantile_1d",
        dim=1,
        source=mu.sample,
        target=nu.sample,
        forward=forward,
        inverse=inverse,
        expected_cost=expected_cost,
    )


@dataclass(frozen=True)
class _Line:
    """A Gaussian mixture on the line; weights, means and deviations have shape (k,)."""

    weights: np.ndarray
    means: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, modes: Modes, name: str) -> _Line:
        table = np.asarray(modes, np.float64)
        if not len(table) or not np.isfinite(table).all() or not (table[:, [0, 2]] > 0).all():
            raise InputError(
                f"Expected {name} as (weight, mean, deviation) of at least one component, finite, "
                f"with positive weights and deviations; found {modes!r}."
            )
        return cls(table[:, 0] / table[:, 0].sum(), table[:, 1], table[:, 2])

    def sample(self, key: Key, n: int) -> Points:
        which, noise = jax.random.split(key)
        component = jax.random.categorical(which, jnp.log(self.weights), shape=(n,))
        z = jax.random.normal(noise, (n,))
        mean, scale = (jnp.asarray(a, z.dtype)[component] for a in (self.means, self.scales))
        return (mean + scale * z)[:, None]

    def mass(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lighter of the masses on both sides of x (n, 1), and the side: -1 left, 1 right."""
        left, right = (self._tail(x, np.full_like(x, side)) for side in (-1.0, 1.0))
        return np.minimum(left, right), np.where(left < right, -1.0, 1.0)

    def quantile(self, mass: np.ndarray, side: np.ndarray) -> np.ndarray:
        """The points (n, 1) that have this mass on this side."""
        # the tail of a normal distribution is zero in float64 beyond 39 deviations
        low = np.full_like(mass, np.min(self.means - 40 * self.scales))
        high = np.full_like(mass, np.max(self.means + 40 * self.scales))
        for _ in range(64):
            middle = 0.5 * (low + high)
            beyond = (self._tail(middle, side) - mass) * side > 0
            low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
        return 0.5 * (low + high)

    def density(self, x: np.ndarray) -> np.ndarray:
        z = (x - self.means) / self.scales
        each = np.exp(-0.5 * z * z) / self.scales
        return (each @ self.weights)[:, None] / np.sqrt(2 * np.pi)

    def deviations(self) -> np.ndarray:
        """Every mean and 12 deviations on either side, sorted, shape (25 k, 1)."""
        points = self.means + np.arange(-12, 13)[:, None] * self.scales
        return np.sort(points, axis=None)[:, None]

    def _tail(self, x: np.ndarray, side: np.ndarray) -> np.ndarray:
        return (ndtr(-side * (x - self.means) / self.scales) @ self.weights)[:, None]


def _radial(x: ArrayLike, radius: Callable[[np.ndarray], np.ndarray], slope: float) -> np.ndarray:
    """Moves points at distance r from the origin to `radius(r)`, whose slope at 0 is given."""
    x = np.asarray(x, np.float64)
    r = np.linalg.norm(x, axis=1, keepdims=True)
    return x * np.divide(radius(r), r, out=np.full_like(r, slope), where=r > 0)


def _check_dim(dim: int) -> None:
    if dim < 1:
        raise InputError(f"Expected a dimension of at least 1, found {dim}.")


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
