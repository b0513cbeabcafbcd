"""The only training loop.

`fit` knows no method by name. It chooses coordinates, holds samples out, draws batches, drives `method.step` in
compiled chunks, validates, keeps the best map, stops early, keeps to a time budget, reports to callbacks, writes
checkpoints and resumes from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from brenier.callbacks import Callback, Event
from brenier.checkpoint import read_checkpoint, write_checkpoint
from brenier.coordinates import Frame
from brenier.costs import fingerprint, framed, price
from brenier.devices import Devices, mesh_of, place
from brenier.errors import BrenierWarning, DivergenceError, InputError
from brenier.methods import Method
from brenier.problem import TransportProblem
from brenier.samplers import POOL
from brenier.solution import STATUS, Metadata, Solution
from brenier.state_costs import FramedStateCost, check_passage, check_state_cost
from brenier.transport import Transport
from brenier.typing import Key
from brenier.validation import (
    HeldOut,
    dual_cost,
    gain,
    seed_of,
    split_sides,
    verdict,
    worse_than_linear,
)

CHUNK = 25
"""Steps per compiled call: the grain of progress reports, validation and interruption."""

_SIGNIFICANT = 2.0  # standard errors of a change of the held-out dual
_PATIENCE = 12  # validations without improvement of the energy distance, which is noisy
_DUAL_PATIENCE = 6  # the same for the held-out dual, whose changes are told from noise
_EARLIEST_STOP = 0.4  # of the schedule: before it the scores of a large learning rate say little
_AGREEMENT = 0.01  # round trip, as a share of the variance, above which a match is not the end
_PROBED = 1000  # points a side at which a state cost is tried
_MOST_SHARED = 32  # kinds of fits whose compiled programs are kept for later ones
_COOL_DOWN = 1 / 3  # of the steps done, spent on the rest of the schedule once a stop is decided

# Purposes of the key streams; changing one changes every result.
_INIT, _SOURCE, _TARGET, _STEP, _SCORE = range(5)


def fit(
    problem: TransportProblem,
    method: Method[Any],
    *,
    key: Key | None = None,
    steps: int | None = None,
    time_budget: float | None = None,
    validation: float = 0.1,
    early_stopping: bool = True,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 30.0,
    devices: Devices = None,
    throw: bool = True,
) -> Solution:
    """Solve a transport problem with a method.

    Args:
        problem: what to solve.
        method: how, for example `brenier.NCF()`.
        key: of all randomness; `jax.random.key(0)` by default. Same key, same machine, same bits.
        steps: optimiser steps of the whole schedule; the method's own by default, unlimited with a time budget.
        time_budget: seconds for everything, compilation included; the schedule is fitted into it.
        validation: share of each side held out (at most 2048 points); 0 for none. Sides too small to hold out
            32 points are used whole.
        early_stopping: when the held-out energy distances have reached the noise band of same-distribution samples
            and the round trip `S(T(x))` is within 1 % of the variance, or the distances stopped improving, cool down
            and stop. Without it all steps are done. Needs held-out points.
        callbacks: each called with an `Event` after every chunk of 25 steps; a true result stops the fit.
        checkpoint: a file to continue from where it exists, written every `checkpoint_every` seconds and at the end.
            An interrupted run that is continued ends with the same bits as one that never stopped.
        devices: how many to use, or which: every batch is split over them. Up to round-off the result is that of one,
            which is the default.
        throw: raise `DivergenceError` on divergence; otherwise return the last good map with status "diverged".

    Returns:
        A `Solution`. Ctrl-C returns the best map so far with status "interrupted".

    Raises:
        InputError: arguments out of range; a checkpoint of another run.
        UnsupportedProblemError: this method cannot solve this problem.
        DivergenceError: the loss became non-finite; its `solution` is the last good one.

    Example:
        >>> problem = TransportProblem(source, target)
        >>> solution = fit(problem, brenier.NCF(), time_budget=30)
        >>> solution.transport.forward(source)
    """
    check_arguments(steps, time_budget, validation, checkpoint_every)
    method.check(problem)
    key = jax.random.key(0) if key is None else key
    with jax.default_matmul_precision("highest"):
        run = Run(
            *(problem, method, key, steps, time_budget, validation, early_stopping),
            mesh=mesh_of(devices),
        )
        if checkpoint is not None:
            run.resume(Path(checkpoint))
        run.begin(callbacks, checkpoint, checkpoint_every)
        drive([run], lambda: [run.chunk()])
        return run.end(throw)


Chunk = tuple[dict[str, float], Callable[[], Transport]]
"""What some steps of a run gave: the means of their metrics, and the map that the state now describes."""


def drive(runs: Sequence[Run], chunk: Callable[[], Sequence[Chunk]]) -> None:
    """The loop. `chunk` does some steps of all runs at once; it ends when no run goes on."""
    try:
        while any(run.goes_on for run in runs):
            for run, done in zip(runs, chunk(), strict=True):
                if run.goes_on:
                    run.account(*done)
    except KeyboardInterrupt:
        for run in runs:
            if run.goes_on:
                run.progress.reason = "interrupted"


@dataclasses.dataclass
class _Progress:
    """The host's side of a run; plain numbers, so that a checkpoint continues with the same bits.

    Within a phase the schedule's position is linear in the step, from `phase_progress` at `phase_step` to 1 at
    `last_step`. A decision to stop, or a new estimate from the clock, begins a new phase.
    """

    last_step: int
    step: int = 0
    phase_step: int = 0
    phase_progress: float = 0.0
    reason: str | None = None
    best: float = float("inf")
    since_best: int = 0
    kept: float = float("inf")
    chunk: int = 0
    elapsed: float = 0.0
    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    terms: list[list[float]] = dataclasses.field(default_factory=list)
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def slope(self) -> float:
        return (1.0 - self.phase_progress) / max(self.last_step - self.phase_step, 1)

    @property
    def position(self) -> float:
        if self.step >= self.last_step:
            return 1.0
        return self.phase_progress + self.slope * (self.step - self.phase_step)

    def end_at(self, last_step: int) -> None:
        if last_step != self.last_step:
            self.phase_progress, self.phase_step = self.position, self.step
            self.last_step = max(last_step, self.step)

    def record(self, **columns: float) -> None:
        for name, value in columns.items():
            self.history.setdefault(name, []).append(float(value))


class Run:
    """One problem on its way through the loop: coordinates, batches, validation, decisions.

    The arguments are those of `fit`, and `programs` those of a run of the same kind, where there is one.
    """

    def __init__(
        self,
        problem: TransportProblem,
        method: Method[Any],
        key: Key,
        steps: int | None,
        time_budget: float | None,
        validation: float,
        early_stopping: bool,
        programs: Programs | None = None,
        mesh: Mesh | None = None,
    ):
        self.began = time.perf_counter()
        self.method, self.key, self.problem = method, key, problem
        self.time_budget = time_budget
        if steps is None:
            steps = method.planned_steps if time_budget is None else 10**9
        self.planned = int(steps)

        seed = seed_of(key)
        dtype = (
            jnp.float64
            if jax.config.read("jax_enable_x64") and problem.dtype == np.float64
            else jnp.float32
        )
        source, target, x_held, y_held = split_sides(problem, validation, key)
        x_pool, y_pool = source.pool(POOL, seed), target.pool(POOL, seed)
        if problem.state_cost is not None:
            around = _surroundings(x_pool, y_pool, seed).astype(problem.dtype)
            check_state_cost(problem.state_cost, around)
            check_passage(problem.state_cost, x_pool[:_PROBED], y_pool[:_PROBED])
        # A state cost stands still, and so must its frame.
        moving = problem.cost.galilean and problem.state_cost is None
        self.frame = (
            Frame.from_samples(x_pool, y_pool, galilean=moving)
            if method.scaled
            else Frame.identity(problem.dim)
        )
        encode, scale = self.frame.encode, float(self.frame.scale)
        cost = framed(problem.cost, scale, problem.dim) if method.scaled else problem.cost
        self.unit = float(price(cost, scale))
        # Inside the loop everything lives in the frame: a problem with the same optimal coupling.
        self.inner = problem.replace(
            source=source.encoded(partial(encode, 0.0), dtype),
            target=target.encoded(partial(encode, 1.0), dtype),
            cost=cost,
            state_cost=problem.state_cost
            and FramedStateCost(problem.state_cost, self.frame, self.unit),
            noise=problem.noise / scale,
        )
        self.held_out: HeldOut | None = None
        if x_held is not None and y_held is not None:
            self.held_out = HeldOut(
                self.inner,
                jnp.asarray(encode(0.0, x_held), dtype),
                jnp.asarray(encode(1.0, y_held), dtype),
                scale,
                jax.random.fold_in(key, _SCORE),
            )
        self.dtype, self.validation = dtype, validation
        self.streams = {
            purpose: jax.random.fold_in(key, purpose) for purpose in (_SOURCE, _TARGET, _STEP)
        }
        self.ahead: tuple[int, tuple[jax.Array, jax.Array]] | None = None
        self.early_stopping = early_stopping and self.held_out is not None and method.converges
        # Copied, for a network of the user's must outlive the donation of the state.
        self.state = jax.tree.map(jnp.copy, method.init(self.inner, jax.random.fold_in(key, _INIT)))
        self.progress = _Progress(last_step=self.planned)
        self.mesh = mesh
        self.programs = programs or Programs.of(method, self.inner, mesh=mesh)
        self.kept = self.programs.extract(self.state)
        self.earlier = 0.0  # seconds spent before a resume

    # -- one chunk -----------------------------------------------------------------------------------------------

    @property
    def goes_on(self) -> bool:
        p = self.progress
        return p.step < p.last_step and p.reason not in ("stopped", "interrupted", "diverged")

    @property
    def count(self) -> int:
        """The steps of the next chunk."""
        return min(CHUNK, self.progress.last_step - self.progress.step) if self.goes_on else 0

    def inputs(self) -> tuple[jax.Array, ...]:
        """What the next chunk needs besides the state."""
        p = self.progress
        return (
            *self._draw(p.step),
            jax.vmap(partial(jax.random.fold_in, self.streams[_STEP]))(p.step + jnp.arange(CHUNK)),
            jnp.asarray(self.count, jnp.int32),
            jnp.asarray(p.position, self.dtype),
            jnp.asarray(p.slope, self.dtype),
        )

    def look_ahead(self) -> None:
        """Draws the batches of the chunk after the next one; for the time in which the device works."""
        step = self.progress.step + self.count
        if step < self.progress.last_step:
            self.ahead = (step, self._draw(step))

    def _draw(self, step: int) -> tuple[jax.Array, jax.Array]:
        """The batches of both sides for a chunk of steps, unless they have been drawn ahead."""
        ahead, self.ahead = self.ahead, None
        if ahead is not None and ahead[0] == step:
            return ahead[1]
        options = {"stratified": self.method.stratified}
        return (
            self.inner.source.draw(
                self.streams[_SOURCE], step, CHUNK, self.method.batch, **options
            ),
            self.inner.target.draw(
                self.streams[_TARGET], step, CHUNK, self.method.batch, **options
            ),
        )

    def chunk(self) -> Chunk:
        """Steps of this run alone."""
        p = self.progress
        arguments = (self.state, *self.inputs())
        if self.mesh is not None:
            state, batches, rest = place(self.mesh, self.state, arguments[1:3], arguments[3:])
            arguments = (state, *batches, *rest)
        start = time.perf_counter()
        advance = self.programs.advance(arguments)
        p.compile_seconds += time.perf_counter() - start
        start = time.perf_counter()
        self.state, metrics = advance(*arguments)
        self.look_ahead()
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        p.run_seconds += time.perf_counter() - start
        state = self.state
        if self.mesh is not None:  # Maps are looked at on one device, like those of other fits.
            state = jax.device_put(state, self.mesh.devices.item(0))
        return metrics, partial(self.programs.extract, state)

    # -- the run -------------------------------------------------------------------------------------------------

    def begin(
        self,
        callbacks: Sequence[Callback] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: float = np.inf,
    ) -> None:
        """Sets who is told of every chunk, where the state is saved, and the clock."""
        p = self.progress
        self.callbacks = callbacks
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.checkpoint_every = checkpoint_every
        self.saved = self.loop_began = time.perf_counter()
        self.steps_before, self.compiled_before = p.step, p.compile_seconds

    def account(self, metrics: dict[str, float], current: Callable[[], Transport]) -> None:
        """Takes note of a chunk that was done, and decides how to go on."""
        p = self.progress
        p.step, p.chunk = p.step + self.count, p.chunk + 1
        if not np.isfinite(metrics["loss"]):
            p.reason = "diverged"
            return
        p.record(step=p.step, **metrics)
        scores = self._validate(current)
        self._plan()
        # Not before this chunk is fully accounted for: a resumed run must not repeat any of it.
        if self.checkpoint and time.perf_counter() - self.saved >= self.checkpoint_every:
            self.save(self.checkpoint)
            self.saved = time.perf_counter()
        event = self._event(metrics, scores)
        if any([callback(event) for callback in self.callbacks]):
            p.reason = "stopped"
        elif self.checkpoint and not self.goes_on:
            self.save(self.checkpoint)

    def end(self, throw: bool = True) -> Solution:
        """The solution, once the run does not go on."""
        reason = self.progress.reason or "completed"
        return self._diverged(throw) if reason == "diverged" else self._solution(reason)

    def _validate(self, current: Callable[[], Transport]) -> dict[str, float] | None:
        p = self.progress
        ended = p.step >= p.last_step
        if self.held_out is None:
            self.kept = current()
            return None
        if p.chunk % self.method.validation_interval and not ended:
            return None
        candidate = current()
        scores = self.held_out.scores(candidate)
        ratio = scores["ratio"]
        p.record(score_step=p.step, score=ratio, round_trip=scores.get("round_trip", np.nan))
        if not self.method.converges:
            keep = improved = True
        elif terms := self.held_out.dual_terms(candidate):
            # The energy distance is blind to what the dual still improves, so the dual itself is the judge.
            change = gain(terms, p.terms) if p.terms else np.inf
            keep, improved = change >= -_SIGNIFICANT, change > _SIGNIFICANT
            if improved:
                p.terms = [t.tolist() for t in terms]
            p.record(held_out_dual=sum(t.mean() for t in terms))
        else:
            # Within the noise band scores cannot rank two maps, so the later one, less noisy, is kept.
            keep, improved = ratio <= max(p.kept, 1.0), ratio < 0.98 * p.best
        if np.isfinite(ratio) and keep:
            self.kept, p.kept = candidate, ratio
        p.best = min(p.best, ratio)
        p.since_best = 0 if improved else p.since_best + 1
        return scores

    def _plan(self) -> None:
        """Decide when the schedule ends: early, in time, or as it stands."""
        p = self.progress
        decided = p.reason in ("matched", "stalled")
        if self.early_stopping and not decided and p.position >= _EARLIEST_STOP:
            recent = p.history.get("score", [])[-2:]
            agree = p.history.get("round_trip", [1.0])[-1] <= _AGREEMENT
            if len(recent) == 2 and max(recent) <= 1.0 and agree and not p.terms:
                p.reason = "matched"
            elif p.since_best >= _PATIENCE or (
                p.terms and agree and p.since_best >= _DUAL_PATIENCE
            ):
                p.reason = "stalled"
            decided = p.reason in ("matched", "stalled")
            if decided:
                p.end_at(min(p.last_step, p.step + max(2 * CHUNK, int(p.step * _COOL_DOWN))))
        if self.time_budget is not None:
            left = max(self.time_budget - self._elapsed(), 0.0)
            affordable = p.step + int(left / self._per_step())
            if decided:
                p.end_at(min(affordable, p.last_step))
            else:
                p.reason = "time_budget" if affordable < self.planned else None
                p.end_at(min(affordable, self.planned))

    def _event(self, metrics: dict[str, float], scores: dict[str, float] | None) -> Event:
        p = self.progress
        rate = p.step / max(p.run_seconds, 1e-9)
        return Event(
            step=p.step,
            steps=p.last_step,
            progress=p.position,
            metrics=metrics,
            scores=scores,
            elapsed=self._elapsed(),
            compile_seconds=p.compile_seconds,
            steps_per_second=rate,
            remaining=self._per_step() * (p.last_step - p.step),
            device=jax.default_backend(),
            transport=lambda: self._outer(self.kept),
        )

    def _per_step(self) -> float:
        """Wall-clock seconds of the loop alone: with the set-up in it the first steps would rush the schedule."""
        p = self.progress
        compiled = p.compile_seconds - self.compiled_before
        looped = time.perf_counter() - self.loop_began - compiled
        return looped / max(p.step - self.steps_before, 1)

    def _elapsed(self) -> float:
        return self.earlier + time.perf_counter() - self.began

    # -- the end -------------------------------------------------------------------------------------------------

    def _outer(self, transport: Transport) -> Transport:
        """The same transport in the user's coordinates."""
        return dataclasses.replace(transport, frame=self.frame)

    def _cost(self) -> dict[str, float]:
        """The dual value in the user's units; the frame's own motion costs `L(q)`."""
        # The kept map is without its frame; a framed cost, unlike a homogeneous one, knows its unit even so.
        known = float(price(self.inner.cost, 1.0))
        found = dual_cost(self.kept, self.inner, self.unit / known)
        if found and self.problem.cost.galilean:
            found["cost"] += float(self.problem.cost.lagrangian(jnp.asarray(self.frame.drift)))
        return found

    def _diverged(self, throw: bool) -> Solution:
        step = self.progress.step
        hint = (
            f"The loss became non-finite between steps {max(step - CHUNK, 0)} and {step}; the learning rate is "
            "probably too high. Try a tenth of it, or scale_inputs=True"
        )
        solution = self._solution("diverged", hint)
        if throw:
            raise DivergenceError(
                f"{hint}. The last good map is in this error's `solution`.", solution
            )
        return solution

    def _solution(self, status: str, hint: str | None = None) -> Solution:
        p = self.progress
        scores: dict[str, float] = {}
        classes: dict[str, dict[str, float]] = {}
        if self.held_out is not None:
            scores = self.held_out.scores(self.kept) | self.held_out.linear_scores()
            scores |= self._cost()
            classes = self.held_out.class_scores(self.kept)
            if status == "completed" and scores["ratio"] <= 1.0:
                status = "matched"
        total = self._elapsed()
        info = Metadata(
            method=self.method.describe(),
            dim=self.problem.dim,
            key=np.asarray(jax.random.key_data(self.key)).tolist(),
            steps=p.step,
            n_source=self.problem.source.size,
            n_target=self.problem.target.size,
            held_out=0 if self.held_out is None else len(self.held_out.x),
            dtype=np.dtype(self.dtype).name,
            noise=self.problem.noise,
            cost=type(self.problem.cost).__name__,
            cost_at_probes=self._cost_at_probes(),
            classes=classes,
            state_cost=self.problem.state_cost is not None,
            data_hash=self._data_hash(),
            device=f"{jax.default_backend()} ({jax.devices()[0].device_kind}, {os.cpu_count()} cores)",
            versions=_versions(),
            timings={
                "compile": p.compile_seconds,
                "run": p.run_seconds,
                "total": total,
            },
        )
        message = f"Stopped after {p.step} steps: {hint or STATUS[status]}. {verdict(scores)}"
        if scores and worse_than_linear(scores):
            advice = "Prefer the linear map, or train longer."
            if self.problem.state_cost is not None:  # which the linear map knows nothing of
                advice = "Train longer."
            warnings.warn(f"{message} {advice}", BrenierWarning, 4)
        history = {k: np.asarray(v) for k, v in p.history.items()}
        return Solution(self._outer(self.kept), history, status, message, Metadata(scores), info)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _data_hash(self) -> str:
        both = self.problem.source.digest() + self.problem.target.digest()
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    def _state_cost_hash(self) -> str | None:
        cost = self.problem.state_cost
        if cost is None:
            return None
        sides = self.problem.source.pool(_PROBED, 0), self.problem.target.pool(_PROBED, 0)
        prices = cost.evaluate(_surroundings(*sides, 0).astype(self.problem.dtype))
        return hashlib.sha256(prices.tobytes()).hexdigest()[:16]

    def _cost_at_probes(self) -> list[float]:
        """What tells the cost from another, to the digits that do not depend on where it is computed."""
        return [float(f"{c:.4g}") for c in fingerprint(self.problem.cost, self.problem.dim)]

    def _fingerprint(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        facts = {
            "method": self.method.describe(),
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "data": self._data_hash(),
            "noise": self.problem.noise,
            "cost": self._cost_at_probes(),
            "state_cost": self._state_cost_hash(),
            "planned": self.planned,
            "time_budget": self.time_budget,
            "validation": self.validation,
            "early_stopping": self.early_stopping,
            "dtype": np.dtype(self.dtype).name,
            "version": _versions()["brenier"],
        }
        return json.loads(json.dumps(facts, default=str))

    def save(self, path: Path) -> None:
        self.progress.elapsed = self._elapsed()
        header = {
            "fingerprint": self._fingerprint(),
            "progress": dataclasses.asdict(self.progress),
        }
        write_checkpoint(path, (self.state, self.kept), header)

    def resume(self, path: Path) -> None:
        if not path.exists():
            self.save(path)  # An unwritable path is found now, not after the first half minute.
            return
        (self.state, self.kept), header = read_checkpoint(
            path, (self.state, self.kept), self._fingerprint()
        )
        self.progress = _Progress(**header["progress"])
        self.earlier = self.progress.elapsed


class Programs:
    """The compiled programs of a method on one kind of problem, or on a stack of such problems."""

    def __init__(
        self,
        method: Method[Any],
        problem: TransportProblem,
        stacked: bool = False,
        mesh: Mesh | None = None,
    ):
        bare = problem.without_samples()
        extract, advance = partial(_extract, method, bare), partial(_advance, method, bare)
        if stacked:
            extract, advance = jax.vmap(extract), jax.vmap(advance)
        self.extract = jax.jit(extract)
        self._mesh = mesh
        # A state that came out in parts would not fit the program of the next chunk.
        placed: dict[str, Any] = {}
        if mesh is not None:
            placed["out_shardings"] = NamedSharding(mesh, PartitionSpec())
        self._advance = jax.jit(advance, donate_argnums=0, **placed)
        self._compiled: dict[Any, Any] = {}

    @classmethod
    def of(
        cls,
        method: Method[Any],
        problem: TransportProblem,
        stacked: bool = False,
        mesh: Mesh | None = None,
    ) -> Programs:
        """Those of an earlier fit of the same kind, where there was one.

        A state cost, and a method or a cost that holds arrays, have programs of their own.
        """
        if problem.state_cost is not None:
            return cls(method, problem, stacked, mesh)
        facts = (problem.dim, problem.dtype, problem.noise, problem.cost, len(problem.classes))
        kind = (method, *facts, stacked, mesh)
        try:
            hash(kind)
        except TypeError:  # an empty dict would not have asked
            return cls(method, problem, stacked, mesh)
        programs = _shared.pop(kind, None) or cls(method, problem, stacked, mesh)
        _shared[kind] = programs
        if len(_shared) > _MOST_SHARED:
            del _shared[next(iter(_shared))]  # the one that was not used for longest
        return programs

    def advance(self, arguments: tuple[Any, ...]) -> Any:
        """The program of a chunk of steps for arguments of these shapes."""
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        key = (structure, shapes, jax.config.read("jax_enable_x64"))
        if key not in self._compiled:
            with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
                self._compiled[key] = self._advance.lower(*arguments).compile()
        return self._compiled[key]


_shared: dict[Any, Programs] = {}


def _extract(method: Method[Any], problem: TransportProblem, state: Any) -> Transport:
    return method.extract(problem, state, Frame.identity(problem.dim))


def _advance(
    method: Method[Any],
    problem: TransportProblem,
    state: Any,
    xs: jax.Array,
    ys: jax.Array,
    keys: jax.Array,
    n: Any,
    start: Any,
    slope: Any,
) -> tuple[Any, dict[str, jax.Array]]:
    """`n` steps, and the means of their metrics."""
    step = partial(method.step, problem)

    def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state, sums = carry
        position = start + slope * i.astype(start.dtype)
        state, metrics = step(state, (xs[i], ys[i]), keys[i], position)
        return state, jax.tree.map(jnp.add, sums, metrics)

    first = jax.eval_shape(step, state, (xs[0], ys[0]), keys[0], start)[1]
    zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), first)
    state, sums = jax.lax.fori_loop(0, n, body, (state, zeros))
    return state, jax.tree.map(lambda s: s / n, sums)


def _surroundings(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Where paths may lead: at the samples, between them and around them."""
    rng = np.random.default_rng(seed)
    n = min(len(x), len(y), _PROBED)
    x, y = x[rng.permutation(len(x))[:n]], y[rng.permutation(len(y))[:n]]
    low, high = np.minimum(x.min(0), y.min(0)), np.maximum(x.max(0), y.max(0))
    reach = 0.25 * (high - low)
    between = x + rng.uniform(size=(n, 1)) * (y - x)
    around = rng.uniform(low - reach, high + reach, size=x.shape)
    return np.concatenate([x, y, between, around])


def _versions() -> dict[str, str]:
    packages = ("brenier", "jax", "equinox", "optax", "numpy")
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def check_arguments(
    steps: int | None, time_budget: float | None, validation: float, checkpoint_every: float
) -> None:
    """`InputError` for an argument of `fit` that is out of range."""
    if steps is not None and (isinstance(steps, bool) or int(steps) != steps or steps < 1):
        raise InputError(f"Expected steps to be a whole number >= 1, found {steps!r}.")
    if time_budget is not None and not 0.0 < time_budget < float("inf"):
        raise InputError(f"Expected time_budget in seconds > 0, found {time_budget!r}.")
    if not 0.0 <= validation <= 0.5:
        raise InputError(f"Expected validation to be a share in [0, 0.5], found {validation!r}.")
    if not checkpoint_every >= 0.0:
        raise InputError(f"Expected checkpoint_every >= 0 seconds, found {checkpoint_every!r}.")
