"""The frame that goes along with the particles: what it shows to the potential, and its derivatives at the nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline

from brenier.networks import Comoving
from brenier.networks._comoving import frames

RNG = np.random.default_rng(0)


def moving(dim, matrices):
    nodes = 4
    whitening = RNG.normal(size=(nodes, dim, dim)) if matrices else np.ones((nodes, 1, 1)) * 2.0
    f = lambda t, x: jnp.sin(x).sum() + t * (x @ x)  # noqa: E731
    centers, scales = RNG.normal(size=(nodes, dim)), np.array([1.0, 2.0, 0.5, 0.7])
    return f, Comoving(f, *map(jnp.asarray, (centers, scales, whitening)))


@pytest.mark.parametrize("matrices", [True, False])
def test_the_potential_sees_centred_and_whitened_points(matrices):
    f, u = moving(3, matrices)
    x, t = jnp.asarray(RNG.normal(size=3)), jnp.asarray(0.5)  # in the middle of nodes 1 and 2
    w = 0.5 * (u.whitening[1] + u.whitening[2]) * (1.0 if matrices else jnp.eye(3))
    inside = w @ (x - u.center(t))
    np.testing.assert_allclose(u(t, x), 1.25 * f(t, inside), rtol=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.15, 0.5, 0.8, 1.0])
def test_the_centre_is_the_spline_of_catmull_and_rom(t):
    _, u = moving(2, matrices=False)
    nodes = np.asarray(u.centers)
    spline = CubicHermiteSpline(np.linspace(0.0, 1.0, 4), nodes, 3.0 * np.gradient(nodes, axis=0))
    center, speed = jax.jvp(u.center, (jnp.asarray(t),), (jnp.ones(()),))
    np.testing.assert_allclose(center, spline(t), rtol=1e-12)
    np.testing.assert_allclose(speed, spline(t, 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.2, 1.0])
def test_derivatives_are_those_of_differences_at_the_ends_too(t):
    _, u = moving(2, matrices=True)
    x, e = jnp.asarray(RNG.normal(size=2)), 1e-6
    inner = np.clip(t, e, 1.0 - e)  # the potential is extended beyond the ends
    late, early = (u(jnp.asarray(inner + s * e), x) for s in (1, -1))
    rate = (late - early) / (2.0 * e)
    np.testing.assert_allclose(jax.grad(u)(jnp.asarray(t), x), rate, rtol=1e-4)


def test_frames_are_not_trained():
    _, u = moving(2, matrices=True)
    t, x = jnp.asarray(0.3), jnp.ones(2)
    slopes = jax.grad(lambda *frames: Comoving(u.potential, *frames)(t, x), (0, 1, 2))
    for slope in slopes(u.centers, u.scales, u.whitening):
        np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("dim", [2, 20])
def test_frames_of_points_centre_and_whiten_them(dim):
    x = RNG.normal(size=(1, 4000, dim)) @ (RNG.normal(size=(dim, dim)) / dim**0.5) + 3.0
    weights = RNG.uniform(size=(1, 4000))
    centers, scales, whitening = frames(jnp.asarray(x), jnp.asarray(weights), 0.0)
    share = weights[0] / weights.sum()
    np.testing.assert_allclose(centers[0], share @ x[0], rtol=1e-9)
    away = x[0] - np.asarray(centers[0])
    covariance = (share[:, None] * away).T @ away
    np.testing.assert_allclose(scales[0], np.sqrt(np.trace(covariance) / dim), rtol=1e-9)
    if dim == 2:
        w = np.asarray(whitening[0])
        np.testing.assert_allclose(w @ covariance @ w, np.eye(2), atol=1e-9)
    else:  # beyond 16 dimensions a number
        np.testing.assert_allclose(whitening, 1.0 / scales[:, None, None])


def test_frames_of_a_point_or_a_line_stay_finite():
    line = np.zeros((2, 50, 2))
    line[1, :, 0] = RNG.normal(size=50)
    _, scales, whitening = frames(jnp.asarray(line), jnp.ones((2, 50)), 1e-2)
    assert scales[0] == pytest.approx(1e-2)
    assert np.isfinite(whitening).all()
    across = 1.0 / np.asarray(whitening[1])[1, 1]
    assert across == pytest.approx(0.05 * float(scales[1]), rel=1e-6)  # not thinner than that
