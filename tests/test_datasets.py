"""Datasets: toys have the size they promise; exact problems prove their own map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brenier import datasets, metrics
from brenier.costs import Quadratic
from brenier.discrepancies import energy_distance
from brenier.hamiltonian import forward_map, pde_residual

EXACT = {
    "gaussian 1": lambda: datasets.gaussian_pair(1, 3),
    "gaussian 5": lambda: datasets.gaussian_pair(5, jax.random.key(1), mean=2.0),
    "translation": lambda: datasets.translation(datasets.moons, np.array([3.0, -1.0])),
    "cube 1": lambda: datasets.gaussian_to_cube(1),
    "cube 3": lambda: datasets.gaussian_to_cube(3),
    "disc": datasets.gaussian_to_disc,
}
toys = pytest.mark.parametrize("toy", datasets.TOYS.values(), ids=datasets.TOYS)


@pytest.fixture(params=EXACT.values(), ids=EXACT, scope="module")
def exact(request):
    return request.param()


def draw(sampler, n, seed=0):
    return np.asarray(sampler(jax.random.key(seed), n), np.float64)


@toys
def test_toys_are_centred_with_total_variance_two(toy):
    n = 100_000
    x = draw(toy, n)
    assert x.shape == (n, 2)
    # five standard errors
    assert np.all(np.abs(x.mean(0)) < 5 * x.std(0) / np.sqrt(n))
    squares = np.sum(x**2, axis=1)
    assert abs(squares.mean() - 2) < 5 * squares.std() / np.sqrt(n)


@toys
def test_toys_can_be_traced_and_follow_their_key(toy):
    traced = jax.jit(toy, static_argnums=1)
    points = traced(jax.random.key(0), 10)
    # fusion may round differently
    np.testing.assert_allclose(points, toy(jax.random.key(0), 10), rtol=1e-10, atol=1e-12)
    assert not np.allclose(points, traced(jax.random.key(1), 10))
    assert points.dtype == jnp.result_type(float)


def test_checkerboard_covers_the_black_fields_and_only_them():
    x = draw(datasets.checkerboard, 4000) / (np.sqrt(3) / 2) + 2
    fields, counts = np.unique(np.floor(x), axis=0, return_counts=True)
    assert {tuple(f) for f in fields} == {
        (i, j) for i in range(4) for j in range(4) if (i - j) % 2 == 0
    }
    assert counts.min() > 400  # 500 each, deviation 21


def test_eight_gaussians_has_eight_equal_modes():
    x = draw(datasets.eight_gaussians, 4000)
    angle = np.arctan2(x[:, 1], x[:, 0])
    modes = np.round(angle / (np.pi / 4)) % 8
    assert np.bincount(modes.astype(int), minlength=8).min() > 400
    radius = np.sqrt(2 / 1.02)
    centre = radius * np.stack([np.cos(modes * np.pi / 4), np.sin(modes * np.pi / 4)], axis=1)
    assert np.abs(x - centre).max() < 0.55 * radius  # 5.5 of its deviations


def test_two_rings_lie_at_one_radius_and_half_of_it():
    radii = np.linalg.norm(draw(datasets.two_rings, 2000), axis=1) / np.sqrt(2 / 0.63)
    inner, outer = radii[radii < 0.75], radii[radii >= 0.75]
    assert abs(np.median(inner) - 0.5) < 0.02
    assert abs(np.median(outer) - 1.0) < 0.02
    assert 850 < len(inner) < 1150


def test_exact_inverse_undoes_the_map(exact):
    x = draw(exact.source, 500)
    np.testing.assert_allclose(exact.inverse(exact.forward(x)), x, rtol=1e-7, atol=1e-8)


def test_exact_map_is_the_gradient_of_a_convex_function(exact):
    """By Brenier's theorem this and the push-forward below make the map optimal."""
    x, h = draw(exact.source, 50), 1e-5
    jacobian = np.stack(
        [
            (exact.forward(x + h * e) - exact.forward(x - h * e)) / (2 * h)
            for e in np.eye(exact.dim)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=1e-8)  # h²
    assert np.linalg.eigvalsh(jacobian).min() > 0


def test_exact_map_sends_the_source_to_the_target(exact):
    n = 1000
    mapped, y = exact.forward(draw(exact.source, n, 1)), draw(exact.target, n, 2)
    band = metrics.noise_band(y, n, n, key=jax.random.key(3), quantile=0.999)
    assert energy_distance(jnp.asarray(mapped), jnp.asarray(y)) < band
    assert energy_distance(jnp.asarray(mapped + 0.3), jnp.asarray(y)) > band


def test_exact_cost_is_the_mean_cost_of_the_map(exact):
    x = draw(exact.source, 100_000)
    costs = 0.5 * np.sum((exact.forward(x) - x) ** 2, axis=1)
    standard_error = costs.std() / np.sqrt(len(x))
    assert abs(costs.mean() - exact.cost) < 5 * standard_error + 1e-12


@pytest.mark.parametrize("name", ["gaussian 5", "translation"])
def test_exact_potential_solves_the_equation_and_gives_the_map_and_the_cost(name):
    exact = EXACT[name]()
    u, cost = exact.potential, Quadratic()
    x, y = draw(exact.source, 20_000, 1), draw(exact.target, 20_000, 2)

    @jax.vmap
    def check(p):
        return forward_map(u, cost, p), pde_residual(u, cost, jnp.asarray(0.3), p)

    mapped, residual = check(jnp.asarray(x[:50]))
    np.testing.assert_allclose(mapped, exact.forward(x[:50]), atol=1e-12)
    np.testing.assert_allclose(residual, 0, atol=1e-12)
    final = jax.vmap(lambda p: u(jnp.asarray(1.0), p))(jnp.asarray(y))
    initial = jax.vmap(lambda p: u(jnp.asarray(0.0), p))(jnp.asarray(x))
    standard_error = np.hypot(final.std(), initial.std()) / np.sqrt(len(x))
    assert abs(final.mean() - initial.mean() - exact.cost) < 5 * standard_error


def test_exact_inverse_is_finite_at_the_edge_of_a_bounded_target():
    corner = np.full((1, 2), np.sqrt(3), np.float32)
    assert np.isfinite(datasets.gaussian_to_cube(2).inverse(corner)).all()
    rim = np.array([[2.0, 0.0], [0.0, 0.0]])
    assert np.isfinite(datasets.gaussian_to_disc().inverse(rim)).all()
    np.testing.assert_array_equal(datasets.gaussian_to_disc().forward(np.zeros((1, 2))), 0)


def test_gaussian_pair_draws_the_eigenvalues_it_promises():
    stretched = datasets.gaussian_pair(6, 0, log_eigenvalues=(1.0, 1.5))
    x = draw(stretched.source, 50_000)
    logs = np.log(np.linalg.eigvalsh(np.cov(x.T)))
    assert logs.min() > 1.0 - 0.05  # sampling error of an eigenvalue is below 2 %
    assert logs.max() < 1.5 + 0.05


def test_gaussian_pair_follows_its_key_alone():
    pair = datasets.gaussian_pair(4, 7, mean=1.0)
    with jax.enable_x64(False):
        single = datasets.gaussian_pair(4, jax.random.key(7), mean=1.0)
    np.testing.assert_array_equal(pair.potential.stretch, single.potential.stretch)
    assert pair.cost != datasets.gaussian_pair(4, 8, mean=1.0).cost
