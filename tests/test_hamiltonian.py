"""The Hamilton–Jacobi operators against the Gaussian closed form: every identity to round-off.

The oracle is not symmetric in its two sides and its means differ, so a flipped sign, a swapped side or a swapped
time anywhere in the operators breaks at least one of these tests.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brenier.costs import Quadratic
from brenier.gaussian import GaussianPotential, gaussian_cost
from brenier.hamiltonian import (
    backward_map,
    characteristic,
    forward_map,
    implicit_residual,
    pde_residual,
    velocity,
)

COST = Quadratic()
TIMES = np.linspace(0.0, 1.0, 7)


def random_moments(dim, seed):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(2, dim, dim))
    covariances = roots @ roots.transpose(0, 2, 1) + 0.5 * np.eye(dim)
    means = rng.normal(size=(2, dim)) * 2.0
    return means[0], covariances[0], means[1], covariances[1]


@pytest.fixture(params=[1, 3], ids=lambda d: f"d={d}")
def gaussian(request):
    moments = random_moments(request.param, request.param)
    points = np.random.default_rng(0).normal(size=(20, request.param)) * 2.0
    return GaussianPotential.from_moments(*moments), moments, jnp.asarray(points)


def over_times_and_points(f, points):
    @jax.jit
    def values(times, points):
        return jax.vmap(lambda t: jax.vmap(lambda x: f(t, x))(points))(times)

    return values(jnp.asarray(TIMES), points)


@pytest.mark.parametrize("anchor", [0.0, 1.0])
def test_implicit_residual_vanishes(gaussian, anchor):
    u, _, points = gaussian
    r = over_times_and_points(
        lambda t, x: implicit_residual(u, COST, t, x, jnp.asarray(anchor)), points
    )
    np.testing.assert_allclose(r, 0.0, atol=1e-9)


def test_pde_residual_vanishes(gaussian):
    u, _, points = gaussian
    r = over_times_and_points(lambda t, x: pde_residual(u, COST, t, x), points)
    np.testing.assert_allclose(r, 0.0, atol=1e-9)


def test_gradient_is_constant_along_characteristics(gaussian):
    u, _, points = gaussian

    def difference(t, x):
        at_start = jax.grad(u, argnums=1)(jnp.zeros(()), x)
        along = characteristic(u, COST, jnp.zeros(()), x, t)
        return jax.grad(u, argnums=1)(t, along) - at_start

    np.testing.assert_allclose(over_times_and_points(difference, points), 0.0, atol=1e-10)


def test_maps_push_the_moments_and_invert_each_other(gaussian):
    u, (m0, S0, m1, S1), points = gaussian
    forward = jax.jit(jax.vmap(lambda x: forward_map(u, COST, x)))
    backward = jax.jit(jax.vmap(lambda y: backward_map(u, COST, y)))
    np.testing.assert_allclose(forward(jnp.asarray(m0)[None])[0], m1, atol=1e-10)
    A = jax.jit(jax.jacobian(lambda x: forward_map(u, COST, x)))(jnp.asarray(m0))
    np.testing.assert_allclose(A @ S0 @ A.T, S1, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(A, A.T, atol=1e-10)
    assert np.linalg.eigvalsh(A).min() > 0.0
    np.testing.assert_allclose(backward(forward(points)), points, atol=1e-10)
    np.testing.assert_allclose(forward(points), u.forward(points), atol=1e-10)
    np.testing.assert_allclose(backward(points), u.inverse(points), atol=1e-10)


def test_velocity_moves_forward_in_time(gaussian):
    u, _, points = gaussian
    t, dt = jnp.asarray(0.3), 1e-6

    @jax.jit
    @jax.vmap
    def moved(x):
        place, later = (characteristic(u, COST, jnp.zeros(()), x, s) for s in (t, t + dt))
        return place, later, velocity(u, COST, t, place)

    place, later, v = moved(points)
    np.testing.assert_allclose((later - place) / dt, v, rtol=1e-4, atol=1e-6)


@eqx.filter_jit
def expectation(u, t, mean, covariance):  # exact: u is quadratic
    return u(t, mean) + 0.5 * jnp.trace(jax.hessian(u, argnums=1)(t, mean) @ covariance)


def test_dual_value_is_the_optimal_cost(gaussian):
    u, (m0, S0, m1, S1), _ = gaussian
    dual = expectation(u, jnp.ones(()), m1, S1) - expectation(u, jnp.zeros(()), m0, S0)
    np.testing.assert_allclose(dual, gaussian_cost(m0, S0, m1, S1), rtol=1e-10)
    A = u.matrix
    static = 0.5 * (
        np.sum((m1 - m0) ** 2) + np.trace((A - np.eye(len(A))) @ S0 @ (A - np.eye(len(A))))
    )
    np.testing.assert_allclose(dual, static, rtol=1e-9)


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_with_noise_it_is_the_bridge(dim, noise):
    m0, S0, m1, S1 = random_moments(dim, dim)
    u = GaussianPotential.from_moments(m0, S0, m1, S1, noise=noise)
    points = jnp.asarray(np.random.default_rng(0).normal(size=(20, dim)) * 2.0)
    r = over_times_and_points(lambda t, x: pde_residual(u, COST, t, x, noise=noise), points)
    np.testing.assert_allclose(r, 0.0, atol=1e-9)
    assert (
        np.abs(over_times_and_points(lambda t, x: pde_residual(u, COST, t, x), points)).max() > 0.01
    )

    # dS/dt = M S + S M + σ² I, by many small steps
    S, steps = S0, 20_000
    curvature = jax.jit(jax.hessian(u, argnums=1))
    times = (np.arange(steps) + 0.5) / steps
    for M in np.asarray(jax.vmap(curvature, (0, None))(jnp.asarray(times), jnp.asarray(m0))):
        middle = S + (M @ S + S @ M + noise**2 * np.eye(dim)) / (2 * steps)
        S = S + (M @ middle + middle @ M + noise**2 * np.eye(dim)) / steps
    np.testing.assert_allclose(S, S1, rtol=1e-5, atol=1e-5)

    dual = expectation(u, jnp.ones(()), m1, S1) - expectation(u, jnp.zeros(()), m0, S0)
    np.testing.assert_allclose(dual, gaussian_cost(m0, S0, m1, S1, noise=noise), rtol=1e-9)


@pytest.mark.parametrize("operator", ["forward", "backward", "pde"])
def test_residuals_ignore_an_additive_constant(gaussian, operator):
    u, _, points = gaussian
    wrong = lambda t, x: u(t, x) + 0.3 * jnp.sum(x**3) * (1 + t)  # noqa: E731
    residual = {
        "forward": lambda u, t, x: implicit_residual(u, COST, t, x, jnp.zeros(())),
        "backward": lambda u, t, x: implicit_residual(u, COST, t, x, jnp.ones(())),
        "pde": lambda u, t, x: pde_residual(u, COST, t, x),
    }[operator]
    r = over_times_and_points(lambda t, x: residual(wrong, t, x), points)
    shifted = over_times_and_points(
        lambda t, x: residual(lambda t, x: wrong(t, x) + 7.0, t, x), points
    )
    assert np.abs(r).max() > 0.1
    np.testing.assert_allclose(shifted, r, atol=1e-8 * np.abs(r).max())


def test_a_constant_potential_is_the_identity_and_has_no_residual():
    constant = lambda t, x: jnp.asarray(3.0)  # noqa: E731
    x = jnp.asarray([1.0, -2.0])
    np.testing.assert_array_equal(forward_map(constant, COST, x), x)
    np.testing.assert_array_equal(backward_map(constant, COST, x), x)
    assert implicit_residual(constant, COST, jnp.asarray(0.4), x, jnp.zeros(())) == 0.0


def test_the_wrong_branch_is_seen_by_the_residual_only():
    # N(0,1) to itself by T = -x: the forward match is perfect, the Hamilton–Jacobi equation is violated.
    wrong = lambda t, x: -jnp.sum(x**2)  # noqa: E731
    x = jnp.asarray([[0.7], [-1.3]])
    np.testing.assert_allclose(jax.vmap(lambda x: forward_map(wrong, COST, x))(x), -x)
    np.testing.assert_allclose(jax.vmap(lambda x: backward_map(wrong, COST, x))(x), 3.0 * x)
    r = implicit_residual(wrong, COST, jnp.asarray(0.5), x[0], jnp.zeros(()))
    assert abs(r) > 0.1


@pytest.mark.parametrize(
    "flip",
    [
        lambda u: lambda t, x: -u(t, x),
        lambda u: lambda t, x: u(1.0 - t, x),
        lambda u: lambda t, x: u(t, -x),
    ],
    ids=["sign", "time", "space"],
)
def test_a_flip_of_the_oracle_is_caught(gaussian, flip):
    u, _, points = gaussian
    wrong = flip(u)
    moved = jax.jit(jax.vmap(lambda x: forward_map(wrong, COST, x)))(points)
    assert np.abs(moved - u.forward(points)).max() > 1e-3
