"""The Wasserstein-2 benchmark: maps against an exact one, next to other solvers in equal time.

The pairs are those of Korotin et al. 2021: three Gaussians in, about ten modes out, by the gradient of a
convex network. A million samples a side are given, the same to every row; UVP and cosine are taken
on 2^14 fresh points of either side. Every neural row of a dimension has the same seconds, unless it says so,
compilation included, and uses them up; each fit has a process of its own, whose peak memory is
reported. Maps on the way are kept as they are and scored after the fit, off its clock.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import matplotlib.figure
import matplotlib.ticker
import numpy as np

import brenier
from benchmarks.baselines import minimax, ott_duals
from benchmarks.gaussian import uvp_cell
from benchmarks.harness import (
    RESULTS,
    ROOT,
    HostMap,
    Options,
    Record,
    conditions,
    in_fresh_process,
    keep,
    load,
    markdown,
    median_and_worst,
    number,
    on_host,
    peak_mib,
    select,
    values,
)
from brenier.callbacks import Event
from brenier.gaussian import GaussianPotential, gaussian_cost
from brenier.methods import Method
from brenier.metrics import cosine, total_variance, uvp

DIMS = (2, 4, 8, 32, 64)
SAMPLES, FRESH, CHUNK = 1_000_000, 2**14, 20_000
SECONDS = {2: 100.0, 4: 100.0, 8: 100.0, 32: 100.0, 64: 150.0}
DISCRETE = 4000
FIRST_LOOK, NEXT_LOOK = 4.0, 1.5
"""Seconds of the first map kept on the way, and the factor to the next."""
FIGURE = ROOT / "docs" / "images" / "w2.png"

PUBLISHED = {
    "MM:R": {2: 0.1, 4: 0.3, 8: 0.7, 32: 2.8, 64: 4.5},
    "MM-v1": {2: 0.2, 4: 1.0, 8: 1.8, 32: 6.9, 64: 8.1},
    "best of ten neural solvers": {2: 0.1, 4: 0.3, 8: 0.7, 32: 2.8, 64: 3.2},
}
"""Forward UVP in %, Korotin et al. 2021, where a run has up to 50 000 outer steps of 15 inner ones."""


class Trace:
    """Maps on the way, at times that grow geometrically."""

    def __init__(self) -> None:
        self.maps: list[tuple[float, HostMap]] = []
        self._due = FIRST_LOOK

    def __call__(self, elapsed: float, take: Callable[[], HostMap]) -> None:
        if elapsed >= self._due:
            self.maps.append((elapsed, take()))
        while self._due <= elapsed:
            self._due *= NEXT_LOOK


@dataclass(frozen=True)
class Task:
    """What a row is given: the pools, its time or its steps, a key, and whom to tell."""

    x: np.ndarray
    y: np.ndarray
    key: jax.Array
    seconds: float | None
    steps: int | None
    watch: Trace = field(default_factory=Trace)


@dataclass(frozen=True)
class Outcome:
    """What a row gives back: maps, an estimate of `W₂²/2` where it has one, and facts."""

    forward: HostMap
    inverse: HostMap
    cost: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    title: str
    solve: Callable[[Task], Outcome]
    neural: bool = True
    seconds: dict[int, float] = field(default_factory=lambda: SECONDS)


def _ours(method: Method[Any]) -> Callable[[Task], Outcome]:
    def solve(task: Task) -> Outcome:
        def look(event: Event) -> None:
            task.watch(event.elapsed, lambda: on_host(event.transport().forward))

        solution = brenier.fit(
            brenier.TransportProblem(task.x, task.y),
            method,
            key=task.key,
            steps=task.steps,
            time_budget=task.seconds,
            early_stopping=False,
            callbacks=[look],
            throw=False,
        )
        info = solution.info
        return Outcome(
            forward=on_host(solution.transport.forward),
            inverse=on_host(solution.transport.inverse),
            cost=solution.scores.get("cost"),
            seconds=info["timings"],
            facts={
                "steps": info["steps"],
                "status": solution.status,
                "settings": info["method"],
            },
        )

    return solve


def _peer(fit: Callable[..., minimax.Fitted]) -> Callable[[Task], Outcome]:
    def solve(task: Task) -> Outcome:
        fitted = fit(
            task.x,
            task.y,
            key=task.key,
            seconds=task.seconds,
            steps=task.steps,
            watch=task.watch,
        )
        return Outcome(
            fitted.forward,
            fitted.inverse,
            fitted.cost,
            fitted.seconds,
            {"steps": fitted.steps, "settings": fitted.settings},
        )

    return solve


def _linear(task: Task) -> Outcome:
    linear = GaussianPotential.from_samples(task.x, task.y)
    moments = [m for side in (task.x, task.y) for m in (side.mean(0), np.cov(side.T))]
    return Outcome(linear.forward, linear.inverse, gaussian_cost(*moments))


def _shift(task: Task) -> Outcome:
    shift = task.y.mean(0, dtype=np.float64) - task.x.mean(0, dtype=np.float64)
    return Outcome(lambda x: x + shift, lambda y: y - shift)


def _discrete(task: Task) -> Outcome:
    """Exact transport between a few thousand samples, and the nearest sample's image elsewhere."""
    import ot

    start = time.perf_counter()
    n = min(DISCRETE, len(task.x))
    x, y = (np.asarray(pool[:n], np.float64) for pool in (task.x, task.y))
    costs = 0.5 * ot.dist(x, y)
    plan = np.asarray(ot.emd([], [], costs, numItermax=2_000_000))
    return Outcome(
        forward=_nearest(x, n * plan @ y),
        inverse=_nearest(y, n * plan.T @ x),
        cost=float(np.sum(plan * costs)),
        seconds={"total": time.perf_counter() - start},
        facts={"points": n},
    )


def _nearest(points: np.ndarray, images: np.ndarray) -> HostMap:
    squares = np.sum(points**2, axis=1)

    def mapped(x: np.ndarray) -> np.ndarray:
        parts = (x[i : i + 2048] for i in range(0, len(x), 2048))
        nearest = [np.argmin(squares - 2 * part @ points.T, axis=1) for part in parts]
        return images[np.concatenate(nearest)]

    return mapped


ROWS = {
    "dual": Row("NCF, dual objective", _ours(brenier.NCF())),
    "energy": Row("NCF, energy distance", _ours(brenier.NCF(objective="energy"))),
    "published": Row("NCF as published", _ours(brenier.NCF(preset="published"))),
    "diotm": Row(
        "DIOTM, 300 s", _ours(brenier.DIOTM()), seconds=dict.fromkeys((2, 8, 32, 64), 300.0)
    ),
    "mmr": Row("MM:R", _peer(partial(minimax.fit, minimax.MaxMinReversed.tuned))),
    "mmv1": Row("MM-v1", _peer(partial(minimax.fit, minimax.ConvexConjugate.tuned))),
    "enot": Row("ENOT, from OTT-JAX", _peer(ott_duals.fit)),
    "emd": Row(f"exact on {DISCRETE} samples, nearest sample", _discrete, neural=False),
    "linear": Row("linear, from the samples", _linear, neural=False),
    "shift": Row("shift of the mean", _shift, neural=False),
    "identity": Row("identity", lambda task: Outcome(lambda x: x, lambda y: y), neural=False),
}


def run(options: Options) -> None:
    if options.data is None:
        raise ValueError("w2 needs the folder that holds w2_benchmark/")
    unavailable = {"enot": ott_duals.missing()}
    for name, reason in unavailable.items():
        if reason and any(options.wants(_case(name, dim)) for dim in DIMS):
            print(f"w2: {name} skipped, {reason}", file=sys.stderr)
    dims = DIMS[:1] if options.quick else DIMS
    for seed in options.seeds:
        for dim in dims:
            names = [
                name
                for name, row in ROWS.items()
                if dim in row.seconds and options.wants(_case(name, dim))
                if not unavailable.get(name)
            ]
            if names:
                with tempfile.TemporaryDirectory() as folder:
                    _run_pair(options, Path(folder), dim, seed, names)
    if options.results == RESULTS:
        figure = draw(load("w2"))
        if figure is not None:
            FIGURE.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(FIGURE)


def _case(name: str, dim: int) -> dict[str, Any]:
    return {"method": name, "dim": dim}


def _run_pair(options: Options, folder: Path, dim: int, seed: int, names: list[str]) -> None:
    """All rows of a pair, in processes of their own unless it has to be quick.

    The samples are drawn in one, too: a child inherits the peak memory of the process that starts it.
    """
    assert options.data is not None
    call = _here if options.quick else _apart
    samples = 2 * CHUNK if options.quick else SAMPLES
    call("draw", folder, options.data / "w2_benchmark", dim, seed, samples)
    for name in names:
        length = "4 steps" if options.quick else f"{ROWS[name].seconds[dim]} seconds"
        found = call("solve", folder, name, seed, length)
        packages = ott_duals.PACKAGES if name == "enot" else ()
        keep(options, "w2", _case(name, dim), seed, packages=packages, **found)


def _apart(*arguments: Any) -> Record:
    return in_fresh_process("benchmarks.w2", *arguments)


def _here(*arguments: Any) -> Record:
    return main(*(str(a) for a in arguments))


def main(what: str, *arguments: str) -> Record:
    """`draw FOLDER BENCHMARK DIM SEED SAMPLES`, or `solve FOLDER ROW SEED LENGTH`."""
    if what == "draw":
        folder, benchmark, *numbers = arguments
        return _draw(Path(folder), Path(benchmark), *map(int, numbers))
    folder, name, seed, length = arguments
    amount, unit = length.split()
    if unit == "steps":
        return _solve(Path(folder), name, int(seed), steps=int(amount))
    return _solve(Path(folder), name, int(seed), seconds=float(amount))


def _draw(folder: Path, benchmark: Path, dim: int, seed: int, samples: int) -> Record:
    """Writes the pools, fresh points of both sides with their exact partners, and the cost."""
    exact = brenier.datasets.w2_benchmark(benchmark, dim)
    x_key, y_key, *fresh_keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), dim), 4)
    for name, side, key in (("x", exact.source, x_key), ("y", exact.target, y_key)):
        draw = jax.jit(lambda key, side=side: side(key, CHUNK))
        keys = jax.random.split(key, -(-samples // CHUNK))
        pool = np.concatenate([np.asarray(draw(k)) for k in keys])[:samples]
        np.save(folder / f"{name}.npy", pool)
    for name, key in zip(("forward", "backward"), fresh_keys, strict=True):
        x = np.asarray(exact.source(key, FRESH), np.float64)
        # the image of a fresh source point is a fresh target point whose preimage is known
        np.save(folder / f"{name}.npy", np.stack([x, exact.forward(x)]))
    np.save(folder / "cost.npy", exact.cost)
    return {}


def _solve(
    folder: Path, name: str, seed: int, *, seconds: float | None = None, steps: int | None = None
) -> Record:
    """Runs a row on the pools of a folder; the record lacks only its name."""
    before = peak_mib()
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    task = Task(x, y, jax.random.fold_in(jax.random.key(seed), 1), seconds, steps)
    outcome = ROWS[name].solve(task)
    memory = {"peak_mib": peak} if (peak := peak_mib()) > before else {}

    sources, images = np.load(folder / "forward.npy")
    preimages, targets = np.load(folder / "backward.npy")
    cost = float(np.load(folder / "cost.npy"))
    target_variance, source_variance = total_variance(y), total_variance(x)

    mapped = outcome.forward(sources)
    scores = {
        "uvp_forward": uvp(mapped, images, target_variance),
        "uvp_backward": uvp(outcome.inverse(targets), preimages, source_variance),
        "cosine": cosine(sources, mapped, images),
        **memory,
    }
    if outcome.cost is not None:
        scores |= {"cost": outcome.cost, "cost_error": 100 * abs(outcome.cost / cost - 1)}
    curve = [
        (round(elapsed, 3), uvp(forward(sources), images, target_variance))
        for elapsed, forward in task.watch.maps
    ]
    if "total" in outcome.seconds:
        curve.append((round(outcome.seconds["total"], 3), scores["uvp_forward"]))
    return {
        "scores": scores,
        "seconds": outcome.seconds,
        **outcome.facts,
        "budget": {"seconds": seconds, "steps": steps},
        "curve": curve,
        "exact_cost": cost,
        "samples": len(x),
    }


def table(results: Path) -> str | None:
    """UVP of all rows by dimension, the published figures below, and the figure where there is one."""
    records = load("w2", results)
    if not records:
        return None
    dims = sorted({r["case"]["dim"] for r in records})
    header = ["UVP in %, forward / backward"]
    header += [f"d = {dim}{_budget(select(records, dim=dim))}" for dim in dims]
    rows = [
        [row.title, *(uvp_cell(select(records, method=name, dim=dim)) for dim in dims)]
        for name, row in ROWS.items()
        if select(records, method=name)
    ]
    for title, scores in PUBLISHED.items():
        cells = [number(scores[dim], 2) for dim in dims]
        rows.append([f"{title}, published, forward", *cells])
    text = f"{markdown(header, rows)}\n\n{conditions(records)}"
    if FIGURE.exists():
        text += f"\n\n![UVP against the seconds of the fit](images/{FIGURE.name})"
    return text


def _budget(records: list[Record]) -> str:
    """The seconds of the neural rows that have no time of their own, where all have the same."""
    rows = [(r["budget"]["seconds"], ROWS[r["case"]["method"]]) for r in records]
    seconds = {length for length, row in rows if row.neural and row.seconds is SECONDS}
    return f", {min(seconds):.0f} s" if len(seconds) == 1 and None not in seconds else ""


def peers_table(results: Path) -> str | None:
    """Everything about the rows that take time, one line for each and dimension."""
    records = load("w2", results)
    if not records:
        return None
    header = ["d", "solver", "UVP in %, forward / backward", "cosine", "error of W₂² in %"]
    header += ["seconds", "of it compilation", "steps", "peak memory, MiB"]
    rows = []
    for dim in sorted({r["case"]["dim"] for r in records}):
        for name, row in ROWS.items():
            chosen = select(records, method=name, dim=dim)
            if not chosen or not values(chosen, "total", "seconds"):
                continue
            steps = [float(r["steps"]) for r in chosen if "steps" in r]
            rows.append(
                [
                    str(dim),
                    row.title,
                    uvp_cell(chosen),
                    median_and_worst(values(chosen, "cosine"), better=max),
                    median_and_worst(values(chosen, "cost_error"), digits=2),
                    f"{np.median(values(chosen, 'total', 'seconds')):.0f}",
                    median_and_worst(values(chosen, "compile", "seconds"), digits=2),
                    f"{np.median(steps):.0f}" if steps else "–",
                    f"{np.max(peaks):.0f}" if (peaks := values(chosen, "peak_mib")) else "–",
                ]
            )
    return f"{markdown(header, rows)}\n\n{conditions(records)}" if rows else None


def draw(records: list[Record]) -> matplotlib.figure.Figure | None:
    """Forward UVP against the seconds of the fit, a panel for each dimension."""
    records = [r for r in records if ROWS[r["case"]["method"]].neural and r["curve"]]
    dims = sorted({r["case"]["dim"] for r in records})
    if not dims:
        return None
    figure = matplotlib.figure.Figure(figsize=(2.9 * len(dims) + 0.6, 3.2), dpi=120)
    panels = figure.subplots(1, len(dims), squeeze=False)[0]
    for panel, dim in zip(panels, dims, strict=True):
        for i, (name, row) in enumerate((n, r) for n, r in ROWS.items() if r.neural):
            for j, record in enumerate(select(records, method=name, dim=dim)):
                label = row.title if j == 0 else None
                panel.plot(
                    *zip(*record["curve"], strict=True),
                    color=f"C{i}",
                    lw=1.2,
                    alpha=0.8,
                    label=label,
                )
        best = PUBLISHED["best of ten neural solvers"][dim]
        panel.axhline(best, color="0.5", lw=0.8, ls="--", label="best published")
        panel.set(xscale="log", yscale="log", title=f"d = {dim}", xlabel="seconds")
        panel.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("UVP of the forward map, %")
    handles = {
        label: h for p in panels for h, label in zip(*p.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=8,
    )
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    return figure


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
