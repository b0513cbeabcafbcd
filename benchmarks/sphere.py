"""From pole to pole of a sphere in d dimensions, around the ball inside it.

The published scene is known for d = 3 only. In more dimensions the spread around the poles is `0.3 √(3/d)`, so that
its length stays the same; radius .98 and a price of 5 in the ball as published. The bound is the cost of the best
pairing by great circles around the ball (`brenier.datasets.obstacles.sphere`). Nothing in the ball leads out of it, so
that ways around are searched for; from d = 100 on fewer paths are kept, for longer, fewer are judged, and the run has
a third of the steps, at d = 1000 a tenth, for the time.
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
from benchmarks.obstacles import JUDGED, measure
from brenier.datasets.obstacles import Scene, sphere

DIMS = (3, 10, 100, 1000)
# Not measured here yet: starts in turn, and the last steps of the flow alone.
_AS_BEFORE: dict[str, Any] = {"starts": "random", "arrival": 0.0}
_FEWER: dict[str, Any] = {"pool": 512, "improved": 128, "refreshed": 2}
_SETTINGS: dict[int, dict[str, Any]] = {
    100: _FEWER | {"steps": 1000},
    1000: _FEWER | {"steps": 300},
}


def run(options: Options) -> None:
    for seed in options.seeds:
        for dim in DIMS:
            if options.wants({"dim": dim}):
                method = brenier.HOTA(search=True, **_AS_BEFORE, **_SETTINGS.get(dim, {}))
                judged = JUDGED if dim < 100 else JUDGED // 4
                measure(options, "sphere", {"dim": dim}, scene(dim), method, seed, judged=judged)


def scene(dim: int) -> Scene:
    return sphere(dim, spread=0.3 * (3.0 / dim) ** 0.5, radius=0.98)


def table(results: Path) -> str | None:
    records = load("sphere", results)
    if not records:
        return None
    header = ["d", "kinetic + state", "total", "great circles", "straight", "published"]
    header += ["time in the ball, %", "W₂²", "two target samples", "seconds"]
    rows = []
    for dim in DIMS:
        if chosen := select(records, dim=dim):
            reference = chosen[0]["reference"]
            parts = [
                number(float(np.median(values(chosen, f"{p}_300")))) for p in ("kinetic", "state")
            ]
            rows.append(
                [
                    str(dim),
                    " + ".join(parts),
                    median_and_worst(values(chosen, "total_300")),
                    *(number(reference[name]) for name in ("hard", "static")),
                    number(reference.get("published_cost", np.nan)),
                    median_and_worst([100 * v for v in values(chosen, "time_inside_300")]),
                    median_and_worst(values(chosen, "w2_squared_300")),
                    number(float(np.median(values(chosen, "floor")))),
                    f"{np.median(values(chosen, 'total', 'seconds')):.0f}",
                ]
            )
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
