"""Many problems of one kind, solved at once: stacked in one compiled program, and on all cores."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from brenier.errors import InputError, UnsupportedProblemError
from brenier.fit import check_arguments, drive
from brenier.methods import Method
from brenier.problem import TransportProblem
from brenier.programs import Programs
from brenier.run import Chunk, Run
from brenier.solution import Solution
from brenier.transport import Transport
from brenier.typing import Key
from brenier.validation import Candidate, Look, look_at_all, split_sides

_CACHED = 2**15
"""Activations of a layer, over all problems of a stack on a CPU, that stay in the cache of a core."""
_NARROWEST = 16  # units of a layer below which other operations decide


def fit_many(
    problems: Sequence[TransportProblem],
    method: Method[Any],
    *,
    key: Key | None = None,
    steps: int | None = None,
    time_budget: float | None = None,
    validation: float = 0.1,
    early_stopping: bool = True,
) -> list[Solution]:
    """Solve many problems of one kind at once: bootstraps, pairs of pictures, repetitions with other keys.

    Problems with small batches are stacked, and every step is one step of the whole stack in one compiled program. On
    CPUs every core has its share of the problems; an accelerator has all of them in one stack. Each stops when `fit`
    would have stopped it, and keeps its state while the others go on. Up to round-off, solution `i` is that of

        fit(problems[i], method, key=jax.random.split(key, len(problems))[i], ...)

    One that diverges ends with the status "diverged" and its last good map, without an error.

    Args:
        problems: of one dimension, precision and cost, with batches of one size: sides smaller than the method's batch
            must be equally many. Without noise, state cost and drift.
        method: how to solve all of them. What it leaves to the number of samples goes by the smallest problem.
        key: of all randomness; `jax.random.key(0)` by default.
        steps, time_budget, validation, early_stopping: as in `fit`, for each; the time is that of all together.

    Returns:
        One `Solution` a problem. The timings in `info` are those of its stack.

    Raises:
        InputError: no problems, problems of different kinds, arguments out of range.
        UnsupportedProblemError: noise, a state cost or a drift; what the method cannot solve.

    Example:
        >>> problems = [TransportProblem(x[rows], y) for rows in bootstrap_rows]  # doctest: +SKIP
        >>> maps = [s.transport for s in fit_many(problems, brenier.NCF())]  # doctest: +SKIP
    """
    check_arguments(steps, time_budget, validation, 0.0)
    if not len(problems):
        raise InputError("Expected at least one problem, found none.")
    for problem in problems:
        method.check(problem)
        if problem.noise or problem.state_cost is not None or problem.drift is not None:
            raise UnsupportedProblemError(
                "fit_many takes problems without noise, state_cost and drift; solve these with fit, one by one."
            )
        if problem.dim != problems[0].dim:
            raise InputError(
                f"Expected problems of one dimension, found {problems[0].dim} and {problem.dim}; "
                "solve each kind in a call of its own."
            )
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(problems))
    least = min(range(len(problems)), key=lambda i: problems[i].samples)
    source, target, *_ = split_sides(problems[least], validation, keys[least])
    method = method.settled(problems[least].replace(source=source, target=target))
    with jax.default_matmul_precision("highest"):
        options = (steps, time_budget, validation, early_stopping)
        first = Run(problems[0], method, keys[0], *options)
        rest = zip(problems[1:], keys[1:], strict=True)
        runs = [first, *(Run(p, method, key, *options, first.programs) for p, key in rest)]
        _expect_one_kind(runs)
        for run in runs:
            run.begin()
        _drive(runs)
        return [run.end(throw=False) for run in runs]


def _drive(runs: Sequence[Run]) -> None:
    """Every core with its share of the stacks; an accelerator with all runs in one."""
    cores, width = 1, len(runs)
    if jax.default_backend() == "cpu":
        cores = min(_cores(), len(runs))
        width = max(1, _CACHED // (_batches(runs[0])[0] * _widest(runs[0].kept)))
    # As many for every core, all of one width: one program.
    count = cores * math.ceil(len(runs) / (cores * width))
    width = math.ceil(len(runs) / count)
    programs = Programs.of(runs[0].method, runs[0].inner, stacked=True)
    stacks = [_Stack(runs[i : i + width], width, programs) for i in range(0, len(runs), width)]
    interrupted = threading.Event()

    def work(share: Sequence[_Stack]) -> None:
        def chunk() -> list[Chunk | None]:
            if interrupted.is_set():
                raise KeyboardInterrupt
            return [done for stack in share for done in stack.chunk()]

        with jax.default_matmul_precision("highest"):  # which every thread has of its own
            drive([run for stack in share for run in stack.runs], chunk)

    with ThreadPoolExecutor(cores) as pool:
        try:
            working = [pool.submit(work, stacks[core::cores]) for core in range(cores)]
            # Python tells the main thread alone of Ctrl-C.
            with contextlib.suppress(KeyboardInterrupt):
                wait(working, return_when=FIRST_EXCEPTION)
        finally:
            interrupted.set()
    for share in working:
        share.result()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class _Stack:
    """Several runs stepped together: their states as one, with a leading axis. One alone keeps its own program."""

    def __init__(self, runs: Sequence[Run], width: int, programs: Programs):
        self.runs, self.programs = runs, programs
        self.alone = width == 1
        if not self.alone:
            self.missing = width - len(runs)
            everyone = (*runs, *[runs[-1]] * self.missing)
            self.state = _stacked([run.state for run in everyone])
            self.held_out = _held_out(everyone)
            starts = self._candidates(partial(_stacked, [run.kept for run in everyone]))
            for run, start in zip(runs, starts, strict=False):
                run.state, run.first = None, start
            self.inputs: list[Any] = [None] * len(runs)

    def chunk(self) -> Sequence[Chunk | None]:
        """Steps of all runs that go on; the others keep their states."""
        if not any(run.goes_on for run in self.runs):
            return [None] * len(self.runs)
        return [self.runs[0].chunk()] if self.alone else self._chunk()

    def _chunk(self) -> list[Chunk]:
        self.inputs = [
            run.inputs() if run.goes_on else _resting(old)
            for run, old in zip(self.runs, self.inputs, strict=True)
        ]
        missing = [_resting(self.inputs[-1])] * self.missing
        arguments = (self.state, *_stacked([*self.inputs, *missing]))
        start = time.perf_counter()
        advance = self.programs.advance(arguments)
        compiled = time.perf_counter()
        self.state, metrics = advance(*arguments)
        for run in self.runs:
            if run.goes_on:
                run.look_ahead()
        columns = {name: values.tolist() for name, values in jax.device_get(metrics).items()}
        done = time.perf_counter()
        for run in self.runs:
            run.plan.compile_seconds += compiled - start
            run.plan.run_seconds += done - compiled
        candidates = self._candidates(partial(self.programs.extract, self.state))
        return [
            ({name: values[i] for name, values in columns.items()}, candidates[i])
            for i in range(len(self.runs))
        ]

    def _candidates(self, maps: Callable[[], Transport]) -> list[Candidate]:
        """The map of each run: one program for all of them, and one that looks at all, once a run looks at its own."""
        maps, method = cache(maps), self.runs[0].method
        look: Any = None
        if self.held_out is not None:
            x, y, blocks = self.held_out
            found = cache(
                lambda: jax.device_get(look_at_all(maps(), x, y, blocks, method.converges))
            )
            look = partial(partial, _rows, found)
        return [
            Candidate(partial(_member, maps, i), look and look(i)) for i in range(len(self.runs))
        ]


def _held_out(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Their held-out points with a leading axis, and in how many classes, where they have equally many."""
    every = [run.held_out for run in runs if run.held_out is not None]
    if len({(held.x.shape, held.y.shape) for held in every}) != 1 or len(every) < len(runs):
        return None
    return np.stack([h.x for h in every]), np.stack([h.y for h in every]), every[0].blocks


def _rows(found: Callable[[], Look], i: int) -> Look:
    return jax.tree.map(lambda a: a[i], found())


def _resting(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same batches, and no steps."""
    *batches, count, start, slope = inputs
    return (*batches, np.zeros_like(count), start, slope)


def _member(transports: Any, i: int) -> Transport:
    return _picked(transports(), i)


@jax.jit
def _picked(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda a: a[i], tree)


def _stacked(trees: Sequence[Any]) -> Any:
    """Trees as one, with a leading axis; what is on the host stays there."""
    leaves, structures = zip(*(jax.tree.flatten(tree) for tree in trees), strict=True)
    columns = list(zip(*leaves, strict=True))
    there = [i for i, column in enumerate(columns) if not isinstance(column[0], np.ndarray)]
    stacks = dict(zip(there, _on_device([columns[i] for i in there]), strict=True))
    return structures[0].unflatten(
        [stacks[i] if i in stacks else np.stack(column) for i, column in enumerate(columns)]
    )


@jax.jit
def _on_device(columns: Any) -> Any:
    return [jnp.stack(column) for column in columns]


def _batches(run: Run) -> tuple[int, int]:
    """Points of a batch of either side."""
    n = run.method.batch(run.inner)
    return run.inner.source.batch(n), run.inner.target.batch(n)


def _widest(transport: Transport) -> int:
    """Units of the widest layer of a map's networks."""
    widths = (leaf.shape[-1] for leaf in jax.tree.leaves(transport) if np.ndim(leaf) >= 2)
    return max(_NARROWEST, max(widths, default=0))


def _expect_one_kind(runs: Sequence[Run]) -> None:
    def kind(run: Run) -> tuple[Any, ...]:
        return run.inner.dtype.name, *_batches(run), len(run.inner.classes)

    first = kind(runs[0])
    for i, run in enumerate(runs):
        if kind(run) != first:
            found = "{}, batches of {} and {} points, {} classes"
            raise InputError(
                f"Expected problems of one kind, found {found.format(*first)} in the first and "
                f"{found.format(*kind(run))} in number {i}; solve each kind in a call of its own."
            )
        if not eqx.tree_equal(run.inner.cost, runs[0].inner.cost):
            raise InputError(
                f"Expected one cost in the fit's coordinates, found {run.inner.cost} in number {i} "
                f"and {runs[0].inner.cost} in the first; solve these with fit, one by one."
            )
