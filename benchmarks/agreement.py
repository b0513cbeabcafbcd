"""Three methods, one problem: do their maps agree?

NCF, HOTA without obstacles and DIOTM learn potentials of the same equation, so that on the same data their maps have to
be the same: on a Gaussian pair, where the truth is smooth, and from the Gaussian to eight Gaussians, where
it tears. The difference of two maps is given in per cent of the target's deviation,
`100 √(E|T₁(x) - T₂(x)|² / Var(ν))`, on 2^14 fresh points. Each method has its default options, but
for pair coordinates, which solve a Gaussian pair outright.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import numpy as np

import brenier
from benchmarks.gaussian import FITS, FRESH, SAMPLES, Pair
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
    "NCF": brenier.NCF(pair_coordinates=False),
    "HOTA": brenier.HOTA(),
    "DIOTM": FITS["diotm"].method,
}
LENGTHS: dict[str, dict[str, Any]] = {
    "NCF": {"time_budget": 60.0},
    "HOTA": {"time_budget": 240.0},
    "DIOTM": {"steps": 2500},
}


def run(options: Options) -> None:
    for seed in options.seeds:
        for problem in PROBLEMS:
            if options.wants({"problem": problem}):
                _run(options, problem, seed)


def _samples(problem: str, seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    """Samples of either side, fresh points of the source, and the exact map where there is one."""
    if problem == "gaussian":
        pair = Pair.draw(2, seed, samples=n)
        return pair.x, pair.y, pair.fresh[0], pair.exact.forward
    keys = jax.random.split(jax.random.key(seed), 3)
    toys = (TOYS["gaussian"], TOYS["eight_gaussians"], TOYS["gaussian"])
    x, y, fresh = (
        np.asarray(toy(key, size)) for toy, key, size in zip(toys, keys, (n, n, FRESH), strict=True)
    )
    return x, y, fresh, None


def _run(options: Options, name: str, seed: int) -> None:
    x, y, fresh, exact = _samples(name, seed, 2000 if options.quick else SAMPLES)
    images, facts = {}, {}
    for title, method in METHODS.items():
        length: dict[str, Any] = {"steps": 4} if options.quick else LENGTHS[title]
        solution = brenier.fit(
            brenier.TransportProblem(x, y),
            method,
            key=jax.random.key(seed),
            early_stopping=False,
            **length,
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
