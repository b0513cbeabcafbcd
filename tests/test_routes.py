"""Ways on a grid, against the shortest ones around a disc, and where there is none."""

import jax.numpy as jnp
import numpy as np

from brenier.methods._paths import _rest_of_routes
from brenier.routes import shortest_routes

X = np.array([[-2.0, 0.1], [-2.2, -0.3]])
Y = np.array([[2.0, 0.0], [2.1, 0.2]])


def disc(points):
    return np.linalg.norm(points, axis=1) < 1.0


def test_around_a_disc_it_is_little_longer_than_the_shortest_way():
    ways = shortest_routes(disc, X, Y, 41)
    assert ways.shape == (41, 2, 2)
    np.testing.assert_array_equal(ways[0], X)
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
    assert (grid > 0.99 * np.array(straight)).all()
    assert (grid < 1.2 * np.array(straight)).all()
    steps = np.linalg.norm(np.diff(ways, axis=0), axis=2)
    assert steps.max() < 1.05 * grid.max() / 40  # evenly, up to the corners that are cut
    assert not disc(ways.reshape(-1, 2)).any()


def test_it_takes_the_door():
    def wall(points):
        return (np.abs(points[:, 0]) < 0.2) & ~((points[:, 1] > 1.2) & (points[:, 1] < 1.6))

    ways = shortest_routes(wall, X, Y, 65)
    assert not wall(ways.reshape(-1, 2)).any()
    between = ways[(np.abs(ways[..., 0]) < 0.2)]
    assert len(between) > 2


def test_where_there_is_no_way_or_nothing_in_it():
    assert shortest_routes(lambda p: np.abs(p[:, 0]) < 0.2, X, Y, 9).shape == (9, 0, 2)
    assert shortest_routes(lambda p: p[:, 0] > 1e9, X, Y, 9).shape == (9, 0, 2)
    assert shortest_routes(lambda p: p[:, 0] < 1e9, X, Y, 9).shape == (9, 0, 2)


def test_the_rest_of_a_route_starts_where_it_passes_nearest():
    along = np.linspace(0.0, 1.0, 5)
    routes = jnp.asarray(
        np.stack([np.stack([along, 0 * along], 1), np.stack([along, 2 + along], 1)], axis=1)
    )
    x = jnp.asarray([[0.52, 0.1], [-1.0, 2.0], [1.0, 3.0]])
    rest = _rest_of_routes(routes, x, jnp.asarray([[0.0], [0.5], [1.0]]))
    expected = [[[0.5, 0.0], [0.75, 0.0], [1.0, 0.0]], [[0, 2], [0.5, 2.5], [1, 3]], [[1, 3]] * 3]
    np.testing.assert_allclose(rest, np.swapaxes(expected, 0, 1), atol=1e-12)
