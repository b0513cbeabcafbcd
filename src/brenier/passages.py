"""Is there a way? What a hard obstacle leaves between source and target, before the fit and after it."""

from __future__ import annotations

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import ndimage

from brenier.callables import coordinates
from brenier.errors import BrenierWarning, InputError
from brenier.flow import simulate
from brenier.problem import TransportProblem
from brenier.shapes import Raster, Shape
from brenier.state_costs import StateCost, evaluate_at
from brenier.typing import Potential

_CROSSABLE = "A price given as a function, without a shape, may be crossed and is not checked."
_PATHS, _STEPS = 256, 100


def check_passage(
    cost: StateCost, x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> None:
    """Whether the hard obstacle leaves a way from source points `x` to target points `y`.

    Points in the obstacle are counted in any dimension. In the plane, the free space around the
    points is searched on a grid, also far beyond them; a way narrower than about 1/600 of their
    extent may be missed, and one through a wall as thin as that may be taken for free. Nothing is
    checked where no hard obstacle is known.

    Raises:
        InputError: a side lies in the obstacle, or no source point can reach a target point.

    Warns:
        BrenierWarning: some points lie in the obstacle, or are cut off from the other side; a picture of walls lies
            beside all of the points.
    """
    obstacle = cost.obstacle
    if obstacle is None:
        return
    if isinstance(obstacle, Raster) and not obstacle.walled:
        _expect_around(obstacle.extent, np.concatenate([x, y]))
    outside = {}
    for side, points in (("source", x), ("target", y)):
        inside = np.asarray(evaluate_at(obstacle.inside, points))
        if inside.all():
            raise InputError(
                f"Expected {side} points outside the obstacle, found all {len(points)} inside; "
                f"move one or the other. {_CROSSABLE}"
            )
        if inside.any():
            warnings.warn(
                f"{inside.mean():.2%} of the {side} points lie in the obstacle "
                f"({inside.sum()} of {len(points)}); every path from or to them pays for it.",
                BrenierWarning,
                stacklevel=2,
            )
        outside[side] = points[~inside]
    if x.shape[1] != 2:
        return
    cut = _cut_off(obstacle, outside["source"], outside["target"])
    if cut["source"].all():
        raise InputError(
            "Expected a free path from source to target, found none: the obstacle separates them. "
            f"Open a gap in it, or check its place and size. {_CROSSABLE}"
        )
    for side, other in (("source", "target"), ("target", "source")):
        if cut[side].any():
            warnings.warn(
                f"{cut[side].mean():.2%} of the {side} points have no free path to any {other} "
                "point; their mass has to cross the obstacle.",
                BrenierWarning,
                stacklevel=2,
            )


def check_paths(
    u: Potential, problem: TransportProblem, x: Float[np.ndarray, "n d"], seed: int = 0
) -> None:
    """Whether the paths of a potential keep out of the hard obstacle: for what `check_passage` cannot search.

    Warns:
        BrenierWarning: most paths from points `x` lead through it.
    """
    cost = problem.state_cost
    if cost is None or cost.obstacle is None:
        return
    roll = jax.jit(partial(simulate, u, problem, steps=_STEPS))
    points = np.asarray(roll(x=jnp.asarray(x[:_PATHS]), key=jax.random.key(seed)).points)
    inside = np.asarray(evaluate_at(cost.inside, points.reshape(-1, points.shape[-1])))
    share = inside.reshape(points.shape[:-1]).any(axis=0).mean()
    if share > 0.5:
        warnings.warn(
            f"{share:.0%} of the paths lead through the obstacle: there is no free way, it was not found, or its price "
            "is too low to be worth one. Open a gap, fit for longer, or raise the price.",
            BrenierWarning,
            stacklevel=2,
        )


def _expect_around(extent: tuple[float, float, float, float], points: np.ndarray) -> None:
    low, high = points.min(axis=0), points.max(axis=0)
    if (low > extent[1::2]).any() or (high < extent[::2]).any():
        warnings.warn(
            f"Expected the picture of the walls among the points, which lie between {coordinates(low)} and "
            f"{coordinates(high)}, found it beside them, at {extent}; check the extent, and the order of its numbers.",
            BrenierWarning,
            stacklevel=3,
        )


def _cut_off(obstacle: Shape, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Which free points of each side can reach no point of the other side, in the plane."""
    none = {"source": np.zeros(len(x), bool), "target": np.zeros(len(y), bool)}
    cut = none
    corners = np.concatenate([x, y])
    low, high = corners.min(axis=0), corners.max(axis=0)
    # the finer grid has the last word, as a coarse one may close a narrow passage
    for cells in (300, 1200):
        axes = _grid(low, high, cells)
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        inside = np.asarray(evaluate_at(obstacle.inside, nodes.reshape(-1, 2)))
        free = ~inside.reshape(nodes.shape[:-1])
        if not free.any():
            return none
        rooms = np.zeros(free.shape, np.int32)
        ndimage.label(free, output=rooms)
        # a free point may have its nearest node in the obstacle
        nearest = ndimage.distance_transform_edt(~free, return_distances=False, return_indices=True)
        rooms = rooms[tuple(np.asarray(nearest))]
        from_x, to_y = (
            rooms[tuple(_nearest(axis, p) for axis, p in zip(axes, points.T, strict=True))]
            for points in (x, y)
        )
        cut = {"source": ~np.isin(from_x, to_y), "target": ~np.isin(to_y, from_x)}
        if not (cut["source"].any() or cut["target"].any()):
            return none
    return cut


def _grid(low: np.ndarray, high: np.ndarray, cells: int) -> list[np.ndarray]:
    """Nodes along both axes: even within half the extent of the points, then ever wider apart."""
    extent = max(float((high - low).max()), 1e-6 * float(np.abs([low, high]).max()), 1e-30)
    step = 2 * extent / cells
    tail = np.geomspace(step, 20 * extent, 40)
    axes = []
    for a, b in zip(low - extent / 2, high + extent / 2, strict=True):
        even = np.linspace(a, b, int(np.ceil((b - a) / step)) + 1)
        axes.append(np.concatenate([a - tail[::-1], even, b + tail]))
    return axes


def _nearest(axis: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.searchsorted((axis[1:] + axis[:-1]) / 2, values)
