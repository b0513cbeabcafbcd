"""Base drifts: where particles would go by themselves, `dx = f(t, x) dt + v dt + σ dW`.

A current, a wind, a dynamics that is known: only what the control `v` adds to it is paid for. `f` is a function of a
time and one point of shape (d,), in JAX.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from brenier.callables import as_pytree, coordinates, kind, sketch, words
from brenier.coordinates import Frame
from brenier.errors import InputError
from brenier.typing import Point, Points, Scalar

_TRIED = (0.0, 0.5, 1.0)  # times at which a drift is looked at before it is used
_PROBES = 16


class Drift(eqx.Module):
    """`f(t, x)`, of the shape and dtype of `x`."""

    @abc.abstractmethod
    def __call__(self, t: Scalar, x: Point) -> Point:
        """`f(t, x)`."""

    def at(self, t: Float[Array, "n"], x: Points) -> Points:
        """`f` at times (n,) and points (n, d)."""
        return jax.vmap(self)(t, x)


class DriftFunction(Drift):
    """A drift that is a function of the user's.

    Args:
        function: `(t, x (d,)) -> (d,)`, traceable by JAX; an Equinox module keeps its arrays in the pytree.

    Example:
        >>> still = DriftFunction(lambda t, x: -x)
        >>> still(jnp.array(0.5), jnp.array([3.0, 4.0])).tolist()
        [-3.0, -4.0]
    """

    function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]):
        if not callable(function) or isinstance(function, type):
            raise InputError(
                f"Expected drift to be a function of a time and a point, found {kind(function)}; "
                "of a matrix A make lambda t, x: A @ x."
            )
        self.function = as_pytree(function)

    def __call__(self, t: Scalar, x: Point) -> Point:
        velocity = jnp.asarray(self.function(t, x))
        if velocity.shape != x.shape:
            raise InputError(
                f"Expected a drift that returns a velocity of shape {x.shape} at a point of that shape, found "
                f"{velocity.shape}; write it for one point."
            )
        return velocity.astype(x.dtype)


class FramedDrift(Drift):
    """A drift seen from a frame at rest: `f(t, c + s z) / s`."""

    outer: Drift
    frame: Frame

    def __call__(self, t: Scalar, x: Point) -> Point:
        (scale,) = self.frame._cast(x, self.frame.scale)
        return self.outer(t, self.frame.decode(0.0, x)) / scale


def as_drift(data: Any, dim: int, dtype: Any = np.float64) -> Drift:
    """A `Drift` from what a user has.

    Args:
        data: a `Drift`, or a function `(t, x (d,)) -> (d,)` that JAX can trace.
        dim: d.
        dtype: of the points it will be given.

    Raises:
        InputError: something else; a function that raises or returns another shape.

    Example:
        >>> as_drift(lambda t, x: t * x, dim=2)(jnp.array(0.5), jnp.array([2.0, 4.0])).tolist()
        [1.0, 2.0]
    """
    drift = data if isinstance(data, Drift) else DriftFunction(data)
    found = sketch(drift, np.zeros((), dtype), np.zeros(dim, dtype))
    if isinstance(found, InputError):
        raise found
    if isinstance(found, Exception):
        raise InputError(
            f"Expected a drift that JAX can trace at a time and a point of shape ({dim},), found one that raises "
            f"{words(found)}"
        ) from found
    return drift


def check_drift(drift: Drift, points: Float[np.ndarray, "n d"]) -> None:
    """Evaluates a drift at points (n, d), at the beginning, in the middle and at the end.

    Raises:
        InputError: it is NaN or infinite somewhere.
    """
    for t, found in zip(_TRIED, _tried(drift, points), strict=True):
        bad = ~np.isfinite(found).all(axis=1)
        if bad.any():
            first = int(np.argmax(bad))
            raise InputError(
                f"Expected a finite drift, found {coordinates(found[first])} at time {t:g} and the point "
                f"{coordinates(points[first])}, the first of {bad.sum()} such points out of {len(points)}."
            )


def probed(drift: Drift, dim: int) -> np.ndarray:
    """The drift at sixteen fixed times and points, each along a direction: tells one drift from another."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(_PROBES, dim)) * np.geomspace(0.1, 3.0, _PROBES)[:, None]
    t = jnp.linspace(0.0, 1.0, _PROBES)
    return np.sum(np.asarray(_at(drift, t, jnp.asarray(x, t.dtype))) * rng.normal(size=x.shape), 1)


def _tried(drift: Drift, points: np.ndarray) -> np.ndarray:
    x = jnp.asarray(points)
    return np.stack([np.asarray(_at(drift, jnp.full(len(x), t, x.dtype), x)) for t in _TRIED])


@eqx.filter_jit
def _at(drift: Drift, t: jax.Array, x: jax.Array) -> jax.Array:
    return drift.at(t, x)
