"""The only training loop.

`fit` knows no method by name. A `Run` is one problem on its way through the loop: it chooses coordinates, holds samples
out, draws batches, drives `method.step` in compiled chunks (`programs`), validates, reports to callbacks, writes
checkpoints and resumes from them. Its `Plan` keeps the best map, stops early and keeps to a time budget.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from brenier.callbacks import Callback
from brenier.devices import Devices, mesh_of
from brenier.errors import InputError
from brenier.hosts import Hosts
from brenier.methods import Method
from brenier.problem import TransportProblem
from brenier.run import Chunk, Run
from brenier.solution import Solution
from brenier.typing import Key


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
        devices: how many to use, or which, or "all", with those of the other processes where `jax.distributed` has
            brought some together: every batch is split over them. Up to round-off the result is that of one, which is
            the default. Of several processes the first one writes the checkpoint and calls the callbacks.
        throw: raise `DivergenceError` on divergence; otherwise return the last good map with status "diverged".

    Returns:
        A `Solution`. Ctrl-C returns the best map so far with status "interrupted".

    Raises:
        InputError: arguments out of range; a checkpoint of another run.
        UnsupportedProblemError: this method cannot solve this problem.
        DivergenceError: the loss became non-finite; its `solution` is the last good one.
        LostProcessError: another process of this fit is gone.

    Example:
        >>> problem = TransportProblem(source, target)
        >>> solution = fit(problem, brenier.NCF(), time_budget=30)
        >>> solution.transport.forward(source)
    """
    check_arguments(steps, time_budget, validation, checkpoint_every)
    method.check(problem)
    key = jax.random.key(0) if key is None else key
    mesh = mesh_of(devices)
    with jax.default_matmul_precision("highest"), Hosts.of(mesh) as hosts:
        run = hosts.together(
            lambda: Run(
                *(problem, method, key, steps, time_budget, validation, early_stopping),
                mesh=mesh,
                hosts=hosts,
            )
        )
        run.start(checkpoint)
        run.begin(callbacks, checkpoint, checkpoint_every)
        drive([run], lambda: [run.chunk()])
        return run.end(throw)


def drive(runs: Sequence[Run], chunk: Callable[[], Sequence[Chunk | None]]) -> None:
    """The loop. `chunk` does some steps of all runs that go on; it ends when none does."""
    try:
        while any(run.goes_on for run in runs):
            for run, done in zip(runs, chunk(), strict=True):
                if run.goes_on and done is not None:
                    run.account(*done)
    except KeyboardInterrupt:
        for run in runs:
            if run.goes_on:
                run.plan.reason = "interrupted"


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
