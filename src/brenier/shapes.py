"""Regions of space, known by their signed distance: what an obstacle is made of.

All functions take one point of shape (d,); use `jax.vmap` for a batch.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import ndimage

from brenier.errors import InputError
from brenier.typing import ArrayLike, Point, Scalar

_MOST_CELLS = 1 << 24  # of a picture: the distances of as many take seconds


class Shape(eqx.Module):
    """A region of space, known by its signed distance.

    Implementations keep the sign exact. The size may be a lower bound of the distance to the
    border, and says so where it is one.
    """

    @abc.abstractmethod
    def distance(self, x: Point) -> Scalar:
        """Signed distance to the border: negative inside, positive outside."""

    def inside(self, x: Point) -> Bool[Array, ""]:
        """Whether `x` is inside; a point on the border is not."""
        return self.distance(x) < 0


class Disc(Shape):
    """The ball `|x - center| < radius`, in any dimension; the distance is exact.

    Args:
        center: shape (d,).
        radius: > 0.

    Raises:
        InputError: arguments that are not finite, or a radius that is not positive.

    Example:
        >>> Disc((0.0, 0.0), 1.0).distance(jnp.array([3.0, 4.0])).item()
        4.0
    """

    center: Float[np.ndarray, " d"]
    radius: float

    def __init__(self, center: Any, radius: float):
        self.center = _vector(center, "center of a Disc")
        self.radius = check_number(radius, "radius of a Disc", positive=True)

    def distance(self, x: Point) -> Scalar:
        return jnp.linalg.norm(x - _at(self.center, x, "Disc")) - self.radius


class Box(Shape):
    """The box `lower < x < upper`, in any dimension; the distance is exact.

    Args:
        lower, upper: opposite corners, shape (d,). A side may be infinite, as in a half-space; not
            all of them.

    Raises:
        InputError: corners of different shapes, or not in order.

    Example:
        >>> half_plane = Box((-np.inf, -np.inf), (0.0, np.inf))
        >>> half_plane.distance(jnp.array([-2.0, 7.0])).item()
        -2.0
    """

    lower: Float[np.ndarray, " d"]
    upper: Float[np.ndarray, " d"]

    def __init__(self, lower: Any, upper: Any):
        self.lower = _vector(lower, "lower corner of a Box", finite=False)
        self.upper = _vector(upper, "upper corner of a Box", finite=False)
        same = self.lower.shape == self.upper.shape
        if not same or not (self.lower < self.upper).all():
            raise InputError(
                "Expected a Box with lower < upper on every axis, "
                f"found {self.lower.tolist()} and {self.upper.tolist()}."
            )
        if np.isinf(self.lower).all() and np.isinf(self.upper).all():
            raise InputError("Expected a Box with a side, found all of space; make one finite.")

    def distance(self, x: Point) -> Scalar:
        past = jnp.maximum(_at(self.lower, x, "Box") - x, x - _at(self.upper, x, "Box"))
        return jnp.linalg.norm(jnp.maximum(past, 0)) + jnp.minimum(jnp.max(past), 0)


class Ellipse(Shape):
    """The ellipsoid `Σ ((x - center) / half_axes)² < 1`, in any dimension, axes along those of space.

    The distance is a lower bound, exact along the shortest half-axis: where the left-hand side is
    `k²` it is `(k - 1) min(half_axes)`.

    Args:
        center: shape (d,).
        half_axes: > 0, shape (d,).

    Raises:
        InputError: arguments that are not finite, differ in shape, or half-axes not positive.

    Example:
        >>> Ellipse((0.0, 0.0), (2.0, 1.0)).distance(jnp.array([0.0, 3.0])).item()
        2.0
    """

    center: Float[np.ndarray, " d"]
    half_axes: Float[np.ndarray, " d"]

    def __init__(self, center: Any, half_axes: Any):
        self.center = _vector(center, "center of an Ellipse")
        self.half_axes = _vector(half_axes, "half_axes of an Ellipse")
        if self.center.shape != self.half_axes.shape or not (self.half_axes > 0).all():
            raise InputError(
                f"Expected one positive half-axis for each of the {len(self.center)} coordinates "
                f"of the center of an Ellipse, found {self.half_axes.tolist()}."
            )

    def distance(self, x: Point) -> Scalar:
        axes = _at(self.half_axes, x, "Ellipse")
        stretched = jnp.linalg.norm((x - _at(self.center, x, "Ellipse")) / axes)
        return (stretched - 1) * jnp.min(axes)


class Wall(Shape):
    """The slab `lower < x[axis] < upper` without openings in it, `lo <= x[across] <= hi`.

    In the plane or above; the distance is exact.

    Args:
        axis: the coordinate that the wall stops.
        lower, upper: where it begins and ends along `axis`; one may be infinite.
        gaps: the openings `(lo, hi)`; an infinite end leaves the wall out on that side.
        across: the coordinate along which the openings lie; left out, the other one in the plane.

    Raises:
        InputError: ends that are not in order; `across` missing or the same as `axis`.

    Example:
        >>> slit = Wall(0, -0.1, 0.1, gaps=[(-0.25, 0.25)])
        >>> [slit.inside(jnp.array(x)).item() for x in ([0.0, 0.3], [0.0, 0.2])]
        [True, False]
    """

    lower: float
    upper: float
    pieces: Float[np.ndarray, "pieces 2"]
    axis: int = eqx.field(static=True)
    across: int = eqx.field(static=True)

    def __init__(
        self,
        axis: int,
        lower: float,
        upper: float,
        gaps: Sequence[tuple[float, float]] = (),
        across: int | None = None,
    ):
        if across is None and axis in (0, 1):
            across = 1 - axis
        if across is None or across == axis or min(axis, across) < 0:
            raise InputError(
                "Expected a Wall with two different coordinates axis >= 0 and across >= 0, "
                f"found axis={axis} and across={across}."
            )
        self.axis, self.across = int(axis), int(across)
        ends = _vector((lower, upper), "lower and upper end of a Wall", finite=False)
        if not ends[0] < ends[1] or np.isinf(ends).all():
            raise InputError(f"Expected a Wall with lower < upper, found {lower} and {upper}.")
        self.lower, self.upper = ends.tolist()
        pieces, start = [], -np.inf
        for low, high in sorted(_gap(gap) for gap in gaps):
            if start < low:
                pieces.append((start, low))
            start = max(start, high)
        if start < np.inf:
            pieces.append((start, np.inf))
        if not pieces:
            raise InputError(f"Expected a Wall with something beside its gaps, found {gaps}.")
        self.pieces = np.asarray(pieces)

    def distance(self, x: Point) -> Scalar:
        if x.ndim != 1 or len(x) <= max(self.axis, self.across):
            raise InputError(
                f"Expected a point with coordinates {self.axis} and {self.across} for a Wall, "
                f"found shape {x.shape}."
            )
        pieces, along, u = jnp.asarray(self.pieces, x.dtype), x[self.axis], x[self.across]
        past = jnp.maximum(self.lower - along, along - self.upper)
        beside = jnp.maximum(pieces[:, 0] - u, u - pieces[:, 1])
        outside = jnp.hypot(jnp.maximum(past, 0), jnp.maximum(beside, 0))
        return jnp.min(outside + jnp.minimum(jnp.maximum(past, beside), 0))


class Union(Shape):
    """Inside any of some shapes; inside, the distance is a lower bound.

    Raises:
        InputError: no shape, or something else.
    """

    shapes: tuple[Shape, ...]

    def __init__(self, *shapes: Shape):
        self.shapes = check_shapes(shapes, "Union")

    def distance(self, x: Point) -> Scalar:
        return jnp.min(jnp.stack([shape.distance(x) for shape in self.shapes]))


class Intersection(Shape):
    """Inside all of some shapes; outside, the distance is a lower bound.

    Raises:
        InputError: no shape, or something else.
    """

    shapes: tuple[Shape, ...]

    def __init__(self, *shapes: Shape):
        self.shapes = check_shapes(shapes, "Intersection")

    def distance(self, x: Point) -> Scalar:
        return jnp.max(jnp.stack([shape.distance(x) for shape in self.shapes]))


class Complement(Shape):
    """Outside a shape: a room instead of a block.

    Raises:
        InputError: not a shape.

    Example:
        >>> room = Complement(Box((-1.0, -1.0), (1.0, 1.0)))
        >>> room.distance(jnp.array([0.0, 0.0])).item()
        1.0
    """

    shape: Shape

    def __init__(self, shape: Shape):
        (self.shape,) = check_shapes((shape,), "Complement")

    def distance(self, x: Point) -> Scalar:
        return -self.shape.distance(x)


class Raster(Shape):
    """The union of the walls among the cells of a picture, in the plane.

    The sign is that of the cell a point lies in. Within the picture the distance is interpolated
    between cells, right to about half a cell; beyond it is a lower bound.

    Args:
        walls: boolean (rows, columns), row 0 at the top.
        extent: `(x_min, x_max, y_min, y_max)` of the whole picture.
        outside: what surrounds it, `"free"` or `"wall"`.

    Raises:
        InputError: not such an array, more than 2²⁴ cells, an extent that is not in order, nothing free anywhere.
    """

    distances: Float[np.ndarray, "rows columns"]
    extent: tuple[float, float, float, float] = eqx.field(static=True)
    walled: bool = eqx.field(static=True)

    def __init__(self, walls: Any, extent: Any, outside: Literal["free", "wall"] = "free"):
        walls = np.asarray(walls)
        if walls.ndim != 2 or walls.size == 0 or walls.dtype != bool:
            raise InputError(
                "Expected walls as a boolean array of shape (rows, columns), "
                f"found shape {walls.shape}, dtype {walls.dtype}."
            )
        if walls.size > _MOST_CELLS:
            raise InputError(
                f"Expected at most {_MOST_CELLS} cells, found {walls.shape[0]} × {walls.shape[1]}; "
                "scale the picture down."
            )
        if outside not in ("free", "wall"):
            raise InputError(f"Expected outside as 'free' or 'wall', found {outside!r}.")
        if outside == "wall" and walls.all():
            raise InputError("Expected a free cell, found walls only, inside and outside.")
        self.extent, self.walled = _extent(extent), outside == "wall"
        x_min, x_max, y_min, y_max = self.extent
        sides = (y_max - y_min) / walls.shape[0], (x_max - x_min) / walls.shape[1]
        # the surroundings are the nearest border of a cell at the edge
        padded = np.pad(walls, 1, constant_values=self.walled)
        if padded.any():
            # between centres; the border lies half a cell before the next one
            outwards, inwards = (
                np.asarray(ndimage.distance_transform_edt(a, sampling=sides)) - min(sides) / 2
                for a in (~padded, padded)
            )
            signed = np.where(padded, -inwards, outwards)[1:-1, 1:-1]
        else:
            signed = np.full(walls.shape, np.hypot(x_max - x_min, y_max - y_min))
        self.distances = signed.astype(np.float32)

    def cell(self, x: Point) -> tuple[Array, Array, Bool[Array, ""]]:
        """Row and column of the nearest cell, and whether `x` lies within the picture."""
        if x.shape != (2,):
            raise InputError(f"Expected a point of shape (2,) for a picture, found {x.shape}.")
        x_min, x_max, y_min, y_max = self.extent
        rows, columns = self.distances.shape
        row = jnp.floor((y_max - x[1]) * (rows / (y_max - y_min))).astype(jnp.int32)
        column = jnp.floor((x[0] - x_min) * (columns / (x_max - x_min))).astype(jnp.int32)
        within = (x_min <= x[0]) & (x[0] <= x_max) & (y_min <= x[1]) & (x[1] <= y_max)
        return jnp.clip(row, 0, rows - 1), jnp.clip(column, 0, columns - 1), within

    def distance(self, x: Point) -> Scalar:
        x_min, x_max, y_min, y_max = self.extent
        rows, columns = self.distances.shape
        height, width = (y_max - y_min) / rows, (x_max - x_min) / columns
        distances = jnp.asarray(self.distances, x.dtype)
        row, column, within = self.cell(x)
        nearest = jnp.clip(
            x, jnp.asarray((x_min, y_min), x.dtype), jnp.asarray((x_max, y_max), x.dtype)
        )
        between = jax.scipy.ndimage.map_coordinates(
            distances,
            [(y_max - nearest[1]) / height - 0.5, (nearest[0] - x_min) / width - 0.5],
            order=1,
            mode="nearest",
        )
        # at a corner the interpolation may cross zero a little beside the border
        least = 1e-6 * min(height, width)
        wall = distances[row, column] < 0
        signed = jnp.where(wall, jnp.minimum(between, -least), jnp.maximum(between, least))
        # beyond a convex region no way back is shorter than the hypotenuse
        away = jnp.linalg.norm(x - nearest)
        side = -1 if self.walled else 1
        return jnp.where(within, signed, side * jnp.hypot(away, jnp.maximum(side * signed, 0)))

    def inside(self, x: Point) -> Bool[Array, ""]:
        row, column, within = self.cell(x)
        return jnp.where(within, jnp.asarray(self.distances)[row, column] < 0, self.walled)


def check_number(value: Any, name: str, *, positive: bool = False) -> float:
    """A finite number >= 0, or > 0, as a float; otherwise `InputError`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not 0 <= number < np.inf or (positive and number == 0):
        raise InputError(
            f"Expected the {name} as a finite number {'>' if positive else '>='} 0, found {value!r}."
        )
    return number


def check_shapes(shapes: Sequence[Any], name: str) -> tuple[Shape, ...]:
    """At least one shape and nothing else; otherwise `InputError`."""
    found = [type(shape).__name__ for shape in shapes if not isinstance(shape, Shape)]
    if found or not shapes:
        raise InputError(
            f"Expected shapes for {name}, found {', '.join(found) or 'none'}; "
            "try brenier.state_costs.Disc or Box."
        )
    return tuple(shapes)


def _vector(value: Any, name: str, *, finite: bool = True) -> np.ndarray:
    try:
        vector = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        vector = np.full(1, np.nan)
    bad = ~np.isfinite(vector) if finite else np.isnan(vector)
    if vector.ndim != 1 or vector.size == 0 or bad.any():
        raise InputError(
            f"Expected the {name} as {'finite ' if finite else ''}numbers, one for each "
            f"coordinate, found {value!r}."
        )
    return vector


def _gap(gap: Any) -> tuple[float, float]:
    ends = _vector(gap, "ends of a gap", finite=False)
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise InputError(f"Expected gaps as (lo, hi) with lo < hi, found {gap!r}.")
    return ends[0], ends[1]


def _extent(extent: Any) -> tuple[float, float, float, float]:
    ends = _vector(extent, "extent of a picture")
    if len(ends) != 4 or not (ends[0] < ends[1] and ends[2] < ends[3]):
        raise InputError(
            "Expected an extent (x_min, x_max, y_min, y_max) with x_min < x_max and y_min < y_max, "
            f"found {extent!r}."
        )
    x_min, x_max, y_min, y_max = ends.tolist()
    return x_min, x_max, y_min, y_max


def _at(vector: ArrayLike, x: Point, name: str) -> Point:
    """A vector of a shape in the dtype of `x`; JAX would stretch one of length 1 in silence."""
    if x.shape != vector.shape:
        raise InputError(f"Expected a point of shape {vector.shape} for a {name}, found {x.shape}.")
    return jnp.asarray(vector, x.dtype)
