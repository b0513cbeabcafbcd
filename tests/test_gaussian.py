import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from brenier.errors import InputError
from brenier.gaussian import GaussianPotential, gaussian_cost


def test_one_dimension_by_hand():
    # N(1, 4) to N(5, 1): T(x) = 5 + (x - 1) / 2 and W2² = 4² + (2 - 1)².
    moments = [np.asarray(a) for a in ([1.0], [[4.0]], [5.0], [[1.0]])]
    u = GaussianPotential.from_moments(*moments)
    np.testing.assert_allclose(u.forward(np.array([[3.0]])), [[6.0]])
    np.testing.assert_allclose(u.inverse(np.array([[6.0]])), [[3.0]])
    assert gaussian_cost(*moments) == pytest.approx(8.5)


def test_commuting_covariances_scale_each_axis():
    u = GaussianPotential.from_moments(
        np.zeros(3), np.diag([1.0, 4.0, 9.0]), np.zeros(3), np.diag([4.0, 1.0, 9.0])
    )
    np.testing.assert_allclose(u.matrix, np.diag([2.0, 0.5, 1.0]), atol=1e-12)


def test_from_samples_recovers_moments():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 2)), rng.normal(size=(1500, 2)) @ [[2.0, 1.0], [0.0, 1.0]] + 3.0
    u = GaussianPotential.from_samples(x, y, ridge=0.0)
    images = u.forward(x)
    np.testing.assert_allclose(images.mean(0), y.mean(0), atol=1e-10)
    np.testing.assert_allclose(np.cov(images.T), np.cov(y.T), atol=1e-10)


@pytest.mark.parametrize("n", [2, 5])
def test_fewer_points_than_dimensions_stay_finite(n):
    rng = np.random.default_rng(0)
    u = GaussianPotential.from_samples(rng.normal(size=(n, 8)), rng.normal(size=(n, 8)))
    assert np.isfinite(u.forward(rng.normal(size=(10, 8)))).all()


def test_a_singular_covariance_is_refused_without_a_ridge():
    with pytest.raises(InputError, match="positive definite"):
        GaussianPotential.from_moments(np.zeros(2), np.diag([1.0, 0.0]), np.zeros(2), np.eye(2))


def test_the_cost_of_a_schroedinger_bridge():
    """`σ²` times the least relative entropy of a joint Gaussian to the free motion, by the formula for that entropy."""
    noise, a, b, shift = 0.7, 1.3, 0.4, 0.9
    free = np.array([[a, a], [a, a + noise**2]])

    def entropy(c):
        joint = np.array([[a, c], [c, b]])
        moved = np.linalg.solve(free, np.array([0.0, shift]))
        logs = np.linalg.slogdet(free)[1] - np.linalg.slogdet(joint)[1]
        return 0.5 * (np.trace(np.linalg.solve(free, joint)) - 2.0 + shift * moved[1] + logs)

    least = minimize_scalar(entropy, bounds=(-0.7, 0.7), method="bounded", options={"xatol": 1e-9})
    moments = ([0.0], [[a]], [shift], [[b]])
    found = gaussian_cost(*map(np.asarray, moments), noise=noise)
    np.testing.assert_allclose(found, noise**2 * least.fun, rtol=1e-9)
    np.testing.assert_allclose(
        gaussian_cost(*map(np.asarray, moments), noise=1e-4),
        gaussian_cost(*map(np.asarray, moments)),
        rtol=1e-6,
    )
