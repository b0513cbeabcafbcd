"""HOTA without obstacles, where the optimum is known: between Gaussians, without noise and with.

The cost is that of 20 000 fresh paths in 300 Runge–Kutta steps, against the closed form: `W₂²/2`, or that of the
Schrödinger bridge. The gap is that of the dynamic certificate on fresh points; arrival as in `benchmarks.obstacles`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import brenier
from benchmarks.harness import (
    Options,
    conditions,
    keep,
    load,
    markdown,
    median_and_worst,
    number,
    select,
    values,
)
from brenier.flow import simulate
from brenier.gaussian import gaussian_cost
from brenier.metrics import wasserstein2_squared

SAMPLES, FRESH, JUDGED = 20_000, 20_000, 2000
NOISES = (0.0, 0.5)
_TURN = np.array([[0.8, -0.6], [0.6, 0.8]])
MOMENTS = (
    np.zeros(2),
    np.diag([1.0, 0.25]),
    np.array([2.0, -1.0]),
    _TURN @ np.diag([0.36, 0.81]) @ _TURN.T,
)


def run(options: Options) -> None:
    for seed in options.seeds:
        for noise in NOISES:
            if options.wants({"noise": noise}):
                _run(options, noise, seed)


def _sample(mean: np.ndarray, covariance: np.ndarray, n: int, rng: Any) -> np.ndarray:
    return mean + rng.normal(size=(n, 2)) @ np.linalg.cholesky(covariance).T


def _run(options: Options, noise: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = MOMENTS[:2], MOMENTS[2:]
    problem = brenier.TransportProblem(
        _sample(*source, SAMPLES, rng), _sample(*target, SAMPLES, rng), noise=noise
    )
    solution = brenier.fit(
        problem,
        brenier.HOTA(),
        key=jax.random.key(seed),
        steps=4 if options.quick else None,
        validation=0.0,
    )
    n = 200 if options.quick else JUDGED
    x, y, other = (_sample(*side, n, rng) for side in (source, target, target))
    roll = jax.jit(partial(simulate, solution.potential, problem, steps=300))
    fresh = jnp.asarray(_sample(*source, FRESH, rng), jnp.float32)
    paths = roll(x=fresh, key=jax.random.key(seed + 1))
    bounds = solution.certificate(x, y)
    exact = gaussian_cost(*MOMENTS, noise=noise)
    keep(
        options,
        "bridge",
        {"noise": noise},
        seed,
        scores={
            "cost": float(paths.kinetic.mean()),
            "exact": exact,
            "error": 100.0 * abs(float(paths.kinetic.mean()) / exact - 1.0),
            "lower": bounds.lower,
            "upper": bounds.upper,
            "gap": 100.0 * bounds.gap,
            "w2_squared": wasserstein2_squared(np.asarray(paths.points[-1][:n]), y),
            "floor": wasserstein2_squared(other, y),
        },
        seconds=solution.info["timings"],
        steps=solution.info["steps"],
        settings=solution.info["method"],
    )


def table(results: Path) -> str | None:
    records = load("bridge", results)
    if not records:
        return None
    header = ["noise", "cost", "closed form", "off by, %", "gap of the certificate, %", "W₂²"]
    rows = []
    for noise in NOISES:
        if chosen := select(records, noise=noise):
            rows.append(
                [
                    number(noise, 2),
                    median_and_worst(values(chosen, "cost"), digits=4),
                    number(values(chosen, "exact")[0], 4),
                    *(median_and_worst(values(chosen, s), digits=2) for s in ("error", "gap")),
                    median_and_worst(values(chosen, "w2_squared")),
                    number(float(np.median(values(chosen, "floor")))),
                    f"{np.median(values(chosen, 'total', 'seconds')):.0f}",
                ]
            )
    header += ["of two target samples", "seconds"]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
