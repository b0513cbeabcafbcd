"""HOTA: transport around obstacles and with noise, from a Hamilton–Jacobi equation and the potential's own paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from brenier.coordinates import Frame
from brenier.costs import Quadratic
from brenier.devices import split
from brenier.errors import UnsupportedProblemError
from brenier.flow import FlowTransport, drifts, simulate, velocities
from brenier.gaussian import GaussianPotential
from brenier.hamiltonian import laplacian, turning
from brenier.methods import _paths
from brenier.methods._base import (
    FROM_PRESET,
    Expected,
    PresetMethod,
    adam,
    built,
    cast,
    decay,
    refuse_classes,
    refuse_other_costs,
    with_base,
)
from brenier.networks import MLP, FiLM, with_zero_head
from brenier.networks._comoving import MATRICES
from brenier.problem import TransportProblem
from brenier.samplers import POOL
from brenier.typing import Key, Points

Residual = Literal["squared", "huber"]
Objective = Literal["paths", "residual"]
Starts = Literal["random", "spread"]

PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "network": "film",
        "widths": (64, 64, 64),
        "activation": "silu",
        "learning_rate": 5e-4,
        "betas": (0.5, 0.999),
        "hold": 0.4,
        "batch_size": 256,
        "control_weight": 1.0,
        "residual": "huber",
        "trajectories": 128,
        "rollout_every": 5,
        "reuse_endpoints": True,
        "rollout_steps": 30,
        "stored_trajectories": 8,
        "pretraining": 0.05,
        "interpolants": 0.1,
        "jitter": True,
        "annealing": 0.5,
        "margin": 0.02,
        "mean_shift": True,
        "scale_inputs": True,
        "steps": 8000,
    },
    "published": {
        "network": "film",
        "widths": (512, 512, 512),
        "activation": "leaky_relu",
        "learning_rate": 4e-5,
        "betas": (0.9, 0.99),
        "hold": 0.0,
        "batch_size": 1024,
        "control_weight": 1.0,
        "residual": "squared",
        "trajectories": 1024,
        "rollout_every": 2,
        "reuse_endpoints": False,
        "rollout_steps": 30,
        "stored_trajectories": 1,
        "pretraining": 5000 / 70_001,
        "interpolants": 0.0,
        "jitter": False,
        "annealing": 0.0,
        "margin": 0.0,
        "mean_shift": False,
        "scale_inputs": False,
        "steps": 70_001,
    },
}
"""What one argument switches."""

PATHS: dict[str, Any] = {
    "learning_rate": 2e-3,
    "betas": (0.9, 0.99),
    "hold": 0.5,
    "batch_size": 512,
    "rollout_steps": 64,
    "steps": 3000,
}
"""What the objective "paths" takes in place of the default preset's values."""

_FINAL_RATE = 0.01
_LOOK_AHEAD = (
    (0.0, 0.4),
    (0.01, 0.3),
    (0.02, 0.3),
)  # (time along the flow, weight), section on the state cost
_HUBER = 1.0
_FIRST_SCALE = 0.1
_SCALE_DECAY = 0.9
_SCALE_RANGE = (1e-2, 10.0)
_EXACT_TRACE = 10  # dimension up to which the trace takes d passes
_PUBLISHED_FEATURES = 100
_FREQUENCIES_WITHOUT_WALLS = 4  # of time, in the network


class HOTAState(eqx.Module):
    """What is carried from step to step; the replay buffer is part of it."""

    network: Any
    target: Any
    base: Any
    optimizer: optax.OptState
    scale: Float[Array, ""]
    times: Float[Array, "capacity"]
    points: Float[Array, "capacity d"]
    filled: Int[Array, ""]
    endpoints: Float[Array, "trajectories d"]
    costs: Float[Array, "2"]
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HOTA(PresetMethod[Any]):
    """Transport at least `E ∫ L(v) + U(x) dt` around obstacles `U`, with noise, from one potential `u(t, x)`.

    Particles follow `dx = (f + ∇H(∇u)) dt + σ dW`, `f` the base drift. `U` is evaluated and never differentiated, so it
    may be a step or a black box; `f` is differentiated for paths.

    With `objective="paths"`, our default, a pool of paths is improved by Newton's method on the action,
    `∫ L + U dt - g(x(1))`, and `u` is fitted to the paths' values and momenta, `g` by the dual (`brenier.paths`).

    With `objective="residual"`, as published, two losses teach `u`, each on the particles' own paths:

        r₁ = ∂t u + H(∇ū) + f·∇ū - U - λₐ|a| + ½σ² Δu                                            (in the middle)
        r₂ = ∂t ū + H(∇u) + f·∇u - U - λₐ|a| + ½σ² Δu
        m  = E u(1, x̂) - E u(1, y)                                                                 (at the end)

    with `ū` a running average of `u`, `x̂` where the particles end and `a` the rate at which they turn. The first is
    minimised as `E r₁² + E r₂²`, the second as `m |m|`; the gradient of the first is scaled to that of the second.
    In the paper `s = -u`.

    Args:
        preset: "default" for our recipe, "published" for the released one; `None` below means the preset's value.
        objective: "paths" (quadratic cost) or "residual".
        network: "film", "mlp", or an equinox module `u(t, x)`.
        widths, activation: of the network's layers. The published leaky ReLU has no second derivatives.
        learning_rate: of Adam, held for the share `hold` of the run, then cosine decay to a hundredth.
        betas: of Adam.
        batch_size: samples a side and step, and collocation points of the residual.
        pool: paths that are kept.
        improved: of these, at a step.
        refreshed: of these, started anew at a step.
        starts: from which source samples paths start anew: "random" ones, or in turn, in an order in which any few in a
            row are "spread" evenly: to a target in parts, more nearly the right mass goes to each. Where left out,
            spread around obstacles and random elsewhere.
        arrival: share of the run, at its end, in which, around obstacles, the flow that is delivered is itself brought
            to the target: what the potential has not quite learned of the paths. `loss` is then the energy distance
            between its ends and the target.
        search: whether ways around are looked for apart, and offered to the paths: in the plane on a grid, where the
            obstacle is known, for mazes and floor plans; in more dimensions along arcs, for what blocks the middle.
        control_weight: of the scaled gradient of the Hamilton–Jacobi loss.
        acceleration_weight: `λₐ`.
        residual: "squared", or pseudo-"huber".
        rollout_steps: steps of a simulated path, and intervals of an improved one.
        rollout_every: steps between simulations.
        trajectories: simulated at a time; at most `batch_size`.
        stored_trajectories: of these, kept in the buffer.
        buffer_size: points `(t, x)` the buffer holds, at most.
        reuse_endpoints: whether the last simulated ends serve `m` until the next simulation, or only once.
        pretraining: share of the run in which collocation points lie on noisy straight lines between samples.
        interpolants: share of such points afterwards.
        jitter: whether simulations start their time grid at a random offset, so that all times are visited.
        target_decay: of `ū`; 0 for `ū = u`.
        balancing: whether the gradient of the residual is scaled to that of `m`.
        replay: whether collocation points come from the buffer; otherwise from straight lines throughout.
        annealing: share of the run in which the state cost grows to its full size; of paths, in which its blur narrows
            and their ends are drawn to the target.
        margin: distance, in units of the data's spread, at which obstacles are felt already; of paths, the last blur.
        mean_shift: whether a closed-form translation by the difference of means is part of `u`.
        gaussian_start: start, in its place, from the closed-form potential between Gaussians with the samples'
            moments, which knows of the noise and of nothing in the way.
        scale_inputs: centre and scale the data by one common scalar.
        probes: random vectors of the trace estimate above d = 10.
        steps: planned optimiser steps.

    Raises:
        InputError: an option out of range.

    References:
        Buzun, Shlenskii, Bobrin and Dylov, *HOTA: Hamiltonian framework for Optimal Transport Advection*, ICLR 2026.

    Example:
        >>> HOTA(preset="published").batch_size
        1024
    """

    presets = PRESETS

    objective: Objective = FROM_PRESET
    network: str | eqx.Module = FROM_PRESET
    widths: Sequence[int] = FROM_PRESET
    activation: str = FROM_PRESET
    learning_rate: float = FROM_PRESET
    betas: tuple[float, float] = FROM_PRESET
    hold: float = FROM_PRESET
    control_weight: float = FROM_PRESET
    acceleration_weight: float = 0.0
    residual: Residual = FROM_PRESET
    pool: int = 1024
    improved: int = 256
    refreshed: int = 16
    starts: Starts | None = None
    arrival: float = 0.05
    search: bool = False
    rollout_steps: int = FROM_PRESET
    rollout_every: int = FROM_PRESET
    trajectories: int = FROM_PRESET
    stored_trajectories: int = FROM_PRESET
    buffer_size: int = 100_000
    reuse_endpoints: bool = FROM_PRESET
    pretraining: float = FROM_PRESET
    interpolants: float = FROM_PRESET
    jitter: bool = FROM_PRESET
    target_decay: float = 0.99
    balancing: bool = True
    replay: bool = True
    annealing: float = FROM_PRESET
    margin: float = FROM_PRESET
    mean_shift: bool = FROM_PRESET
    gaussian_start: bool = False
    probes: int = 4

    @property
    def validation_interval(self) -> int:
        return 20

    @property
    def converges(self) -> bool:
        return False

    def __post_init__(self) -> None:
        self._fill({"objective": "residual" if self.preset == "published" else "paths"})
        self._fill(PATHS if self.objective == "paths" else {})
        super().__post_init__()

    def check(self, problem: TransportProblem) -> None:
        refuse_classes(problem, "HOTA")
        if self.objective == "paths" and not isinstance(problem.cost, Quadratic):
            raise UnsupportedProblemError(
                'objective="paths" needs the quadratic cost; pass objective="residual".'
            )
        if self.gaussian_start:
            refuse_other_costs(problem, "gaussian_start=True")

    # -- state -----------------------------------------------------------------------------------------------------

    def init(self, problem: TransportProblem, key: Key) -> HOTAState | _paths.PathState:
        x, y = problem.source.pool(POOL, 0), problem.target.pool(POOL, 0)
        base = None
        network = self._network(problem, key)
        if self.gaussian_start:
            base = GaussianPotential.from_samples(x, y, noise=problem.noise)
        elif self.mean_shift:
            base = _translation(x.mean(0), y.mean(0))
        if base is not None:
            network, base = with_zero_head(network), cast(base, problem.dtype)
        network = cast(network, problem.dtype)
        if self.objective == "paths":
            return _paths.init(self, problem, network, base, key)
        count = min(self.trajectories, problem.source.batch(self.batch_size))
        rows = self._nodes * min(self.stored_trajectories, count)
        capacity = max(self.buffer_size // rows, 1) * rows
        return HOTAState(
            network=network,
            target=network,
            base=base,
            optimizer=jax.jit(self._optimizer().init)(network),
            scale=jnp.asarray(_FIRST_SCALE, problem.dtype),
            times=jnp.zeros(capacity, problem.dtype),
            points=jnp.zeros((capacity, problem.dim), problem.dtype),
            filled=jnp.zeros((), jnp.int32),
            endpoints=jnp.zeros((count, problem.dim), problem.dtype),
            costs=jnp.zeros(2, problem.dtype),
            step=jnp.zeros((), jnp.int32),
        )

    @property
    def _nodes(self) -> int:
        """Points of a simulated path, both ends included."""
        return self.rollout_steps + 1 + int(self.jitter)

    def _network(self, problem: TransportProblem, key: Key) -> Any:
        if isinstance(self.network, eqx.Module):
            return self.network
        dim = problem.dim
        options: dict[str, Any] = {"activation": self.activation, "key": key}
        if self.network == "mlp":
            return built(MLP, dim, self.widths, **options)
        if self.preset == "published":
            options["features"] = _PUBLISHED_FEATURES
        elif problem.state_cost is None:
            options["frequencies"] = _FREQUENCIES_WITHOUT_WALLS
        if self.objective == "paths":
            options["radial"] = dim > MATRICES
        return built(FiLM, dim, self.widths, **options)

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, *self.betas)

    # -- one step --------------------------------------------------------------------------------------------------

    def step(
        self,
        problem: TransportProblem,
        state: Any,
        batch: tuple[jax.Array, jax.Array],
        key: Key,
        progress: jax.Array,
    ) -> tuple[Any, dict[str, jax.Array]]:
        if self.objective == "paths":
            return _paths.step(self, problem, state, batch, key, progress)
        x, y = batch
        path_key, points_key, loss_key = jax.random.split(key, 3)
        simulates = state.step % self.rollout_every == 0
        state = jax.lax.cond(
            simulates,
            lambda state: self._simulate(problem, state, x, path_key),
            lambda state: state,
            state,
        )
        t, z = map(split, self._collocation(problem, state, x, y, points_key, progress))
        price = self._prices(problem, state, t, z, loss_key, progress)

        def residual_loss(network: Any) -> jax.Array:
            return self._residual_loss(problem, state, network, t, z, price, loss_key)

        def mismatch(network: Any) -> jax.Array:
            u = with_base(state.base, network)
            at_end = jax.vmap(lambda x: u(jnp.ones((), x.dtype), x))
            return jnp.mean(at_end(split(state.endpoints))) - jnp.mean(at_end(y))

        def end_loss(network: Any) -> tuple[jax.Array, jax.Array]:
            m = mismatch(network)
            return m * jnp.abs(m), m

        hj, middle = jax.value_and_grad(residual_loss)(state.network)
        end, m = jax.grad(end_loss, has_aux=True)(state.network)
        used = jnp.ones((), x.dtype) if self.reuse_endpoints else simulates.astype(x.dtype)
        scale = state.scale
        if self.balancing:
            ratio = optax.tree.norm(end) / (optax.tree.norm(middle) + 1e-8)
            mixed = _SCALE_DECAY * scale + (1.0 - _SCALE_DECAY) * jnp.clip(ratio, *_SCALE_RANGE)
            scale = jnp.where(simulates, mixed, scale)
        weight = self.control_weight * (scale if self.balancing else 1.0)
        gradient = jax.tree.map(lambda e, h: used * e + weight * h, end, middle)
        updates, optimizer = self._optimizer().update(gradient, state.optimizer, state.network)
        rate = decay("cosine", progress, _FINAL_RATE, hold=self.hold)
        network = jax.tree.map(lambda p, g: p + (rate * g).astype(p.dtype), state.network, updates)
        target = jax.tree.map(
            lambda a, p: self.target_decay * a + (1.0 - self.target_decay) * p,
            state.target,
            network,
        )
        state = dataclasses.replace(
            state,
            network=network,
            target=target,
            optimizer=optimizer,
            scale=scale,
            step=state.step + 1,
        )
        return state, {
            "loss": m * jnp.abs(m) + weight * hj,
            "hj": hj,
            "mismatch": m,
            "kinetic": state.costs[0],
            "state": state.costs[1],
            "balance": scale,
        }

    def _simulate(
        self, problem: TransportProblem, state: HOTAState, x: Points, key: Key
    ) -> HOTAState:
        """Paths of the current potential from source samples; some of them go to the buffer."""
        start_key, path_key, pick_key = jax.random.split(key, 3)
        count, keep = len(state.endpoints), min(self.stored_trajectories, len(state.endpoints))
        offset = jax.random.uniform(start_key, (), x.dtype) if self.jitter else None
        paths = simulate(
            with_base(state.base, state.network),
            problem,
            split(x[:count]),
            path_key,
            self.rollout_steps,
            offset,
            scheme="euler",  # as published
        )
        chosen = jax.random.choice(pick_key, count, (keep,), replace=False)
        rows = paths.points[:, chosen].reshape(-1, x.shape[1])
        at = state.filled % len(state.times)
        return dataclasses.replace(
            state,
            times=jax.lax.dynamic_update_slice(state.times, jnp.repeat(paths.times, keep), (at,)),
            points=jax.lax.dynamic_update_slice(state.points, rows, (at, jnp.zeros_like(at))),
            # Counted modulo twice the capacity: enough to know a full buffer, never an overflow.
            filled=jnp.where(
                state.filled + len(rows) >= 2 * len(state.times),
                len(state.times),
                state.filled + len(rows),
            ).astype(jnp.int32),
            endpoints=paths.points[-1],
            costs=jnp.stack([jnp.mean(paths.kinetic), jnp.mean(paths.state)]),
        )

    def _collocation(
        self,
        problem: TransportProblem,
        state: HOTAState,
        x: Points,
        y: Points,
        key: Key,
        progress: jax.Array,
    ) -> tuple[jax.Array, Points]:
        """Times and places of the residual: the buffer's, or noisy straight lines'."""
        line_key, time_key, noise_key, pick_key, kind_key = jax.random.split(key, 5)
        n = min(len(x), len(y))
        t = jax.random.uniform(time_key, (n,), x.dtype)
        y = y[jax.random.permutation(line_key, len(y))[:n]]
        z = x[:n] + t[:, None] * (y - x[:n])
        z = z + problem.noise * jax.random.normal(noise_key, z.shape, z.dtype)
        if not self.replay:
            return t, z
        rows = jax.random.randint(pick_key, (n,), 0, jnp.minimum(state.filled, len(state.times)))
        share = jnp.where(progress < self.pretraining, 1.0, self.interpolants)
        lines = jax.random.uniform(kind_key, (n,)) < share
        t = jnp.where(lines, t, state.times[rows])
        return t, jnp.where(lines[:, None], z, state.points[rows])

    def _prices(
        self,
        problem: TransportProblem,
        state: HOTAState,
        t: jax.Array,
        z: Points,
        key: Key,
        progress: jax.Array,
    ) -> jax.Array:
        """The state cost at the points, averaged a little way along the flow, so that walls are felt before them."""
        if problem.state_cost is None:
            return jnp.zeros_like(t)
        u = with_base(state.base, state.network)
        v = velocities(u, problem, t, z) + drifts(problem, t, z)
        places = [z + ahead * v for ahead, _ in _LOOK_AHEAD]
        if self.margin:
            places.append(z + self.margin * jax.random.normal(key, z.shape, z.dtype))
        # One call for all places: a black box is asked once a step.
        found = jax.vmap(problem.state_cost)(jnp.concatenate(places)).reshape(len(places), -1)
        weights = jnp.asarray([weight for _, weight in _LOOK_AHEAD], z.dtype)
        price = weights @ found[: len(weights)]
        if self.margin:
            price = jnp.maximum(price, found[-1])
        if self.annealing:
            price = price * jnp.minimum(progress / self.annealing, 1.0) ** 2
        return jax.lax.stop_gradient(price)

    def _residual_loss(
        self,
        problem: TransportProblem,
        state: HOTAState,
        network: Any,
        t: jax.Array,
        z: Points,
        price: jax.Array,
        key: Key,
    ) -> jax.Array:
        u = with_base(state.base, network)
        average = with_base(state.base, state.target)
        cost, noise = problem.cost, problem.noise

        def both(t: jax.Array, z: jax.Array, f: jax.Array, price: jax.Array, key: Key) -> jax.Array:
            dt, p = jax.grad(u, argnums=(0, 1))(t, z)
            dt_average, p_average = jax.lax.stop_gradient(jax.grad(average, argnums=(0, 1))(t, z))
            known = -price
            if self.acceleration_weight:
                a = turning(u, cost, t, z, problem.drift)
                known = known - self.acceleration_weight * jnp.sqrt(a @ a + 1e-8)
            one = two = jnp.zeros((), z.dtype)
            if noise:
                first, second = (
                    0.5 * noise**2 * laplacian(u, t, z, probes)
                    for probes in self._probes(key, z.shape[0], z.dtype)
                )
                one, two = jax.lax.stop_gradient(first), second
            return jnp.stack(
                [
                    dt + cost.hamiltonian(p_average) + f @ p_average + known + one,
                    dt_average + cost.hamiltonian(p) + f @ p + known + two,
                ]
            )

        f = drifts(problem, t, z)
        residuals = jax.vmap(both)(t, z, f, price, jax.random.split(key, len(t)))
        if self.residual == "squared":
            return jnp.mean(jnp.sum(residuals**2, axis=1))
        return jnp.mean(jnp.sum(2.0 * (jnp.sqrt(_HUBER**2 + residuals**2) - _HUBER), axis=1))

    def _probes(self, key: Key, dim: int, dtype: Any) -> tuple[Any, Any]:
        if dim <= _EXACT_TRACE:
            return None, None
        both = jax.random.rademacher(key, (2, self.probes, dim), dtype)
        return both[0], both[1]

    def extract(self, problem: TransportProblem, state: Any, frame: Frame) -> FlowTransport:
        network = state.average if self.objective == "paths" else state.network
        return FlowTransport(
            with_base(state.base, network),
            frame,
            problem.cost,
            problem.noise,
            drift=problem.drift,
        )

    def _check_options(self, expected: Expected) -> None:
        expected.whole("steps", "batch_size", "rollout_steps", "rollout_every", "trajectories")
        expected.whole(
            "stored_trajectories", "buffer_size", "probes", "pool", "improved", "refreshed"
        )
        expected.one_of("objective", ("paths", "residual"))
        if self.starts is not None:
            expected.one_of("starts", ("random", "spread"))
        for name in ("control_weight", "acceleration_weight", "margin"):
            expected.number(name, test=lambda v: v >= 0.0, what=">= 0")
        for name in ("pretraining", "interpolants", "annealing"):
            expected.number(name, test=lambda v: 0.0 <= v <= 1.0, what="in [0, 1]")
        expected.number(
            "hold", "target_decay", "arrival", test=lambda v: 0.0 <= v < 1.0, what="in [0, 1)"
        )
        expected.learning_rate("learning_rate")
        expected.one_of("residual", ("squared", "huber"))
        expected.network("network", ("film", "mlp"))


def _translation(m0: np.ndarray, m1: np.ndarray) -> GaussianPotential:
    dim = len(m0)
    return GaussianPotential(m0, m1, np.eye(dim), np.ones(dim))
