"""How long a map takes to answer: 100 000 points in 64 dimensions, three kinds of map in turns.

Networks have the default sizes of their methods, the flow's is as large as DIOTM's map. The first two take random
weights, for their time does not depend on them; the flow is trained for a moment on a Gaussian pair,
for the steps of its solver do.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import numpy as np

import brenier
from benchmarks.baselines import flow_matching
from benchmarks.gaussian import Pair
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
from brenier.coordinates import Frame
from brenier.methods import Method

DIM, POINTS, TRAINING = 64, 100_000, 1000
TITLES = {
    "diotm": "DIOTM, one pass of its map",
    "ncf": "NCF, one gradient of its potential",
    "flow-matching": "flow matching, ODE solver",
}


def run(options: Options) -> None:
    n, steps = (2000, 4) if options.quick else (POINTS, TRAINING)
    for seed in options.seeds:
        pair = Pair.draw(DIM, seed, samples=2000 if options.quick else 20_000)
        flow = flow_matching.fit(pair.x, pair.y, key=pair.key, steps=steps)
        x = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
        maps = {
            "diotm": _untrained(brenier.DIOTM(pair_coordinates=False), seed).forward,
            "ncf": _untrained(brenier.NCF(), seed).forward,
            "flow-matching": flow_matching.transform(flow),
        }
        seconds = alternate({name: partial(call, x) for name, call in maps.items()}, rounds=5)
        for name, took in seconds.items():
            case = {"method": name}
            if options.wants(case):
                keep(options, "latency", case, seed, scores={}, seconds={"run": took})


def _untrained(method: Method, seed: int) -> brenier.Transport:
    problem = brenier.TransportProblem(np.eye(2, DIM), np.eye(2, DIM))
    return method.extract(problem, method.init(problem, jax.random.key(seed)), Frame.identity(DIM))


def table(results: Path) -> str | None:
    records = load("latency", results)
    if not records:
        return None
    first = float(np.median(values(select(records, method="diotm"), "run", "seconds")))
    rows = []
    for name, title in TITLES.items():
        if seconds := values(select(records, method=name), "run", "seconds"):
            ratio = float(np.median(seconds)) / first
            rows.append([title, median_and_worst(seconds), number(ratio, 2)])
    header = ["100 000 points, d = 64", "seconds", "relative"]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
