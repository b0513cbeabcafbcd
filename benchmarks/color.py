"""Colour transfer: 14 pairs of pictures in three groups, both directions of one fit.

Scores compare the recoloured picture with the one whose colours it should have, see
`brenier.color.scores`; "EMD (heights)" is the one that published tables show. Beside it two
classics, histogram matching and Reinhard's, and the picture unchanged.
"""

from __future__ import annotations

import csv
import time
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
    on_host,
    select,
    values,
)
from brenier.color import (
    STEPS,
    ColorImage,
    color_samples,
    color_scores,
    histogram_matching,
    read_image,
    reinhard,
    transfer,
)

SAMPLES = 100_000
METHOD = brenier.NCF(steps=STEPS)
METHODS = {
    "ncf": "NCF",
    "histogram-matching": "histogram matching",
    "reinhard": "Reinhard (CIELAB)",
    "unchanged": "unchanged",
}
CLASSICS: dict[str, Callable[[ColorImage, ColorImage], np.ndarray]] = {
    "histogram-matching": histogram_matching,
    "reinhard": reinhard,
    "unchanged": lambda source, target: source.visible(),
}
SCORES = {
    "histogram_intersection": "HI ↑",
    "emd_heights": "EMD (heights) ↓",
    "emd_positions": "EMD ↓",
    "energy_distance": "energy distance ↓",
}


def run(options: Options) -> None:
    assert options.data is not None
    folder = options.data / "color_transfer"
    with open(folder / "pairs.csv", newline="") as file:
        pairs = list(csv.DictReader(file))[: 2 if options.quick else None]
    for row in pairs:
        source, target = (
            read_image(folder / row["group"] / row[end]) for end in ("source", "target")
        )
        for seed in options.seeds:
            _run_pair(options, row["group"], int(row["pair"]), source, target, seed)


def _run_pair(
    options: Options, group: str, pair: int, source: ColorImage, target: ColorImage, seed: int
) -> None:
    def wanted(method: str) -> bool:
        return options.wants(_case(group, pair, method))

    def report(method: str, ways: dict[str, np.ndarray], **facts: Any) -> None:
        ends = {"forward": target, "backward": source}
        scores = {
            f"{name}_{way}": value
            for way, result in ways.items()
            for name, value in color_scores(result, ends[way].visible()).items()
        }
        keep(options, "color", _case(group, pair, method), seed, scores=scores, **facts)

    # the classics have no seed: once is enough
    for method, recolor in CLASSICS.items():
        if wanted(method) and seed == options.seeds[0]:
            start = time.perf_counter()
            ways = {"forward": recolor(source, target), "backward": recolor(target, source)}
            report(method, ways, seconds={"total": time.perf_counter() - start})

    if wanted("ncf"):
        start = time.perf_counter()
        n = 2000 if options.quick else SAMPLES
        problem = brenier.TransportProblem(
            color_samples(source, n, seed), color_samples(target, n, seed)
        )
        solution = brenier.fit(
            problem,
            METHOD,
            key=jax.random.key(seed),
            steps=4 if options.quick else None,
        )
        forward = transfer(source, on_host(solution.transport.forward))
        backward = transfer(target, on_host(solution.transport.inverse))
        report(
            "ncf",
            {"forward": source.visible(forward), "backward": target.visible(backward)},
            seconds={**solution.info["timings"], "total": time.perf_counter() - start},
            steps=solution.info["steps"],
            status=solution.status,
            settings=solution.info["method"],
        )


def _case(group: str, pair: int, method: str) -> dict[str, Any]:
    return {"method": method, "group": group, "pair": pair}


def table(results: Path) -> str | None:
    """Means over a group's pairs and directions, then median and worst over the seeds."""
    records = load("color", results)
    if not records:
        return None
    rows = []
    for group in sorted({r["case"]["group"] for r in records}):
        for method, title in METHODS.items():
            chosen = select(records, group=group, method=method)
            if not chosen:
                continue
            cells = [
                median_and_worst(
                    _group_means(chosen, score), better=max if "intersection" in score else min
                )
                for score in SCORES
            ]
            seconds = number(float(np.median(values(chosen, "total", "seconds"))), 2)
            rows.append([group.replace("_", " → "), title, *cells, seconds])
    header = ["group", "method", *SCORES.values(), "seconds a pair"]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"


def _group_means(records: list[dict[str, Any]], score: str) -> list[float]:
    return [
        float(
            np.mean(
                [
                    value
                    for way in ("forward", "backward")
                    for value in values([r for r in records if r["seed"] == seed], f"{score}_{way}")
                ]
            )
        )
        for seed in sorted({r["seed"] for r in records})
    ]
