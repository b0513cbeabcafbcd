"""Ways around a hard obstacle in the plane, on a grid: rough, but found wherever there is one.

A path that is improved by descent stays on its side of every wall. Which doors to take is a question for a graph: of
the free nodes of a grid, with edges to eight neighbours, Dijkstra's algorithm gives the shortest way from every node to
the nearest target. Nodes close to the obstacle are dear, so that ways keep some distance where there is room.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

_CELLS = 240  # along twice the larger extent of the points
_APART = 6  # nodes between the beginnings of ways
_CLEARANCE = 0.05  # of that extent: within it nodes are dear
_DEAR = 3.0
_TARGETS = 256
_SOURCES = 64


class Routes(eqx.Module):
    """Ways to the target from all over the free plane, and which of them to take at a point.

    Attributes:
        ways: each at equal distances, shape (nodes, r, 2); r = 0 where there is none, or nothing to go around.
        taken: by node of the grid, the way whose beginning is nearest on the grid, so on the same side of walls.
        corner: where the grid begins.
        step: between its nodes.
    """

    ways: Float[Array, "nodes r 2"]
    taken: Int[Array, "rows columns"]
    corner: Float[Array, "2"]
    step: Float[Array, ""]

    def at(self, x: Float[Array, "n 2"]) -> Float[Array, "nodes n 2"]:
        """The way to take at each point: it begins near it."""
        place = jnp.rint((x - self.corner[None]) / self.step).astype(int)
        row, column = (
            jnp.clip(p, 0, k - 1) for p, k in zip(place.T, self.taken.shape, strict=True)
        )
        return self.ways[:, self.taken[row, column]]


def no_routes(nodes: int, dtype: np.dtype) -> Routes:
    """Where no search is made, or none is needed."""
    nowhere = jnp.zeros((0, 0), jnp.int32), jnp.zeros(2, dtype), jnp.ones((), dtype)
    return Routes(jnp.zeros((nodes, 0, 2), dtype), *nowhere)


def shortest_routes(
    inside: Callable[[Float[np.ndarray, "k 2"]], Bool[np.ndarray, "k"]],
    x: Float[np.ndarray, "n 2"],
    y: Float[np.ndarray, "m 2"],
    nodes: int,
) -> Routes:
    """The shortest ways to the nearest of the points `y`, from points `x` and from all over the free plane.

    Args:
        inside: whether points lie in the obstacle.
        x: where to start from, (n, 2); the grid reaches beyond `x` and `y` by half of their extent.
        y: where to go, (m, 2).
        nodes: of a way, both ends included.

    Example:
        >>> wall = lambda p: (np.abs(p[:, 0] - 0.5) < 0.1) & (p[:, 1] < 0.3)
        >>> x, y = np.array([[0.0, 0.0]]), np.array([[1.0, 0.0]])
        >>> way = shortest_routes(wall, x, y, 5).at(jnp.asarray(x))
        >>> bool(way[2, 0, 1] > 0.3)
        True
    """
    corners = np.concatenate([x, y])
    low, high = corners.min(axis=0), corners.max(axis=0)
    extent = max(float((high - low).max()), 1e-30)
    step = 2.0 * extent / _CELLS
    low, high = low - extent / 2, high + extent / 2
    axes = [np.arange(a, b, step) for a, b in zip(low, high, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    free = ~inside(places.reshape(-1, 2)).reshape(places.shape[:2])
    if not free.any() or free.all():
        return no_routes(nodes, x.dtype)
    room = np.asarray(ndimage.distance_transform_edt(free, sampling=step))
    close = room < _CLEARANCE * extent
    graph = _graph(free, np.where(close, _DEAR, 1.0) * step)
    nearest = _nearest(free)
    sources, goals = (
        nearest[_node(low, step, free.shape, points)] for points in (x[:_SOURCES], y[:_TARGETS])
    )
    lengths, before, _ = dijkstra(
        graph, indices=np.unique(goals), min_only=True, return_predecessors=True
    )
    if not np.isfinite(lengths[sources]).any():
        return no_routes(nodes, x.dtype)
    lattice = np.zeros(free.shape, bool)
    lattice[::_APART, ::_APART] = True
    lattice.flat[sources] = True
    begins = np.flatnonzero(lattice.ravel() & np.isfinite(lengths))

    number = np.zeros(free.size, np.int32)
    number[begins] = np.arange(len(begins))
    apart, _, begin = dijkstra(graph, indices=begins, min_only=True, return_predecessors=True)
    taken = number[np.where(begin >= 0, begin, 0)][_nearest(np.isfinite(apart).reshape(free.shape))]
    ways = []
    for node in begins:
        way = [node]
        while before[way[-1]] >= 0:
            way.append(before[way[-1]])
        ways.append(_evenly(places.reshape(-1, 2)[way], nodes))
    return Routes(
        jnp.asarray(np.stack(ways, axis=1), x.dtype),
        jnp.asarray(taken.reshape(free.shape)),
        jnp.asarray(low, x.dtype),
        jnp.asarray(step, x.dtype),
    )


def _graph(free: Bool[np.ndarray, "a b"], price: Float[np.ndarray, "a b"]) -> csr_array:
    """Edges between free neighbours, as long as they are far apart times what both ends cost."""
    number = np.arange(free.size).reshape(free.shape)
    rows, columns, lengths = [], [], []
    for i, j in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = slice(None, free.shape[0] - i), slice(max(-j, 0), free.shape[1] - max(j, 0))
        there = slice(i, None), slice(max(j, 0), free.shape[1] + min(j, 0))
        both = free[here] & free[there]
        rows.append(number[here][both])
        columns.append(number[there][both])
        lengths.append(np.hypot(i, j) * 0.5 * (price[here] + price[there])[both])
    entries = np.concatenate(lengths), (np.concatenate(rows), np.concatenate(columns))
    one_way = csr_array(entries, shape=(free.size, free.size))
    return one_way + one_way.T


def _node(
    low: np.ndarray, step: float, shape: tuple[int, ...], points: np.ndarray
) -> Int[np.ndarray, "n"]:
    """The number of the node nearest to each point."""
    at = np.clip(np.rint((points - low) / step).astype(int), 0, np.array(shape) - 1)
    return at[:, 0] * shape[1] + at[:, 1]


def _nearest(good: Bool[np.ndarray, "a b"]) -> Int[np.ndarray, "nodes"]:
    """By node, the number of the nearest good one."""
    found = ndimage.distance_transform_edt(~good, return_distances=False, return_indices=True)
    row, column = np.asarray(found)
    return (row * good.shape[1] + column).ravel()


def _evenly(line: Float[np.ndarray, "k 2"], nodes: int) -> Float[np.ndarray, "nodes 2"]:
    """Points at equal distances along a broken line."""
    along = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))]
    share = np.linspace(0.0, along[-1], nodes)
    return np.stack([np.interp(share, along, column) for column in line.T], axis=1)
