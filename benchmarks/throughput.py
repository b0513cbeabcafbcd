"""Transport of many points by a map that is already compiled: seconds and memory.

The map has the default network with random weights: where it sends the points does not matter here.
Every measurement has a process of its own, because peak memory is a fact about a process.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

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
from brenier.coordinates import Frame
from brenier.transport import CHUNK

DIMS = (2, 64)
POINTS = (100_000, 1_000_000)


def run(options: Options) -> None:
    for seed in options.seeds:
        for dim in DIMS:
            for n in (2_000, 20_000) if options.quick else POINTS:
                case = {"dim": dim, "points": n}
                if not options.wants(case):
                    continue
                found = in_fresh_process("benchmarks.throughput", n, dim, seed)
                seconds = {name: found.pop(name) for name in ("compile", "run")}
                keep(options, "throughput", case, seed, scores=found, seconds=seconds)


def _measure(n: int, dim: int, seed: int) -> Record:
    problem = brenier.TransportProblem(np.eye(2, dim), np.eye(2, dim))
    method = brenier.NCF()
    state = method.init(problem, jax.random.key(seed))
    transport = method.extract(problem, state, Frame.identity(dim))
    x = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)

    start = time.perf_counter()
    transport.forward(x[:20_000])  # a full chunk and a rest: every shape there is
    if rest := n % CHUNK:
        transport.forward(x[:rest])
    compile_seconds = time.perf_counter() - start
    before = peak_mib()
    start = time.perf_counter()
    y = transport.forward(x)
    seconds = time.perf_counter() - start
    added = peak_mib() - before
    return {
        "compile": compile_seconds,
        "run": seconds,
        "peak_mib": peak_mib(),
        "beyond_output_mib": max(added - y.nbytes / 2**20, 0.0),
    }


def table(results: Path) -> str | None:
    records = load("throughput", results)
    if not records:
        return None
    header = ["forward map", "seconds", "points a second", "memory beyond input and output, MiB"]
    rows = []
    for dim in DIMS:
        for n in POINTS:
            if chosen := select(records, dim=dim, points=n):
                seconds = values(chosen, "run", "seconds")
                rows.append(
                    [
                        f"{n:,} points, d = {dim}".replace(",", " "),
                        median_and_worst(seconds),
                        number(n / float(np.median(seconds)), 2),
                        median_and_worst(values(chosen, "beyond_output_mib"), digits=2),
                    ]
                )
    return f"{markdown(header, rows)}\n\n{conditions(records)}"


if __name__ == "__main__":
    print(json.dumps(_measure(*map(int, sys.argv[1:]))))
