"""Neural Characteristic Flow."""

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

from brenier.classes import nearest_class
from brenier.coordinates import ClassCoordinates, Frame, PairCoordinates
from brenier.costs import Cost, Quadratic
from brenier.errors import InputError
from brenier.hamiltonian import implicit_residual
from brenier.hopf_lax import EndSlices, HopfLaxPotential, solve_feet
from brenier.methods._base import FROM_PRESET, Blueprint, Expected, cast, drawn
from brenier.methods._characteristic import (
    CharacteristicMethod,
    CharacteristicState,
    Design,
)
from brenier.networks import with_zero_head
from brenier.problem import TransportProblem
from brenier.samplers import POOL
from brenier.transport import CharacteristicTransport
from brenier.typing import Key, Points, Potential

Anchor = Literal["start", "both"]
Objective = Literal["dual", "energy"]

DUAL: dict[str, Any] = {
    "learning_rate": 2e-2,
    "schedule": "linear",
    "hj_weight": 0.1,
    "steps": 1500,
    "pair_coordinates": True,
}
"""What the dual takes in place of the default preset's values."""

_MEDIUM = 16  # the most dimensions of the middle range, see `NCF.default_network`
# Up to so many samples, the widths beyond which a network only learns their noise.
_WIDTHS_OF_FEW = ((2048, (16, 16, 16)), (20_000, (32, 32, 16)))
_LEAST_BATCH = 64
_SHARED = 16  # devices or processes, up to which they share such a batch evenly
_CLASSWISE = 0.5
"""Share of the learning rate where there are classes: what is left of the map in `ClassCoordinates` is small."""
_UNSOLVED = 4.0  # tolerances from its target beyond which a foot is left out
_PAIRS = 1024**2  # compared a step, at most
_ROUNDS, _FEW_ROUNDS, _SMALL_BATCH = 12, 6, 512
"""Of the solver in a stage; fewer in the plane for a small batch, of which a round takes as long for one point as for
all."""
_ENOUGH = (0.8, 0.97, 1.0)
"""Shares of the feet that have arrived, after each of which the others are solved on their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NCF(CharacteristicMethod):
    """One potential `u(t, x)`, both maps in closed form: `T(x) = x + ∇H(∇u(0, x))`, `S(y) = y - ∇H(∇u(1, y))`.

    With `objective="energy"`, as published, it minimises over the potential's parameters

        matching_weight (E(T♯μ, ν) + E(S♯ν, μ)) + hj_weight E r²,
        r = u(t, z) + t H(p) - t p·∇H(p) - u(0, z - t ∇H(p)),    p = ∇u(t, z),

    with the squared-MMD energy distance `E`. With `objective="dual"`, our default, it maximises the Kantorovich dual

        E_ν u(1, y) - E_μ u(0, x),    u(1, y) = min_x [u(0, x) + c(x, y)]    (Hopf–Lax)

    over the slice at t = 0. The slice at t = 1 proposes the minimisers, `S(y)`; a batch solver finishes them; the slice
    then learns those that were found, `E |S(y) - x(y)|²`, and its value, `hj_weight E r²` at t = 1. For other costs the
    first is `2 E [H(p) + L(v) - p·v]` with `p = ∇u(1, y)` and `v = y - x(y)`, convex in `p`. The potential in between
    follows from its ends.

    Samples with class labels move within their class: the energy distance is the mean over the classes of their own
    (section "class-conditional"), and the minimum of the dual is over the own class. The potential has no label as
    input, so the classes of either side must lie apart.

    Args:
        preset: "default" for our recipe, "published" for the paper's; `None` below means the preset's value.
        objective: "dual", which sees fine detail that the energy distance is blind to, or "energy".
        pair_coordinates: train the dual in `PairCoordinates`, which start at the linear map, if the cost is quadratic.
        network: "dense_quadratic", "mlp", "resnet", or an equinox module `u(t, x)`; by cost where left out: the first,
            and "mlp" for costs that are nearly linear beyond a few spreads.
        widths: of the network's layers, where it has several; by dimension and number of samples where left out.
        activation: see `brenier.networks.ACTIVATIONS`; by dimension and cost where left out.
        optimizer: "muon", "adam", or an optax transformation with its own learning rate.
        learning_rate: peak step size of a named optimiser; the dual halves it where there are classes.
        schedule: "cosine" or "linear" decay over the whole run, or "constant".
        averaging: decay of the running average of the weights that is delivered; 0 delivers the last iterate.
        batch_size: samples a side and step; by dimension and number of samples where left out.
        anchor: time at which the residual meets its characteristic: 0 at the "start", as published in the plane, or
            "both" ends in turn, which ties the backward map as firmly as the forward one.
        collocation: where the residual is enforced: on the current "path"s, in the bounding "box", or "mix".
        collocation_size: residual points a step.
        scale_inputs: centre and scale the data by one common scalar (undone in every output).
        steps: planned optimiser steps.
        hj_weight, matching_weight: of the two terms.
        foot_tolerance: share of the target's spread, or of that of its classes, within which a foot has to arrive; by
            dimension where left out.
        foot_iterations: of the solver per step and stage, at most; by dimension and batch size where left out.
        statistic: "U" (unbiased) or "V" energy distance.
        gaussian_start: start from the closed-form potential between Gaussians with the samples' moments.

    Raises:
        InputError: an option out of range.

    References:
        Park, Liu, Zhou and Osher, *Neural Hamilton–Jacobi Characteristic Flows for Optimal Transport*, ICLR 2026.

    Example:
        >>> NCF(preset="published").optimizer
        'adam'
    """

    anchor: Anchor = FROM_PRESET
    objective: Objective = FROM_PRESET
    pair_coordinates: bool = FROM_PRESET
    foot_tolerance: float | None = None
    foot_iterations: int | None = None

    def __post_init__(self) -> None:
        self._fill({"objective": "energy" if self.preset == "published" else "dual"})
        self._fill(DUAL if self.objective == "dual" else {"pair_coordinates": False})
        super().__post_init__()

    def _check_options(self, expected: Expected) -> None:
        super()._check_options(expected)
        expected.one_of("anchor", ("start", "both"))
        expected.one_of("objective", ("dual", "energy"))
        if self.pair_coordinates and self.objective != "dual":
            raise InputError('pair_coordinates=True needs objective="dual".')

    def residuals(
        self, u: Potential, cost: Cost, t: Float[Array, "n"], z: Points
    ) -> Float[Array, "n"]:
        anchors = jnp.zeros_like(t)
        if self.anchor == "both":
            anchors = anchors.at[1::2].set(1.0)
        return jax.vmap(lambda t, z, a: implicit_residual(u, cost, t, z, a))(t, z, anchors)

    def default_network(self, problem: TransportProblem, *, last: bool = True) -> Design:
        """That of the slice at t = 1, or of the one at t = 0."""
        default, dim = super().default_network(problem), problem.dim
        if self.objective == "energy" or default.name == "mlp":
            return default
        # The dual is limited by the steps it can make in the time, and up to some ten dimensions by depth. In the plane
        # kinks between modes weigh most; in many dimensions, neither activation was better throughout. In between, the
        # slice at t = 0, which is minimised over, has the kinks, and the one that follows it is better without. Where
        # there are classes, what is left of the map is small.
        few = _widths_of_few(problem)
        if dim <= 4:
            return Design("dense_quadratic", few or (64, 64, 64, 32), "celu")
        if not _middling(problem):
            activation = "celu" if dim > _MEDIUM else "gelu"
            return Design("dense_quadratic", few or (128, 128, 64), activation)
        activation = "gelu" if last else "sharp_gelu"
        return Design("dense_quadratic", few or (80, 80, 80, 80, 40), activation)

    def default_batch(self, problem: TransportProblem) -> int:
        if self.objective == "energy":
            return super().default_batch(problem)
        finer = _middling(problem) and not _widths_of_few(problem)
        most, samples = 2048 if finer else super().default_batch(problem), problem.samples
        if problem.classes or samples < 2 * _LEAST_BATCH:
            return most
        # Steps on a quarter of the samples, spread evenly over them, come as far as steps on all, and cost less.
        return int(min(most, max(_LEAST_BATCH, samples / 4))) // _SHARED * _SHARED

    def settled(self, problem: TransportProblem) -> NCF:
        widths = self.widths
        if self.preset == "default" and self.network is None and widths is None:
            widths = self.default_network(problem).widths
        return dataclasses.replace(self, widths=widths, batch_size=self.batch(problem))

    def _tolerance(self, problem: TransportProblem) -> float:
        if self.foot_tolerance is not None:
            return self.foot_tolerance
        return 0.01 if _middling(problem) else 0.02

    # -- the dual ------------------------------------------------------------------------------------------------

    def init(self, problem: TransportProblem, key: Key) -> CharacteristicState:
        if self.objective == "energy":
            return super().init(problem, key)
        slices = [self._blueprint(problem, last=last) for last in (False, True)]
        state = _at_rest(slices, self._optimizer(), problem.dim, problem.dtype, key)
        pair = None
        if self.pair_coordinates and isinstance(problem.cost, Quadratic):
            sides = problem.source, problem.target
            if problem.classes:
                x, y = (np.asarray(side.draw(key, 0, 1, POOL)[0]) for side in sides)
                pair = ClassCoordinates.from_samples(x, y, len(problem.classes))
            else:
                pair = PairCoordinates.from_samples(*(side.pool(POOL, 0) for side in sides))
            pair = cast(pair, problem.dtype)
        return dataclasses.replace(state, base=pair)

    def step(
        self,
        problem: TransportProblem,
        state: CharacteristicState,
        batch: tuple[jax.Array, jax.Array],
        key: Key,
        progress: jax.Array,
    ) -> tuple[CharacteristicState, dict[str, jax.Array]]:
        if self.objective == "energy":
            return super().step(problem, state, batch, key, progress)
        x, y = batch if state.base is None else state.base.encode_batch(*batch)
        return self.update(
            lambda slices: self._dual_loss(slices, problem, x, y),
            state,
            progress,
            _CLASSWISE if problem.classes else 1.0,
        )

    def _dual_loss(
        self,
        u: EndSlices,
        problem: TransportProblem,
        x: Float[Array, "n d"],
        y: Float[Array, "m d"],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        cost, classes = problem.cost, len(problem.classes)
        # Together, so that their gradients in the parameters are one pass back through the network.
        values, momenta = jax.vmap(
            lambda y: jax.value_and_grad(u.end, argnums=1)(jnp.ones((), y.dtype), y)
        )(y)
        preimages = jax.lax.stop_gradient(y - jax.vmap(cost.grad_hamiltonian)(momenta))
        at_x = _at_start(u, x)
        by_class = y.reshape(max(classes, 1), -1, y.shape[1])
        spread = jnp.sqrt(jnp.mean(jnp.sum(jnp.var(by_class, axis=1), axis=1)))
        tolerance = self._tolerance(problem) * spread
        # The envelope theorem: at the minimiser the value does not depend on how the minimiser moves.
        feet, found, iterations = jax.lax.stop_gradient(
            self._feet(
                *jax.lax.stop_gradient((u, x, at_x)),
                cost,
                y,
                preimages,
                tolerance,
                classes,
            )
        )
        at_feet = _at_start(u, feet)
        moves = jax.vmap(cost.static)(feet, y)
        weight = found / jnp.maximum(jnp.sum(found), 1.0)
        dual = jnp.mean(at_feet + moves) - jnp.mean(at_x)
        miss = feet - preimages
        proposal = weight @ jnp.sum(miss**2, axis=1)
        # Of the squared miss |∇H(p) - v|², with the move v that was found, the gradient in p has the factor ∇²H, which
        # for some costs is infinite at p = 0 or steep before a limit. That of 2 (H(p) + L(v) - p·v), convex in p, is
        # twice the miss; for the quadratic cost both are one.
        pull = 2.0 * (weight @ jnp.sum(miss * momenta, axis=1))
        values = values - jax.lax.stop_gradient(at_feet) - moves
        tie = weight @ (values + jax.lax.stop_gradient(u.level)) ** 2
        level = weight @ (jax.lax.stop_gradient(values) + u.level) ** 2
        others = -dual + self.hj_weight * tie + level
        return others + pull, {
            "loss": others + proposal,
            "dual": dual,
            "proposal": proposal,
            "hj": tie,
            "unsolved": 1.0 - jnp.mean(found),
            "iterations": iterations.astype(x.dtype),
        }

    def _feet(
        self,
        u: EndSlices,
        x: Float[Array, "n d"],
        at_x: Float[Array, "n"],
        cost: Cost,
        y: Float[Array, "m d"],
        proposed: Float[Array, "m d"],
        tolerance: jax.Array,
        classes: int,
    ) -> tuple[Float[Array, "m d"], Float[Array, "m"], jax.Array]:
        """Minimisers of `u(0, ·) + c(·, y)`, which of them the solver has found, and its iterations.

        The solver stays in the valley it starts in, so it starts at the batch's own minimiser where the proposal is
        not better. What it reaches in time then lies below the discrete dual of the batch, found or not, and the
        dual cannot run away. Of a batch larger than our default that is the dual of some of its source samples, the
        fewer the larger it is: all pairs would soon cost more than all else.

        With classes the minimum is over the points of the sample's own class: those to which no sample of the batch
        is nearer than one of that class.
        """
        blocks, most = max(classes, 1), max(_PAIRS // len(y), 1)
        some, near = _evenly(len(x), blocks, most * blocks), _evenly(len(x), blocks, most)
        candidates, worth = x[some], at_x[some]
        discrete, best = _cheapest(cost, candidates, worth, y, blocks)
        at_proposed = _at_start(u, proposed) + jax.vmap(cost.static)(proposed, y)
        own = _blocks(y, blocks)
        if classes:
            stayed = nearest_class(proposed, x[near], classes) == own
            at_proposed = jnp.where(stayed, at_proposed, jnp.inf)
        start = jnp.where((discrete < at_proposed)[:, None], candidates[best], proposed)
        rounds = self.foot_iterations
        if rounds is None:
            rounds = _FEW_ROUNDS if y.shape[1] <= 4 and len(y) <= _SMALL_BATCH else _ROUNDS
        solved = solve_feet(
            u.start,
            cost,
            y,
            start,
            tolerance=tolerance,
            enough=_ENOUGH,
            max_iterations=rounds,
        )
        feet, found = solved.points, solved.misses <= _UNSOLVED * tolerance
        if classes:
            stayed = nearest_class(feet, x[near], classes) == own
            feet, found = jnp.where(stayed[:, None], feet, start), found & stayed
        return feet, found.astype(x.dtype), solved.iterations

    def extract(
        self, problem: TransportProblem, state: CharacteristicState, frame: Frame
    ) -> CharacteristicTransport:
        if self.objective == "energy":
            return super().extract(problem, state, frame)
        potential = HopfLaxPotential(state.averaged, problem.cost, state.base)
        return CharacteristicTransport(potential, frame, problem.cost)


@eqx.filter_jit
def _at_rest(
    networks: Sequence[eqx.Module | Blueprint],
    optimizer: optax.GradientTransformation,
    dim: int,
    dtype: Any,
    key: Key,
) -> CharacteristicState:
    """The start of both slices at `u = 0`, the identity, from which the first conjugates are exact.

    One program for all of it: piece by piece it takes longer than many steps of a small fit.
    """
    start, end = (
        with_zero_head(drawn(network, jax.random.fold_in(key, i)))
        for i, network in enumerate(networks)
    )
    slices = cast(EndSlices(start, end, jnp.zeros(())), dtype)
    return CharacteristicState(
        network=slices,
        averaged=slices,
        base=None,
        optimizer=optimizer.init(slices),
        box=jnp.zeros((2, dim), dtype),
        step=jnp.zeros((), jnp.int32),
    )


def _middling(problem: TransportProblem) -> bool:
    """Whether a finer recipe pays: in the plane it only takes longer, in many dimensions it leaves too few steps."""
    return 4 < problem.dim <= _MEDIUM and not problem.classes


def _widths_of_few(problem: TransportProblem) -> tuple[int, ...] | None:
    if problem.classes:
        return None
    return next((widths for most, widths in _WIDTHS_OF_FEW if problem.samples <= most), None)


def _at_start(u: EndSlices, x: Points) -> Float[Array, "n"]:
    return jax.vmap(lambda x: u.start(jnp.zeros((), x.dtype), x))(x)


def _evenly(count: int, blocks: int, most: int) -> np.ndarray:
    """Up to `most` of the numbers below `count`, equally many of each block and evenly spread, as strata are."""
    size = count // blocks
    share = min(max(most // blocks, 1), size)
    offsets = np.arange(share) * size // share
    return (np.arange(blocks)[:, None] * size + offsets).ravel()


def _cheapest(
    cost: Cost, x: Float[Array, "n d"], at_x: Float[Array, "n"], y: Float[Array, "m d"], blocks: int
) -> tuple[Float[Array, "m"], Int[Array, "m"]]:
    """`min_x [u(0, x) + c(x, y)]` over the samples of the block of each `y`, and the row of the sample it is at."""
    values = at_x.reshape(blocks, -1, 1) + jax.vmap(cost.pairwise)(
        *(points.reshape(blocks, -1, points.shape[1]) for points in (x, y))
    )
    least = jnp.min(values, axis=1)
    # Two minima take a quarter of the time of one `argmin`, which XLA does not vectorise.
    rows = jnp.arange(len(x)).reshape(blocks, -1, 1)
    at = jnp.min(jnp.where(values <= least[:, None], rows, len(x)), axis=1)
    return least.ravel(), at.ravel()


def _blocks(x: Points, classes: int) -> Int[Array, "n"]:
    """The class of each point of a batch."""
    return jnp.arange(len(x)) // (len(x) // classes)
