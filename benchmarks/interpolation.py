"""DIOTM's own toys: with and without the interpolation, and what each regulariser survives.

The paper gives neither scales nor sizes. Here sources are standard Gaussians (moons: width 10);
eight Gaussians of deviation 0.5 lie on a circle of radius 12, twenty-five on a grid of spacing 6;
the spiral reaches to 10; circles have radii 4, 8 and 12. 50 000 samples a side.

Truth is exact discrete transport between 4000 points of either side, every component with as many
points as the others: `L₂ = √mean |T(x) - T*(x)|²` at these points, and `W₂` between the images and
the target points, beside that of two samples of the target.
"""

from __future__ import annotations

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
from brenier.metrics import wasserstein2_squared

SAMPLES, JUDGED = 50_000, 4000
STEPS = 10_000
LAMBDAS = (0.1, 0.2, 1.0, 10.0)

Draw = Callable[[np.random.Generator, int], np.ndarray]


def _gaussian(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, 2))


def _around(centers: np.ndarray, deviation: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        which = rng.permutation(np.arange(n) % len(centers))
        return centers[which] + deviation * rng.normal(size=(n, 2))

    return draw


def _moons(rng: np.random.Generator, n: int) -> np.ndarray:
    angle, lower = np.pi * rng.uniform(size=n), rng.permutation(np.arange(n) % 2)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(lower[:, None] == 1, [1.0, 0.5] - points, points)
    return 10 * (points - [0.5, 0.25]) / 1.5 + 0.3 * rng.normal(size=(n, 2))


def _spiral(rng: np.random.Generator, n: int) -> np.ndarray:
    turned = np.sqrt(rng.uniform(size=n))
    angle = 4 * np.pi * turned
    points = 10 * turned[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points + 0.2 * rng.normal(size=(n, 2))


def _circles(rng: np.random.Generator, n: int) -> np.ndarray:
    radius, angle = rng.permutation(np.arange(n) % 3 + 1) * 4.0, 2 * np.pi * rng.uniform(size=n)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points + 0.2 * rng.normal(size=(n, 2))


_TURN = np.pi / 4 * np.arange(8)
_GRID = 6.0 * np.stack(np.meshgrid(*2 * [np.arange(-2, 3)]), axis=-1).reshape(-1, 2)
TOYS: dict[str, tuple[str, Draw, Draw]] = {
    "8g": (
        "Gaussian → 8 Gaussians",
        _gaussian,
        _around(12 * np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1), 0.5),
    ),
    "25g": ("Gaussian → 25 Gaussians", _gaussian, _around(_GRID, 0.5)),
    "spiral": ("moons → spiral", _moons, _spiral),
    "circles": ("Gaussian → circles", _gaussian, _circles),
}
ROWS: dict[str, tuple[str, brenier.DIOTM | brenier.NCF]] = {
    "otm": ("OTM", brenier.DIOTM(preset="otm")),
    "published": ("DIOTM as published", brenier.DIOTM(preset="published")),
    "diotm": ("DIOTM", brenier.DIOTM()),
    "ncf": ("NCF, dual", brenier.NCF(steps=2000)),
}
STUDY: dict[str, tuple[str, brenier.DIOTM]] = {
    f"{kind}-{value:g}": (
        f"{'Hamilton–Jacobi' if kind == 'hj' else 'R1'}, λ = {value:g}",
        brenier.DIOTM(preset="published", regularizer=kind, alpha=1.0, penalty=value),
    )
    for kind in ("hj", "r1")
    for value in LAMBDAS
}
STUDIED = ("8g", "spiral")


def run(options: Options) -> None:
    cases = [(toy, name) for toy in TOYS for name in ROWS]
    cases += [(toy, name) for toy in STUDIED for name in STUDY]
    for seed in options.seeds:
        for toy, name in cases:
            case = {"toy": toy, "method": name}
            if options.wants(case):
                _run(options, case, seed)


def _run(options: Options, case: dict[str, str], seed: int) -> None:
    import ot

    _, source, target = TOYS[case["toy"]]
    _, method = (ROWS | STUDY)[case["method"]]
    rng = np.random.default_rng((seed, 1))
    n = 200 if options.quick else JUDGED
    x, y = source(rng, SAMPLES), target(rng, SAMPLES)
    x_judged, y_judged, other = source(rng, n), target(rng, n), target(rng, n)
    steps = 4 if options.quick else (STEPS if isinstance(method, brenier.DIOTM) else None)
    solution = brenier.fit(
        brenier.TransportProblem(x, y),
        method,
        key=jax.random.key(seed),
        steps=steps,
        early_stopping=False,
        throw=False,
    )
    images = np.asarray(solution.transport.forward(x_judged))
    plan = ot.emd([], [], ot.dist(x_judged, y_judged), numItermax=2_000_000)
    exact = y_judged[np.argmax(plan, axis=1)]

    keep(
        options,
        "interpolation",
        case,
        seed,
        scores={
            "l2": float(np.sqrt(np.mean(np.sum((images - exact) ** 2, axis=1)))),
            "w2": wasserstein2_squared(images, y_judged) ** 0.5,
            "floor": wasserstein2_squared(other, y_judged) ** 0.5,
        },
        seconds=solution.info["timings"],
        steps=solution.info["steps"],
        status=solution.status,
        settings=solution.info["method"],
        packages=("POT",),
    )


def table(results: Path) -> str | None:
    """L₂ to discrete transport and W₂ of every method on every toy."""
    return _table(results, {name: title for name, (title, _) in ROWS.items()}, tuple(TOYS))


def study_table(results: Path) -> str | None:
    """The same for regularisers and their weights."""
    return _table(results, {name: title for name, (title, _) in STUDY.items()}, STUDIED)


def _table(results: Path, titles: dict[str, str], toys: tuple[str, ...]) -> str | None:
    records = [r for r in load("interpolation", results) if r["case"]["method"] in titles]
    if not records:
        return None
    rows: list[list[str]] = []
    for name, title in titles.items():
        chosen: dict[str, list[Any]] = {toy: select(records, method=name, toy=toy) for toy in toys}
        if any(chosen.values()):
            rows.append([title, *(_cell(found) for found in chosen.values())])
    floors = ["two samples of the target", *(_floor(select(records, toy=toy)) for toy in toys)]
    header = ["L₂ / W₂", *(TOYS[toy][0] for toy in toys)]
    return f"{markdown(header, [*rows, floors])}\n\n{conditions(records)}"


def _cell(records: list[Any]) -> str:
    if not records:
        return "–"
    failed = sum(r["status"] == "diverged" for r in records)
    text = " / ".join(median_and_worst(values(records, name)) for name in ("l2", "w2"))
    return f"{text}, {failed} diverged" if failed else text


def _floor(records: list[Any]) -> str:
    return f"– / {number(float(np.median(values(records, 'floor'))))}" if records else "–"
