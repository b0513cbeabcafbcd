"""Transport along the flow of a potential, `dx = (f + ∇H(∇u)) dt + σ dW`, solved as it is asked for."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from brenier.coordinates import Frame, FramedPotential
from brenier.costs import Cost
from brenier.drifts import Drift, FramedDrift
from brenier.errors import DivergenceError, UnsupportedProblemError
from brenier.hamiltonian import velocity
from brenier.problem import TransportProblem
from brenier.transport import CHUNK, Transport, check_time, checked_points, framed_velocity
from brenier.typing import ArrayLike, Key, Point, Points, Potential, Scalar

_TOLERANCE = (1e-4, 1e-5)  # relative and absolute, in units of the data's spread
_LONGEST_STEP = 0.02  # a wall is crossed in a few hundredths of the time: no step may jump over it
_SHORTEST_STEP = 5e-4  # taken whatever its error: a field with jumps must not stop the solver
_NOISE_STEPS = 300


class FlowTransport(Transport):
    """Maps by integrating the velocity `f + ∇H(∇u)`: an ODE, adaptively, or an SDE with `σ > 0`.

    With noise the maps are random: a point's path depends on its row and on `seed`, and the same call gives the same
    path. There is no inverse then, for the way back of a diffusion needs its density.

    Attributes:
        network: the potential `w(t, z)` in the frame's coordinates.
        frame: the change of coordinates.
        cost: the cost in the frame's coordinates.
        noise: `σ` in the frame's coordinates.
        seed: of the noise.
        steps: of equal length, by Heun's scheme; 0 for adaptive ones (300 with noise).
        drift: `f(t, z)` in the frame's coordinates, or `None`; the frame is then at rest.
    """

    network: Potential
    frame: Frame
    cost: Cost
    noise: float = eqx.field(static=True, default=0.0)
    seed: int = eqx.field(static=True, default=0)
    steps: int = eqx.field(static=True, default=0)
    drift: Drift | None = None

    @property
    def dim(self) -> int:
        return self.frame.dim

    @property
    def invertible(self) -> bool:
        return self.noise == 0.0

    @property
    def potential(self) -> FramedPotential:
        return FramedPotential(self.network, self.frame, self.cost)

    @property
    def base_drift(self) -> Drift | None:
        """`f(t, x)` in the coordinates and units of the data, or `None`."""
        if self.drift is None:
            return None
        center = -self.frame.source_center / self.frame.scale
        return FramedDrift(self.drift, Frame(center, center, np.asarray(1.0 / self.frame.scale)))

    def forward(self, x: ArrayLike) -> ArrayLike:
        return self._flow(0.0, x, [1.0])[0]

    def inverse(self, y: ArrayLike) -> ArrayLike:
        if not self.invertible:
            raise UnsupportedProblemError(
                f"With noise ({self.noise:g} in units of the data's spread) a point has no single origin; "
                "fit the way back with source and target swapped."
            )
        return self._flow(1.0, y, [0.0])[0]

    def interpolate(self, x: ArrayLike, t: float) -> ArrayLike:
        return self._flow(0.0, x, [check_time(t)])[0]

    def interpolate_back(self, y: ArrayLike, t: float) -> ArrayLike:
        """Where target points (n, d) were at time `t`."""
        if not self.invertible:
            return self.inverse(y)  # which says why not
        return self._flow(1.0, y, [check_time(t)])[0]

    def velocity(self, t: float, x: ArrayLike) -> ArrayLike:
        return framed_velocity(self.network, self.frame, self.cost, check_time(t), x, self.drift)

    def trajectory(self, x: ArrayLike, times: Any) -> ArrayLike:
        return self._flow(0.0, x, [check_time(t) for t in np.atleast_1d(times)])

    @property
    def _dtype(self) -> Any:
        floats = [a.dtype for a in jax.tree.leaves(self.network) if eqx.is_inexact_array(a)]
        return jnp.result_type(*floats) if floats else jnp.result_type(float)

    def _flow(self, start: float, x: ArrayLike, times: list[float]) -> ArrayLike:
        """Where points (n, d) at time `start` are at `times`, shape (len(times), n, d)."""
        x = checked_points(x, self.dim)
        order = np.argsort(times) if start == 0.0 else np.argsort(times)[::-1]
        # Neither the seed nor the frame decides what is compiled.
        motion = _Motion(self.network, self.cost, self.drift, self.noise, self.steps)
        solve = partial(_displacements, motion, jax.random.key(self.seed))
        sorted_times = jnp.asarray(np.asarray(times)[order], self._dtype)
        begin = jnp.asarray(start, self._dtype)  # an array, so that both ways are one program
        back = np.argsort(order)
        if not isinstance(x, np.ndarray):
            z = self.frame.encode(start, x)
            # The path in the network's precision, the displacement in the caller's.
            moves = solve(begin, z.astype(self._dtype), sorted_times, jnp.arange(len(z)))
            return jnp.stack(
                [self._place(start, t, x, moves[i]) for t, i in zip(times, back, strict=True)]
            )
        out = np.empty((len(times), *x.shape), x.dtype)
        for first in range(0, len(x), CHUNK):
            part = x[first : first + CHUNK]
            rows = max(16, 1 << (len(part) - 1).bit_length())
            z = np.zeros((rows, self.dim), self._dtype)
            z[: len(part)] = self.frame.encode(start, part)
            index = jnp.arange(first, first + rows)
            try:
                moves = np.asarray(solve(begin, jnp.asarray(z), sorted_times, index))
            except eqx.EquinoxRuntimeError as error:  # the solver's own words are for its authors
                raise DivergenceError(
                    "Expected paths that end, found a velocity that is too large to follow or not finite; "
                    "fit again, for longer or with another seed."
                ) from error
            for k, (t, i) in enumerate(zip(times, back, strict=True)):
                out[k, first : first + CHUNK] = self._place(start, t, part, moves[i, : len(part)])
        return out

    def _place(self, start: float, t: float, x: ArrayLike, move: ArrayLike) -> ArrayLike:
        return self.frame.displace(t - start, x, move)


class Paths(NamedTuple):
    """Simulated paths and what they cost.

    Attributes:
        times: of the nodes, both ends included, shape (k + 1,).
        points: at these times, shape (k + 1, n, d).
        kinetic: `∫ L(v) dt` of each path, shape (n,).
        state: `∫ U dt` of each path, shape (n,).
    """

    times: Float[Array, "nodes"]
    points: Float[Array, "nodes n d"]
    kinetic: Float[Array, "n"]
    state: Float[Array, "n"]


def simulate(
    u: Potential,
    problem: TransportProblem,
    x: Points,
    key: Key,
    steps: int = 300,
    offset: Scalar | None = None,
    scheme: Literal["rk4", "euler"] = "rk4",
) -> Paths:
    """Paths of `dx = (f + ∇H(∇u)) dt + σ dW` from `x`, (n, d), and their costs at the left ends of the steps.

    They can be differentiated but for what they pay to the state cost, which is only evaluated.

    Args:
        u: the potential, in the coordinates of `problem`.
        steps: of equal length.
        offset: in [0, 1), at which share of a step the grid starts; one more, shorter step is then taken.
        scheme: "rk4" for a classical Runge–Kutta step between two halves of the noise, or "euler" for Euler–Maruyama's,
            at a fifth of the price, which leaves a bend half a step late.

    Example:
        >>> paths = simulate(solution.potential, problem, x, jax.random.key(0))
        >>> float(jnp.mean(paths.kinetic + paths.state))
    """
    if offset is None:
        times = jnp.linspace(0.0, 1.0, steps + 1, dtype=x.dtype)
    else:
        inner = (jnp.arange(steps, dtype=x.dtype) + offset) / steps
        times = jnp.concatenate([jnp.zeros(1, x.dtype), inner, jnp.ones(1, x.dtype)])

    def advance(x: Points, interval: tuple[Scalar, Scalar, Key]) -> tuple[Points, Any]:
        start, end, key = interval
        dt = end - start

        def control(t: Scalar, x: Points) -> Points:
            return velocities(u, problem, jnp.broadcast_to(t, len(x)), x)

        def rate(t: Scalar, x: Points) -> Points:
            return control(t, x) + drifts(problem, jnp.broadcast_to(t, len(x)), x)

        kinetic = jax.vmap(problem.cost.lagrangian)(control(start, x))
        state = jnp.zeros(len(x), x.dtype)
        if problem.state_cost is not None:
            state = jax.vmap(problem.state_cost)(jax.lax.stop_gradient(x))
        before = after = jnp.zeros_like(x)
        if problem.noise:
            size = problem.noise * jnp.sqrt(0.5 * dt)
            before, after = size * jax.random.normal(key, (2, *x.shape), x.dtype)
        if scheme == "euler":
            moved = x + dt * rate(start, x) + before + after
        else:
            x = x + before
            first = rate(start, x)
            second = rate(start + 0.5 * dt, x + 0.5 * dt * first)
            third = rate(start + 0.5 * dt, x + 0.5 * dt * second)
            last = rate(end, x + dt * third)
            moved = x + dt / 6.0 * (first + 2.0 * second + 2.0 * third + last) + after
        return moved, (moved, dt * kinetic, dt * state)

    keys = jax.random.split(key, len(times) - 1)
    # For a gradient the steps are gone through again: to keep all of them would take as much memory as they are many.
    along = jax.checkpoint(advance, prevent_cse=False)
    _, (points, kinetic, state) = jax.lax.scan(along, x, (times[:-1], times[1:], keys))
    points = jnp.concatenate([x[None], points])
    return Paths(times, points, jnp.sum(kinetic, axis=0), jnp.sum(state, axis=0))


def velocities(
    u: Potential, problem: TransportProblem, t: Float[Array, "n"], x: Points
) -> Float[Array, "n d"]:
    """`v = ∇H(∇u)` at times (n,) and points (n, d)."""
    return jax.vmap(lambda t, x: velocity(u, problem.cost, t, x))(t, x)


def drifts(problem: TransportProblem, t: Float[Array, "n"], x: Points) -> Float[Array, "n d"]:
    """`f` at times (n,) and points (n, d): 0 where there is none."""
    return jnp.zeros_like(x) if problem.drift is None else problem.drift.at(t, x)


class _Motion(eqx.Module):
    """The part of a `FlowTransport` that a path depends on, in the frame's coordinates."""

    network: Potential
    cost: Cost
    drift: Drift | None
    noise: float = eqx.field(static=True)
    steps: int = eqx.field(static=True)


@eqx.filter_jit
def _displacements(
    flow: _Motion,
    key: Key,
    start: Scalar,
    z: Float[Array, "n d"],
    times: Float[Array, "k"],
    index: Int[Array, "n"],
) -> Float[Array, "k n d"]:
    """How far each point has moved by each of `times`, which lead away from `start`."""
    import diffrax  # here, for it takes a tenth of the time of `import brenier`, and most maps need no solver

    end = 1.0 - start

    def field(t: Any, z: Point, _: Any) -> Point:
        t = jnp.asarray(t, z.dtype)
        v = velocity(flow.network, flow.cost, t, z)
        return v if flow.drift is None else v + flow.drift(t, z)

    def one(z: Point, i: Array) -> Float[Array, "k d"]:
        motion = diffrax.ODETerm(field)
        steps = flow.steps or (_NOISE_STEPS if flow.noise else 0)
        if flow.noise:
            own = jax.random.fold_in(key, i)
            path = diffrax.VirtualBrownianTree(0.0, 1.0, 0.25 / steps, z.shape, own)
            diffusion = diffrax.ControlTerm(
                lambda t, z, _: flow.noise * jnp.eye(len(z), dtype=z.dtype), path
            )
            terms, solver = diffrax.MultiTerm(motion, diffusion), diffrax.Heun()
        else:
            terms, solver = motion, diffrax.Heun() if steps else diffrax.Tsit5()
        if steps:
            controller = diffrax.ConstantStepSize()
        else:
            rtol, atol = _TOLERANCE
            controller = diffrax.PIDController(
                rtol=rtol, atol=atol, dtmin=_SHORTEST_STEP, dtmax=_LONGEST_STEP, force_dtmin=True
            )
        solution = diffrax.diffeqsolve(
            terms,
            solver,
            t0=start,
            t1=end,
            dt0=(end - start) / (steps or 1.0 / _LONGEST_STEP),
            y0=z,
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=controller,
            max_steps=max(int(2.0 / _SHORTEST_STEP), steps + 1),
        )
        assert solution.ys is not None
        return solution.ys - z[None]

    with jax.default_matmul_precision("highest"):
        return jnp.swapaxes(jax.vmap(one)(z, index), 0, 1)
