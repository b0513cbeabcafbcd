"""Improving paths: against linear systems that give the best path exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from brenier.paths import action, at_times, blurred, improve

K = 12
KEY = jax.random.key(0)


def nothing(paths):
    return jnp.zeros(paths[1:].shape[:-1]), jnp.zeros_like(paths[1:])


def spring(stiffness):
    return lambda paths: (0.5 * stiffness * jnp.sum(paths[1:] ** 2, -1), stiffness * paths[1:])


def converged(paths, starts, prices, worth):
    """The curvature across a slope is left out of the steps, so that they close in on the best path by degrees."""

    def step(_, now):
        return improve(*now, starts, prices, worth, 1e-14)[:2]

    return jax.lax.fori_loop(0, 3000, step, (paths, jnp.full(paths.shape[1], 0.1)))[0]


@pytest.mark.parametrize("dim", [2, 20])
def test_springs_and_a_quadratic_end(dim):
    """The best path solves `(A/τ + τ k W) x = x_0/τ e_1 + ∇g`: in every dimension, from any start time."""
    stiffness, pull, firm = 3.0, jnp.linspace(0.5, 1.5, dim), 0.8
    starts = jnp.array([0.0, 0.5])
    first = jax.random.normal(KEY, (2, dim))
    lines = jnp.tile(first, (K + 1, 1, 1))
    found = converged(
        lines, starts, spring(stiffness), lambda x: x @ pull - 0.5 * firm * jnp.sum(x**2, -1)
    )
    for i, start in enumerate((0.0, 0.5)):
        tau = (1.0 - start) / K
        matrix = 2.0 * np.eye(K) - np.eye(K, k=1) - np.eye(K, k=-1)
        matrix[-1, -1] = 1.0
        weights = np.r_[np.ones(K - 1), 0.5]
        matrix = matrix / tau + tau * stiffness * np.diag(weights)
        matrix[-1, -1] += firm
        right = np.zeros((K, dim))
        right[0] += first[i] / tau
        right[-1] += pull
        np.testing.assert_allclose(found[1:, i], np.linalg.solve(matrix, right), atol=1e-7)
    np.testing.assert_array_equal(found[0], first)


def test_no_step_raises_the_action():
    paths = jax.random.normal(KEY, (K + 1, 50, 2))
    starts, damping = jnp.zeros(50), jnp.full(50, 1e-3)
    worth = lambda x: jnp.sin(3.0 * x[:, 0])  # noqa: E731

    def priced(paths):
        nodes = paths[1:]
        hills = lambda z: 5.0 + 5.0 * jnp.sin(2.0 * z[..., 0]) * jnp.cos(2.0 * z[..., 1])  # noqa: E731
        return hills(nodes), jax.grad(lambda z: jnp.sum(hills(z)))(nodes)

    @jax.jit
    def total(paths):
        return action(paths, starts, priced(paths)[0]) - worth(paths[-1])

    step = jax.jit(lambda paths, damping: improve(paths, damping, starts, priced, worth, 0.0))
    for _ in range(20):
        better = step(paths, damping)
        assert (total(better.paths) <= total(paths) + 1e-12).all()
        kept = ~np.asarray(better.accepted)
        np.testing.assert_array_equal(better.paths[:, kept], paths[:, kept])
        assert (better.damping[kept] >= damping[kept]).all()
        paths, damping = better.paths, better.damping
    assert not kept.all()


def test_blur_of_a_step_is_the_normal_distribution():
    """`U = 1{x > 0}`, blurred by h, has the value Φ(x/h) and the slope φ(x/h)/h."""
    half = jax.random.normal(KEY, (50_000, 1))
    x = jnp.linspace(-0.3, 0.3, 5)
    value, slope = blurred(
        lambda x: (x[:, 0] > 0.0).astype(float),
        jnp.stack([x, x])[..., None],
        jnp.concatenate([half, -half]),
        0.2,
        jnp.zeros(100_000),
    )
    np.testing.assert_allclose(value[0], norm.cdf(x / 0.2), atol=0.01)
    np.testing.assert_allclose(slope[0, :, 0], norm.pdf(x / 0.2) / 0.2, rtol=0.05)


@pytest.mark.parametrize("dim", [1, 3])
def test_mirrored_probes_are_those_of_the_mirrored_cost(dim):
    """A node that sees its probes reflected by `H` finds the value of `U(x + H (· - x))`, and `H` times its slope."""
    keys = jax.random.split(KEY, 4)
    node = jax.random.normal(keys[0], (1, 1, dim))
    path = jnp.concatenate([node, node])  # at rest: its interval has no length
    probes = jax.random.normal(keys[1], (6, dim))
    across = jax.random.normal(keys[2], (1, 1, dim))
    across /= jnp.linalg.norm(across)
    mirror = jnp.eye(dim) - 2.0 * jnp.outer(across[0, 0], across[0, 0])
    weights = jax.random.normal(keys[3], (dim,))
    cost = lambda x: jnp.sin(x @ weights) + jnp.sum(x**3, axis=1)  # noqa: E731
    mirrored = lambda x: cost(node[0] + (x - node[0]) @ mirror)  # noqa: E731
    shares = jnp.zeros(6)
    value, slope = blurred(cost, path, probes, 0.5, shares, across)
    expected, unturned = blurred(mirrored, path, probes, 0.5, shares)
    np.testing.assert_allclose(value, expected, atol=1e-12)
    np.testing.assert_allclose(slope[0, 0], mirror @ unturned[0, 0], atol=1e-12)
    assert np.abs(value - blurred(cost, path, probes, 0.5, shares)[0]).max() > 1e-3


@pytest.mark.parametrize(
    "nodes",
    [
        (-1.5, -0.9, -0.3, 0.3, 0.9),
        # A jump between short steps: the wall in its second half, in its first one, and where it begins the path.
        (-1.3, -1.2, -1.1, 0.5, 0.6),
        (-0.8, -0.7, -0.6, 1.0, 1.1),
        (-0.7, 0.9, 1.0),
    ],
)
def test_a_wall_between_nodes_is_paid_for(nodes):
    """In proportion to the interval that is in it: half as much in the first one, of which one end is priced."""

    def wall(x):
        return (jnp.abs(x[:, 0]) < 0.1).astype(float)

    paths = jnp.array(nodes)[:, None, None]
    shares = jnp.linspace(-0.5, 0.5, 20_001)
    jump = float(jnp.diff(paths, axis=0).max())
    share = 0.5 if len(nodes) == 3 else 1.0
    value, _ = blurred(wall, paths, jnp.zeros((20_001, 1)), 1e-6, shares)
    np.testing.assert_allclose(value.sum(), share * 0.2 / jump, rtol=2e-3)
    at_nodes, _ = blurred(wall, paths, jnp.zeros((1, 1)), 1e-6, jnp.zeros(1))
    assert at_nodes.sum() == 0.0


def test_places_on_paths_at_any_time():
    paths = jnp.stack([jnp.linspace(0.0, 1.0, K + 1), jnp.linspace(3.0, 5.0, K + 1)], 1)[..., None]
    starts = jnp.array([0.0, 0.5])
    times = jnp.array([[0.0, 0.0], [0.3, 0.6], [1.0, 1.0]])
    found = at_times(paths, starts, jnp.array([0, 1]), times)
    np.testing.assert_allclose(found[..., 0], [[0.0, 3.0], [0.3, 3.4], [1.0, 5.0]], atol=1e-12)


def test_a_sharp_end_is_reached_at_once():
    """The curvature of the worth is part of Newton's system; without it a step goes a hundred times too far."""
    target = jnp.array([1.0, -2.0])
    worth = lambda x: -50.0 * jnp.sum((x - target[None]) ** 2, axis=1)  # noqa: E731
    found = improve(jnp.zeros((K + 1, 1, 2)), jnp.zeros(1), jnp.zeros(1), nothing, worth)
    assert found.accepted.all()
    np.testing.assert_allclose(found.paths[-1, 0], target * 100.0 / 101.0, atol=1e-9)


def test_long_waves_are_not_held_back():
    """With a damping of 1 a step is half of Newton's, however many pieces a path has."""
    worth = lambda x: x[:, 0] - 0.5 * jnp.sum(x**2, axis=1)  # noqa: E731
    line = jnp.zeros((65, 1, 2))
    whole = improve(line, jnp.zeros(1), jnp.zeros(1), nothing, worth).paths
    half = improve(line, jnp.ones(1), jnp.zeros(1), nothing, worth).paths
    np.testing.assert_allclose(whole[-1, 0], [0.5, 0.0], atol=1e-9)
    # Of the way, of which the end's curvature counts by half as well.
    np.testing.assert_allclose(half[-1, 0], [0.5 / 1.5, 0.0], atol=1e-9)


def test_without_a_price_paths_are_straight():
    start = jax.random.normal(KEY, (K + 1, 5, 2))
    found = converged(start, jnp.zeros(5), nothing, lambda x: x @ jnp.array([1.0, -2.0]))
    share = np.linspace(0.0, 1.0, K + 1)[:, None, None]
    np.testing.assert_allclose(
        found, np.asarray(start[0]) + share * np.array([1.0, -2.0]), atol=1e-6
    )
