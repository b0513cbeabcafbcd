"""Single cells at a time that was left out: half-way between the snapshots before and after it.

No cell is observed twice, so only distributions can be compared: the cells that a method predicts
from those of the time before, with their fate at the time after, against the real ones in between.
Every method sees the same two samples and predicts one cell for each of the time before. Embryo
cells have few peers and 48 genes: they are reduced to the first principal components of the two
snapshots that are seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import brenier
from benchmarks.baselines import flow_matching
from benchmarks.harness import (
    Options,
    conditions,
    keep,
    load,
    markdown,
    median_and_worst,
    select,
    values,
)
from brenier.metrics import wasserstein2_squared

COMPONENTS = 10  # as many as the first data set has features
FLOW_STEPS = 4000


class Snapshots(NamedTuple):
    """Cells (n, d) before, in between and after; and of both ends cells that no fit sees."""

    before: np.ndarray
    between: np.ndarray
    after: np.ndarray
    fresh: tuple[np.ndarray, np.ndarray] | None


TITLES = {
    "emt-1": "EMT, t = 1 between 0 and 2",
    "emt-2": "EMT, t = 2 between 1 and 3",
    "blood-1": "blood formation, t = 1 between 0 and 2",
    "embryo-32": "embryo, 32 cells between 16 and 64",
}
METHODS = {
    "ncf": "NCF, dual",
    "energy": "NCF, energy distance",
    "linear": "linear (Gaussian) map",
    "discrete": "discrete OT",
    "flow": "flow matching",
    "unchanged": "the cells before",
    "floor": "half of the real cells",
}


def read(folder: Path, case: str) -> Snapshots:
    name, _, left_out = case.partition("-")
    if name == "embryo":
        with np.load(folder / "guo_qpcr.npz") as file:
            x, stage = file["x"], file["stage"]
        before, between, after = (x[stage == s] for s in (16, 32, 64))
        seen = np.concatenate([before, after])
        axes = np.linalg.svd(seen - seen.mean(0), full_matrices=False)[2][:COMPONENTS].T
        return Snapshots(before @ axes, between @ axes, after @ axes, None)
    file = {"emt": "emt_a549.npz", "blood": "mouse_hematopoiesis_2d.npz"}[name]
    with np.load(folder / file) as arrays:
        parts = [(arrays[f"x_{part}"], arrays[f"t_{part}"]) for part in ("train", "test")]
    middle = int(left_out)
    seen, fresh = (
        tuple(x[t == moment] for moment in (middle - 1, middle, middle + 1)) for x, t in parts
    )
    between = np.concatenate([seen[1], fresh[1]])
    return Snapshots(seen[0], between, seen[2], (fresh[0], fresh[2]))


def run(options: Options) -> None:
    assert options.data is not None
    for name in TITLES:
        cells = read(options.data / "single_cell", name)
        for method in METHODS:
            case = {"cells": name, "method": method}
            if options.wants(case):
                for seed in options.seeds:
                    _run(options, case, cells, seed)


def _run(options: Options, case: dict[str, str], cells: Snapshots, seed: int) -> None:
    start = time.perf_counter()
    predicted, forward, facts = PREDICT[case["method"]](cells, seed, options.quick)
    seconds = time.perf_counter() - start
    real = cells.between
    if case["method"] == "floor":
        predicted, real = np.split(
            np.random.default_rng(seed).permutation(real)[: len(real) // 2 * 2], 2
        )
    scores = {
        "energy": _energy(predicted, real),
        "w2": wasserstein2_squared(predicted, real),
    }
    if forward is not None and cells.fresh is not None:
        x, y = cells.fresh
        scores["energy_end"] = _energy(forward(x), y)
    keep(
        options,
        "cells",
        case,
        seed,
        scores=scores,
        seconds={"wall": seconds},
        packages=("POT",),
        **facts,
    )


Predicted = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray] | None, dict[str, Any]]


def _ncf(cells: Snapshots, seed: int, quick: bool, objective: str = "dual") -> Predicted:
    steps = 4 if quick else None
    estimator = brenier.NCFTransport(objective=objective, steps=steps, random_state=seed)
    estimator.fit(Xs=cells.before, Xt=cells.after)
    info = estimator.solution_.info
    facts = {"steps": info["steps"], "settings": info["method"]}
    facts["status"] = estimator.solution_.status
    return estimator.interpolate(cells.before, 0.5), estimator.transform, facts


def _linear(cells: Snapshots, seed: int, quick: bool) -> Predicted:
    forward = brenier.GaussianPotential.from_samples(cells.before, cells.after).forward
    return _halfway(cells.before, forward(cells.before)), forward, {}


def _discrete(cells: Snapshots, seed: int, quick: bool) -> Predicted:
    """McCann's interpolation: half-way to a partner drawn from the optimal plan."""
    import ot

    plan = np.asarray(ot.emd([], [], ot.dist(cells.before, cells.after), numItermax=2_000_000))
    shares = np.cumsum(plan, axis=1) / plan.sum(axis=1, keepdims=True)
    draws = np.random.default_rng(seed).uniform(size=(len(plan), 1))
    return _halfway(cells.before, cells.after[np.argmax(shares >= draws, axis=1)]), None, {}


def _flow(cells: Snapshots, seed: int, quick: bool) -> Predicted:
    steps = 4 if quick else FLOW_STEPS
    network = flow_matching.fit(cells.before, cells.after, key=jax.random.key(seed), steps=steps)
    half, whole = (flow_matching.transform(network, until) for until in (0.5, 1.0))
    return half(cells.before.astype(np.float32)), whole, {"steps": steps}


def _unchanged(cells: Snapshots, seed: int, quick: bool) -> Predicted:
    return cells.before, None, {}


PREDICT: dict[str, Callable[[Snapshots, int, bool], Predicted]] = {
    "ncf": _ncf,
    "energy": partial(_ncf, objective="energy"),
    "linear": _linear,
    "discrete": _discrete,
    "flow": _flow,
    "unchanged": _unchanged,
    "floor": _unchanged,
}


def _halfway(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.5 * (x + y)


def _energy(x: np.ndarray, y: np.ndarray) -> float:
    return float(brenier.energy_distance(x.astype(np.float32), y.astype(np.float32)))


def table(results: Path) -> str | None:
    """Energy distance and W₂² to the real cells of every method at every time left out."""
    records = load("cells", results)
    if not records:
        return None
    cases = [name for name in TITLES if select(records, cells=name)]
    rows = []
    for method, title in METHODS.items():
        row = [title]
        for name in cases:
            found = select(records, cells=name, method=method)
            cells = [median_and_worst(values(found, score)) for score in ("energy", "w2")]
            row.append(" / ".join(cells))
        rows.append(row)
    header = ["energy distance / W₂² to the real cells", *(TITLES[name] for name in cases)]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
