"""One problem on its way through the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from brenier.callbacks import Callback, Event
from brenier.checkpoint import packed, read_checkpoint, unpacked, write_checkpoint
from brenier.coordinates import Frame
from brenier.costs import framed, price
from brenier.devices import check_shares, everywhere, here, in_parts
from brenier.drifts import FramedDrift, check_drift
from brenier.errors import BrenierWarning, DivergenceError, InputError
from brenier.hosts import Hosts
from brenier.methods import Method
from brenier.passages import check_passage, check_paths
from brenier.plan import CHUNK, Plan
from brenier.problem import TransportProblem
from brenier.programs import Programs
from brenier.provenance import (
    PROBED,
    cost_at_probes,
    data_hash,
    drift_at_probes,
    state_cost_hash,
    surroundings,
    versions,
)
from brenier.samplers import POOL, Sampler
from brenier.solution import STATUS, Metadata, Solution
from brenier.state_costs import BlackBox, FramedStateCost, check_state_cost
from brenier.transport import Transport
from brenier.typing import ArrayLike, Key
from brenier.validation import (
    Candidate,
    HeldOut,
    Look,
    dual_cost,
    seed_of,
    split_sides,
    verdict,
    worse_than_linear,
)

# Purposes of the key streams; changing one changes every result.
_INIT, _SOURCE, _TARGET, _STEP, _SCORE = range(5)

Chunk = tuple[dict[str, float], Candidate]
"""What some steps of a run gave: the means of their metrics, and the map that the state now describes."""


class Run:
    """One problem on its way through the loop: coordinates, batches, validation, decisions.

    The arguments are those of `fit`, `programs` those of a run of the same kind, where there is one; `mesh` and
    `hosts` are its devices and processes, where there are several.
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
        hosts: Hosts | None = None,
    ):
        self.began = time.perf_counter()
        self.method, self.key, self.problem = method, key, problem
        self.streams = _streams(key)
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
        # What depends on the place stands still, and so must the frame.
        moving = problem.cost.galilean and problem.state_cost is None and problem.drift is None
        if not moving:
            _check_surroundings(problem, x_pool, y_pool, seed)
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
            drift=problem.drift and FramedDrift(problem.drift, self.frame),
        )
        self.held_out: HeldOut | None = None
        if x_held is not None and y_held is not None:
            self.held_out = HeldOut(
                self.inner,
                np.asarray(encode(0.0, x_held), dtype),
                np.asarray(encode(1.0, y_held), dtype),
                scale,
                self.streams[_SCORE],
            )
        self.dtype, self.validation = dtype, validation
        self.ahead: tuple[int, tuple[ArrayLike, ArrayLike]] | None = None
        self.early_stopping = early_stopping and self.held_out is not None and method.converges
        # Copied, for a network of the user's must outlive the donation of the state.
        self.state = _copied(method.init(self.inner, self.streams[_INIT]))
        self.plan = Plan(last_step=self.planned)
        self.mesh, self.hosts = mesh, hosts or Hosts()
        if mesh is not None:
            for side in (self.inner.source, self.inner.target):
                check_shares(mesh, side.batch(method.batch(self.inner)))
        self.programs = programs or Programs.of(method, self.inner, mesh=mesh)
        self.kept = self.programs.extract(self.state)
        self.kept_look: Look | None = None
        self.first = Candidate(lambda: self.kept)  # the start, which some steps may not improve
        self.earlier = 0.0  # seconds spent before a resume

    @property
    def goes_on(self) -> bool:
        return self.plan.goes_on

    # -- one chunk -----------------------------------------------------------------------------------------------

    def inputs(self) -> tuple[Any, ...]:
        """What the next chunk needs besides the state."""
        plan = self.plan
        return (
            *self._draw(plan.step),
            self.streams[_STEP],
            np.asarray(plan.step, np.int32),
            np.asarray(plan.count, np.int32),
            np.asarray(plan.position, self.dtype),
            np.asarray(plan.slope, self.dtype),
        )

    def look_ahead(self) -> None:
        """Draws the batches of the chunk after the next one; for the time in which the device works."""
        step = self.plan.step + self.plan.count
        if step < self.plan.last_step:
            self.ahead = (step, self._draw(step))

    def _draw(self, step: int) -> tuple[ArrayLike, ArrayLike]:
        """The batches of both sides for a chunk of steps, unless they have been drawn ahead."""
        ahead, self.ahead = self.ahead, None
        if ahead is not None and ahead[0] == step:
            return ahead[1]
        source, target = (
            self._draw_side(side, self.streams[purpose], step)
            for side, purpose in ((self.inner.source, _SOURCE), (self.inner.target, _TARGET))
        )
        return source, target

    def _draw_side(self, side: Sampler, stream: Key, step: int) -> ArrayLike:
        n = self.method.batch(self.inner)
        options: dict[str, Any] = {"stratified": self.method.stratified}
        if self.hosts.count > 1:
            options["rows"] = self.hosts.share(side.batch(n))
        return side.draw(stream, step, CHUNK, n, **options)

    def chunk(self) -> Chunk:
        """Steps of this run alone."""
        plan = self.plan
        arguments = (self.state, *self.inputs())
        if self.mesh is not None:
            state, *batches = arguments[:3]
            batches = [in_parts(self.mesh, batch) for batch in batches]
            state, *rest = everywhere(self.mesh, (state, *arguments[3:]))
            arguments = (state, *batches, *rest)
        start = time.perf_counter()
        advance = self.programs.advance(arguments)
        plan.compile_seconds += time.perf_counter() - start
        start = time.perf_counter()
        asked = partial(_asked, self.problem)
        with self.hosts.computing(), asked():
            self.state, metrics = advance(*arguments)
        self.hosts.later(self.look_ahead)
        with self.hosts.computing(), asked():
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        plan.run_seconds += time.perf_counter() - start
        state = self.state
        if self.mesh is not None:  # Maps are looked at on one device, like those of other fits.
            state = here(state)
        return metrics, Candidate(partial(self.programs.extract, state))

    # -- the run -------------------------------------------------------------------------------------------------

    def begin(
        self,
        callbacks: Sequence[Callback] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: float = np.inf,
    ) -> None:
        """Sets who is told of every chunk, where the state is saved, and the clock."""
        plan = self.plan
        self.callbacks = callbacks
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.checkpoint_every = checkpoint_every
        self.saved = self.loop_began = time.perf_counter()
        self.steps_before, self.compiled_before = plan.step, plan.compile_seconds

    def account(self, metrics: dict[str, float], current: Candidate) -> None:
        """Takes note of a chunk that was done, and decides how to go on, for all processes in the first."""
        plan, before = self.plan, self.kept
        since = {name: len(column) for name, column in plan.history.items()}

        def decide() -> dict[str, Any]:
            self._decide(metrics, current)
            return {"kept": self.kept is not before, "plan": plan.news(since)}

        news = self.hosts.told(decide)
        if not self.hosts.first:
            plan.follow(news["plan"])
            self.kept = current.transport() if news["kept"] else before
        if self.hosts.interrupted:
            raise KeyboardInterrupt

    def _decide(self, metrics: dict[str, float], current: Candidate) -> None:
        plan = self.plan
        if plan.step == 0 and self.method.converges:
            # From few samples the start, such as the linear map, can be better than all that follows.
            self._validate(self.first)
        plan.step, plan.chunk = plan.step + plan.count, plan.chunk + 1
        if not np.isfinite(metrics["loss"]):
            plan.reason = "diverged"
            return
        plan.record(step=plan.step, **metrics)
        scores = self._validate(current)
        plan.revise(self.planned, self.early_stopping, self._affordable())
        # Not before this chunk is fully accounted for: a resumed run must not repeat any of it.
        if self.checkpoint and time.perf_counter() - self.saved >= self.checkpoint_every:
            self.save(self.checkpoint)
            self.saved = time.perf_counter()
        event = self._event(metrics, scores)
        if any([callback(event) for callback in self.callbacks]):
            plan.reason = "stopped"
        elif self.checkpoint and not plan.goes_on:
            self.save(self.checkpoint)

    def end(self, throw: bool = True) -> Solution:
        """The solution, once the run does not go on."""
        reason = self.plan.reason or "completed"
        return self._diverged(throw) if reason == "diverged" else self._solution(reason)

    def _validate(self, candidate: Candidate) -> dict[str, float] | None:
        plan = self.plan
        ended = plan.step >= plan.last_step
        if self.held_out is None:
            self.kept = candidate.transport()
            return None
        if plan.chunk % self.method.validation_interval and not ended:
            return None
        transport, dual = cache(candidate.transport), self.method.converges
        look = candidate.look() if candidate.look else self.held_out.look(transport(), dual=dual)
        scores = self.held_out.scores(look)
        ratio = scores["ratio"]
        plan.record(score_step=plan.step, score=ratio, round_trip=scores.get("round_trip", np.nan))
        terms = [np.asarray(side, np.float64) for side in look.terms or ()]
        if plan.judge(ratio, terms, dual):
            self.kept, self.kept_look = transport(), look
        return scores

    def _affordable(self) -> int | None:
        """Steps that end in the time there is."""
        if self.time_budget is None:
            return None
        left = max(self.time_budget - self._elapsed(), 0.0)
        return self.plan.step + int(left / self._per_step())

    def _event(self, metrics: dict[str, float], scores: dict[str, float] | None) -> Event:
        plan = self.plan
        rate = plan.step / max(plan.run_seconds, 1e-9)
        return Event(
            step=plan.step,
            steps=plan.last_step,
            progress=plan.position,
            metrics=metrics,
            scores=scores,
            elapsed=self._elapsed(),
            compile_seconds=plan.compile_seconds,
            steps_per_second=rate,
            remaining=self._per_step() * (plan.last_step - plan.step),
            device=jax.default_backend(),
            transport=lambda: self._outer(self.kept),
        )

    def _per_step(self) -> float:
        """Wall-clock seconds of the loop alone: with the set-up in it the first steps would rush the schedule."""
        plan = self.plan
        compiled = plan.compile_seconds - self.compiled_before
        looped = time.perf_counter() - self.loop_began - compiled
        return looped / max(plan.step - self.steps_before, 1)

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
        found = dual_cost(self.kept, self.inner, self.unit / known, self.held_out)
        if found and self.problem.cost.galilean:
            found["cost"] += float(self.problem.cost.lagrangian(jnp.asarray(self.frame.drift)))
        return found

    def _start_of_all(self) -> Transport | None:
        """Where nothing was better than the start, that of all samples: those held out have done their part."""
        if self.plan.kept_step != 0:
            return None
        whole = Run(self.problem, self.method, self.key, None, None, 0.0, False)
        return whole._outer(whole.kept)

    def _diverged(self, throw: bool) -> Solution:
        step = self.plan.step
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
        plan = self.plan
        scores: dict[str, float] = {}
        classes: dict[str, dict[str, float]] = {}
        if self.held_out is not None:
            look = self.kept_look or self.held_out.look(self.kept, dual=False)
            scores = self.held_out.scores(look) | self.held_out.linear_scores() | self._cost()
            classes = self.held_out.class_scores(self.kept, look)
            if status == "completed" and scores["ratio"] <= 1.0:
                status = "matched"
        total = self._elapsed()
        info = Metadata(
            method=self.method.describe(),
            dim=self.problem.dim,
            key=np.asarray(jax.random.key_data(self.key)).tolist(),
            steps=plan.step,
            n_source=self.problem.source.size,
            n_target=self.problem.target.size,
            held_out=0 if self.held_out is None else len(self.held_out.x),
            dtype=np.dtype(self.dtype).name,
            noise=self.problem.noise,
            cost=type(self.problem.cost).__name__,
            cost_at_probes=cost_at_probes(self.problem),
            classes=classes,
            state_cost=self.problem.state_cost is not None,
            drift_at_probes=drift_at_probes(self.problem),
            data_hash=data_hash(self.problem),
            device=f"{jax.default_backend()} ({jax.devices()[0].device_kind}, {os.cpu_count()} cores)",
            versions=versions(),
            timings={
                "compile": plan.compile_seconds,
                "run": plan.run_seconds,
                "total": total,
            },
        )
        message = f"Stopped after {plan.step} steps: {hint or STATUS[status]}. {verdict(scores)}"
        if scores and worse_than_linear(scores):
            advice = "Prefer the linear map, or train longer."
            if self.problem.state_cost is not None:  # which the linear map knows nothing of
                advice = "Train longer."
            warnings.warn(f"{message} {advice}", BrenierWarning, 4)
        outer = self._start_of_all() or self._outer(self.kept)
        # In the plane the free space itself was searched.
        if self.problem.state_cost is not None and self.problem.dim != 2:
            check_paths(outer.potential, self.problem, self.problem.source.pool(POOL, 0))
        history = {k: np.asarray(v) for k, v in plan.history.items()}
        return Solution(outer, history, status, message, Metadata(scores), info)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _fingerprint(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        facts = {
            "method": self.method.describe(),
            "key": np.asarray(jax.random.key_data(self.key)).tolist(),
            "data": data_hash(self.problem),
            "noise": self.problem.noise,
            "cost": cost_at_probes(self.problem),
            "state_cost": state_cost_hash(self.problem),
            "drift": drift_at_probes(self.problem),
            "planned": self.planned,
            "time_budget": self.time_budget,
            "validation": self.validation,
            "early_stopping": self.early_stopping,
            "dtype": np.dtype(self.dtype).name,
            "version": versions()["brenier"],
        }
        return json.loads(json.dumps(facts, default=str))

    def save(self, path: Path) -> None:
        self.plan.elapsed = self._elapsed()
        header = {
            "fingerprint": self._fingerprint(),
            "progress": dataclasses.asdict(self.plan),
        }
        state = self.state if self.mesh is None else here(self.state)
        write_checkpoint(path, (state, self.kept), header)

    def start(self, checkpoint: str | os.PathLike[str] | None) -> None:
        """Goes on from a checkpoint where there is one; every process from what the first one has."""
        found = self.hosts.told(lambda: self._restored(checkpoint))
        if self.hosts.count > 1:
            self.plan, self.earlier = Plan(**found["plan"]), found["earlier"]
            self.hosts.together(lambda: self._check_same(found["fingerprint"]))
            everything = self.state, self.kept
            self.state, self.kept = unpacked(self.hosts.shared(packed(everything)), everything)

    def _restored(self, checkpoint: str | os.PathLike[str] | None) -> dict[str, Any]:
        """What the other processes have to know of where this one begins, besides the state."""
        fingerprint = self._fingerprint() if checkpoint or self.hosts.count > 1 else None
        if checkpoint is not None:
            path = Path(checkpoint)
            if path.exists():
                everything = self.state, self.kept
                (self.state, self.kept), header = read_checkpoint(path, everything, fingerprint)
                self.plan = Plan(**header["progress"])
                self.earlier = self.plan.elapsed
            else:
                self.save(path)  # An unwritable path is found now, not after the first half minute.
        plan = dataclasses.asdict(self.plan)
        return {"plan": plan, "earlier": self.earlier, "fingerprint": fingerprint}

    def _check_same(self, expected: dict[str, Any]) -> None:
        """That this process has the problem of the first one, and can read its share of it."""
        for name, value in self._fingerprint().items():
            # Prices may differ by round-off where the processors do.
            if name != "state_cost" and value != expected[name]:
                raise InputError(
                    f"Expected one problem in all processes, found another {name.replace('_', ' ')} here: "
                    f"{value!r} in place of {expected[name]!r}."
                )
        self.ahead = (self.plan.step, self._draw(self.plan.step))


@contextlib.contextmanager
def _asked(problem: TransportProblem) -> Iterator[None]:
    """Where compiled programs ask a state cost of the user's: what it raises comes wrapped in a page of JAX's words."""
    try:
        yield
    except Exception as error:
        if not isinstance(problem.state_cost, BlackBox):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"Expected a price at every point, but in the middle of the fit the state cost raised {reason}"
        ) from error


def _check_surroundings(problem: TransportProblem, x: np.ndarray, y: np.ndarray, seed: int) -> None:
    """Raise, or warn, for a state cost or a drift that cannot be used around the samples."""
    around = surroundings(x, y, seed).astype(problem.dtype)
    if problem.state_cost is not None:
        check_state_cost(problem.state_cost, around)
        check_passage(problem.state_cost, x[:PROBED], y[:PROBED])
    if problem.drift is not None:
        check_drift(problem.drift, around)


# Compiled: op by op these would take longer than steps on small batches.


@jax.jit
def _streams(key: Key) -> list[Key]:
    return [jax.random.fold_in(key, purpose) for purpose in range(_SCORE + 1)]


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
