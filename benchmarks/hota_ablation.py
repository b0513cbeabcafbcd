"""What the replay buffer, the balancing of gradients and the target network contribute to HOTA's residual.

The scenes and the judge of `benchmarks.obstacles`, `objective="residual"`, every row with the same steps. The published
ablation has, for the full method and without each in turn, a W₂² of .006, .076, 3.6 and .018 on Stunnel and of .002,
16.5, .026 and .004 on Vneck, as a Sinkhorn divergence after 30 steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import brenier
from benchmarks.harness import (
    Options,
    conditions,
    load,
    markdown,
    median_and_worst,
    number,
    select,
    values,
)
from benchmarks.obstacles import SCENES, measure

CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "no-buffer": ("no replay buffer", {"replay": False}),
    "no-balancing": ("no balancing", {"balancing": False}),
    "no-target": ("no target network", {"target_decay": 0.0}),
}
NAMES = ("stunnel", "vneck")
PUBLISHED = {
    "stunnel": {"full": 0.006, "no-buffer": 0.076, "no-balancing": 3.60, "no-target": 0.018},
    "vneck": {"full": 0.002, "no-buffer": 16.47, "no-balancing": 0.026, "no-target": 0.004},
}


def run(options: Options) -> None:
    for seed in options.seeds:
        for scene in NAMES:
            for change in CHANGES:
                case = {"scene": scene, "change": change}
                if options.wants(case):
                    changed = CHANGES[change][1]
                    method = brenier.HOTA(objective="residual", activation="leaky_relu", **changed)
                    measure(options, "hota_ablation", case, SCENES[scene](), method, seed)


def table(results: Path) -> str | None:
    records = load("hota_ablation", results)
    if not records:
        return None
    header = [
        "scene",
        "",
        "W₂², 30 steps",
        "300 steps",
        "published",
        "total cost",
        "time in walls, %",
    ]
    rows = []
    for scene in NAMES:
        for change, (title, _) in CHANGES.items():
            if chosen := select(records, scene=scene, change=change):
                rows.append(
                    [
                        scene,
                        title,
                        *(median_and_worst(values(chosen, f"w2_squared_{k}")) for k in (30, 300)),
                        number(PUBLISHED[scene][change]),
                        median_and_worst(values(chosen, "total_300"), digits=4),
                        median_and_worst([100 * v for v in values(chosen, "time_inside_300")]),
                    ]
                )
        if chosen := select(records, scene=scene):
            floor = number(float(np.median(values(chosen, "floor"))))
            rows.append([scene, "two target samples", floor, floor, "–", "–", "–"])
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
