"""Scenes with obstacles: their prices, samples and reference costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

from brenier import datasets
from brenier.errors import InputError
from brenier.passages import check_passage
from brenier.state_costs import check_state_cost


def softplus(z):
    return np.logaddexp(0, z)


def window(u, low, high, tau):
    # 1 / (1 + exp(-z)) without overflow
    return 0.5 * (np.tanh((u - low) / tau / 2) - np.tanh((u - high) / tau / 2))


def stunnel_price(x):
    d1 = 20 * (x[:, 0] - 5) ** 2 + (x[:, 1] - 6) ** 2
    d2 = 20 * (x[:, 0] + 5) ** 2 + (x[:, 1] + 6) ** 2
    return 25 * (softplus(90 - d1) + softplus(90 - d2))


def vneck_price(x):
    h = softplus(-0.36 - (5 * x[:, 0] ** 2 - x[:, 1] ** 2))
    return 1000 * np.select([h >= 5, h > 0.53], [5.0, h], 0.0)


def gmm_price(x):
    price = np.zeros(len(x))
    for center in ((6, 6), (6, -6), (-6, -6)):
        r = np.hypot(x[:, 0] - center[0], x[:, 1] - center[1])
        price += softplus(100 * (1.5 - r)) * (r < 1.5)
    return 25 * price


def slit_price(x):
    u, v = x.T
    return 30 * window(u, -0.1, 0.1, 2e-3) * (1 - window(v, -0.25, 0.25, 2e-3))


def box_price(x):
    u, v = x.T
    return 700 * 0.01 * window(u, -0.5, 0.5, 2e-3) * window(v, -0.5, 0.5, 2e-3)


def baby_maze_price(x):
    u, v = x.T
    first = window(u, -0.5, -0.3, 1e-2) * (1 - window(v, -1.99, -0.15, 1e-2))
    second = window(u, 0.3, 0.5, 1e-2) * (1 - window(v, 0.15, 1.99, 1e-2))
    return 10 * 10 * (first + second)


def sphere_price(x):
    return 5.0 * (np.linalg.norm(x, axis=1) < 0.98)


PRICES = {
    "stunnel": stunnel_price,
    "vneck": vneck_price,
    "gmm": gmm_price,
    "baby_maze": baby_maze_price,
    "slit": slit_price,
    "box": box_price,
    "sphere": sphere_price,
}
SETTINGS = {  # control, acceleration, potential weight, sigma, pretrain
    "stunnel": (1.0, 1e-4, 25, 0.3, 5000),
    "vneck": (2.0, 1e-3, 1000, 0.2, 5000),
    "gmm": (0.7, 0.2, 25, 0.1, 5000),
    "slit": (2.0, 1e-3, 30, 0.05, 5000),
    "box": (0.3, 1e-2, 700, 0.03, 2000),
    "baby_maze": (0.5, 5e-2, 10, 0.03, 5000),
    "sphere": (0.4, 0.0, 5, 0.01, 1000),
}
MOMENTS = {  # means and standard deviations of both sides
    "stunnel": ((-11, -1), (0.5, 0.5), (11, 1), (0.5, 0.5)),
    "vneck": ((-7, 0), (0.2, 0.2), (7, 0), (0.2, 0.2)),
    # 1 + E c², with c² = 16 and 256 shared by both axes
    "gmm": ((0, 0), (3, 3), (0, 0), (np.sqrt(1 + 127.96), np.sqrt(1 + 127.96))),
    "slit": ((-1.125, 0), (0.25 / 12**0.5, 2 / 12**0.5), (1.125, 0), (0.25 / 12**0.5, 2 / 12**0.5)),
}
MOMENTS |= {name: MOMENTS["slit"] for name in ("box", "baby_maze")}
PEAKS = {"stunnel": 2250, "vneck": 5000, "gmm": 3750, "slit": 30, "box": 7, "baby_maze": 100}
DEEPEST = {
    "stunnel": (5, 6),
    "vneck": (0, 5),
    "gmm": (-6, -6),
    "slit": (0, 0.6),
    "box": (0, 0),
    "baby_maze": (-0.4, 0.5),
    "sphere": (0, 0, 0),
}
scenes = pytest.mark.parametrize("name", datasets.SCENES)


@functools.cache
def scene_of(name):
    return datasets.SCENES[name]()


def draw(sampler, n, seed=0):
    return np.asarray(sampler(jax.random.key(seed), n))


def in_window(scene, n, seed=0):
    """Points all over the picture."""
    x_min, x_max, y_min, y_max = scene.window
    rng = np.random.default_rng(seed)
    points = rng.uniform((x_min, y_min), (x_max, y_max), (n, 2))
    points[::2] *= 0.2  # half of them where the narrow passages are
    return points if scene.dim == 2 else np.column_stack([points, rng.normal(size=n)])[:, [0, 2, 1]]


@functools.cache
def sampled(name):
    """Points of a scene, and prices, signed distances and what is inside, all as NumPy arrays."""
    scene = scene_of(name)
    points = in_window(scene, 4000)

    @jax.jit
    @jax.vmap
    def looked_up(x):
        return scene.state_cost(x), scene.obstacle.distance(x), scene.state_cost.inside(x)

    return points, *map(np.asarray, looked_up(points))


def test_scenes_are_known_by_name():
    assert datasets.obstacles.SCENES is datasets.SCENES
    assert set(datasets.SCENES) == set(PRICES)
    for name in datasets.SCENES:
        assert scene_of(name).name == name


@scenes
def test_price_is_the_published_formula_times_its_weight(name):
    points, prices, _, _ = sampled(name)
    # a step 2e-3 wide magnifies round-off, as does a softplus of squares
    np.testing.assert_allclose(prices, PRICES[name](points), rtol=1e-9, atol=1e-9)
    assert 0.005 < (prices > 1e-6).mean() < 0.99
    deepest = np.asarray(DEEPEST[name], float)[None, :]
    # BabyMaze's walls are 20 temperatures wide, so that their ends meet at 1 - 9e-5
    assert PRICES[name](deepest)[0] == pytest.approx(PEAKS.get(name, 5), rel=1e-4)


@scenes
def test_price_in_single_precision(name):
    scene = scene_of(name)
    points = in_window(scene, 4000).astype(np.float32)
    check_state_cost(scene.state_cost, points)
    prices = scene.state_cost.evaluate(points)
    assert prices.dtype == np.float32
    # away from steps, which round-off moves
    exact, moved = (PRICES[name](points.astype(float) + step) for step in (0.0, 1e-5))
    calm = np.abs(exact - moved) < 1e-2 * (1 + exact)
    assert calm.mean() > 0.9
    np.testing.assert_allclose(prices[calm], exact[calm], rtol=2e-2, atol=1e-2)


@scenes
def test_price_is_high_in_the_obstacle_and_zero_far_from_it(name):
    _, prices, distance, inside = sampled(name)
    np.testing.assert_array_equal(distance < 0, inside)
    softness = {"stunnel": 1.0, "baby_maze": 0.2}.get(name, 0.05)
    least = {"stunnel": 25.0, "vneck": 530.0, "gmm": 25.0}.get(name, 0.9 * PEAKS.get(name, 5))
    assert (prices[distance < -min(softness, 0.05)] > least).all()
    np.testing.assert_allclose(prices[distance > softness], 0, atol=1e-6)


@scenes
def test_obstacle_is_where_the_price_sets_in(name):
    points, _, _, inside = sampled(name)
    price = PRICES[name](points)
    # softplus(0) is the price on the border of an ellipse, and others rise from 0 or to a level
    border = {"stunnel": 25 * np.log(2), "vneck": 0, "gmm": 0, "sphere": 0}
    hard = price > border.get(name, 0.5 * PEAKS.get(name, 0))
    assert (inside == hard).mean() > 0.999  # the tail of one window may reach into another


def test_funnel_is_bounded_by_its_hyperbola_and_bounds_its_distance():
    funnel = scene_of("vneck").obstacle
    neck = float(np.log(np.expm1(0.53)) + 0.36)
    assert neck == pytest.approx(0.0018, abs=1e-5)
    y = np.linspace(-6, 6, 12_001)
    y = y[y**2 > neck]
    border = np.concatenate([np.stack([s * np.sqrt((y**2 - neck) / 5), y], 1) for s in (1, -1)])
    points = np.random.default_rng(0).uniform(-2, 2, (50, 2))
    exact = np.linalg.norm(points[:, None] - border[None], axis=2).min(1)
    bound = np.asarray(jax.vmap(funnel.distance)(points))
    assert (np.abs(bound) <= exact + 1e-12).all()
    assert (np.abs(bound) >= exact / np.sqrt(6) - 1e-3).all()  # the border is sampled
    np.testing.assert_array_equal(bound < 0, points[:, 1] ** 2 > 5 * points[:, 0] ** 2 + neck)


@pytest.mark.parametrize("name", MOMENTS)
def test_samples_have_the_published_moments(name):
    scene, n = scene_of(name), 20_000
    for side, seed in (("source", 0), ("target", 1)):
        x = draw(getattr(scene, side), n, seed)
        mean, deviation = MOMENTS[name][2 * seed : 2 * seed + 2]
        assert x.shape == (n, 2)
        # five standard errors; no law here has a kurtosis above 3
        assert np.all(np.abs(x.mean(0) - mean) < 5 * np.asarray(deviation) / np.sqrt(n))
        np.testing.assert_allclose(x.std(0), deviation, rtol=5 / np.sqrt(2 * n))


@scenes
def test_samplers_can_be_traced_and_follow_their_key(name):
    scene = scene_of(name)
    for sampler in (scene.source, scene.target):
        traced = jax.jit(sampler, static_argnums=1)
        points = traced(jax.random.key(0), 10)
        np.testing.assert_allclose(points, sampler(jax.random.key(0), 10), rtol=1e-12)
        assert not np.allclose(points, traced(jax.random.key(1), 10))
        assert points.shape == (10, scene.dim)
        assert points.dtype == jnp.result_type(float)


def test_strips_keep_within_their_borders():
    scene = scene_of("slit")
    for side, (left, right) in (("source", (-1.25, -1.0)), ("target", (1.0, 1.25))):
        x = draw(getattr(scene, side), 2000)
        assert left <= x[:, 0].min() < left + 0.01
        assert right - 0.01 < x[:, 0].max() <= right
        assert -1 <= x[:, 1].min() < -0.99
        assert 0.99 < x[:, 1].max() <= 1


def components(x, radius, k, phase=0.0):
    angle = (np.arctan2(x[:, 1], x[:, 0]) - phase) / (2 * np.pi / k)
    counts = np.bincount(np.round(angle).astype(int) % k, minlength=k)
    assert abs(np.linalg.norm(x, axis=1).mean() - radius) < 0.3
    return counts


def test_gmm_has_four_and_eight_components_balanced_on_request():
    n = 4001
    scene, balanced = scene_of("gmm"), datasets.obstacles.gmm(stratified=True)
    for side, k in (("source", 4), ("target", 8)):
        counts = components(draw(getattr(scene, side), n), {4: 4, 8: 16}[k], k)
        assert np.abs(counts - n / k).max() < 0.2 * n / k  # 5 deviations, and those astray
        assert np.ptp(counts) > 5
    draws = [draw(balanced.target, n, seed) for seed in range(4)]
    counts = [components(x, 16, 8) for x in draws]
    assert all(sorted(c) == [500] * 7 + [501] for c in counts)
    assert len({int(c.argmax()) for c in counts}) > 1  # who gets more is drawn
    assert np.abs(components(draws[0][:2000], 16, 8) - 250).max() < 75  # the order is random

    # Every quarter of a component of the source has as many points, to one or two of the 250.
    x = draw(balanced.source, 4000)
    around = [x[np.linalg.norm(x - c, axis=1) < 3.0] - c for c in ([4, 0], [0, 4])]
    for z in around:
        quarters = np.bincount(2 * (z[:, 0] > 0) + (z[:, 1] > 0), minlength=4)
        assert np.ptp(quarters) < 20  # 70 of independent ones is nothing unusual
        np.testing.assert_allclose(z.std(axis=0), 1.0, atol=0.03)


@pytest.mark.parametrize(("dim", "spread"), [(3, 0.3), (10, 0.1)])
def test_sphere_goes_from_pole_to_pole(dim, spread):
    scene = datasets.obstacles.sphere(dim, spread, 0.9)
    for sampler, sign in ((scene.source, 1), (scene.target, -1)):
        x = draw(sampler, 4000)
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-12)
        tilt = np.delete(x, 2, axis=1)
        assert (sign * x[:, 2] > 0).mean() > 0.99
        # the projection from the origin to the plane at the pole is nearly Gaussian
        slopes = tilt[sign * x[:, 2] > 0.5] / x[sign * x[:, 2] > 0.5, 2:3]
        assert np.median(np.abs(slopes)) == pytest.approx(0.6745 * spread, rel=0.08)
    ball = np.eye(dim)[:2] * np.array([[0.89], [0.91]])
    np.testing.assert_array_equal(scene.state_cost.evaluate(ball), [5, 0])
    np.testing.assert_array_equal(jax.vmap(scene.obstacle.inside)(ball), [True, False])


@scenes
def test_static_reference_is_the_transport_cost_of_samples(name):
    scene, n = scene_of(name), 1000
    if name == "gmm":
        scene = datasets.obstacles.gmm(stratified=True)
    x, y = draw(scene.source, n, 1), draw(scene.target, n, 2)
    cost = ot.emd2([], [], 0.5 * ot.dist(x, y))
    # of n costs, and the bias of W₂² between samples
    displacement = np.linalg.norm(x.std(0)) + np.linalg.norm(y.std(0))
    error = np.sqrt(2 * scene.reference["static"]) * displacement / np.sqrt(n)
    assert abs(cost - scene.reference["static"]) < 3 * error
    assert scene.reference["static"] == pytest.approx(cost, rel=0.02)


@scenes
def test_obstacles_make_it_dearer_and_leave_a_way(name):
    scene = scene_of(name)
    assert scene.reference["static"] < scene.reference.get("hard", np.inf)
    check_passage(scene.state_cost, draw(scene.source, 2000, 1), draw(scene.target, 2000, 2))


@pytest.mark.parametrize(("spread", "radius"), [(0.3, 0.98), (0.5, 0.4)])
def test_sphere_references_are_the_transport_cost_of_samples(spread, radius):
    scene, n = datasets.obstacles.sphere(3, spread, radius), 800
    x, y = draw(scene.source, n, 3), draw(scene.target, n, 4)
    angles = np.arccos(np.clip(x @ y.T, -1, 1))
    way = datasets.obstacles.way_around_ball(angles, radius)
    cost = ot.emd2([], [], 0.5 * way**2)
    assert cost == pytest.approx(scene.reference["hard"], rel=0.02)  # sampling error of 800 points
    straight = ot.emd2([], [], 0.5 * ot.dist(x, y))
    assert straight == pytest.approx(scene.reference["static"], rel=0.02)


def test_way_around_a_ball_is_the_shortest_polygon_around_it():
    radius, angle = 0.8, 2.5
    # the taut string: tangent, fine arc, tangent
    touches = np.arccos(radius)
    arc = np.linspace(touches, angle - touches, 20_001)
    corners = radius * np.stack([np.cos(arc), np.sin(arc)], 1)
    ends = np.array([[1.0, 0.0]]), np.array([[np.cos(angle), np.sin(angle)]])
    path = np.concatenate([ends[0], corners, ends[1]])
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    way = datasets.obstacles.way_around_ball
    assert float(way(angle, radius)) == pytest.approx(length, rel=1e-8)
    for a in (0.0, 0.7, 2 * touches):
        assert float(way(a, radius)) == pytest.approx(2 * np.sin(a / 2), abs=1e-15)
    assert np.all(np.diff(way(np.linspace(0, np.pi, 50), radius)) > 0)


@pytest.mark.parametrize(
    "change",
    [{"dim": 2}, {"spread": 0.0}, {"spread": np.inf}, {"radius": 1.0}, {"radius": np.nan}],
)
def test_sphere_refuses_what_is_no_sphere(change):
    with pytest.raises(InputError, match="Expected dim >= 3"):
        datasets.obstacles.sphere(**change)


@scenes
def test_published_settings(name):
    scene = scene_of(name)
    s = scene.published
    found = (s.control_weight, s.acceleration_weight, s.potential_weight, s.noise, s.pretrain_steps)
    assert found == SETTINGS[name]
    assert scene.noise == s.noise
    assert s.batch_size == 1024
    with pytest.raises(TypeError):
        scene.reference["static"] = 0.0
