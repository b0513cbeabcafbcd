"""What each departure of the default NCF from the published one contributes: one change at a time.

Gaussian pairs as in `benchmarks.gaussian`, d = 8, the same number of steps for every row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import brenier
from benchmarks.gaussian import SAMPLES, Pair, uvp_cell
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

DIM, STEPS = 8, 500
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("default", {}),
    "adam": ("Adam", {"optimizer": "adam"}),
    "adam-published-rate": ("Adam, rate 1e-3", {"optimizer": "adam", "learning_rate": 1e-3}),
    "constant-rate": ("constant rate", {"schedule": "constant"}),
    "silu": ("SiLU", {"activation": "silu"}),
    "published-widths": ("published widths", {"widths": (64, 64, 32)}),
    "box": ("collocation in the box", {"collocation": "box"}),
    "no-scaling": ("coordinates as given", {"scale_inputs": False}),
    "no-averaging": ("last iterate", {"averaging": 0.0}),
    "v-statistic": ("V-statistic", {"statistic": "V"}),
    "published": ("all of it as published", {"preset": "published"}),
}


def run(options: Options) -> None:
    for seed in options.seeds:
        pair = Pair.draw(DIM, seed, samples=2000 if options.quick else SAMPLES)
        for name, (_, change) in CHANGES.items():
            if options.wants({"change": name}):
                scores, facts = pair.fit(
                    brenier.NCF(objective="energy", **change),
                    steps=4 if options.quick else STEPS,
                    early_stopping=False,
                )
                keep(options, "ablation", {"change": name}, seed, scores=scores, **facts)


def table(results: Path) -> str | None:
    records = load("ablation", results)
    if not records:
        return None
    header = [f"d = {DIM}, {STEPS} steps", "UVP in %, forward / backward", "seconds of steps"]
    rows = [
        [title, uvp_cell(chosen), median_and_worst(values(chosen, "run", "seconds"), digits=2)]
        for name, (title, _) in CHANGES.items()
        if (chosen := select(records, change=name))
    ]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
