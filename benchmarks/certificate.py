"""Certificates: how often the interval holds the true cost, how wide the bounds are, and no bound above the optimum.

Gaussian pairs have random covariances and means, another pair for every draw; the potential is the
closed form from 2000 samples of each side, so a learned one whose error is known to be small, or
none at all (the identity). On the Wasserstein-2 benchmark, and for the gap of a default fit, an NCF
is fitted once a seed and certified on fresh points again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import brenier
from benchmarks.harness import Options, conditions, keep, load, markdown, number, select, values
from brenier.coordinates import Frame
from brenier.costs import Quadratic
from brenier.datasets import ExactProblem
from brenier.metrics import uvp
from brenier.solution import Metadata, Solution

DIMS = (2, 8)
HELD_OUT, TRAINING = 1000, 2000
FRESH = 8192  # for the gap of a fit
PAIRS, SETS = 50, 20  # draws a seed: Gaussian pairs, and point sets for one fit
SECONDS = 60.0
TITLES = {
    "linear": "Gaussians, closed form from samples",
    "identity": "Gaussians, identity",
    "fit": "Gaussians, NCF",
    "w2": "Wasserstein-2 benchmark, NCF",
}


def run(options: Options) -> None:
    for seed in options.seeds:
        for dim in DIMS:
            for name in ("linear", "identity"):
                if options.wants({"potential": name, "dim": dim}):
                    draws = _gaussians(name, dim, seed, 2 if options.quick else PAIRS)
                    _keep(options, name, dim, seed, draws)
            for name in ("fit", "w2"):
                if not options.wants({"potential": name, "dim": dim}):
                    continue
                if name == "fit":
                    exact = brenier.datasets.gaussian_pair(dim, seed)
                elif options.data is not None:
                    exact = brenier.datasets.w2_benchmark(options.data / "w2_benchmark", dim)
                else:
                    continue
                _keep(options, name, dim, seed, _fitted(exact, seed, options.quick))


Draw = tuple[brenier.Certificate, float, float]  # with the true cost, and the UVP of the map


def _gaussians(name: str, dim: int, seed: int, draws: int) -> Iterator[Draw]:
    for draw in range(draws):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), draw), 5)
        exact = brenier.datasets.gaussian_pair(dim, keys[0], mean=0.5)
        train = _sample(exact, keys[1:3], TRAINING)
        potential = brenier.GaussianPotential.from_samples(*train)
        if name == "identity":
            flat = np.zeros(dim)
            potential = brenier.GaussianPotential(flat, flat, np.eye(dim), np.ones(dim))
        solution = _closed_form(potential)
        yield _certified(solution, exact, keys[3:], HELD_OUT)


def _fitted(exact: ExactProblem, seed: int, quick: bool) -> Iterator[Draw]:
    keys = jax.random.split(jax.random.key(seed), 2 * SETS + 4)
    problem = brenier.TransportProblem(*_sample(exact, keys[:2], 2000 if quick else 100_000))
    length: dict[str, Any] = {"steps": 4} if quick else {"time_budget": SECONDS}
    solution = brenier.fit(problem, brenier.NCF(), key=keys[2], **length)
    for draw in range(1 if quick else SETS):
        pair = keys[2 * draw + 4 : 2 * draw + 6]
        yield _certified(solution, exact, pair, HELD_OUT if quick else FRESH)


def _certified(solution: Solution, exact: ExactProblem, keys: Any, n: int) -> Draw:
    x, y = _sample(exact, keys, n)
    found = brenier.certificate(solution, x, y, exact_up_to=HELD_OUT)
    error = uvp(np.asarray(solution.transport.forward(x)), exact.forward(x))
    return found, exact.cost, error


def _sample(exact: ExactProblem, keys: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(exact.source(keys[0], n)), np.asarray(exact.target(keys[1], n))


def _closed_form(potential: brenier.GaussianPotential) -> Solution:
    frame = Frame.identity(len(potential.stretch))
    arrays = jax.tree.map(jnp.asarray, potential)
    transport = brenier.CharacteristicTransport(arrays, frame, Quadratic())
    return Solution(transport, {}, "completed", "", Metadata({}), Metadata({}))


def _keep(options: Options, name: str, dim: int, seed: int, draws: Iterator[Draw]) -> None:
    all_ = list(draws)
    held = [c.interval[0] <= cost <= c.interval[1] for c, cost, _ in all_]
    above = [c.lower > c.exact for c, _, _ in all_ if c.exact is not None]
    known = [(c.map_error, error) for c, _, error in all_ if c.map_error is not None]
    keep(
        options,
        "certificate",
        {"potential": name, "dim": dim},
        seed,
        scores={
            "draws": len(all_),
            "held": float(np.sum(held)),
            "compared": len(above),
            "above": float(np.sum(above)),
            "gap": float(np.median([c.gap for c, _, _ in all_])),
            "largest_gap": float(np.max([c.gap for c, _, _ in all_])),
            "width": float(np.median([np.ptp(c.interval) / cost for c, cost, _ in all_])),
            "uvp": float(np.median([error for _, _, error in all_])),
            "uvp_bound": float(np.median([bound for bound, _ in known])) if known else np.nan,
            "uvp_above_bound": float(np.sum([error > bound for bound, error in known])),
        },
        seconds={},
    )


def table(results: Path) -> str | None:
    records = load("certificate", results)
    if not records:
        return None
    header = ["potential", "d", "true cost inside", "lower bound above the discrete optimum"]
    header += ["gap, % (largest)", "interval, % of the cost", "UVP, % (bound)"]
    rows = []
    for name, title in TITLES.items():
        for dim in DIMS:
            found = select(records, potential=name, dim=dim)
            if not found:
                continue
            total = {k: sum(values(found, k)) for k in ("draws", "held", "compared", "above")}
            middle = {k: float(np.median(values(found, k))) for k in found[0]["scores"]}
            largest = max(values(found, "largest_gap"))
            row = [title, str(dim), f"{total['held']:.0f} of {total['draws']:.0f}"]
            row += [
                f"{total['above']:.0f} of {total['compared']:.0f}",
                f"{number(100 * middle['gap'], 2)} ({number(100 * largest, 2)})",
            ]
            row += [number(100 * middle["width"], 2)]
            row += [f"{number(middle['uvp'], 2)} ({number(middle['uvp_bound'], 2)})"]
            rows.append(row)
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
