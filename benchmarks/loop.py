"""Steps a second of HOTA's loop, against the structure of the published one, in the same run.

The published loop goes to the host and back at every step: batches and the replay buffer are kept there, and of a
thousand simulated paths one is used. Here a chunk of steps is one compiled program, buffer included. In the first row
network, batch and simulation are the same on both sides, so that only the loop differs; in the others each has its own
sizes, the published ones there.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import brenier
from benchmarks.baselines import host_loop
from benchmarks.harness import (
    Options,
    alternate,
    conditions,
    keep,
    load,
    markdown,
    median_and_worst,
    select,
    values,
)
from benchmarks.obstacles import SCENES, problem
from brenier.methods import Method
from brenier.plan import CHUNK
from brenier.programs import Programs

SCENE = "slit"
PUBLISHED = brenier.HOTA(preset="published")
SMALL = brenier.HOTA(
    objective="residual", mean_shift=False, trajectories=256, rollout_every=2, jitter=False
)
OURS: dict[str, tuple[str, Method[Any], brenier.HOTA]] = {
    "same": ("the same network and batch, 64 wide and 256", SMALL, SMALL),
    "residual": (
        "published sizes against our residual",
        brenier.HOTA(objective="residual"),
        PUBLISHED,
    ),
    "paths": ("published sizes against our default", brenier.HOTA(), PUBLISHED),
}


def run(options: Options) -> None:
    for seed in options.seeds:
        for name in OURS:
            if options.wants({"pair": name}):
                _run(options, name, seed)


def _run(options: Options, name: str, seed: int) -> None:
    _, method, theirs = OURS[name]
    scene = SCENES[SCENE]()
    posed = problem(scene)
    keys = jax.random.split(jax.random.key(seed), 4)
    x, y = (np.asarray(s(k, 10_000)) for s, k in ((scene.source, keys[0]), (scene.target, keys[1])))
    posed = posed.replace(source=x, target=y)
    chunk, compile_seconds = _chunks(method, posed, keys[2])
    network = theirs._network(posed, keys[3])
    step = host_loop.stepper(theirs, posed, network, x, y, seed)
    turn = 2 if options.quick else 10
    medians = alternate(
        {"brenier": chunk, "host": lambda: [step() for _ in range(turn)]},
        rounds=1 if options.quick else 7,
    )
    ours, host = CHUNK / medians["brenier"], turn / medians["host"]
    keep(
        options,
        "loop",
        {"pair": name},
        seed,
        scores={"steps_per_second": ours, "host_steps_per_second": host, "ratio": ours / host},
        seconds={"compile": compile_seconds},
        settings={"ours": method.describe(), "theirs": theirs.describe()},
    )


def _chunks(method: Method[Any], posed: brenier.TransportProblem, key: Any) -> tuple[Any, float]:
    """A call that does a chunk of steps as `fit` does, batches drawn for it, and the seconds to compile it."""
    state = method.init(posed, key)
    program = Programs(method, posed)
    counter = itertools.count()

    def inputs(step: int) -> tuple[Any, ...]:
        source, target = (
            side.draw(jax.random.fold_in(key, i), step, CHUNK, method.batch(posed))
            for i, side in enumerate((posed.source, posed.target))
        )
        return (
            source,
            target,
            key,
            np.int32(step),
            np.int32(CHUNK),
            np.float32(0.5),
            np.float32(0.0),
        )

    start = time.perf_counter()
    advance = program.advance((state, *inputs(0)))
    seconds = time.perf_counter() - start
    held = [jax.tree.map(lambda a: a.copy(), state)]

    def call() -> float:
        held[0], metrics = advance(held[0], *inputs(CHUNK * next(counter)))
        return float(metrics["loss"])

    return call, seconds


def table(results: Path) -> str | None:
    records = load("loop", results)
    if not records:
        return None
    header = ["steps a second", "brenier", "loop over the host", "ratio", "compilation, s"]
    rows = [
        [
            title,
            median_and_worst(values(chosen, "steps_per_second"), better=max),
            median_and_worst(values(chosen, "host_steps_per_second"), better=max),
            median_and_worst(values(chosen, "ratio"), better=max),
            median_and_worst(values(chosen, "compile", "seconds"), digits=2),
        ]
        for name, (title, _, _) in OURS.items()
        if (chosen := select(records, pair=name))
    ]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
