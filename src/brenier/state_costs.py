"""State costs: the price `U(x) >= 0` per unit time of being at `x`.

An obstacle, a forbidden region, a picture of a maze, a simulator: `U` is only ever evaluated, never
differentiated, so it may jump and need not know JAX. All functions take one point of shape (d,);
use `jax.vmap` for a batch. Prices are in units of `L`: a point that rests for unit time at a place
of price 3 pays as much as one that moves by √6 at the default cost ½|v|².
"""

from __future__ import annotations

import abc
import os
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from brenier.callables import as_pytree, coordinates, kind, sketch, words
from brenier.coordinates import Frame
from brenier.errors import InputError
from brenier.shapes import Box as Box
from brenier.shapes import Complement as Complement
from brenier.shapes import Disc as Disc
from brenier.shapes import Ellipse as Ellipse
from brenier.shapes import Intersection as Intersection
from brenier.shapes import Raster as Raster
from brenier.shapes import Shape as Shape
from brenier.shapes import Union as Union
from brenier.shapes import Wall as Wall
from brenier.shapes import check_number, check_shapes
from brenier.typing import Point, Scalar

DEFAULT_HEIGHT = 100.0
"""Price inside an obstacle that was given without one: a hundredth of the time in it costs 1."""

_CHUNK = 2**16
"""Points that are evaluated at once."""


class StateCost(eqx.Module):
    """A price `U(x) >= 0` per unit time of being at `x`, its weight included.

    Implementations return a number of the dtype of `x`, and name their hard obstacle where they
    know one, so that violations can be counted.
    """

    @abc.abstractmethod
    def __call__(self, x: Point) -> Scalar:
        """`U(x)`."""

    @property
    def obstacle(self) -> Shape | None:
        """The region that a path should not enter; None where no such region is known."""
        return None

    def inside(self, x: Point) -> Bool[Array, ""]:
        """Whether `x` is in the hard obstacle; false where none is known."""
        return jnp.asarray(False) if self.obstacle is None else self.obstacle.inside(x)

    def depth(self, x: Point) -> Scalar:
        """How deep `x` is in the hard obstacle; 0 outside, and where none is known."""
        if self.obstacle is None:
            return jnp.zeros((), x.dtype)
        return jnp.maximum(-self.obstacle.distance(x), 0)

    def evaluate(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """`U` at points (n, d) in memory, as a NumPy array."""
        return np.asarray(evaluate_at(self, points))


class Obstacle(StateCost):
    """`height` inside a shape and 0 outside, or a smooth step between the two.

    Args:
        shape: the hard obstacle.
        height: the price inside, >= 0.
        softness: `τ >= 0`, a length. Above 0, `U = height · sigmoid(-distance / τ)`: half the
            height at the border, 1 % of it 4.6 τ away.

    Raises:
        InputError: not a shape, a height or softness that is negative or not finite.

    Example:
        >>> U = Obstacle(Disc((0.0, 0.0), 1.0), height=30.0)
        >>> [U(jnp.array(x)).item() for x in ([0.5, 0.0], [1.5, 0.0])]
        [30.0, 0.0]
    """

    shape: Shape
    height: float
    softness: float = eqx.field(static=True)

    def __init__(self, shape: Shape, height: float = DEFAULT_HEIGHT, softness: float = 0.0):
        (self.shape,) = check_shapes((shape,), "Obstacle")
        self.height = check_number(height, "height of an Obstacle")
        self.softness = check_number(softness, "softness of an Obstacle")

    def __call__(self, x: Point) -> Scalar:
        if self.softness == 0.0:
            return jnp.where(self.shape.inside(x), self.height, 0.0).astype(x.dtype)
        return self.height * jax.nn.sigmoid(-self.shape.distance(x) / self.softness)

    @property
    def obstacle(self) -> Shape:
        return self.shape


class OccupancyGrid(StateCost):
    """A picture of the walls, in the plane: `height` times the share of its cell that is occupied.

    Constant in every cell. Cells that are at least half occupied are the hard obstacle.

    Args:
        cells: (rows, columns), booleans or shares in [0, 1]; row 0 is at the top, as in a picture,
            so `y` falls from one row to the next.
        extent: `(x_min, x_max, y_min, y_max)` of the whole picture, as in matplotlib's `imshow`.
        height: the price in a cell that is fully occupied, >= 0.
        outside: what surrounds the picture, `"free"` or `"wall"`.

    Raises:
        InputError: cells of another kind, an extent that is not in order, nothing free anywhere.

    Example:
        >>> U = OccupancyGrid([[True, False], [False, False]], (0, 2, 0, 2), height=30.0)
        >>> [U(jnp.array(x)).item() for x in ([0.5, 1.5], [0.5, 0.5])]
        [30.0, 0.0]
    """

    cells: Float[np.ndarray, "rows columns"]
    shape: Raster
    height: float

    def __init__(
        self,
        cells: Any,
        extent: Any,
        height: float = DEFAULT_HEIGHT,
        outside: Literal["free", "wall"] = "free",
    ):
        cells = np.asarray(cells)
        if cells.ndim != 2 or cells.size == 0 or cells.dtype.kind not in "biuf":
            raise InputError(
                "Expected cells as an array of shape (rows, columns) of booleans or shares, "
                f"found shape {cells.shape}, dtype {cells.dtype}."
            )
        if not ((cells >= 0) & (cells <= 1)).all():
            raise InputError(
                "Expected cells between 0 (free) and 1 (wall), found values from "
                f"{cells.min()} to {cells.max()}; for a picture use OccupancyGrid.from_image."
            )
        self.cells = cells.astype(np.float32)
        self.shape = Raster(self.cells >= 0.5, extent, outside)
        self.height = check_number(height, "height of an OccupancyGrid")

    @classmethod
    def from_image(
        cls,
        path: str | os.PathLike[str],
        extent: Any,
        *,
        threshold: float = 0.5,
        height: float = DEFAULT_HEIGHT,
        outside: Literal["free", "wall"] = "free",
    ) -> OccupancyGrid:
        """A grid whose walls are the dark pixels of a picture.

        Args:
            path: a file in any format Pillow reads; what is transparent counts as white.
            extent, height, outside: as above.
            threshold: a pixel is a wall if its brightness, black 0 and white 1, is below.

        Raises:
            InputError: no readable picture, or one with only walls or none at this threshold.
        """
        # the picture reader comes with the fits of colour transfer, far above this module
        from brenier.color.images import read_image

        if not 0 < threshold < 1:
            raise InputError(f"Expected a threshold between 0 and 1, found {threshold}.")
        image = read_image(path)
        grey = image.pixels @ np.array([0.299, 0.587, 0.114]) / 255
        if image.alpha is not None:
            grey = 1 - (1 - grey) * (image.alpha / 255)
        walls = grey < threshold
        if walls.all() or not walls.any():
            raise InputError(
                f"Expected walls and free space in {path}, found brightness from {grey.min():.2f} "
                f"to {grey.max():.2f}, all on one side of the threshold {threshold}; "
                "try another threshold."
            )
        return cls(walls, extent, height, outside)

    def __call__(self, x: Point) -> Scalar:
        row, column, within = self.shape.cell(x)
        share = jnp.where(
            within, jnp.asarray(self.cells, x.dtype)[row, column], float(self.shape.walled)
        )
        return self.height * share

    @property
    def obstacle(self) -> Shape:
        return self.shape


class JaxFunction(StateCost):
    """A function that JAX can trace.

    Args:
        function: `x (d,) -> U`, or `x (..., d) -> (...)` if `batched`; an Equinox module keeps its
            arrays in the pytree.
        batched: whether the function wants points in batches.
        weight: a factor.
        shape: the hard obstacle behind it, where there is one.

    Example:
        >>> JaxFunction(lambda x: x @ x, weight=3.0)(jnp.array([1.0, 1.0])).item()
        6.0
    """

    function: Callable[..., Any]
    batched: bool = eqx.field(static=True)
    weight: float
    shape: Shape | None

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        batched: bool = False,
        weight: float = 1.0,
        shape: Shape | None = None,
    ):
        self.function, self.batched = as_pytree(function), batched
        self.weight = check_number(weight, "weight of a state cost")
        self.shape = shape

    def __call__(self, x: Point) -> Scalar:
        # some functions of (..., d) index their rows, so even one point comes as a batch
        value = jnp.asarray(self.function(x[None])[0] if self.batched else self.function(x))
        if value.shape != ():
            raise InputError(_wrong_shape(x.shape, value.shape))
        return self.weight * value.astype(x.dtype)

    @property
    def obstacle(self) -> Shape | None:
        return self.shape


class BlackBox(StateCost):
    """Any Python function of NumPy points, called from compiled code, once for each batch.

    The result should depend on the point alone: calls may be left out or repeated. The function
    must not use JAX, which can hang when it is called from its own compiled code; what JAX can
    trace is a `JaxFunction`.

    Args:
        function: `points (n, d) -> prices (n,)`, or `point (d,) -> price` unless `batched`.
        batched: whether the function takes many points at once, which is much faster.

    Raises:
        InputError: when evaluated, if the prices are not n real numbers. Within compiled code JAX
            wraps this and every other exception of the function in its own.

    Example:
        >>> U = BlackBox(lambda points: np.hypot(points[:, 0], points[:, 1]))
        >>> jax.vmap(U)(jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [5.0, 1.0]
    """

    function: Callable[..., Any]
    batched: bool = eqx.field(static=True)

    def __init__(self, function: Callable[..., Any], batched: bool = True):
        self.function, self.batched = as_pytree(function), batched

    def __call__(self, x: Point) -> Scalar:
        def host(x: Any) -> np.ndarray:
            points = np.array(x)  # a copy, which the function may write to
            return self.evaluate(points.reshape(-1, points.shape[-1])).reshape(points.shape[:-1])

        price = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(host, price, x, vmap_method="expand_dims")

    def evaluate(self, points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        values = self.function(points) if self.batched else [self.function(p) for p in points]
        try:
            prices = np.asarray(values)
        except ValueError as error:
            raise InputError(f"Expected one price for each point, found none ({error}).") from error
        if prices.dtype.kind not in "biuf":
            raise InputError(
                f"Expected prices as real numbers, found {kind(values)}; "
                f"return an array of shape {'(n,)' if self.batched else '()'}."
            )
        if prices.shape != (len(points),):
            first = 0 if self.batched else 1
            raise InputError(_wrong_shape(points.shape[first:], prices.shape[first:]))
        return prices.astype(points.dtype)


class FramedStateCost(StateCost):
    """A state cost seen from a frame: `U(c + s z) / κ`, with costs in units of `κ` as those of moving are.

    For frames at rest only: in a moving one `U` would depend on time.
    """

    outer: StateCost
    frame: Frame
    unit: float

    def __call__(self, x: Point) -> Scalar:
        return self.outer(self.frame.decode(0.0, x)) / self.unit

    def inside(self, x: Point) -> Bool[Array, ""]:
        return self.outer.inside(self.frame.decode(0.0, x))

    def depth(self, x: Point) -> Scalar:
        (scale,) = self.frame._cast(x, self.frame.scale)
        return self.outer.depth(self.frame.decode(0.0, x)) / scale


def as_state_cost(
    data: Any,
    dim: int,
    dtype: Any = np.float64,
    *,
    height: float = DEFAULT_HEIGHT,
    points: np.ndarray | None = None,
) -> StateCost:
    """A `StateCost` from what a user has.

    Args:
        data: a `StateCost`; a `Shape` or a list of them, then obstacles of price `height`; or a
            function of one point (d,), traceable by JAX or not. A function of batches, (..., d) to
            (...), is known by its attribute `batched = True`, or by refusing one point.
        dim: d.
        dtype: of the points it will be given.
        height: the price inside a shape.
        points: points (n, d) to try a function on that JAX cannot trace; standard normal ones when
            left out.

    Raises:
        InputError: something else; a cost for points of another dimension; a function that raises,
            does not return one real number for a point, or uses JAX in a way JAX cannot trace.

    Example:
        >>> U = as_state_cost(lambda x: 0.1 * x @ x, dim=2)
        >>> U(jnp.array([3.0, 4.0])).item()
        2.5
    """
    if isinstance(data, Shape):
        data = Obstacle(data, height)
    elif isinstance(data, list | tuple) and any(isinstance(shape, Shape) for shape in data):
        data = Obstacle(Union(*data), height)
    if isinstance(data, StateCost):
        price = sketch(data, np.zeros(dim, dtype))
        if isinstance(price, Exception):
            raise InputError(
                f"Expected a state cost of points of shape ({dim},), found one that raises "
                f"{words(price)}"
            ) from price
        if _shape(price) != ():
            raise InputError(_wrong_shape((dim,), _shape(price)))
        return data
    if callable(data) and not isinstance(data, type):
        return _from_function(data, dim, dtype, points)
    raise InputError(
        "Expected state_cost to be a function of a point, a brenier.state_costs.StateCost or "
        f"shapes such as Disc, found {kind(data)}. For a picture or an array of cells try "
        "OccupancyGrid.from_image(path, extent) or OccupancyGrid(cells, extent)."
    )


def check_state_cost(cost: StateCost, points: Float[np.ndarray, "n d"]) -> None:
    """Evaluates a state cost at points (n, d) and says what is wrong with it.

    Raises:
        InputError: it raises, returns the wrong shape, or is negative, NaN or infinite somewhere.
    """
    try:
        prices = np.asarray(cost.evaluate(points))
    except InputError:
        raise
    except Exception as error:  # whatever a user's function throws
        raise InputError(
            f"Expected a price at each of {len(points)} points, but the state cost raised "
            f"{words(error)}"
        ) from error
    if prices.shape != (len(points),):
        raise InputError(_wrong_shape(points.shape, prices.shape))
    for bad, what, remedy in (
        (~np.isfinite(prices), "finite prices", "return a large number for what is forbidden"),
        (prices < 0, "prices U(x) >= 0", "add a constant, which changes no path"),
    ):
        if bad.any():
            first = int(np.argmax(bad))
            raise InputError(
                f"Expected {what}, found {prices[first]} at {coordinates(points[first])}, the "
                f"first of {bad.sum()} such points out of {len(points)}; {remedy}."
            )


@eqx.filter_jit
def evaluate_at(function: Callable[[Point], Any], points: np.ndarray | Array) -> Any:
    """A function of one point at points (n, d), in blocks that bound the memory."""
    points = jnp.asarray(points)
    if len(points) <= _CHUNK:
        return jax.vmap(function)(points)
    return jax.lax.map(function, points, batch_size=_CHUNK)


def _from_function(
    function: Callable[..., Any], dim: int, dtype: Any, points: np.ndarray | None
) -> StateCost:
    """A function as JAX or as Python, of points or of batches, whichever it turns out to be."""
    declared = bool(getattr(function, "batched", False))
    n = 4 if dim == 3 else 3  # points and coordinates must not be confused
    untraced: Exception | None = None
    for batched in (True,) if declared else (False, True):
        given = (n, dim) if batched else (dim,)
        price = sketch(function, np.zeros(given, dtype))
        if isinstance(price, Exception):
            untraced = untraced or price
        elif _shape(price) == given[:-1]:
            return JaxFunction(function, batched=batched)
        elif declared or not batched:
            raise InputError(_wrong_shape(given, _shape(price)))
    if points is None or len(points) == 0:
        points = np.random.default_rng(0).normal(size=(n, dim))
    points = np.asarray(points[np.arange(n) % len(points)], dtype)
    failure: Exception | None = None
    for batched in (True,) if declared else (True, False):
        cost = BlackBox(function, batched)
        try:
            with jax.transfer_guard_host_to_device("disallow"):
                cost.evaluate(points.copy())
        except Exception as error:  # whatever a user's function throws
            failure = error
        else:
            return cost
    if isinstance(failure, InputError):
        raise failure
    if "Disallowed host-to-device transfer" in str(failure):
        raise InputError(
            "Expected a state cost that JAX can trace or that does not use JAX, found one that "
            f"uses JAX and cannot be traced: {words(untraced)} Write it with jnp.where instead "
            "of if, or with numpy alone."
        ) from untraced
    raise InputError(
        "Expected a function of a point, or of points (n, d), that returns prices; it raised "
        f"{words(failure)}"
    ) from failure


def _shape(value: Any) -> tuple[int, ...] | str:
    """The shape of real numbers in a sketch, or a few words for anything else."""
    if not isinstance(value, jax.ShapeDtypeStruct):
        return kind(value)
    return "complex numbers" if jnp.issubdtype(value.dtype, jnp.complexfloating) else value.shape


def _wrong_shape(given: tuple[int, ...], found: tuple[int, ...] | str) -> str:
    return (
        f"Expected a state cost that returns real prices of shape {given[:-1]} for points of shape "
        f"{given}, found {found}; return one number for each point."
    )
