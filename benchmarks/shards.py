"""Training on shards that stay on disk against the same training on arrays in memory: steps a second, resident memory.

A set of any size is one shard of real numbers under many names, so that it takes little room on the disk; every name
is a file to the reader. Every measurement has a process of its own, because resident memory is a fact about a process.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

import brenier
from benchmarks.harness import (
    Options,
    Record,
    conditions,
    in_fresh_process,
    keep,
    load,
    markdown,
    median_and_worst,
    number,
    peak_mib,
    select,
    values,
)
from brenier.points import write_points

DIM = 16
SHARD_ROWS = 1_000_000  # 64 MB
KINDS = ("array", "npy", "parquet")
GIGABYTES = {"array": 0.128, "npy": 20.0, "parquet": 20.0}
STEPS = 300
WARM_UP = 75  # steps before the clock starts


def run(options: Options) -> None:
    for seed in options.seeds:
        for kind in KINDS:
            case = {"kind": kind}
            if not options.wants(case):
                continue
            gigabytes = 0.128 if options.quick else GIGABYTES[kind]
            steps = 2 * WARM_UP if options.quick else STEPS
            found = in_fresh_process("benchmarks.shards", kind, gigabytes, steps, seed)
            seconds = {"step": found.pop("step")}
            keep(
                options,
                "shards",
                case,
                seed,
                scores=found,
                seconds=seconds,
                gigabytes=gigabytes,
                packages=("pyarrow",),
            )


def _side(folder: Path, kind: str, gigabytes: float, shift: float, seed: int) -> Any:
    points = np.random.default_rng(seed).normal(shift, size=(SHARD_ROWS, DIM)).astype(np.float32)
    if kind == "array":
        return points
    folder.mkdir()
    first = folder / f"part-0000.{kind}"
    # Row groups are decoded whole: not too large.
    write_points(first, (points[i : i + 100_000] for i in range(0, SHARD_ROWS, 100_000)))
    for i in range(1, round(gigabytes / 2 * 1e9 / points.nbytes)):
        os.link(first, folder / f"part-{i:04}.{kind}")
    return folder


def _measure(kind: str, gigabytes: float, steps: int, seed: int) -> Record:
    clock: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        sides = (
            _side(Path(folder, name), kind, gigabytes, shift, 2 * seed + i)
            for i, (name, shift) in enumerate({"source": 0.0, "target": 1.0}.items())
        )
        start = time.perf_counter()
        problem = brenier.TransportProblem(*sides)
        opened = time.perf_counter() - start
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", brenier.BrenierWarning)
            brenier.fit(
                problem,
                brenier.NCF(batch_size=1024),
                key=jax.random.key(seed),
                steps=steps,
                early_stopping=False,
                callbacks=[lambda event: clock.append((event.step, time.perf_counter()))],
            )
    (first, began), (last, ended) = next(c for c in clock if c[0] >= WARM_UP), clock[-1]
    step = (ended - began) / (last - first)
    return {"step": step, "opened": opened, "peak_mib": peak_mib(), "steps_per_second": 1.0 / step}


def table(results: Path) -> str | None:
    records = load("shards", results)
    if not records:
        return None
    names = {"array": "array in memory", "npy": ".npy shards", "parquet": ".parquet shards"}
    header = ["d = 16, batches of 1024", "GB", "steps a second", "of the array's", "peak MiB"]
    rows = []
    array = values(select(records, kind="array"), "steps_per_second")
    for kind in KINDS:
        if chosen := select(records, kind=kind):
            rate = values(chosen, "steps_per_second")
            share = number(float(np.median(rate) / np.median(array)), 2) if array else "–"
            rows.append(
                [
                    names[kind],
                    number(chosen[0]["gigabytes"]),
                    median_and_worst(rate, better=max),
                    share,
                    median_and_worst(values(chosen, "peak_mib"), digits=4),
                ]
            )
    return f"{markdown(header, rows)}\n\n{conditions(records)}"


if __name__ == "__main__":
    kind, gigabytes, steps, seed = sys.argv[1:]
    print(json.dumps(_measure(kind, float(gigabytes), int(steps), int(seed))))
