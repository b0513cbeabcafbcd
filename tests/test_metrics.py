"""Metrics: exact values on maps and samples small enough to compute by hand."""

import inspect
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist

from brenier import metrics
from brenier.discrepancies import energy_distance
from brenier.errors import InputError
from brenier.state_costs import Disc, JaxFunction, Obstacle

ROUND_OFF = 1e-12


def normal(seed, n, d):
    return np.random.default_rng(seed).normal(size=(n, d))


def energy(x, y, statistic="U"):
    """The definition, word for word."""
    n, m = len(x), len(y)
    within = [(n * (n - 1)), (m * (m - 1))] if statistic == "U" else [n * n, m * m]
    own = cdist(x, x).sum() / within[0] + cdist(y, y).sum() / within[1]
    return 2 * cdist(x, y).mean() - own


def test_uvp_of_a_constant_error_is_its_square_over_the_variance():
    exact = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])  # total variance 1 + 4
    assert metrics.uvp(exact + np.array([0.3, 0.4]), exact) == pytest.approx(
        100 * 0.25 / 5, rel=ROUND_OFF
    )
    assert metrics.uvp(exact + np.array([0.3, 0.4]), exact, 50.0) == pytest.approx(
        0.5, rel=ROUND_OFF
    )


def test_uvp_of_the_exact_map_is_zero_and_of_the_mean_one_hundred():
    exact = normal(0, 50, 3)
    assert metrics.uvp(exact, exact) == 0.0
    mean = np.broadcast_to(exact.mean(0), exact.shape)
    assert metrics.uvp(mean, exact) == pytest.approx(100.0, rel=ROUND_OFF)


def test_cosine_of_parallel_opposite_orthogonal_and_vanishing_displacements():
    x, move = normal(1, 20, 2), normal(2, 20, 2)
    turned = move[:, ::-1] * [1, -1]
    assert metrics.cosine(x, x + 3 * move, x + move) == pytest.approx(1, rel=ROUND_OFF)
    assert metrics.cosine(x, x - move, x + move) == pytest.approx(-1, rel=ROUND_OFF)
    assert metrics.cosine(x, x + turned, x + move) == pytest.approx(0, abs=ROUND_OFF)
    assert np.isnan(metrics.cosine(x, x, x + move))


def test_round_trip_is_relative_to_the_variance_of_the_points():
    x = np.array([[-1.0], [1.0]])
    assert metrics.round_trip(x, x) == 0.0
    assert metrics.round_trip(x, 1.1 * x) == pytest.approx(1.0, rel=ROUND_OFF)
    assert metrics.round_trip(5 * x + 7, 5.5 * x + 7) == pytest.approx(1.0, rel=ROUND_OFF)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_gradients_of_convex_functions_do_not_cross(dim):
    x = normal(3, 200, dim)
    root = normal(4, dim, dim)
    assert metrics.crossing_share(x, x @ (root @ root.T) + 1.0) == 0.0
    assert metrics.crossing_share(x, np.sinh(x)) == 0.0


def test_crossing_share_counts_the_pairs_whose_order_is_reversed():
    x = np.arange(4.0)[:, None]
    assert metrics.crossing_share(x, -x) == 1.0
    assert metrics.crossing_share(x, x[[1, 0, 2, 3]]) == pytest.approx(1 / 6)
    assert metrics.crossing_share(x, np.zeros_like(x)) == 1.0  # all paths meet at time 1


def test_crossing_happens_at_the_time_the_paths_meet():
    x = np.array([[0.0], [1.0]])  # swapped: the paths meet at one half
    swapped = x[::-1]
    assert metrics.crossing_share(x, swapped, time=0.49) == 0.0
    assert metrics.crossing_share(x, swapped, time=0.51) == 1.0


def test_rotations_past_a_right_angle_cross_and_smaller_ones_do_not():
    x = normal(5, 100, 2)

    def rotated(angle):
        c, s = np.cos(angle), np.sin(angle)
        return x @ np.array([[c, s], [-s, c]])

    assert metrics.crossing_share(x, rotated(1.5)) == 0.0
    assert metrics.crossing_share(x, rotated(1.65)) == 1.0


def test_coinciding_points_are_no_pair():
    x = np.array([[0.0], [0.0], [1.0]])
    assert metrics.crossing_share(x, x) == 0.0
    assert metrics.crossing_share(x[:2], x[:2]) == 0.0


@pytest.mark.parametrize("statistic", ["U", "V"])
def test_noise_band_at_quantile_one_is_the_largest_energy_distance_of_all_splits(statistic):
    pool = normal(6, 6, 2) + 1e3  # an offset that a careless Gram matrix would not survive
    splits = [(np.array(s), np.setdiff1d(range(6), s)) for s in itertools.combinations(range(6), 2)]
    largest, a, b = max(
        (energy(pool[a], pool[b], statistic), *map(tuple, (a, b))) for a, b in splits
    )
    ours = energy_distance(*(jnp.asarray(pool[list(g)]) for g in (a, b)), statistic=statistic)
    assert float(ours) == pytest.approx(largest, rel=1e-5)
    # 15 splits: 500 draws miss one of them with probability (14/15)^500 = 1e-15
    band = metrics.noise_band(
        pool, 2, 4, key=jax.random.key(0), permutations=500, quantile=1.0, statistic=statistic
    )
    assert band == pytest.approx(largest, rel=1e-5)  # the offset leaves 11 digits of each point


def test_noise_band_covers_its_quantile_of_independent_pairs():
    draws = [energy(normal(2 * s, 100, 2), normal(2 * s + 1, 60, 2)) for s in range(300)]
    band = metrics.noise_band(
        normal(9, 20_000, 2), 100, 60, key=jax.random.key(1), permutations=2000
    )
    covered = np.mean(np.array(draws) <= band)
    # binomial deviation of 300 draws .013; the band's own, given one pool of 160 points, about .03
    assert 0.87 < covered < 0.995


def test_noise_band_of_a_small_pool_or_large_samples_is_rescaled():
    pool = normal(10, 4000, 2)

    def band(points, n, m, **options):
        return metrics.noise_band(points, n, m, key=jax.random.key(2), permutations=300, **options)

    direct = band(pool, 1500, 1500)
    # the quantile of one subsample of 400 points varies by some 15 %
    assert band(pool[:400], 1500, 1500) == pytest.approx(direct, rel=0.4)
    assert band(pool, 1500, 1500, max_points=500) == pytest.approx(direct, rel=0.4)
    assert band(pool, 15_000, 15_000) == pytest.approx(direct / 10, rel=0.4)


def test_noise_band_is_reproducible_and_depends_on_the_key():
    pool = normal(11, 100, 3)
    first, again, other = (
        metrics.noise_band(pool, 30, 40, key=jax.random.key(k)) for k in (0, 0, 1)
    )
    assert first == again != other


def test_noise_band_does_not_change_the_pool():
    pool = normal(12, 50, 2)
    before = pool.copy()
    metrics.noise_band(pool, 20, 20, key=jax.random.key(0))
    np.testing.assert_array_equal(pool, before)


@pytest.mark.parametrize(("n", "m", "size"), [(1, 5, 20), (5, 1, 20), (5, 5, 3)])
def test_noise_band_needs_points(n, m, size):
    with pytest.raises(InputError, match="at least 2 points"):
        metrics.noise_band(normal(0, size, 2), n, m, key=jax.random.key(0))


def test_noise_band_knows_two_statistics():
    unchecked = inspect.unwrap(metrics.noise_band)  # the type checker of the tests would be first
    with pytest.raises(InputError, match="'U' or 'V'"):
        unchecked(normal(0, 20, 2), 5, 5, key=jax.random.key(0), statistic="W")


def test_scores_refuse_points_of_different_dimensions():
    with pytest.raises(InputError, match=r"\(4, 2\), \(4, 3\)"):
        metrics.uvp(np.zeros((4, 2)), np.zeros((4, 3)))


def test_violations_weigh_time_and_know_the_depth():
    wall = Obstacle(Disc((0.0, 0.0), 1.0))
    beside, through = (
        np.full((4, 1, 2), 5.0),
        np.array([[[3.0, 0]], [[0.4, 0]], [[0, 0.9]], [[3, 0]]]),
    )
    times = np.array([0.0, 0.1, 0.5, 1.0])
    # Inside at 0.1 and at 0.5: half of the intervals before and after, and the whole one between.
    expected = (0.05 + 0.4 + 0.25) / 2
    found = metrics.violations(times, np.concatenate([beside, through], axis=1), wall)
    assert found["time_inside"] == pytest.approx(expected, rel=ROUND_OFF)
    assert found["deepest"] == pytest.approx(0.6, rel=1e-6)
    assert metrics.violations(times, beside, wall) == {"time_inside": 0.0, "deepest": 0.0}
    with pytest.raises(InputError, match="a known obstacle"):
        metrics.violations(times, beside, JaxFunction(lambda x: x @ x))


def test_wasserstein2_squared_of_a_translated_and_shuffled_sample_is_the_squared_shift():
    x = normal(13, 60, 3)
    shuffled = x[np.random.default_rng(0).permutation(60)] + [1.0, 2.0, 2.0]
    assert metrics.wasserstein2_squared(x, shuffled) == pytest.approx(9.0, rel=1e-9)


def test_wasserstein2_squared_of_unequal_samples_splits_mass():
    pytest.importorskip("ot")
    x, y = np.array([[0.0]]), np.array([[-1.0], [3.0]])
    assert metrics.wasserstein2_squared(x, y) == pytest.approx(5.0, rel=ROUND_OFF)


def test_wasserstein2_squared_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"brenier\[bench\]"):
        metrics.wasserstein2_squared(np.zeros((2, 1)), np.zeros((3, 1)))


def test_sliced_wasserstein2_of_a_translation_is_its_mean_projection():
    x = normal(14, 50, 3)
    shift = np.array([3.0, 0.0, 4.0])
    # E (θ·s)² = |s|²/d, at 4000 directions to 3 %
    found = metrics.sliced_wasserstein2(x, x[::-1] + shift, projections=4000)
    assert found == pytest.approx(5.0 / np.sqrt(3), rel=0.03)
    with pytest.raises(InputError, match="of one size"):
        metrics.sliced_wasserstein2(x, x[1:])


def test_kolmogorov_smirnov_is_that_of_scipy_in_every_coordinate():
    x, y = normal(15, 40, 2), np.round(normal(16, 30, 2) + np.ones(2), 1)
    expected = [scipy.stats.ks_2samp(a, b).statistic for a, b in zip(x.T, y.T, strict=True)]
    np.testing.assert_allclose(metrics.kolmogorov_smirnov(x, y), expected, rtol=ROUND_OFF)
