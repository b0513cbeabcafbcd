"""Three methods, one problem: do their maps agree?

NCF, HOTA without obstacles and DIOTM learn potentials of the same equation, so that on the same data their maps have to
be the same: on a Gaussian pair, where the truth is smooth, and from the Gaussian to eight Gaussians, where
it tears. The difference of two maps is given in per cent of the target's deviation,
`100 √(E|T₁(x) - T₂(x)|² / Var(ν))`, on 2^14 fresh points. Each method has its default options, but
for the size of its batches: where the truth is smooth, their noise is most of what is left. (NCF and DIOTM
start from the linear map, which on the Gaussian pair is the answer; HOTA from a translation.) Samples have
no end: of a finite set each method would learn other traits by heart.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import numpy as np

import brenier
from benchmarks.gaussian import FRESH
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
from brenier.datasets import TOYS
from brenier.methods import Method
from brenier.metrics import total_variance, uvp

PROBLEMS = {"gaussian": "Gaussian pair, d = 2", "eight": "Gaussian → eight Gaussians"}
METHODS: dict[str, Method[Any]] = {
    "NCF": brenier.NCF(batch_size=4096),
    "HOTA": brenier.HOTA(batch_size=2048, pool=4096, improved=1024, refreshed=64),
    "DIOTM": brenier.DIOTM(),
}
STEPS = {"NCF": 2000, "HOTA": 2000, "DIOTM": 2500}


def run(options: Options) -> None:
    for seed in options.seeds:
        for problem in PROBLEMS:
            if options.wants({"problem": problem}):
                _run(options, problem, seed)


def _problem(name: str, seed: int) -> tuple[Callable[..., Any], Callable[..., Any], Any]:
    """Samplers of either side, and the exact map where there is one."""
    if name == "gaussian":
        exact = brenier.datasets.gaussian_pair(2, seed)
        return exact.source, exact.target, exact.forward
    return TOYS["gaussian"], TOYS["eight_gaussians"], None


def _run(options: Options, name: str, seed: int) -> None:
    source, target, exact = _problem(name, seed)
    fresh, y = (
        np.asarray(side(key, FRESH))
        for side, key in zip((source, target), jax.random.split(jax.random.key(seed)), strict=True)
    )
    images, facts = {}, {}
    for title, method in METHODS.items():
        solution = brenier.fit(
            brenier.TransportProblem(source, target),
            method,
            key=jax.random.key(seed),
            early_stopping=False,
            steps=4 if options.quick else STEPS[title],
        )
        images[title] = np.asarray(solution.transport.forward(fresh))
        facts[title] = {"steps": solution.info["steps"], "seconds": solution.info["timings"]}
    variance = total_variance(y)
    scores = {
        f"{a}-{b}": uvp(images[a], images[b], variance) ** 0.5 * 10.0
        for a, b in combinations(METHODS, 2)
    }
    if exact is not None:
        truth = exact(fresh)
        scores |= {f"{a}-exact": uvp(images[a], truth, variance) ** 0.5 * 10.0 for a in METHODS}
    keep(options, "agreement", {"problem": name}, seed, scores=scores, seconds={}, fits=facts)


def table(results: Path) -> str | None:
    records = load("agreement", results)
    if not records:
        return None
    columns = [f"{a}-{b}" for a, b in combinations(METHODS, 2)] + [f"{a}-exact" for a in METHODS]
    rows = [
        [title, *(median_and_worst(values(chosen, c), digits=2) for c in columns)]
        for name, title in PROBLEMS.items()
        if (chosen := select(records, problem=name))
    ]
    header = ["difference in % of the deviation", *(c.replace("-", " – ") for c in columns)]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
