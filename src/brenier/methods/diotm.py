"""DIOTM: two maps against one potential, over the whole displacement interpolation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from brenier.coordinates import Frame, PairCoordinates
from brenier.costs import Cost, Quadratic
from brenier.errors import InputError
from brenier.gaussian import GaussianPotential
from brenier.hamiltonian import pde_residual
from brenier.hopf_lax import EndSlices, HopfLaxPotential
from brenier.methods._base import (
    FROM_PRESET,
    Expected,
    PresetMethod,
    adam,
    averaged,
    built,
    cast,
    decay,
    refuse_bent_paths,
    refuse_classes,
    refuse_other_costs,
)
from brenier.networks import MLP, DenseQuadratic, ResidualMap, with_zero_head
from brenier.problem import TransportProblem
from brenier.samplers import POOL
from brenier.transport import MapTransport
from brenier.typing import Key, Points, Potential

Regularizer = Literal["hj", "r1", "none"]
Residual = Literal["absolute", "squared"]
Times = Literal["stratified", "uniform", "ends"]

_TOYS: dict[str, Any] = {
    "network": "mlp",
    "widths": (128, 128, 128),
    "activation": "silu",
    "map_widths": (256, 256, 256),
    "learning_rate": 1e-3,
    "map_learning_rate": 1e-3,
    "betas": (0.5, 0.9),
    "averaging": 0.999,
    "batch_size": 256,
    "times": "uniform",
    "regularizer": "hj",
    "hj_weight": 0.2,
    "pair_coordinates": False,
    "scale_inputs": True,
    "steps": 20_000,
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "network": "dense_quadratic",
        "widths": (128, 128, 64),
        "activation": "celu",
        "map_widths": (128, 128, 128),
        "learning_rate": 3e-3,
        "map_learning_rate": 1e-2,
        "betas": (0.5, 0.99),
        "averaging": 0.998,
        "batch_size": 512,
        "times": "stratified",
        "regularizer": "hj",
        "hj_weight": 0.1,
        "pair_coordinates": True,
        "scale_inputs": True,
        "steps": 10_000,
    },
    "published": _TOYS,
    "otm": _TOYS | {"times": "ends", "regularizer": "none"},
}
"""What one argument switches: our recipe, the paper's, and the method it improves upon."""

_FINAL_RATE = 1e-2


class Players(NamedTuple):
    """The potential `u(t, x)` and the maps `T` and `S`, or something that each of them has one of."""

    potential: Any
    forward: Any
    backward: Any


class DIOTMState(eqx.Module):
    """What is carried from step to step."""

    players: Players
    averaged: Players
    pair: PairCoordinates | None
    optimizers: Players
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DIOTM(PresetMethod[DIOTMState]):
    """Maps `T`, `S` of their own against a potential `u(t, x)` that has to agree with them at every time.

    With `x_t = (1 - t) x + t T(x)`, `y_t = (1 - t) S(y) + t y` and t uniform, three players descend in turn:

        u:  E u(t, x_t) - E u(t, y_t) + hj_weight (E |r(t, x_t)| + E |r(t, y_t)|),    r = ∂t u + H(∇u)
        T:  E t L(T(x) - x) - u(t, x_t)
        S:  E (1 - t) L(y - S(y)) + u(t, y_t)

    The maps answer in one pass. The paper has the cost `α|x - y|²` and `V = 2α u`; its weight of the regulariser,
    `λ`, acts through `λα` alone, `hj_weight = 2αλ`. The sum of both maps' costs is the optimal cost at the saddle.

    Args:
        preset: "default" for our recipe, "published" for the paper's, "otm" for the method without interpolation and
            regulariser; `None` below means the preset's value.
        network: of the potential: "dense_quadratic", "mlp", or an equinox module `u(t, x)`.
        widths, activation: of the potential's layers.
        map_network: an equinox module `x -> T(x)` to use for both maps in place of the residual one.
        map_widths: of the residual maps' layers. They start at the identity.
        learning_rate: of Adam, for the potential; cosine decay to a hundredth.
        map_learning_rate: the same for the maps.
        betas: of Adam.
        averaging: decay of the running averages that are delivered; 0 delivers the last iterates.
        batch_size: samples a side and step.
        times: "uniform" as published; "stratified", one from each of n intervals; or "ends", 0 and 1 alone.
        map_steps: of both maps to one of the potential.
        regularizer: "hj"; "r1", `E |∇u(1, y)|²`; or "none".
        residual: "absolute" as published, or "squared".
        hj_weight: of the regulariser.
        alpha, penalty: the paper's `α` and `λ`, which set `hj_weight = 2αλ`.
        pair_coordinates: train in `PairCoordinates`, which start at the linear map, where the cost is quadratic.
        gaussian_start: start the maps at the linear optimal map, in place of pair coordinates.
        scale_inputs: centre and scale the data by one common scalar.
        steps: planned steps of the potential.

    Raises:
        InputError: an option out of range.

    References:
        Choi, Chen and Choi, *Improving Neural Optimal Transport via Displacement Interpolation*, ICLR 2025
        (arXiv 2410.03783).
        Rout, Korotin and Burnaev, *Generative Modeling with Optimal Transport Maps*, ICLR 2022: OTM.

    Example:
        >>> DIOTM(alpha=1.0, penalty=0.1).hj_weight
        0.2
    """

    presets = PRESETS

    preset: str = "default"  # type: ignore[assignment]  # one more than the others
    network: str | eqx.Module = FROM_PRESET
    widths: Sequence[int] = FROM_PRESET
    activation: str = FROM_PRESET
    map_network: eqx.Module | None = None
    map_widths: Sequence[int] = FROM_PRESET
    learning_rate: float = FROM_PRESET
    map_learning_rate: float = FROM_PRESET
    betas: tuple[float, float] = FROM_PRESET
    averaging: float = FROM_PRESET
    times: Times = FROM_PRESET
    map_steps: int = 1
    regularizer: Regularizer = FROM_PRESET
    residual: Residual = "absolute"
    hj_weight: float = FROM_PRESET
    alpha: float | None = None
    penalty: float | None = None
    pair_coordinates: bool = FROM_PRESET
    gaussian_start: bool = False

    def __post_init__(self) -> None:
        if (self.alpha is None) != (self.penalty is None):
            raise InputError("Expected alpha and penalty together: they set hj_weight = 2 α λ.")
        if self.alpha is not None:
            if self.hj_weight is not None:
                raise InputError("Expected hj_weight, or alpha and penalty; found all of them.")
            expected = Expected(self)
            expected.number("alpha", "penalty", test=lambda v: v > 0.0, what="> 0")
            self._fill({"hj_weight": 2.0 * self.alpha * float(self.penalty or 0.0)})
        super().__post_init__()

    def _check_options(self, expected: Expected) -> None:
        expected.whole("steps", "batch_size", least=2)
        expected.whole("map_steps")
        expected.learning_rate("learning_rate")
        expected.learning_rate("map_learning_rate")
        expected.number("averaging", test=lambda v: 0.0 <= v < 1.0, what="in [0, 1)")
        expected.number("hj_weight", test=lambda v: v >= 0.0, what=">= 0")
        expected.one_of("times", ("stratified", "uniform", "ends"))
        expected.one_of("regularizer", ("hj", "r1", "none"))
        expected.one_of("residual", ("absolute", "squared"))
        expected.network("network", ("dense_quadratic", "mlp"))

    @property
    def stratified(self) -> bool:
        return self.preset == "default"

    @property
    def converges(self) -> bool:
        return False

    @property
    def validation_interval(self) -> int:
        return 20

    def check(self, problem: TransportProblem) -> None:
        refuse_bent_paths(problem, "DIOTM")
        refuse_classes(problem, "DIOTM")
        if self.gaussian_start:
            refuse_other_costs(problem, "gaussian_start=True")

    # -- state -----------------------------------------------------------------------------------------------------

    def init(self, problem: TransportProblem, key: Key) -> DIOTMState:
        keys = jax.random.split(key, 3)
        pool = problem.source.pool(POOL, 0), problem.target.pool(POOL, 0)
        pair = None
        matrices: tuple[Any, Any] = (None, None)
        paired = self.pair_coordinates and isinstance(problem.cost, Quadratic)
        if paired and not self.gaussian_start:
            pair = cast(PairCoordinates.from_samples(*pool), problem.dtype)
        elif self.gaussian_start:
            linear = GaussianPotential.from_samples(*pool)
            back = GaussianPotential(
                linear.target_mean, linear.source_mean, linear.eigenvectors, 1.0 / linear.stretch
            )
            matrices = (linear.matrix, back.matrix)
        players = cast(
            Players(
                self._potential(problem.dim, keys[0]),
                *(self._map(problem.dim, k, a) for k, a in zip(keys[1:], matrices, strict=True)),
            ),
            problem.dtype,
        )
        start = jax.jit(adam(1.0, *self.betas).init)
        optimizers = Players(*(start(player) for player in players))
        return DIOTMState(
            players,
            players,
            pair,
            optimizers,
            jnp.zeros((), jnp.int32),
        )

    def _potential(self, dim: int, key: Key) -> Any:
        if isinstance(self.network, eqx.Module):
            return self.network
        if self.network == "mlp":
            return built(MLP, dim, self.widths, activation=self.activation, key=key)
        options: dict[str, Any] = {"activation": self.activation, "direct": True, "key": key}
        return with_zero_head(built(DenseQuadratic, dim, self.widths, **options))

    def _map(self, dim: int, key: Key, matrix: Any) -> Any:
        if self.map_network is not None:
            return self.map_network
        return built(ResidualMap, dim, self.map_widths, matrix=matrix, key=key)

    def _optimizer(self, rate: Any) -> optax.GradientTransformation:
        return optax.adam(rate, *self.betas)

    # -- one step --------------------------------------------------------------------------------------------------

    def step(
        self,
        problem: TransportProblem,
        state: DIOTMState,
        batch: tuple[jax.Array, jax.Array],
        key: Key,
        progress: jax.Array,
    ) -> tuple[DIOTMState, dict[str, jax.Array]]:
        x, y = batch
        if state.pair is not None:
            x, y = state.pair.encode_source(x), state.pair.encode_target(y)
        cost, share = problem.cost, decay("cosine", progress, _FINAL_RATE)
        u, forward, backward = state.players
        optimizers = state.optimizers

        def descend(loss: Any, player: Any, optimizer: Any, rate: float) -> tuple[Any, Any, Any]:
            gradient, metrics = jax.grad(loss, has_aux=True)(player)
            updates, optimizer = self._optimizer(rate).update(gradient, optimizer, player)
            player = jax.tree.map(lambda p, g: p + (share * g).astype(p.dtype), player, updates)
            return player, optimizer, metrics

        keys = jax.random.split(key, 1 + self.map_steps)
        t = self._draw_times(keys[0], len(x), x.dtype), self._draw_times(keys[0], len(y), y.dtype)
        x_t = jax.lax.stop_gradient(interpolant(x, jax.vmap(forward)(x), t[0]))
        y_t = jax.lax.stop_gradient(interpolant(jax.vmap(backward)(y), y, t[1]))
        u, opt, metrics = descend(
            lambda u: self.potential_loss(u, cost, (t[0], x_t), (t[1], y_t), y),
            u,
            optimizers.potential,
            self.learning_rate,
        )
        optimizers = optimizers._replace(potential=opt)
        rate = self.map_learning_rate
        moved = {}
        for key in keys[1:]:
            t = self._draw_times(key, len(x), x.dtype), self._draw_times(key, len(y), y.dtype)
            forward, opt, moved_forward = descend(
                lambda T, t=t[0]: forward_loss(u, cost, T, x, t), forward, optimizers.forward, rate
            )
            optimizers = optimizers._replace(forward=opt)
            backward, opt, moved_backward = descend(
                lambda S, t=t[1]: backward_loss(u, cost, S, y, t),
                backward,
                optimizers.backward,
                rate,
            )
            optimizers = optimizers._replace(backward=opt)
            moved = moved_forward | moved_backward
        players = Players(u, forward, backward)
        state = DIOTMState(
            players,
            averaged(state.averaged, players, state.step, self.averaging),
            state.pair,
            optimizers,
            state.step + 1,
        )
        return state, metrics | moved

    def potential_loss(
        self,
        u: Potential,
        cost: Cost,
        at_x: tuple[Float[Array, "n"], Points],
        at_y: tuple[Float[Array, "m"], Points],
        y: Points,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the potential descends, from times and interpolants of both sides and target samples `y`."""
        values = jax.vmap(u)
        mismatch = jnp.mean(values(*at_x)) - jnp.mean(values(*at_y))
        penalty = jnp.zeros((), y.dtype)
        if self.regularizer == "hj" and self.hj_weight:
            residual = jax.vmap(lambda t, z: pde_residual(u, cost, t, z))
            size = jnp.abs if self.residual == "absolute" else jnp.square
            penalty = jnp.mean(size(residual(*at_x))) + jnp.mean(size(residual(*at_y)))
        elif self.regularizer == "r1":
            slopes = jax.vmap(lambda y: jax.grad(u, argnums=1)(jnp.ones((), y.dtype), y))(y)
            penalty = jnp.mean(jnp.sum(slopes**2, axis=1))
        loss = mismatch + self.hj_weight * penalty
        return loss, {"loss": loss, "mismatch": mismatch, "penalty": penalty}

    def _draw_times(self, key: Key, n: int, dtype: Any) -> Float[Array, "n"]:
        if self.times == "ends":
            return (jnp.arange(n) % 2).astype(dtype)
        if self.times == "uniform":
            return jax.random.uniform(key, (n,), dtype)
        offset_key, order_key = jax.random.split(key)
        strata = (jnp.arange(n) + jax.random.uniform(offset_key, (n,), dtype)) / n
        # Batches may be ordered by place.
        return jax.random.permutation(order_key, strata.astype(dtype))

    def extract(self, problem: TransportProblem, state: DIOTMState, frame: Frame) -> MapTransport:
        u, forward, backward = state.averaged
        if state.pair is not None:
            level = jnp.zeros((), problem.dtype)
            u = HopfLaxPotential(EndSlices(u, u, level), problem.cost, state.pair)
        return MapTransport(u, frame, problem.cost, forward, backward, state.pair)


def interpolant(x: Points, y: Points, t: Float[Array, "n"]) -> Points:
    """`(1 - t) x + t y`, row by row."""
    return x + t[:, None] * (y - x)


def forward_loss(
    u: Potential, cost: Cost, forward: Any, x: Points, t: Float[Array, "n"]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`E t L(T(x) - x) - u(t, x_t)`: what the forward map descends."""
    moves = jax.vmap(forward)(x) - x
    paid = jax.vmap(cost.lagrangian)(moves)
    values = jax.vmap(u)(t, x + t[:, None] * moves)
    return jnp.mean(t * paid - values), {"cost_forward": jnp.mean(paid)}


def backward_loss(
    u: Potential, cost: Cost, backward: Any, y: Points, t: Float[Array, "n"]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`E (1 - t) L(y - S(y)) + u(t, y_t)`: what the backward map descends."""
    moves = y - jax.vmap(backward)(y)
    paid = jax.vmap(cost.lagrangian)(moves)
    values = jax.vmap(u)(t, y - (1.0 - t)[:, None] * moves)
    return jnp.mean((1.0 - t) * paid + values), {"cost_backward": jnp.mean(paid)}
