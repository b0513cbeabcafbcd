"""Many problems at once (`fit_many`) against one fit after the other: seconds, and the accuracy of both.

Thirty-two maps between Gaussians in the plane, whose exact maps are known; other matrices for every problem. Once with
all defaults on 128 samples a side, but no early stopping; else so many steps, with four times as many samples as a
batch has. Both ways have compiled their programs before the clock starts: one fit after the other, in one process,
compiles nothing either. All at once takes place before the fits one by one and again after them, and its seconds are
the mean: on a shared machine the second half of an hour is not the first. The seconds of all cores together, beside
those on the wall, tell what is saved from what a second core does.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import brenier
from benchmarks.harness import (
    Options,
    conditions,
    keep,
    load,
    markdown,
    median_and_worst,
    number,
    select,
    values,
)
from brenier.metrics import uvp

COUNT = 32
BATCHES = (64, 1024)
STEPS = 300
METHODS: dict[str, Callable[[int, int], Any]] = {
    "dual": lambda batch, steps: brenier.NCF(batch_size=batch, steps=steps),
    "energy": lambda batch, steps: brenier.NCF(objective="energy", batch_size=batch, steps=steps),
}


DEFAULTS = {"objective": "defaults", "samples": 128}


def run(options: Options) -> None:
    count = 4 if options.quick else COUNT
    for seed in options.seeds:
        if options.wants(DEFAULTS):
            method = brenier.NCF(steps=50) if options.quick else brenier.NCF()
            _keep(options, DEFAULTS, method, DEFAULTS["samples"], count, seed)
        for name in METHODS:
            for batch in BATCHES[:1] if options.quick else BATCHES:
                case = {"objective": name, "batch": batch}
                if options.wants(case):
                    method = METHODS[name](batch, 50 if options.quick else STEPS)
                    _keep(options, case, method, 4 * batch, count, seed)


def _keep(
    options: Options, case: dict[str, Any], method: Any, samples: int, count: int, seed: int
) -> None:
    scores, seconds = _measure(method, samples, count, seed)
    keep(options, "many", case, seed, scores=scores, seconds=seconds, count=count)


def _measure(
    method: Any, samples: int, count: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    rng = np.random.default_rng(seed)
    exact = [_gaussians(rng) for _ in range(count)]
    problems = [
        brenier.TransportProblem(
            rng.multivariate_normal(u.source_mean, np.eye(2), size=samples),
            u.forward(rng.multivariate_normal(u.source_mean, np.eye(2), size=samples)),
        )
        for u in exact
    ]
    key = jax.random.key(seed)
    keys = jax.random.split(key, count)

    def together() -> list[brenier.Solution]:
        return brenier.fit_many(problems, method, key=key, early_stopping=False)

    def in_turn() -> list[brenier.Solution]:
        return [
            brenier.fit(problem, method, key=key, early_stopping=False)
            for problem, key in zip(problems, keys, strict=True)
        ]

    scores: dict[str, float] = {}
    seconds: dict[str, float] = defaultdict(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", brenier.BrenierWarning)
        brenier.fit_many(problems, method, key=key, steps=1)
        brenier.fit(problems[0], method, key=keys[0], steps=1)
        for way, solve, share in (
            ("together", together, 0.5),
            ("in_turn", in_turn, 1.0),
            ("together", together, 0.5),
        ):
            start, cores = time.perf_counter(), time.process_time()
            solutions = solve()
            seconds[way] += share * (time.perf_counter() - start)
            seconds[f"{way}_cores"] += share * (time.process_time() - cores)
            found = np.array([_uvp(s, u, seed) for s, u in zip(solutions, exact, strict=True)])
            scores[f"uvp_{way}"], scores[f"median_uvp_{way}"] = found.mean(), np.median(found)
    return scores | {"ratio": seconds["in_turn"] / seconds["together"]}, seconds


def _gaussians(rng: np.random.Generator) -> brenier.GaussianPotential:
    root = rng.normal(size=(2, 2))
    means = rng.normal(size=(2, 2))
    return brenier.GaussianPotential.from_moments(
        means[0], np.eye(2), means[1], root @ root.T + 0.2 * np.eye(2)
    )


def _uvp(solution: brenier.Solution, u: brenier.GaussianPotential, seed: int) -> float:
    rng = np.random.default_rng((seed, 1))
    x = rng.multivariate_normal(np.asarray(u.source_mean), np.eye(2), size=4096)
    return uvp(solution.transport.forward(x), u.forward(x))


def table(results: Path) -> str | None:
    records = load("many", results)
    if not records:
        return None
    header = [
        *(f"{COUNT} problems, d = 2", "together, s", "in turn, s", "ratio"),
        *("together, s of all cores", "in turn, s of all cores"),
        *("UVP together, %", "UVP in turn, %"),
    ]
    cases = {f"defaults, {DEFAULTS['samples']} samples": DEFAULTS} | {
        f"{name}, batch {batch}, {STEPS} steps": {"objective": name, "batch": batch}
        for name in METHODS
        for batch in BATCHES
    }
    rows = [
        [
            title,
            *(median_and_worst(values(chosen, way, "seconds")) for way in ("together", "in_turn")),
            number(float(np.median(values(chosen, "ratio"))), 2),
            *(
                median_and_worst(values(chosen, f"{way}_cores", "seconds"))
                for way in ("together", "in_turn")
            ),
            *(median_and_worst(values(chosen, f"uvp_{way}")) for way in ("together", "in_turn")),
        ]
        for title, case in cases.items()
        if (chosen := select(records, **case))
    ]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
