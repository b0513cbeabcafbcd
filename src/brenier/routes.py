"""Ways around a hard obstacle in the plane, on a grid: rough, but found wherever there is one.

A path that is improved by descent stays on its side of every wall. Which doors to take is a question for a graph: of
the free nodes of a grid, with edges to eight neighbours, Dijkstra's algorithm gives the shortest way from every node to
the nearest target. Nodes close to the obstacle are dear, so that ways keep some distance where there is room.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

_CELLS = 240  # along twice the larger extent of the points
_CLEARANCE = 0.05  # of that extent: within it nodes are dear
_DEAR = 3.0
_TARGETS = 256


def shortest_routes(
    inside: Callable[[Float[np.ndarray, "k 2"]], Bool[np.ndarray, "k"]],
    x: Float[np.ndarray, "n 2"],
    y: Float[np.ndarray, "m 2"],
    nodes: int,
) -> Float[np.ndarray, "nodes r 2"]:
    """The shortest ways from points `x` to the nearest of the points `y`, at `nodes` equal distances.

    Args:
        inside: whether points lie in the obstacle.
        x: where to start from; those from which there is no way are left out, and all where nothing is in the way.
        y: where to go.
        nodes: of a way, both ends included.

    Example:
        >>> wall = lambda p: (np.abs(p[:, 0] - 0.5) < 0.1) & (p[:, 1] < 0.3)
        >>> way = shortest_routes(wall, np.array([[0.0, 0.0]]), np.array([[1.0, 0.0]]), 5)
        >>> bool(way[2, 0, 1] > 0.3)
        True
    """
    corners = np.concatenate([x, y])
    low, high = corners.min(axis=0), corners.max(axis=0)
    extent = max(float((high - low).max()), 1e-30)
    step = 2.0 * extent / _CELLS
    axes = [np.arange(a, b, step) for a, b in zip(low - extent / 2, high + extent / 2, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    free = ~inside(places.reshape(-1, 2)).reshape(places.shape[:2])
    if not free.any() or free.all():
        return np.zeros((nodes, 0, 2))
    room = np.asarray(ndimage.distance_transform_edt(free, sampling=step))
    close = room < _CLEARANCE * extent
    graph = _graph(free, np.where(close, _DEAR, 1.0) * step)
    starts, goals = (_node(low - extent / 2, step, free, points) for points in (x, y[:_TARGETS]))
    lengths, before, _ = dijkstra(
        graph, indices=np.unique(goals), min_only=True, return_predecessors=True
    )
    found = []
    for point, node in zip(x, starts, strict=True):
        if not np.isfinite(lengths[node]):
            continue
        way = [node]
        while before[way[-1]] >= 0:
            way.append(before[way[-1]])
        line = np.concatenate([point[None], places.reshape(-1, 2)[way[1:] or way]])
        found.append(_evenly(line, nodes))
    return np.stack(found, axis=1) if found else np.zeros((nodes, 0, 2))


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


def _node(low: np.ndarray, step: float, free: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The free node nearest to the node nearest to each point."""
    nearest = ndimage.distance_transform_edt(~free, return_distances=False, return_indices=True)
    at = np.clip(np.rint((points - low) / step).astype(int), 0, np.array(free.shape) - 1)
    row, column = np.asarray(nearest)[:, at[:, 0], at[:, 1]]
    return row * free.shape[1] + column


def _evenly(line: Float[np.ndarray, "k 2"], nodes: int) -> Float[np.ndarray, "nodes 2"]:
    """Points at equal distances along a broken line."""
    along = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))]
    share = np.linspace(0.0, along[-1], nodes)
    return np.stack([np.interp(share, along, column) for column in line.T], axis=1)
