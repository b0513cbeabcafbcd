"""Zero configuration: does `brenier.NCFTransport().fit(X, Y)` pass its own verdict, whatever the data?

Thirteen problems, no argument but the samples and the seed; the verdict is `brenier.evaluate`'s on
points that no fit has seen. Where the truth is known, the UVP stands beside it.
"""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
    on_host,
    select,
    values,
)
from brenier.color import color_samples, read_image
from brenier.datasets import TOYS, ExactProblem
from brenier.metrics import total_variance, uvp

SAMPLES, FRESH = 50_000, 4096
PICTURES = ("photo_monet", 0)


@dataclass(frozen=True)
class Task:
    """Samples (n, d) of both sides for the fit, fresh ones for the verdict, and the truth where it is known."""

    x: np.ndarray
    y: np.ndarray
    fresh: tuple[np.ndarray, np.ndarray]
    exact: ExactProblem | None = None


def _drawn(
    source: Callable, target: Callable, seed: int, exact: ExactProblem | None = None
) -> Task:
    keys = jax.random.split(jax.random.key(seed), 4)
    sides = 2 * (source, target)
    sizes = (SAMPLES, SAMPLES, FRESH, FRESH)
    x, y, *fresh = (
        np.asarray(side(key, n)) for side, key, n in zip(sides, keys, sizes, strict=True)
    )
    return Task(x, y, (fresh[0], fresh[1]), exact)


def _toys(source: str, target: str, data: Path, seed: int) -> Task:
    return _drawn(TOYS[source], TOYS[target], seed)


def _gaussian(dim: int, data: Path, seed: int) -> Task:
    exact = brenier.datasets.gaussian_pair(dim, seed)
    return _drawn(exact.source, exact.target, seed, exact)


def _w2(dim: int, data: Path, seed: int) -> Task:
    exact = brenier.datasets.w2_benchmark(data / "w2_benchmark", dim)
    return _drawn(exact.source, exact.target, seed, exact)


def _colors(data: Path, seed: int) -> Task:
    folder = data / "color_transfer"
    with open(folder / "pairs.csv", newline="") as file:
        group, number = PICTURES
        row = [row for row in csv.DictReader(file) if row["group"] == group][number]
    pictures = [read_image(folder / group / row[end]) for end in ("source", "target")]
    x, y = (color_samples(picture, SAMPLES, seed) for picture in pictures)
    fresh = [color_samples(picture, FRESH, seed + 1000) for picture in pictures]
    return Task(x, y, (fresh[0], fresh[1]))


def _split(x: np.ndarray, y: np.ndarray, seed: int) -> Task:
    """Of few points, a quarter is kept for the verdict."""
    rng = np.random.default_rng(seed)
    sides = [rng.permutation(side) for side in (x, y)]
    (x, fresh_x), (y, fresh_y) = (np.split(side, [3 * len(side) // 4]) for side in sides)
    return Task(x, y, (fresh_x, fresh_y))


def _cells(file: str, start: int, end: int, data: Path, seed: int) -> Task:
    with np.load(data / "single_cell" / file) as arrays:
        cells, times = (
            np.concatenate([arrays[f"{name}_{part}"] for part in ("train", "test")])
            for name in ("x", "t")
        )
    return _split(cells[times == start], cells[times == end], seed)


def _embryo(data: Path, seed: int) -> Task:
    with np.load(data / "single_cell" / "guo_qpcr.npz") as file:
        cells, stage = file["x"], file["stage"]
    return _split(cells[stage == 32], cells[stage == 64], seed)


TASKS: dict[str, tuple[str, Callable[[Path, int], Task]]] = {
    "eight-gaussians": (
        "Gaussian → eight Gaussians",
        partial(_toys, "gaussian", "eight_gaussians"),
    ),
    "checkerboard": ("moons → checkerboard", partial(_toys, "moons", "checkerboard")),
    "rings": ("two rings → Gaussian", partial(_toys, "two_rings", "gaussian")),
    "gaussian-2": ("Gaussian pair, d = 2", partial(_gaussian, 2)),
    "gaussian-16": ("Gaussian pair, d = 16", partial(_gaussian, 16)),
    "gaussian-64": ("Gaussian pair, d = 64", partial(_gaussian, 64)),
    "w2-2": ("Wasserstein-2 benchmark, d = 2", partial(_w2, 2)),
    "w2-8": ("Wasserstein-2 benchmark, d = 8", partial(_w2, 8)),
    "w2-32": ("Wasserstein-2 benchmark, d = 32", partial(_w2, 32)),
    "colors": ("colours of two pictures", _colors),
    "emt": ("EMT cells, t = 0 → 3, d = 10", partial(_cells, "emt_a549.npz", 0, 3)),
    "blood": (
        "blood formation, t = 0 → 2, d = 2",
        partial(_cells, "mouse_hematopoiesis_2d.npz", 0, 2),
    ),
    "embryo": ("embryo, 32 → 64 cells, d = 48", _embryo),
}


def run(options: Options) -> None:
    assert options.data is not None
    for seed in options.seeds:
        for name, (_, draw) in TASKS.items():
            if options.wants({"problem": name}):
                _run(options, name, draw(options.data, seed), seed)


def _run(options: Options, name: str, task: Task, seed: int) -> None:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", brenier.BrenierWarning)
        estimator = brenier.NCFTransport(random_state=seed)
        if options.quick:
            estimator.set_params(steps=4)
        solution = estimator.fit(task.x, Xt=task.y).solution_
    seconds, transport = time.perf_counter() - start, solution.transport
    found = brenier.evaluate(solution, *task.fresh, seed=seed)
    known = found["certificate"]
    scores = {
        "passed": found["passed"],
        "ratio": found["map"]["ratio"],
        "linear": found["linear"]["ratio"],
        "round_trip": 100 * found["round_trip"],
    }
    if known and known["lower"] > 0:
        scores["gap"] = 100 * (known["upper"] / known["lower"] - 1)
    if task.exact is not None:
        x, forward, inverse = task.fresh[0], *map(on_host, (transport.forward, transport.inverse))
        y = np.asarray(task.exact.forward(x))
        scores["uvp_forward"] = uvp(forward(x), y, total_variance(y))
        scores["uvp_backward"] = uvp(inverse(y), x, total_variance(x))
    keep(
        options,
        "defaults",
        {"problem": name},
        seed,
        scores=scores,
        seconds={**solution.info["timings"], "total": seconds},
        steps=solution.info["steps"],
        status=solution.status,
        verdict=found["verdict"],
    )


def table(results: Path) -> str | None:
    records = load("defaults", results)
    if not records:
        return None
    header = ["`NCFTransport().fit(X, Y)`", "passed", "misfit in noise bands", "linear map's"]
    header += [
        "gap of the bounds in %",
        "round trip in %",
        "UVP in %, forward / backward",
        "seconds",
    ]
    rows = []
    for name, (title, _) in TASKS.items():
        found = select(records, problem=name)
        if not found:
            continue
        passed = values(found, "passed")
        ways = [
            median_and_worst(values(found, f"uvp_{w}"), digits=2) for w in ("forward", "backward")
        ]
        rows.append(
            [
                title,
                f"{sum(passed):.0f} of {len(passed)}",
                median_and_worst(values(found, "ratio"), digits=2),
                number(float(np.median(values(found, "linear"))), 2),
                median_and_worst(values(found, "gap"), digits=2),
                median_and_worst(values(found, "round_trip"), digits=2),
                " / ".join(ways) if "–" not in ways else "–",
                median_and_worst(values(found, "total", "seconds"), digits=2),
            ]
        )
    passed = values(records, "passed")
    share = f"{sum(passed):.0f} of {len(passed)} runs pass."
    return f"{markdown(header, rows)}\n\n{share} {conditions(records)}"
