"""Scores of a map against an exact one, against held-out samples, and against itself.

All of them are reports, not losses: they take NumPy or JAX arrays of points, shape (n, d), compute
in float64 on the host and return a Python float. The energy distance, which is a report and a loss,
is in `brenier.discrepancies`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from brenier.discrepancies import Statistic
from brenier.errors import InputError
from brenier.state_costs import StateCost, evaluate_at
from brenier.typing import ArrayLike, Key


def total_variance(x: ArrayLike) -> float:
    """Trace of the covariance, `E|x - E x|²`: the yardstick of the relative errors below."""
    (x,) = _host(x)
    return float(np.sum(np.var(x, axis=0)))


def uvp(mapped: ArrayLike, exact: ArrayLike, variance: float | None = None) -> float:
    """Unexplained variance percentage, `100 E|T(x) - T*(x)|² / Var(target)`.

    Zero is exact; 100 is as bad as sending every point to the mean of the target. For the inverse
    map pass `S(y)`, `S*(y)` and the variance of the *source*.

    Args:
        mapped: images `T(x)` of fresh source points under the map in question.
        exact: images `T*(x)` of the same points under the optimal map.
        variance: total variance of the target. Left out, that of `exact`, which is a sample of it.

    Example:
        >>> exact = np.array([[0.0], [2.0]])
        >>> round(uvp(exact + 0.1, exact), 6)
        1.0

    Reference:
        Korotin et al. 2021, "Do Neural Optimal Transport Solvers Work?", section 4.1 (L²-UVP).
    """
    mapped, exact = _host(mapped, exact)
    scale = total_variance(exact) if variance is None else float(variance)
    return 100.0 * _mean_square(mapped - exact) / scale


def cosine(x: ArrayLike, mapped: ArrayLike, exact: ArrayLike) -> float:
    """Cosine in L² between the displacements `T - id` and `T* - id`.

    One is exact; NaN where either displacement vanishes everywhere.

    Reference:
        Korotin et al. 2021, "Do Neural Optimal Transport Solvers Work?", section 4.1 (cos).
    """
    x, mapped, exact = _host(x, mapped, exact)
    found, expected = mapped - x, exact - x
    norms = np.sqrt(_mean_square(found) * _mean_square(expected))
    return float(np.mean(np.sum(found * expected, axis=1)) / norms) if norms > 0 else float("nan")


def round_trip(x: ArrayLike, returned: ArrayLike) -> float:
    """Round-trip error, `100 E|S(T(x)) - x|² / Var(x)`, in percent: needs no ground truth.

    Args:
        x: points of the source.
        returned: the same points after the forward and then the inverse map.
    """
    x, returned = _host(x, returned)
    return 100.0 * _mean_square(returned - x) / total_variance(x)


def crossing_share(
    x: ArrayLike, mapped: ArrayLike, *, time: float = 1.0, max_points: int = 1000
) -> float:
    """Share of the pairs of points whose straight paths cross, or meet, by `time`.

    With `X_t = (1-t) x + t T(x)`, optimal paths keep `<X_t - X'_t, x - x'> > 0` for all pairs and
    all `t < 1`. The product is affine in `t` and positive at 0, so its sign at `time` speaks for
    every earlier time; at time 1 the pairs counted are those along which the map is not strictly
    monotone. Coinciding points are no pair.

    Args:
        x: starting points.
        mapped: their images `T(x)`.
        time: the time up to which the paths are watched, in (0, 1].
        max_points: pairs are taken among the first `max_points` points.

    Returns:
        A number in [0, 1]; zero for the optimal map.

    Example:
        >>> x = np.array([[0.0], [1.0], [2.0]])
        >>> crossing_share(x, 3 * x), crossing_share(x, -x)
        (0.0, 1.0)

    Reference:
        Villani 2009, "Optimal Transport: Old and New", chapter 8: optimal paths do not cross.
    """
    x, mapped = _host(x[:max_points], mapped[:max_points])
    apart, together = np.zeros((2, len(x), len(x)))
    # one coordinate at a time: differences are exact for coinciding points, and memory stays n²
    for start, end in zip(x.T, mapped.T, strict=True):
        difference = np.subtract.outer(start, start)
        apart += difference**2
        together += difference * np.subtract.outer(end, end)
    pairs = apart > 0
    crossing = (1 - time) * apart + time * together <= 0
    return float(np.sum(pairs & crossing) / max(np.sum(pairs), 1))


def violations(times: Any, points: ArrayLike, state_cost: StateCost) -> dict[str, float]:
    """How much of the paths lies in the hard obstacle, judged at the given times.

    Args:
        times: increasing, shape (k,) with k >= 2; a wall that is crossed between two of them is not
            seen.
        points: shape (k, n, d), as `Transport.trajectory` gives them.
        state_cost: with an obstacle.

    Returns:
        `time_inside`: the share of the time inside, over all paths. `deepest`: the largest depth,
        a length; 0 without a violation.

    Example:
        >>> from brenier.state_costs import Disc, Obstacle
        >>> across = np.linspace([[-1.0, 0.0]], [[1.0, 0.0]], 5)
        >>> violations(np.linspace(0, 1, 5), across, Obstacle(Disc((0.0, 0.0), 0.3)))["time_inside"]
        0.25
    """
    obstacle = state_cost.obstacle
    if obstacle is None:
        raise InputError(
            "Expected a state cost with a known obstacle, found one without; give it a shape."
        )
    places = np.reshape(points, (-1, np.shape(points)[-1]))
    inside, depth = (evaluate_at(f, places) for f in (obstacle.inside, state_cost.depth))
    at_times = np.reshape(inside, (len(times), -1)).mean(axis=1)
    share = np.trapezoid(at_times, times) / (times[-1] - times[0])
    return {"time_inside": float(share), "deepest": float(depth.max())}


def noise_band(
    pool: ArrayLike,
    n: int,
    m: int,
    *,
    key: Key,
    permutations: int = 200,
    quantile: float = 0.95,
    statistic: Statistic = "U",
    max_points: int = 4096,
) -> float:
    """Energy distance that sampling noise alone gives between `n` and `m` points of one law.

    The pool is split at random into groups of `n` and `m` points, again and again, and the quantile
    of the energy distance between the groups is returned: a held-out energy distance below it
    cannot be told from zero at this sample size. All splits share one distance matrix `D`; the sums
    of distances within and across the groups follow from the product `S D` with the 0/1 matrix `S`
    of the splits.

    Under the null hypothesis the statistic is degenerate: its noise is proportional to `1/n + 1/m`.
    So where the pool is smaller than `n + m`, or `n + m` larger than `max_points`, the split is
    made at smaller sizes in the same proportion and the result is rescaled. Time and memory are
    bounded whatever `n` and `m` are.

    Args:
        pool: samples of one distribution, or two samples pooled as if they were of one.
        n: size of the first sample of the energy distance to be judged.
        m: size of the second.
        key: random key of the subsample and the splits.
        permutations: number of random splits.
        quantile: level of the band.
        statistic: "U" or "V", as in `brenier.discrepancies.energy_distance`.
        max_points: largest number of points in the distance matrix.

    Raises:
        InputError: fewer than two points in a sample, fewer than four in the pool.

    Example:
        >>> pool = jax.random.normal(jax.random.key(0), (1000, 2))
        >>> noise_band(pool, 500, 500, key=jax.random.key(1)) < 0.02
        True

    Reference:
        Székely & Rizzo 2013, "Energy statistics", sections 6 and 7: permutation test, degenerate
        kernels.
    """
    (pool,) = _host(pool)
    if min(n, m) < 2 or len(pool) < 4:
        raise InputError(
            "A noise band needs at least 2 points in each sample and 4 in the pool, "
            f"found n={n}, m={m} and a pool of {len(pool)}; pass more points."
        )
    if statistic not in ("U", "V"):
        raise InputError(f"Expected statistic 'U' or 'V', found {statistic!r}.")

    size = min(n + m, len(pool), max_points)
    first = min(max(round(size * n / (n + m)), 2), size - 2)
    second = size - first
    # NumPy's generator, seeded by the key: under jit, permutations cost more to compile than to run
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    points = pool[generator.choice(len(pool), size, replace=False)]
    distances = _distances(points)

    in_first = np.tile((np.arange(size) < first).astype(np.float64), (permutations, 1))
    in_first = generator.permuted(in_first, axis=1)
    within_first = np.sum((in_first @ distances) * in_first, axis=1)
    across = in_first @ distances.sum(axis=1) - within_first
    within_second = distances.sum() - 2 * across - within_first
    # the U-statistic leaves the distance of a point to itself out of the means
    left_out = 1 if statistic == "U" else 0
    values = (
        2 * across / (first * second)
        - within_first / (first * (first - left_out))
        - within_second / (second * (second - left_out))
    )
    return float(np.quantile(values, quantile)) * (1 / n + 1 / m) / (1 / first + 1 / second)


def wasserstein2_squared(x: ArrayLike, y: ArrayLike) -> float:
    """Exact `W₂²` between two samples: twice the optimal cost under `½|v|²`.

    An assignment between as many points, else a linear programme, which needs POT (the `bench`
    extra installs it): time grows like the cube of the number of points, a few thousand are
    practical.

    Example:
        >>> wasserstein2_squared(np.array([[0.0], [1.0]]), np.array([[3.0], [2.0]]))
        4.0
    """
    x, y = _host(x, y)
    costs = cdist(x, y, "sqeuclidean")
    if len(x) == len(y):
        return float(costs[linear_sum_assignment(costs)].mean())
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "The exact W2 between different numbers of points needs the package POT, which is not "
            "installed; try `pip install brenier[bench]`."
        ) from error
    return float(np.sum(np.asarray(ot.emd([], [], costs, numItermax=2_000_000)) * costs))


def sliced_wasserstein2(
    x: ArrayLike, y: ArrayLike, *, seed: int = 0, projections: int = 32
) -> float:
    """Sliced `W₂` between samples of one size: the root mean square of `W₂` along random lines.

    Args:
        x, y: points of shape (n, d).
        seed: of the lines.
        projections: number of lines; one in one dimension.

    Raises:
        InputError: samples of different sizes.

    Example:
        >>> sliced_wasserstein2(np.array([[0.0], [1.0]]), np.array([[3.0], [2.0]]))
        2.0

    Reference:
        Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures".
    """
    x, y = _host(x, y)
    if len(x) != len(y):
        raise InputError(
            f"Expected two samples of one size, found {len(x)} and {len(y)} points; cut the larger."
        )
    dim = x.shape[1]
    directions = np.ones((1, 1))
    if dim > 1:
        directions = np.random.default_rng(seed).normal(size=(dim, projections))
        directions /= np.linalg.norm(directions, axis=0)
    apart = np.sort(x @ directions, axis=0) - np.sort(y @ directions, axis=0)
    return float(np.sqrt(np.mean(apart**2)))


def kolmogorov_smirnov(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """The largest difference of the distribution functions, coordinate by coordinate, shape (d,).

    Example:
        >>> kolmogorov_smirnov(np.array([[0.0], [1.0]]), np.array([[0.5], [2.0]])).tolist()
        [0.5]
    """
    x, y = _host(x, y)

    def largest(a: np.ndarray, b: np.ndarray) -> float:
        at = np.concatenate([a, b])
        shares = (np.searchsorted(np.sort(p), at, side="right") / len(p) for p in (a, b))
        return float(np.max(np.abs(np.subtract(*shares))))

    return np.array([largest(a, b) for a, b in zip(x.T, y.T, strict=True)])


def _host(*arrays: ArrayLike) -> tuple[np.ndarray, ...]:
    """Float64 NumPy arrays of points of one dimension."""
    points = tuple(np.asarray(array, dtype=np.float64) for array in arrays)
    if any(p.ndim != 2 or p.shape[1] != points[0].shape[1] for p in points):
        raise InputError(
            "Expected points of shape (n, d) with one d for all arrays, "
            f"found shapes {', '.join(str(p.shape) for p in points)}."
        )
    return points


def _mean_square(x: np.ndarray) -> float:
    return float(np.mean(np.sum(x * x, axis=1)))


def _distances(x: np.ndarray) -> np.ndarray:
    """Pairwise Euclidean distances, shape (n, n)."""
    x = x - x.mean(axis=0)  # the Gram form loses digits far from the origin
    squares = np.sum(x * x, axis=1)
    distances = squares[:, None] + squares[None, :] - 2 * (x @ x.T)
    np.fill_diagonal(distances, 0.0)
    return np.sqrt(np.maximum(distances, 0.0, out=distances), out=distances)
