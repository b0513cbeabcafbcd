"""Prices of being somewhere: shapes, pictures, functions, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from brenier import state_costs
from brenier.errors import InputError
from brenier.state_costs import (
    BlackBox,
    Box,
    Complement,
    Disc,
    Ellipse,
    Intersection,
    JaxFunction,
    Obstacle,
    OccupancyGrid,
    Raster,
    StateCost,
    Union,
    Wall,
    as_state_cost,
    check_state_cost,
)

INF = np.inf
RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-3, 3, (300, 2))


@jax.jit
def looked_up(shape, points):
    """Compiled once for all shapes of one structure."""
    return jax.vmap(lambda x: (shape.distance(x), shape.inside(x)))(points)


def distances(shape, points):
    return np.asarray(looked_up(shape, points)[0])


def insides(shape, points):
    return np.asarray(looked_up(shape, points)[1])


# Shapes

BY_HAND = {
    "disc": (Disc((1, 2), 1.5), {(1, 2): -1.5, (4, 6): 3.5, (1, 3): -0.5, (2.5, 2): 0}),
    "ball": (Disc((0, 0, 1), 1), {(0, 0, 3): 1, (2, 3, 7): 6}),
    "box": (
        Box((-1, -2), (1, 2)),
        {(0, 0): -1, (0, 1.75): -0.25, (4, 0): 3, (4, 6): 5, (-1, 0): 0, (0.5, -3): 1},
    ),
    "half-space": (Box((-INF, -INF, 1), (INF, INF, INF)), {(9, -9, 4): -3, (9, -9, 0.5): 0.5}),
    "strip": (Box((-INF, 0), (INF, 2)), {(-7, 1): -1, (7, 5): 3}),
    "interval": (Box([0.0], [2.0]), {(0.5,): -0.5, (3,): 1}),
    "ellipse": (Ellipse((1, 0), (2, 1)), {(1, 3): 2, (1, 0): -1, (5, 0): 1, (1, 0.75): -0.25}),
    "wall": (
        Wall(0, -0.5, 0.5, gaps=[(-1, 1)]),
        {(0, 0): 1, (0, 3): -0.5, (0, 1.25): -0.25, (2, 3): 1.5, (3.5, -2): 3, (3.5, -3): 3}
        | {(0.5 + 3, 1 - 4): 3, (3.5, 0): np.hypot(3, 1), (0.4, -2): -0.1},
    ),
    "closed wall": (Wall(1, 0, 1), {(77, 0.5): -0.5, (-77, 3): 2}),
    "open-ended wall": (Wall(0, 0, 1, gaps=[(-INF, 0)]), {(0.5, -2): 2, (0.5, 2): -0.5}),
    "half-plane wall": (Wall(0, -INF, 1, gaps=[(0, 2)]), {(-5, 1): 1, (-5, 3): -1, (2, 9): 1}),
    "two gaps": (
        # given out of order, and two of them touching
        Wall(2, 0, 10, gaps=[(4, 5), (0, 1), (1, 2)], across=0),
        {(1, 0, 5): 1, (3, 0, 5): -1, (4.5, 0, 5): 0.5, (3, 0, -2): 2, (4.25, 9, 5): 0.25},
    ),
    "union": (Union(Disc((0, 0), 1), Box((2, -1), (4, 1))), {(1.25, 0): 0.25, (3, 0): -1}),
    "intersection": (
        Intersection(Disc((0, 0), 2), Box((0, -INF), (INF, INF))),
        {(1.5, 0): -0.5, (-1, 0): 1, (0.25, 0): -0.25},
    ),
    "complement": (Complement(Disc((0, 0), 2)), {(0, 0.5): 1.5, (0, 5): -3}),
}
IN_THE_PLANE = [name for name, (_, table) in BY_HAND.items() if len(next(iter(table))) == 2]
LOWER_BOUND = ("ellipse", "union", "intersection")


@pytest.mark.parametrize("name", BY_HAND)
def test_signed_distance_by_hand(name):
    shape, table = BY_HAND[name]
    points = np.array(list(table), float)
    np.testing.assert_allclose(distances(shape, points), list(table.values()), atol=1e-12)
    np.testing.assert_array_equal(insides(shape, points), np.array(list(table.values())) < 0)
    single = distances(shape, points.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, list(table.values()), atol=1e-5)


@pytest.mark.parametrize("name", IN_THE_PLANE)
def test_signed_distance_by_brute_force(name):
    shape, _ = BY_HAND[name]
    side, step = np.linspace(-8, 8, 321, retstep=True)
    nodes = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    there = insides(shape, nodes)
    points, found = POINTS[:60], distances(shape, POINTS[:60])
    for side in (True, False):
        here = (found < 0) != side
        if here.any():
            apart = np.linalg.norm(points[here, None] - nodes[there == side][None], axis=2).min(1)
            assert (np.abs(found[here]) <= apart + 1e-12).all()
            if name not in LOWER_BOUND:
                assert (np.abs(found[here]) >= apart - 2 * step).all()


numbers = st.floats(-2, 2)
sizes = st.floats(0.05, 2)
pairs = st.tuples(numbers, numbers)
primitives = st.one_of(
    st.builds(Disc, pairs, sizes),
    st.builds(lambda a, w, h: Box(a, (a[0] + w, a[1] + h)), pairs, sizes, sizes),
    st.builds(Ellipse, pairs, st.tuples(sizes, sizes)),
    st.builds(
        lambda axis, a, w, b, g: Wall(axis, a, a + w, gaps=[(b, b + g)]),
        st.integers(0, 1),
        numbers,
        sizes,
        numbers,
        sizes,
    ),
)
combined = st.recursive(
    primitives,
    lambda inner: st.one_of(
        st.builds(Union, inner, inner),
        st.builds(Intersection, inner, inner),
        st.builds(Complement, inner),
    ),
    max_leaves=3,
)


@settings(max_examples=30, deadline=None)
@given(shape=combined)
def test_no_border_is_nearer_than_the_distance_says(shape):
    found = distances(shape, POINTS)
    inside, outside = found < 0, found > 0
    apart = np.linalg.norm(POINTS[inside, None] - POINTS[None, outside], axis=2)
    # a segment between the two sides crosses the border
    assert (found[None, outside] - found[inside, None] <= apart + 1e-9).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Disc((0, np.nan), 1), "Expected the center of a Disc as finite numbers"),
        (lambda: Disc("here", 1), "center of a Disc"),
        (lambda: Disc([[0, 0]], 1), "center of a Disc"),
        (lambda: Disc((0, 0), 0), "radius of a Disc as a finite number > 0, found 0"),
        (lambda: Disc((0, 0), INF), "radius of a Disc"),
        (lambda: Disc((0, 0), None), "found None"),
        (lambda: Box((0, 0), (1, 1, 1)), "lower < upper on every axis"),
        (lambda: Box((0, 1), (1, 0)), "lower < upper on every axis"),
        (lambda: Box((0, np.nan), (1, 1)), "lower corner of a Box as numbers"),
        (lambda: Box((-INF,), (INF,)), "all of space"),
        (lambda: Ellipse((0, 0), (1,)), "one positive half-axis for each of the 2"),
        (lambda: Ellipse((0, 0), (1, -1)), "one positive half-axis"),
        (lambda: Wall(0, 1, 1), "lower < upper"),
        (lambda: Wall(0, -INF, INF), "lower < upper"),
        (lambda: Wall(2, 0, 1), "two different coordinates"),
        (lambda: Wall(0, 0, 1, across=0), "two different coordinates"),
        (lambda: Wall(-1, 0, 1, across=0), "two different coordinates"),
        (lambda: Wall(0, 0, 1, gaps=[(2, 1)]), "lo < hi"),
        (lambda: Wall(0, 0, 1, gaps=[(2, 3, 4)]), "lo < hi"),
        (lambda: Wall(0, 0, 1, gaps=[(-INF, INF)]), "something beside its gaps"),
        (lambda: Union(), "Expected shapes for Union, found none"),
        (lambda: Union(Disc((0,), 1), 3), "found int"),
        (lambda: Complement([Disc((0,), 1)]), "found list"),
        (lambda: Raster([[0, 1]], (0, 1, 0, 1)), "boolean array"),
        (lambda: Raster([[True]], (0, 1, 0, 1), outside="wall"), "a free cell"),
        (lambda: Raster(np.ones((1, 2**24 + 1), bool), (0, 1, 0, 1)), "at most 16777216 cells"),
        (lambda: Raster([[True]], (0, 1, 0, 1), outside="lava"), "'free' or 'wall'"),
        (lambda: Raster([[True]], (1, 0, 0, 1)), "x_min < x_max"),
        (lambda: Raster([[True]], (0, 1, 0)), "x_min, x_max, y_min, y_max"),
        (lambda: Obstacle(3.0), "found float"),
        (lambda: Obstacle(Disc((0,), 1), -1), "height of an Obstacle as a finite number >= 0"),
        (lambda: Obstacle(Disc((0,), 1), np.nan), "found nan"),
        (lambda: Obstacle(Disc((0,), 1), 1, softness=-1), "softness of an Obstacle"),
        (lambda: OccupancyGrid([1, 0], (0, 1, 0, 1)), "shape (rows, columns)"),
        (lambda: OccupancyGrid([["a"]], (0, 1, 0, 1)), "of booleans or shares"),
        (lambda: OccupancyGrid([[0, 255]], (0, 1, 0, 1)), "found values from 0 to 255"),
        (lambda: OccupancyGrid([[0, np.nan]], (0, 1, 0, 1)), "between 0 (free) and 1"),
        (lambda: JaxFunction(jnp.sum, weight=-1), "weight of a state cost"),
    ],
)
def test_refuses_what_is_no_shape_or_price(build, message):
    with pytest.raises(InputError) as error:
        build()
    assert message in str(error.value)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_shape_refuses_points_of_another_dimension(name):
    shape, table = BY_HAND[name]
    wrong = 1 if len(next(iter(table))) > 1 else 2
    with pytest.raises(InputError, match="Expected a point"):
        shape.distance(jnp.zeros(wrong))


# Obstacles


def test_an_obstacle_is_a_step_and_names_its_shape():
    U = Obstacle(Disc((0.0, 0.0), 1.0), height=30.0)
    x = jnp.array([[0.5, 0.0], [1.0, 0.0], [2.0, 0.0]])
    np.testing.assert_array_equal(jax.vmap(U)(x), [30, 0, 0])
    np.testing.assert_array_equal(jax.vmap(U.inside)(x), [True, False, False])
    np.testing.assert_array_equal(jax.vmap(U.depth)(x), [0.5, 0, 0])
    assert U.obstacle is U.shape
    assert Obstacle(U.shape).height == state_costs.DEFAULT_HEIGHT
    assert U(x[0].astype(jnp.float32)).dtype == jnp.float32


def test_a_soft_obstacle_is_a_sigmoid_of_the_distance():
    soft = Obstacle(Box((-1, -1), (1, 1)), 4.0, softness=0.3)
    distance = distances(soft.shape, POINTS)
    np.testing.assert_allclose(soft.evaluate(POINTS), 4 / (1 + np.exp(distance / 0.3)), rtol=1e-12)
    assert soft(jnp.zeros(2, jnp.float32)).dtype == jnp.float32
    assert soft(jnp.array([1e6, 0.0])) == 0.0
    np.testing.assert_array_equal(jax.vmap(soft.inside)(POINTS), distance < 0)


def test_costs_are_pytrees_that_can_be_passed_to_compiled_code():
    costs = [
        Obstacle(Union(Disc((0, 0), 1), Wall(0, 2, 3)), 5.0),
        OccupancyGrid([[1, 0]], (-1, 1, -1, 1)),
        JaxFunction(lambda x: x @ x, weight=2.0),
        BlackBox(lambda points: np.abs(points[:, 0])),
    ]
    for cost in costs:
        passed = jax.jit(lambda cost, x: jax.vmap(cost)(x))(cost, POINTS)
        np.testing.assert_allclose(passed, cost.evaluate(POINTS), rtol=1e-12)


def test_without_a_known_obstacle_nothing_is_inside():
    U = JaxFunction(lambda x: x @ x)
    assert U.obstacle is None
    assert not U.inside(jnp.zeros(2))
    assert U.depth(jnp.zeros(2, jnp.float32)).dtype == jnp.float32


# Pictures

#   y 3 +---+---+---+---+
#       | # | . | . | . |   row 0
#   y 2 +---+---+---+---+
#       | . | . | # | # |   row 1
#   y 1 +---+---+---+---+
#       0   2   4   6   8   x
CELLS = np.array([[1, 0, 0, 0], [0, 0, 1, 1]], bool)
EXTENT = (0, 8, 1, 3)
WALLS = Union(Box((0, 2), (2, 3)), Box((4, 1), (8, 2)))


def test_the_top_row_of_a_picture_is_at_the_highest_y():
    U = OccupancyGrid(CELLS, EXTENT, height=7.0)
    x = np.array([[1, 2.5], [1, 1.5], [5, 1.5], [5, 2.5], [7, 1.1], [-1, 2.5], [1, 3.5]])
    np.testing.assert_array_equal(U.evaluate(x), [7, 0, 7, 0, 7, 0, 0])
    np.testing.assert_array_equal(insides(U.shape, x), U.evaluate(x) > 0)
    walled = OccupancyGrid(CELLS, EXTENT, height=7.0, outside="wall")
    np.testing.assert_array_equal(walled.evaluate(x), [7, 0, 7, 0, 7, 7, 7])
    np.testing.assert_array_equal(insides(walled.shape, x), walled.evaluate(x) > 0)
    single = jax.jit(jax.vmap(U))(x.astype(np.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_array_equal(single, U.evaluate(x))


def test_edges_of_a_picture_belong_to_it():
    U = OccupancyGrid([[0.25, 0.75]], (0, 2, 0, 1), height=4.0, outside="wall")
    x = np.array([[0, 0], [0, 1], [2, 0], [2, 1], [1, 0.5], [2.001, 0.5]])
    np.testing.assert_array_equal(U.evaluate(x), [1, 1, 3, 3, 3, 4])
    np.testing.assert_array_equal(insides(U.shape, x), [False, False, True, True, True, True])


def test_distance_in_a_picture_is_that_of_its_walls_to_half_a_cell():
    rng = np.random.default_rng(1)
    walls = rng.random((12, 16)) < 0.2
    side = 0.5
    extent = (-4, 4, -3, 3)
    boxes = Union(
        *(
            Box((-4 + side * j, 3 - side * (i + 1)), (-4 + side * (j + 1), 3 - side * i))
            for i, j in np.argwhere(walls)
        )
    )
    raster = Raster(walls, extent)
    points = rng.uniform((-6, -5), (6, 5), (1000, 2))
    exact, found = distances(boxes, points), distances(raster, points)
    np.testing.assert_array_equal(insides(raster, points), exact < 0)
    np.testing.assert_array_equal(found < 0, exact < 0)
    beyond = (np.abs(points) > [4, 3]).any(axis=1)
    # within a block of walls, the union knows a bound only
    assert np.abs(found - exact)[~beyond & (exact > 0)].max() < side / 2
    assert (found - exact)[beyond].max() < side / 4  # a bound, but for the interpolation
    room = Raster(walls, extent, outside="wall")
    np.testing.assert_array_equal(distances(room, points) < 0, (exact < 0) | beyond)


def test_distance_to_a_straight_wall_in_a_picture_is_exact():
    raster = Raster(np.tile([0, 0, 1, 1, 1, 0, 0, 0], (20, 1)) > 0, (0, 8, 0, 20))
    x = np.linspace(0.5, 7.5, 29)
    found = distances(raster, np.stack([x, np.full_like(x, 10.0)], axis=1))
    np.testing.assert_allclose(found, np.abs(x - 3.5) - 1.5, atol=1e-5)


def test_a_picture_without_walls_is_free_everywhere():
    U = OccupancyGrid(np.zeros((3, 4)), (0, 4, 0, 3))
    assert not U.evaluate(POINTS).any()
    assert (distances(U.shape, POINTS) > 0).all()
    room = OccupancyGrid(np.zeros((3, 4)), (0, 4, 0, 3), outside="wall")
    assert distances(room.shape, np.array([[1.5, 1.5], [6.0, 1.5]])).tolist() == [1.5, -2.0]
    solid = Raster(np.ones((3, 4), bool), (0, 4, 0, 3))
    assert distances(solid, np.array([[1.5, 1.5], [7.0, 7.0]])).tolist() == [-1.5, 5.0]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "I;16"])
def test_dark_pixels_of_a_picture_are_walls(tmp_path, mode):
    grey = np.where(CELLS, 30, 220).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    image.save(tmp_path / "walls.png")
    U = OccupancyGrid.from_image(tmp_path / "walls.png", EXTENT, height=7.0)
    x = RNG.uniform((0, 1), (8, 3), (200, 2))
    np.testing.assert_array_equal(U.evaluate(x), 7.0 * insides(WALLS, x))


def test_transparent_pixels_of_a_picture_are_free(tmp_path):
    image = Image.fromarray(np.zeros((2, 4), np.uint8)).convert("RGBA")
    image.putalpha(Image.fromarray(np.where(CELLS, 255, 0).astype(np.uint8)))
    image.save(tmp_path / "walls.png")
    np.testing.assert_array_equal(
        OccupancyGrid.from_image(str(tmp_path / "walls.png"), EXTENT).cells, CELLS
    )


def test_a_picture_that_shows_no_walls_is_refused(tmp_path):
    path = tmp_path / "walls.png"
    with pytest.raises(InputError, match="does not exist"):
        OccupancyGrid.from_image(path, EXTENT)
    path.write_text("no picture")
    with pytest.raises(InputError, match="no image format"):
        OccupancyGrid.from_image(path, EXTENT)
    Image.fromarray(np.where(CELLS, 150, 220).astype(np.uint8)).save(path)
    with pytest.raises(InputError, match=r"brightness from 0\.59 to 0\.86.*another threshold"):
        OccupancyGrid.from_image(path, EXTENT)
    assert OccupancyGrid.from_image(path, EXTENT, threshold=0.7).cells.sum() == 3
    with pytest.raises(InputError, match="threshold between 0 and 1, found 150"):
        OccupancyGrid.from_image(path, EXTENT, threshold=150)


# Black boxes


class Recorder:
    """A NumPy function that remembers what it was called with."""

    def __init__(self, batched=True):
        self.calls = []
        self.is_batched = batched

    def __call__(self, points):
        self.calls.append((points.shape, points.dtype, type(points)))
        points += 0.0  # the points are the function's own
        return np.sum(np.square(points), axis=-1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_black_box_is_called_once_for_a_batch(dtype):
    recorder = Recorder()
    U = BlackBox(recorder)
    x = POINTS.astype(dtype)
    prices = jax.jit(jax.vmap(U))(x)
    assert recorder.calls == [((300, 2), dtype, np.ndarray)]
    assert prices.dtype == dtype
    np.testing.assert_allclose(prices, np.sum(x**2, axis=1), rtol=1e-6)
    nested = jax.jit(jax.vmap(jax.vmap(U)))(x.reshape(3, 100, 2))
    np.testing.assert_array_equal(nested.ravel(), prices)
    assert recorder.calls[1:] == recorder.calls[:1]
    assert float(U(jnp.asarray(x[0]))) == pytest.approx(float(prices[0]))
    assert recorder.calls[2][0] == (1, 2)


def test_a_black_box_works_within_loops():
    recorder = Recorder()
    U = BlackBox(recorder)

    @jax.jit
    def walk(x):
        def step(x, _):
            prices = jax.vmap(U)(x)
            return x + 1.0, prices

        return jax.lax.scan(step, x, None, length=3)[1]

    prices = walk(jnp.asarray(POINTS))
    np.testing.assert_allclose(prices[2], np.sum((POINTS + 2) ** 2, axis=1))
    assert len(recorder.calls) == 3


def test_a_black_box_of_single_points():
    recorder = Recorder()
    U = BlackBox(recorder, batched=False)
    np.testing.assert_allclose(jax.vmap(U)(POINTS[:5]), np.sum(POINTS[:5] ** 2, axis=1))
    assert [call[0] for call in recorder.calls] == [(2,)] * 5


@pytest.mark.parametrize(
    ("function", "batched", "message"),
    [
        (lambda p: p, True, r"real prices of shape \(300,\) for points of shape \(300, 2\), found"),
        (lambda p: p[:, :1], True, r"found \(300, 1\); return one number for each point"),
        (lambda p: 1.0, True, r"found \(\)"),
        (lambda p: p, False, r"of shape \(\) for points of shape \(2,\), found \(2,\)"),
        (lambda p: None, True, "as real numbers, found NoneType"),
        (lambda p: ["a"] * len(p), True, "as real numbers, found list"),
        (lambda p: p[:, 0] * 1j, True, "real numbers, found an array of shape .*, dtype complex"),
        (lambda p: [0.0] * (1 + (p[0] > 0)), False, "one price for each point"),
    ],
)
def test_a_black_box_that_returns_something_else(function, batched, message):
    with pytest.raises(InputError, match=message):
        check_state_cost(BlackBox(function, batched), POINTS)


# What users give


def test_costs_and_shapes_become_costs():
    U = Obstacle(Disc((0, 0), 1), 3.0)
    assert as_state_cost(U, 2, np.float32) is U
    one = as_state_cost(U.shape, 2, np.float32, height=5.0)
    assert isinstance(one, Obstacle)
    assert one.height == 5.0
    some = as_state_cost([U.shape, Disc((5, 0), 1)], 2)
    assert isinstance(some.obstacle, Union)
    x = np.array([[0.0, 0.0], [5.0, 0.0], [2.5, 0.0]])
    np.testing.assert_array_equal(some.evaluate(x), [100, 100, 0])


class Traceable(eqx.Module):
    center: jax.Array

    def __call__(self, x):
        return jnp.sum((x - self.center) ** 2)


class Batched:
    batched = True

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        assert x.ndim == 2
        return self.function(x)


def untraceable(point):
    return 2.0 if point[0] > 0 else 0.0


def step(x):
    return 2.0 * (x[..., 0] > 0)


FUNCTIONS = {
    "jax": (lambda x: 2 * jnp.heaviside(x[0], 0.0), JaxFunction, False),
    "python arithmetic": (lambda x: 2.0 * (x[0] > 0), JaxFunction, False),
    "constant": (lambda x: 2, JaxFunction, False),
    "boolean": (lambda x: x[0] > 0, JaxFunction, False),
    "either": (step, JaxFunction, False),
    "module": (Traceable(jnp.zeros(2)), JaxFunction, False),
    "jax batches": (lambda x: jnp.sum(x * x, axis=1), JaxFunction, True),
    "declared": (Batched(lambda x: jnp.sum(x * x, axis=-1)), JaxFunction, True),
    "numpy declared": (Batched(lambda x: np.hypot(*x.T)), BlackBox, True),
    "numpy batches": (lambda x: np.hypot(x[:, 0], x[:, 1]), BlackBox, True),
    "numpy either": (lambda x: np.hypot(x[..., 0], x[..., 1]), BlackBox, True),
    "numpy point": (lambda x: float(np.hypot(x[0], x[1])), BlackBox, False),
    "python point": (untraceable, BlackBox, False),
    "numpy norm": (lambda x: np.sqrt(np.sum(np.asarray(x) ** 2)), BlackBox, False),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_are_taken_for_what_they_are(name, dtype):
    function, kind, batched = FUNCTIONS[name]
    U = as_state_cost(function, 2, dtype)
    assert type(U) is kind
    assert getattr(U, "batched", False) == batched
    x = POINTS[:50].astype(dtype)
    prices = jax.jit(jax.vmap(U))(x)
    assert prices.dtype == dtype
    expected = function(x) if batched else [float(function(p)) for p in x]
    np.testing.assert_allclose(prices, expected, rtol=1e-6)
    check_state_cost(U, x)


def test_an_unhashable_function_can_be_compiled():
    class Table:
        __hash__ = None

        def __call__(self, x):
            return np.interp(x[..., 0], [0, 1], [2, 3])

    U = as_state_cost(Table(), 1)
    assert jax.jit(lambda U, x: U(x))(U, jnp.array([0.5])) == 2.5


def test_a_function_is_tried_where_it_is_defined():
    def only_positive(x):
        if np.min(np.asarray(x)) <= 0:
            raise ValueError("outside the table")
        return np.log1p(np.asarray(x)[:, 0])

    with pytest.raises(InputError, match="raised ValueError: outside the table"):
        as_state_cost(only_positive, 2)
    U = as_state_cost(only_positive, 2, points=np.abs(POINTS[:1]) + 1)
    assert isinstance(U, BlackBox)


def jax_with_if(x):
    return 1.0 if jnp.linalg.norm(x) < 1 else 0.0


def broken(x):
    raise KeyError("no such key")


def renamed(x):
    return missing_name * x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((3, 3)), r"found an array of shape \(3, 3\).*OccupancyGrid\(cells, extent\)"),
        ("walls.png", r"found the path 'walls\.png'.*OccupancyGrid\.from_image\(path, extent\)"),
        (3.0, "found float"),
        (None, "found NoneType"),
        ([], "found list"),
        (Disc, "found the class Disc"),
        ([Disc((0, 0), 1), "x"], "Expected shapes for Union, found str"),
        (
            Disc((0, 0, 0), 1),
            r"state cost of points of shape \(2,\).*InputError.*\(3,\) for a Disc",
        ),
        (Disc((0,), 1), r"shape \(1,\) for a Disc, found \(2,\)"),
        (lambda x: x, r"prices of shape \(\) for points of shape \(2,\), found \(2,\)"),
        (lambda x: (x @ x)[None], r"found \(1,\)"),
        (lambda x: None, "found NoneType"),
        (lambda x: (x[0], x[1]), "found tuple"),
        (lambda x: jnp.exp(1j * x[0]), "found complex numbers"),
        (Batched(lambda x: x), r"prices of shape \(3,\) for points of shape \(3, 2\), found"),
        (lambda x: np.sin(x), r"found \(2,\)"),
        (lambda x: str(np.sin(x)), "as real numbers, found"),
        (jax_with_if, "uses JAX and cannot be traced: TracerBoolConversionError.*jnp.where"),
        (broken, "raised KeyError: 'no such key'"),
        (renamed, "raised NameError: name 'missing_name' is not defined"),
        (Batched(broken), "raised KeyError"),
    ],
)
def test_refuses_what_is_no_state_cost(data, message):
    with pytest.raises(InputError, match=message) as error:
        as_state_cost(data, 2)
    assert "\n" not in str(error.value)


class Vector(StateCost):
    def __call__(self, x):
        return x


class Failing(StateCost):
    def __call__(self, x):
        raise RuntimeError("simulator is down\nand more")


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (JaxFunction(lambda x: jnp.log(x[0])), "Expected finite prices, found nan at "),
        (JaxFunction(lambda x: 1 / jnp.maximum(x[0], 0)), r"found inf at .* return a large number"),
        (
            JaxFunction(lambda x: x[1]),
            r"U\(x\) >= 0, found -1\.0 at \[ 1\., -1\.\], the first",
        ),
        (BlackBox(lambda x: x[:, 1]), "first of 1 such points out of 3; add a constant"),
        (Vector(), r"shape \(3,\) for points of shape \(3, 2\), found \(3, 2\)"),
        (
            Failing(),
            r"at each of 3 points, but the state cost raised RuntimeError: simulator is down\.$",
        ),
        (BlackBox(broken), "raised KeyError: 'no such key'"),
    ],
)
def test_checks_prices_before_they_are_used(cost, message):
    x = np.array([[2.0, 1.0], [1.0, -1.0], [-1.0, 0.5]])
    with pytest.raises(InputError, match=message):
        check_state_cost(cost, x)


def test_good_prices_pass_the_check():
    for cost in (Obstacle(Disc((0, 0), 1)), BlackBox(lambda x: np.exp(-x[:, 0]))):
        check_state_cost(cost, POINTS)
        check_state_cost(cost, POINTS[:0])
