"""What a fit on one device pays for the loop around its steps, and for what several devices need.

In turns, in one process: the compiled steps alone, on batches drawn before; the ordinary loop, which draws,
validates and decides; the same loop on a mesh of one device, which is what `devices` of several would run.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

import brenier
from benchmarks.harness import (
    Options,
    alternate,
    conditions,
    keep,
    load,
    markdown,
    median_and_worst,
    number,
    select,
    values,
)
from brenier.devices import AXIS
from brenier.plan import CHUNK
from brenier.run import Run

DIMS = (2, 64)
SAMPLES = 20_000
WAYS = {"steps": "steps alone", "loop": "loop", "mesh": "loop on a mesh of one"}


def run(options: Options) -> None:
    for seed in options.seeds:
        for dim in DIMS[:1] if options.quick else DIMS:
            case = {"dim": dim}
            if options.wants(case):
                rounds, batch = (2, 64) if options.quick else (15, 1024)
                chunks, compiling = _measure(dim, batch, rounds, seed)
                seconds = {name: value / (2 * CHUNK) for name, value in chunks.items()}
                scores = {f"{name}_ratio": seconds[name] / seconds["steps"] for name in seconds}
                seconds["compile"] = compiling
                keep(options, "devices", case, seed, scores=scores, seconds=seconds, batch=batch)


def _measure(dim: int, batch: int, rounds: int, seed: int) -> tuple[dict[str, float], float]:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, SAMPLES, dim), np.float32)
    y[:, 0] = np.abs(y[:, 0]) * 2.0
    problem = brenier.TransportProblem(x, y)
    method, key = brenier.NCF(batch_size=batch), jax.random.key(seed)
    one = Mesh(np.asarray(jax.devices()[:1]), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))

    def loop(mesh: Mesh | None) -> Run:
        run = Run(*(problem, method, key, 10**6, None, 0.1, False), mesh=mesh)
        run.begin()
        return run

    with jax.default_matmul_precision("highest"):
        ordinary, meshed, bare = loop(None), loop(one), loop(None)
        state, inputs = bare.state, bare.inputs()
        start = time.perf_counter()
        advance = bare.programs.advance((state, *inputs))
        compiling = time.perf_counter() - start

        def steps() -> None:
            nonlocal state
            for _ in range(2):
                state, metrics = advance(state, *inputs)
                jax.block_until_ready(metrics)

        def chunks(run: Run) -> None:
            for _ in range(2):  # every second one is validated
                run.account(*run.chunk())

        ways = {"steps": steps, "loop": partial(chunks, ordinary), "mesh": partial(chunks, meshed)}
        seconds = alternate(ways, rounds=rounds)
    return seconds, compiling


def table(results: Path) -> str | None:
    records = load("devices", results)
    if not records:
        return None
    header = ["one device, ms a step", *WAYS.values(), "loop / steps", "mesh / steps"]
    rows = [
        [
            f"d = {dim}",
            *(median_and_worst([1e3 * s for s in values(chosen, way, "seconds")]) for way in WAYS),
            *(
                number(float(np.median(values(chosen, f"{way}_ratio"))), 3)
                for way in ("loop", "mesh")
            ),
        ]
        for dim in DIMS
        if (chosen := select(records, dim=dim))
    ]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
