"""Ways on a grid, against the shortest ones around a disc, and where there is none."""

import jax.numpy as jnp
import numpy as np

from brenier.routes import shortest_routes

X = np.array([[-2.0, 0.1], [-2.2, -0.3]])
Y = np.array([[2.0, 0.0], [2.1, 0.2]])


def ways_from(obstacle, x, nodes):
    return np.asarray(shortest_routes(obstacle, X, Y, nodes).at(jnp.asarray(x)))


def disc(points):
    return np.linalg.norm(points, axis=1) < 1.0


def test_around_a_disc_it_is_little_longer_than_the_shortest_way():
    ways = ways_from(disc, X, 41)
    assert ways.shape == (41, 2, 2)
    np.testing.assert_allclose(ways[0], X, atol=0.02)  # half of a cell
    # from point to point: two tangents and the arc between them
    straight, grid = [], np.linalg.norm(np.diff(ways, axis=0), axis=2).sum(axis=0)
    for start in X:
        lengths = []
        for end in Y:
            a, b = np.linalg.norm(start), np.linalg.norm(end)
            angle = np.arccos(start @ end / (a * b)) - np.arccos(1 / a) - np.arccos(1 / b)
            lengths.append(np.sqrt(a**2 - 1) + np.sqrt(b**2 - 1) + angle)
        straight.append(min(lengths))
    # eight directions cost 8 % at most, the distance that is kept some more
    assert (grid > 0.98 * np.array(straight)).all()
    assert (grid < 1.2 * np.array(straight)).all()
    steps = np.linalg.norm(np.diff(ways, axis=0), axis=2)
    assert steps.max() < 1.05 * grid.max() / 40  # evenly, up to the corners that are cut
    assert not disc(ways.reshape(-1, 2)).any()


def test_it_takes_the_door():
    def wall(points):
        return (np.abs(points[:, 0]) < 0.2) & ~((points[:, 1] > 1.2) & (points[:, 1] < 1.6))

    ways = ways_from(wall, X, 65)
    assert not wall(ways.reshape(-1, 2)).any()
    between = ways[(np.abs(ways[..., 0]) < 0.2)]
    assert len(between) > 2


def test_a_way_begins_on_the_same_side_of_a_wall():
    def wall(points):  # with a door far up
        return (np.abs(points[:, 0]) < 0.04) & (points[:, 1] < 1.5)

    beside = np.array([[-0.05, 0.0], [0.05, 0.0], [-0.05, 1.0]])
    ways = ways_from(wall, beside, 129)
    np.testing.assert_allclose(ways[0], beside, atol=0.25)  # within a few cells
    assert (np.sign(ways[0, :, 0]) == np.sign(beside[:, 0])).all()
    assert ways[:, [0, 2], 1].max(axis=0).min() > 1.5  # through the door
    assert ways[:, 1, 1].max() < 0.5  # straight on
    assert not wall(ways.reshape(-1, 2)).any()


def test_in_a_wall_it_is_the_way_from_the_nearest_free_place():
    def wall(points):
        return np.abs(points[:, 0]) < 0.3

    routes = shortest_routes(lambda p: wall(p) & (p[:, 1] < 1.0), X, Y, 65)
    left, right = np.moveaxis(np.asarray(routes.at(jnp.asarray([[-0.2, 0.0], [0.2, 0.0]]))), 1, 0)
    assert left[0, 0] < -0.25
    assert right[0, 0] > 0.25


def test_where_there_is_no_way_or_nothing_in_it():
    for obstacle in (
        lambda p: np.abs(p[:, 0]) < 0.2,
        lambda p: p[:, 0] > 1e9,
        lambda p: p[:, 0] < 1e9,
    ):
        assert shortest_routes(obstacle, X, Y, 9).ways.shape == (9, 0, 2)
