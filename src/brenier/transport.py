"""What a fit gives back: the map, its inverse, every moment in between, and the potential behind them."""

from __future__ import annotations

import abc
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from brenier.coordinates import Frame, FramedPotential, PairCoordinates
from brenier.costs import Cost, price, unframed
from brenier.costs._base import check_parameter
from brenier.drifts import Drift
from brenier.errors import InputError
from brenier.hamiltonian import velocity
from brenier.hopf_lax import Envelope, HopfLaxPotential, OneEnd
from brenier.samplers import check_points
from brenier.typing import ArrayLike, Point, Potential

CHUNK = 16_384
"""Points evaluated at once: bounds the memory of every call, large enough to keep two cores busy."""


class Transport(eqx.Module):
    """The maps of one solved problem.

    Every method takes points of shape (n, d) and works through them in chunks, so memory beyond input and output
    does not grow with n. numpy in, numpy out, with the digits of float64 input kept; a `jax.Array` in, one out, and
    the call may then be jitted, vmapped and differentiated.
    """

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Dimension d of the points."""

    @property
    def invertible(self) -> bool:
        """Whether `inverse` exists; a map with noise has none."""
        return True

    @property
    @abc.abstractmethod
    def potential(self) -> Potential:
        """`u(t, x)` on one point, in the coordinates and units of the data."""

    def potential_at(self, t: float) -> Potential:
        """The potential for use at time `t` alone: the same values, at the ends often much cheaper."""
        del t
        return self.potential

    @abc.abstractmethod
    def forward(self, x: ArrayLike) -> ArrayLike:
        """`T(x)`: source points (n, d) to where they end at time 1."""

    @abc.abstractmethod
    def inverse(self, y: ArrayLike) -> ArrayLike:
        """`S(y)`: target points (n, d) to where they were at time 0."""

    @abc.abstractmethod
    def interpolate(self, x: ArrayLike, t: float) -> ArrayLike:
        """Where source points (n, d) are at time `t` in [0, 1]."""

    @abc.abstractmethod
    def interpolate_back(self, y: ArrayLike, t: float) -> ArrayLike:
        """Where target points (n, d) were at time `t` in [0, 1]."""

    @abc.abstractmethod
    def velocity(self, t: float, x: ArrayLike) -> ArrayLike:
        """`dx/dt` at points (n, d), in units of the data per unit time: `v(t, x)`, and the base drift with it."""

    def dual_terms(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Terms (n,) and (m,) whose means add up to a dual value, hence a lower bound of the optimal cost in the limit.

        `None` where the potential was not trained for it. In the units of the cost; `x`, `y` as in `forward`.
        """
        del x, y
        return None

    @abc.abstractmethod
    def trajectory(self, x: ArrayLike, times: Any) -> ArrayLike:
        """Source points (n, d) at each of `times`, shape (len(times), n, d)."""


class StraightTransport(Transport):
    """Points that move along straight lines at constant speed, as without obstacles and noise all do.

    Attributes:
        network: the potential `w(t, z)` in the frame's coordinates.
        frame: the change of coordinates.
        cost: the cost in the frame's coordinates.
    """

    network: Potential
    frame: Frame
    cost: Cost

    @property
    def dim(self) -> int:
        return self.frame.dim

    @property
    def potential(self) -> FramedPotential:
        return FramedPotential(self.network, self.frame, self.cost)

    def paid(self, moves: ArrayLike) -> jax.Array:
        """`L(v)` of displacements (n, d) in the user's coordinates and units."""
        return jax.vmap(unframed(self.cost).lagrangian)(jnp.asarray(moves))

    @abc.abstractmethod
    def _line(self, t: float, x: ArrayLike) -> ArrayLike:
        """Velocities, in the frame's coordinates, of the lines through points (n, d) in the user's, at time 0 or 1."""

    def forward(self, x: ArrayLike) -> ArrayLike:
        return self._move(0.0, x, 1.0)

    def inverse(self, y: ArrayLike) -> ArrayLike:
        return self._move(1.0, y, -1.0)

    def interpolate(self, x: ArrayLike, t: float) -> ArrayLike:
        return self._move(0.0, x, check_time(t))

    def interpolate_back(self, y: ArrayLike, t: float) -> ArrayLike:
        """Where target points (n, d) were at time `t`: `y - (1 - t) ∇H(∇u(1, y))`."""
        return self._move(1.0, y, check_time(t) - 1.0)

    def velocity(self, t: float, x: ArrayLike) -> ArrayLike:
        return framed_velocity(self.network, self.frame, self.cost, check_time(t), x)

    def trajectory(self, x: ArrayLike, times: Any) -> ArrayLike:
        times = [check_time(t) for t in np.atleast_1d(times)]
        x = checked_points(x, self.dim)
        end = self._move(0.0, x, 1.0)
        stack = np.stack if isinstance(x, np.ndarray) else jnp.stack
        return stack([x + t * (end - x) for t in times])

    def _move(self, t: float, x: ArrayLike, elapsed: float) -> ArrayLike:
        def move(x: ArrayLike) -> ArrayLike:
            return self.frame.displace(elapsed, x, elapsed * self._line(t, x))

        return _in_chunks(move, checked_points(x, self.dim))


class CharacteristicTransport(StraightTransport):
    """Maps in closed form from one potential: `T(x) = x + ∇H(∇u(0, x))`, `S(y) = y - ∇H(∇u(1, y))`.

    No ODE is solved (NCF, section 3).
    """

    def refined(self, tolerance: float = 1e-4) -> RefinedTransport:
        """The maps of the c-concave envelope of `u(0, ·)`, solved for: no two lines cross, and each inverts the other.

        The network's own maps are read off its two ends, which agree as far as they were trained to; of a million pairs
        of lines a few may cross. Some fifty times as slow.

        Args:
            tolerance: on `|T(S(y)) - y|`, in root mean square distances of the data from their mean.

        Raises:
            InputError: a tolerance that is not positive.

        Example:
            >>> refined = solution.transport.refined()  # doctest: +SKIP
            >>> y, x = refined.forward(x), refined.inverse(y)  # doctest: +SKIP
        """
        tolerance = check_parameter(tolerance, "tolerance")
        return RefinedTransport(self.network, self.frame, self.cost, tolerance)

    def potential_at(self, t: float) -> FramedPotential:
        return FramedPotential(self._slice(check_time(t)), self.frame, self.cost)

    def dual_terms(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        if not isinstance(self.network, HopfLaxPotential):
            return None
        frame = self.frame
        c0, q, scale = frame._cast(x, frame.source_center, frame.drift, frame.scale)
        at_x, at_y = self.network.dual_terms(frame.encode(0.0, x), frame.encode(1.0, y))
        # The frame's own motion, as in `FramedPotential`, on the side it belongs to.
        unit = price(self.cost, scale)
        if not self.cost.galilean:
            return unit * at_x, unit * at_y
        momentum = self.cost.grad_lagrangian(q[0])
        at_x = unit * at_x - (x - c0) @ momentum
        at_y = unit * at_y + (y - c0 - q) @ momentum + self.cost.lagrangian(q[0])
        return at_x, at_y

    def velocity(self, t: float, x: ArrayLike) -> ArrayLike:
        t = check_time(t)
        return framed_velocity(self._slice(t), self.frame, self.cost, t, x)

    def _line(self, t: float, x: ArrayLike) -> ArrayLike:
        return _inner_velocities(self._slice(t), self.frame, self.cost, t, x)

    def _slice(self, t: float) -> Potential:
        """The potential for use at time `t`: its end alone where that is enough."""
        if isinstance(self.network, HopfLaxPotential) and t in (0.0, 1.0):
            return OneEnd(self.network, t == 1.0)
        return self.network


class RefinedTransport(CharacteristicTransport):
    """Maps of the c-concave envelope of `u(0, ·)`: `S(y) = argmin_x u(0, x) + c(x, y)`, and the map that it inverts.

    `S` is solved for from what the slice at t = 1 proposes. `T` is the characteristic `x + ∇H(∇u(0, x))` where `S`
    leads back to `x`, which is nearly everywhere; elsewhere the end is where the envelope leads, and derivatives there
    are still those of the characteristic.

    Attributes:
        tolerance: on `|T(S(y)) - y|`, in root mean square distances of the data from their mean.
    """

    tolerance: float = eqx.field(static=True)

    @property
    def envelope(self) -> Envelope:
        """The envelope, in the frame's coordinates."""
        network = self.network
        if isinstance(network, HopfLaxPotential):
            slices = network.slices.start, network.slices.end
            return Envelope(*slices, self.cost, network.coordinates, self.tolerance)
        return Envelope(network, network, self.cost, None, self.tolerance)

    def _line(self, t: float, x: ArrayLike) -> ArrayLike:
        z, envelope = self.frame.encode(t, x), self.envelope
        if t == 1.0:
            if isinstance(x, np.ndarray):
                z = np.asarray(z)
                return z - _padded(lambda z: _feet(envelope, z), self.network, z)
            return z - _feet(envelope, z)

        heads = z + super()._line(t, x)
        if not isinstance(x, np.ndarray):
            missed = _missed(envelope, z, heads)
            return jnp.where(missed[:, None], _heads(envelope, z, heads), heads) - z
        # Few are missed, and finding where they shall go takes as long as a dozen others: they are gathered.
        pair = np.concatenate([z, heads], axis=1)
        missed = np.flatnonzero(
            _padded(lambda p: _missed(envelope, *_halves(p)), self.network, pair)
        )
        if len(missed):
            heads[missed] = _padded(
                lambda p: _heads(envelope, *_halves(p)), self.network, pair[missed]
            )
        return heads - z


class MapTransport(StraightTransport):
    """Both maps as networks of their own, beside the potential: one pass each.

    Attributes:
        forward_map, backward_map: of one point (d,), in pair coordinates where there are some.
        coordinates: the pair coordinates of the maps, or `None`.
    """

    forward_map: Callable[[Point], Point]
    backward_map: Callable[[Point], Point]
    coordinates: PairCoordinates | None = None

    def _line(self, t: float, x: ArrayLike) -> ArrayLike:
        z = self.frame.encode(t, x)
        sign = 1.0 if t == 0.0 else -1.0
        own = self.forward_map if t == 0.0 else self.backward_map
        if isinstance(x, np.ndarray):
            return sign * _padded(lambda z: _moves(own, self.coordinates, t, z), own, np.asarray(z))
        return sign * _moves(own, self.coordinates, t, z)


def framed_velocity(
    network: Potential,
    frame: Frame,
    cost: Cost,
    t: float,
    x: ArrayLike,
    drift: Drift | None = None,
) -> ArrayLike:
    """`f + ∇H(∇u(t, x))` at points (n, d) in the user's coordinates, from potential and drift in the frame's."""

    def velocities(x: ArrayLike) -> ArrayLike:
        return frame.displace(1.0, x, _inner_velocities(network, frame, cost, t, x, drift)) - x

    return _in_chunks(velocities, checked_points(x, frame.dim))


def _inner_velocities(
    network: Potential,
    frame: Frame,
    cost: Cost,
    t: float,
    x: ArrayLike,
    drift: Drift | None = None,
) -> ArrayLike:
    """The velocity in the frame's coordinates at points in the user's."""
    z = frame.encode(t, x)
    if isinstance(x, np.ndarray):
        return _padded(
            lambda z: _velocities(network, cost, drift, jnp.asarray(t, z.dtype), z),
            network,
            np.asarray(z),
        )
    return _velocities(network, cost, drift, jnp.asarray(t, z.dtype), z)


def checked_points(x: ArrayLike, dim: int) -> ArrayLike:
    """Points (n, dim) as an array of floats, or `InputError`; a `jax.Array` is checked by its shape alone."""
    if isinstance(x, jax.Array):
        if x.ndim != 2:
            raise InputError(f"Expected points of shape (n, {dim}), found shape {x.shape}.")
    else:
        x = check_points(x, "points", min_points=0)
    if x.shape[1] != dim:
        raise InputError(
            f"Expected points with {dim} columns, as this map was fitted on; found {x.shape[1]}."
        )
    return x


def check_time(t: float) -> float:
    """`t` as a float in [0, 1], or `InputError`."""
    if not 0.0 <= t <= 1.0:
        raise InputError(f"Expected a time between 0 (source) and 1 (target), found {t}.")
    return float(t)


def _in_chunks(move: Callable[[Any], Any], x: ArrayLike) -> ArrayLike:
    if isinstance(x, np.ndarray):
        out = np.empty(x.shape, x.dtype)
        for start in range(0, len(x), CHUNK):
            out[start : start + CHUNK] = move(x[start : start + CHUNK])
        return out
    if len(x) <= CHUNK:
        return move(x)
    whole = len(x) // CHUNK * CHUNK
    head = jax.lax.map(move, x[:whole].reshape(-1, CHUNK, x.shape[1])).reshape(whole, -1)
    return jnp.concatenate([head, move(x[whole:])]) if whole < len(x) else head


@jax.jit
def _velocities(
    network: Potential, cost: Cost, drift: Drift | None, t: jax.Array, z: jax.Array
) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        v = jax.vmap(lambda z: velocity(network, cost, t, z))(z)
        return v if drift is None else v + drift.at(jnp.broadcast_to(t, len(z)), z)


@partial(jax.jit, static_argnums=2)
def _moves(
    own: Callable[[Point], Point], pair: PairCoordinates | None, t: float, z: jax.Array
) -> jax.Array:
    """How far a map moves points (n, d) of its own side, time 0 or 1."""
    with jax.default_matmul_precision("highest"):
        if pair is None:
            return jax.vmap(own)(z) - z
        if t == 0.0:
            return pair.decode_target(jax.vmap(own)(pair.encode_source(z))) - z
        return pair.decode_source(jax.vmap(own)(pair.encode_target(z))) - z


@jax.jit
def _feet(envelope: Envelope, y: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return jax.vmap(envelope.foot)(y)


@jax.jit
def _missed(envelope: Envelope, x: jax.Array, y: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return jax.vmap(envelope.missed)(x, y)


@jax.jit
def _heads(envelope: Envelope, x: jax.Array, y: jax.Array) -> jax.Array:
    """No derivatives but those of `y`."""
    with jax.default_matmul_precision("highest"):
        return y + jax.lax.stop_gradient(jax.vmap(envelope.head)(x, y) - y)


def _halves(pair: jax.Array) -> tuple[jax.Array, jax.Array]:
    d = pair.shape[1] // 2
    return pair[:, :d], pair[:, d:]


def _padded(evaluate: Callable[[jax.Array], jax.Array], network: Any, z: np.ndarray) -> np.ndarray:
    """Rows padded to a power of two, so that few shapes are ever compiled, in the network's precision."""
    dtype = next(leaf.dtype for leaf in jax.tree.leaves(network) if eqx.is_inexact_array(leaf))
    rows = max(16, 1 << (len(z) - 1).bit_length())
    padded = np.zeros((rows, z.shape[1]), dtype)
    padded[: len(z)] = z
    return np.asarray(evaluate(jnp.asarray(padded)))[: len(z)]
