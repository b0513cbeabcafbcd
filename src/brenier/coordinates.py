"""The coordinates a fit works in, and the way back.

Losses have comparable weights, and float32 keeps its digits, when both sides are centred and have unit size.
One common scalar is allowed; a scale per axis would change the cost and with it the optimal map.

With `c_t = (1 - t) c0 + t c1`, `q = c1 - c0` and `x = c_t + s z`,

    u(t, x) = κ w(t, z) + ∇L(q)·(x - c_t) + t L(q)

solves the Hamilton–Jacobi equation in `x` exactly when `w` solves it in `z` for the cost `L(s w) / κ` there
(`brenier.costs.framed`; `κ = s²` for the quadratic cost, which stays as it is). For quadratic forms each side may be
centred at its own mean, a Galilean change of frame, and a pure translation becomes `w = 0`; for other costs `q = 0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial.distance import cdist

from brenier.classes import nearest_class
from brenier.costs import Cost, Quadratic, price
from brenier.gaussian import GaussianPotential
from brenier.typing import Point, Potential, Scalar

_STRETCH = (
    1e-6,
    1e6,
)  # of the linear map: degenerate samples would make the roots useless in float32

_APART = 0.99  # share of samples nearest to one of their own class where classes lie apart
_KEPT = 2048  # samples a side, at most, that tell of which class a point is


class Frame(eqx.Module):
    """Centres and scale: `z = (x - c_t) / s` with `c_t` moving from the source's centre to the target's.

    Attributes:
        source_center, target_center: `c0`, `c1`, float64, shape (d,). Equal unless the cost is quadratic.
        scale: `s > 0`, float64, shape ().
    """

    source_center: Float[np.ndarray, "d"]
    target_center: Float[np.ndarray, "d"]
    scale: Float[np.ndarray, ""]

    @classmethod
    def from_samples(cls, x: np.ndarray, y: np.ndarray, *, galilean: bool) -> Frame:
        """Centres at the sample means; `s²` is the mean variance per coordinate over both sides.

        Sides without any spread (all points equal) get scale 1 so that the frame stays invertible.
        """
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        c0, c1 = x.mean(0), y.mean(0)
        if not galilean:
            # The distance between the sides is part of the problem's size in a common frame.
            c0 = c1 = 0.5 * (c0 + c1)
        variance = 0.5 * (((x - c0) ** 2).mean() + ((y - c1) ** 2).mean())
        floor = (np.finfo(np.float64).eps * max(np.abs(x).max(), np.abs(y).max())) ** 2
        scale = np.sqrt(variance) if variance > floor else 1.0
        return cls(c0, c1, np.asarray(scale, np.float64))

    @classmethod
    def identity(cls, dim: int) -> Frame:
        """The frame that changes nothing."""
        return cls(np.zeros(dim), np.zeros(dim), np.asarray(1.0))

    @property
    def dim(self) -> int:
        return len(self.source_center)

    @property
    def drift(self) -> Any:
        """`q = c1 - c0`, the velocity of the frame."""
        return self.target_center - self.source_center

    def encode(self, t: Any, x: Any) -> Any:
        """`z = (x - c_t) / s` for points (n, d) or (d,); numpy in float64, jax in the dtype of `x`."""
        center, scale = self._at(t, x)
        return (x - center) / scale

    def decode(self, t: Any, z: Any) -> Any:
        """`x = c_t + s z`, the inverse of `encode`."""
        center, scale = self._at(t, z)
        return center + scale * z

    def displace(self, elapsed: Any, x: Any, dz: Any) -> Any:
        """`x + elapsed q + s dz`: a step `dz` of the inner coordinates taken from `x` during `elapsed`.

        Adding the displacement to `x` itself keeps the digits that a round trip through `z` would lose.
        """
        drift, scale = self._cast(x, self.drift, self.scale)
        return x + elapsed * drift + scale * dz

    def _at(self, t: Any, x: Any) -> tuple[Any, Any]:
        c0, q, scale = self._cast(x, self.source_center, self.drift, self.scale)
        return c0 + t * q, scale

    @staticmethod
    def _cast(x: Any, *constants: Any) -> tuple[Any, ...]:
        if isinstance(x, np.ndarray):
            return tuple(map(np.asarray, constants))  # arrays of JAX in a frame that was traced
        rows = (1,) * (x.ndim - 1)
        return tuple(
            jnp.asarray(c, x.dtype).reshape(rows + c.shape if c.ndim else ()) for c in constants
        )


class FramedPotential(eqx.Module):
    """`u(t, x)` in the user's coordinates from `w(t, z)` in a frame's.

    Attributes:
        inner: `w`.
        frame: the change of coordinates.
        cost: the cost in the frame's coordinates.

    Example:
        The potential of a pure translation by `q` has `w = 0` and, for the quadratic cost, gradient `q` everywhere.
    """

    inner: Potential
    frame: Frame
    cost: Cost = Quadratic()

    def __call__(self, t: Scalar, x: Point) -> Scalar:
        frame = self.frame
        q, scale = frame._cast(x, frame.drift, frame.scale)
        z = frame.encode(t, x)
        u = price(self.cost, scale) * self.inner(t, z)
        if not self.cost.galilean:
            return u
        return u + scale * (self.cost.grad_lagrangian(q) @ z) + t * self.cost.lagrangian(q)


class PairCoordinates(eqx.Module):
    """`x' = L x / s` for the source and `y' = L⁻¹ y / s` for the target, with `L = A^½` of the linear optimal map `A`.

    They leave `⟨x, y⟩`, hence the optimal coupling for the quadratic cost, unchanged up to `s²`, and give both sides
    the same covariance: the linear part of the map is done, and problems that are badly scaled along some
    direction are well conditioned. (Whitening each side by itself would change the coupling.) Points are centred
    already: a `Frame` comes first. The ends of the path transform exactly, the path between them does not.

    Attributes:
        root: `L / s`, shape (d, d), symmetric.
        inverse_root: `L⁻¹ / s`.
        scale: `s > 0`: both sides have unit variance on average.
    """

    root: Float[Array, "d d"]
    inverse_root: Float[Array, "d d"]
    scale: Float[Array, ""]

    @classmethod
    def from_samples(cls, x: np.ndarray, y: np.ndarray) -> PairCoordinates:
        """From centred samples (n, d) and (m, d)."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        linear = GaussianPotential.from_samples(x, y)
        vectors = np.asarray(linear.eigenvectors)
        stretch = np.sqrt(np.clip(np.asarray(linear.stretch), *_STRETCH))
        root, inverse_root = (vectors * stretch) @ vectors.T, (vectors / stretch) @ vectors.T
        variance = 0.5 * (((x @ root) ** 2).mean() + ((y @ inverse_root) ** 2).mean())
        scale = np.sqrt(variance) if variance > 0.0 else np.float64(1.0)
        root, inverse_root, scale = (
            jnp.asarray(a) for a in (root / scale, inverse_root / scale, scale)
        )
        return cls(root, inverse_root, scale)

    def encode_batch(self, x: Any, y: Any) -> tuple[Any, Any]:
        """`x'` and `y'` of samples (n, d) and (m, d)."""
        return self.encode_source(x), self.encode_target(y)

    def encode_source(self, x: Any) -> Any:
        """`x'` of source points (n, d) or (d,)."""
        return x @ self.root

    def encode_target(self, y: Any) -> Any:
        """`y'` of target points (n, d) or (d,)."""
        return y @ self.inverse_root

    def decode_source(self, z: Any) -> Any:
        """The source points (n, d) or (d,) of `x'`."""
        return self.scale**2 * (z @ self.inverse_root)

    def decode_target(self, z: Any) -> Any:
        """The target points (n, d) or (d,) of `y'`."""
        return self.scale**2 * (z @ self.root)

    def start_slice(self, inner: Potential, x: Point) -> Scalar:
        """`u(0, x)` from the slice at t = 0 of a potential in pair coordinates.

        Brenier's potential `φ(x) = ½|x|² + u(0, x)` is `s² φ'(x')`.
        """
        z = self.encode_source(x)
        return self.scale**2 * (0.5 * (z @ z) + inner(jnp.zeros((), x.dtype), z)) - 0.5 * (x @ x)

    def end_slice(self, inner: Potential, y: Point) -> Scalar:
        """`u(1, y)` from the slice at t = 1: its conjugate `½|y|² - u(1, y)` is `s² (½|y'|² - u'(1, y'))`."""
        z = self.encode_target(y)
        return 0.5 * (y @ y) - self.scale**2 * (0.5 * (z @ z) - inner(jnp.ones((), y.dtype), z))


class ClassCoordinates(eqx.Module):
    """Pair coordinates of samples with classes, each class of one side moved to where that of the other side is.

    A move of a class adds to the quadratic cost what depends on `x` or on `y` alone, and so leaves the optimal coupling
    within the class as it is. What is left of the map no longer jumps from class to class, which a smooth network can
    follow with errors at neighbouring rims only. Classes stay in place where, moved or not, they do not lie apart.

    A point is of the class of the sample nearest to it, among those that are kept.

    Attributes:
        pair: of the moved points.
        source_moves, target_moves: what is taken off the points of each class, shape (k, d).
        source, target: samples in order of the classes, as many of each, shape (k r, d).
    """

    pair: PairCoordinates
    source_moves: Float[Array, "k d"]
    target_moves: Float[Array, "k d"]
    source: Float[Array, "kr d"]
    target: Float[Array, "kr d"]

    @classmethod
    def from_samples(cls, x: np.ndarray, y: np.ndarray, classes: int) -> ClassCoordinates:
        """From centred samples (n, d) and (m, d), each in blocks of equal length, one a class."""
        sides = [np.reshape(side, (classes, -1, side.shape[1])) for side in (x, y)]
        start, end = (side.astype(np.float64).mean(axis=1) for side in sides)
        nothing = np.zeros_like(start)
        moves = nothing, nothing
        if all(map(_lie_apart, sides)):
            for way in ((nothing, end - start), (start - end, nothing)):
                if all(map(_lie_apart, _moved(sides, way))):
                    moves = way
                    break
        pair = PairCoordinates.from_samples(
            *(side.reshape(-1, side.shape[2]) for side in _moved(sides, moves))
        )
        # Repeated where there are few: problems with as many classes can be stacked.
        share = max(_KEPT // classes, 1)
        kept = (
            side[:, np.arange(share) % side.shape[1]].reshape(-1, side.shape[2]) for side in sides
        )
        return cls(pair, *map(jnp.asarray, (*moves, *kept)))

    def encode_batch(self, x: Any, y: Any) -> tuple[Any, Any]:
        """`x'` and `y'` of samples (n, d) and (m, d) in blocks of equal length, one a class."""
        p, q = (
            jnp.repeat(moves, len(side) // len(moves), axis=0)
            for side, moves in ((x, self.source_moves), (y, self.target_moves))
        )
        return self.pair.encode_batch(x - p, y - q)

    def encode_source(self, x: Any) -> Any:
        """`x'` of source points (n, d) or (d,)."""
        return self.pair.encode_source(x - self.source_moves[self._class(x, self.source)])

    def encode_target(self, y: Any) -> Any:
        """`y'` of target points (n, d) or (d,)."""
        return self.pair.encode_target(y - self.target_moves[self._class(y, self.target)])

    def decode_source(self, z: Any) -> Any:
        """The source points (n, d) or (d,) of `x'`."""
        return self._back(self.pair.decode_source(z), self.source, self.source_moves)

    def decode_target(self, z: Any) -> Any:
        """The target points (n, d) or (d,) of `y'`."""
        return self._back(self.pair.decode_target(z), self.target, self.target_moves)

    def start_slice(self, inner: Potential, x: Point) -> Scalar:
        """`u(0, x)` from the slice at t = 0 of a potential in these coordinates.

        With `x = x̂ + p`, `y = ŷ + q` and `δ = q - p` the cost `½|x - y|²` is `½|x̂ - ŷ|² - δ·x̂ + δ·ŷ + ½|δ|²`.
        """
        k = self._class(x, self.source)
        moved, delta = x - self.source_moves[k], self.target_moves[k] - self.source_moves[k]
        return self.pair.start_slice(inner, moved) + delta @ moved

    def end_slice(self, inner: Potential, y: Point) -> Scalar:
        """`u(1, y)` from the slice at t = 1."""
        k = self._class(y, self.target)
        moved, delta = y - self.target_moves[k], self.target_moves[k] - self.source_moves[k]
        return self.pair.end_slice(inner, moved) + delta @ moved + 0.5 * (delta @ delta)

    def _class(self, z: Any, samples: Any) -> Any:
        return nearest_class(z, samples, len(self.source_moves))

    def _back(self, z: Any, samples: Any, moves: Any) -> Any:
        there = samples - jnp.repeat(moves, len(samples) // len(moves), axis=0)
        return z + moves[self._class(z, there)]


def _moved(sides: Sequence[np.ndarray], moves: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [side - move[:, None] for side, move in zip(sides, moves, strict=True)]


def _lie_apart(side: np.ndarray) -> bool:
    """Whether nearly all samples (k, n, d) have one of their own class for their nearest."""
    side = side[:, : max(_KEPT // len(side), 2)]
    points = side.reshape(-1, side.shape[2])
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    own = np.arange(len(points))
    return bool(np.mean(distances.argmin(1) // side.shape[1] == own // side.shape[1]) >= _APART)
