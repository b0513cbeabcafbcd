"""Gaussian pairs: how close to the exact map, in how many seconds.

Both covariances have uniform eigenvectors and log-eigenvalues uniform on [log ½, log 2]; 100 000
samples a side are given, and UVP is taken on 2^14 fresh points of either side. A fit uses its
seconds up, compilation included: the energy distance, which decides on an early stop, is blind to
a UVP of a few per cent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

import brenier
from benchmarks.harness import (
    HostMap,
    Options,
    conditions,
    keep,
    load,
    markdown,
    median_and_worst,
    on_host,
    select,
    values,
)
from brenier.methods import Method
from brenier.metrics import total_variance, uvp

DIMS = (2, 4, 8, 16, 32, 64)
SAMPLES, FRESH = 100_000, 2**14
SECONDS = {2: 60.0, 8: 60.0}


@dataclass(frozen=True)
class Row:
    """One line of the table: a method and its seconds by dimension, or its steps where they shall be equal."""

    title: str
    method: Method[Any]
    seconds: dict[int, float] = field(default_factory=lambda: SECONDS)
    steps: dict[int, int] | None = None

    @property
    def lengths(self) -> dict[int, dict[str, Any]]:
        """By dimension, how `fit` is told when to end."""
        if self.steps is not None:
            return {dim: {"steps": steps} for dim, steps in self.steps.items()}
        return {dim: {"time_budget": seconds} for dim, seconds in self.seconds.items()}

    @property
    def heading(self) -> str:
        """The title with the length of a fit."""
        amounts = self.steps or self.seconds
        unit = "steps" if self.steps else "s"
        return f"{self.title}, {' / '.join(f'{a:.0f}' for a in dict.fromkeys(amounts.values()))} {unit}"


FITS = {
    "dual": Row(
        "NCF, dual, without pair coordinates",
        brenier.NCF(pair_coordinates=False),
        seconds={2: 60.0, 4: 60.0, 8: 60.0, 16: 60.0, 32: 60.0, 64: 120.0},
    ),
    "diotm": Row(
        "DIOTM, without pair coordinates",
        # In other coordinates most of the potential is its quadratic part, which wants smaller steps
        # and, in many dimensions, more of the equation.
        brenier.DIOTM(
            pair_coordinates=False, learning_rate=1e-3, map_learning_rate=3e-3, hj_weight=0.2
        ),
        # More of them learn the 100 000 samples by heart: at d = 32 9000 are five times worse.
        steps={2: 2500, 8: 2500, 32: 2500},
    ),
    "ncf": Row("NCF, energy distance", brenier.NCF(objective="energy")),
    "hjpinn": Row("HJ-PINN, with our recipe", brenier.HJPINN()),
    "published": Row("NCF as published", brenier.NCF(preset="published"), steps={2: 1000, 8: 1000}),
    "pinn-published": Row(
        "HJ-PINN as published", brenier.HJPINN(preset="published"), steps={2: 1000, 8: 1000}
    ),
    "gaussian-start": Row(
        "NCF from the closed form",
        brenier.NCF(objective="energy", gaussian_start=True),
        seconds={2: 15.0, 8: 20.0, 64: 45.0},
    ),
}
REFERENCES = {
    "linear": "closed form from the samples",
    "identity": "identity",
}


def run(options: Options) -> None:
    for seed in options.seeds:
        for dim in DIMS:
            cases = [name for name, row in FITS.items() if dim in row.lengths] + list(REFERENCES)
            wanted = [n for n in cases if options.wants({"method": n, "dim": dim})]
            if wanted:
                _run_pair(options, dim, seed, wanted)


@dataclass(frozen=True)
class Pair:
    """One random pair, its samples `x`, `y` for the fit, and fresh points for the score."""

    exact: brenier.datasets.ExactProblem
    x: np.ndarray
    y: np.ndarray
    fresh: tuple[np.ndarray, np.ndarray]
    key: jax.Array

    @classmethod
    def draw(cls, dim: int, seed: int, *, samples: int = SAMPLES) -> Pair:
        exact = brenier.datasets.gaussian_pair(dim, seed)
        *keys, fit_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), dim), 5)
        x, y, *fresh = (
            np.asarray(side(key, n))
            for side, key, n in zip(
                2 * (exact.source, exact.target),
                keys,
                (samples, samples, FRESH, FRESH),
                strict=True,
            )
        )
        return cls(exact, x, y, (fresh[0], fresh[1]), fit_key)

    def uvps(self, forward: HostMap, inverse: HostMap) -> dict[str, float]:
        x, y = self.fresh
        return {
            "uvp_forward": uvp(forward(x), self.exact.forward(x), total_variance(y)),
            "uvp_backward": uvp(inverse(y), self.exact.inverse(y), total_variance(x)),
        }

    def fit(self, method: Method[Any], **arguments: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """Both UVPs of a fit, and what else is worth keeping of it."""
        problem = brenier.TransportProblem(self.x, self.y)
        solution = brenier.fit(problem, method, key=self.key, **arguments)
        transport, info = solution.transport, solution.info
        facts = {
            "seconds": info["timings"],
            "steps": info["steps"],
            "status": solution.status,
            "settings": info["method"],
        }
        return self.uvps(on_host(transport.forward), on_host(transport.inverse)), facts


def _run_pair(options: Options, dim: int, seed: int, names: list[str]) -> None:
    pair = Pair.draw(dim, seed, samples=2000 if options.quick else SAMPLES)
    for name in names:
        if name in FITS:
            row = FITS[name]
            length = {"steps": 4} if options.quick else row.lengths[dim]
            scores, facts = pair.fit(row.method, early_stopping=False, **length)
        elif name == "linear":
            linear = brenier.GaussianPotential.from_samples(pair.x, pair.y)
            scores, facts = pair.uvps(linear.forward, linear.inverse), {"seconds": {}}
        else:
            scores, facts = pair.uvps(lambda x: x, lambda y: y), {"seconds": {}}
        keep(options, "gaussian", {"method": name, "dim": dim}, seed, scores=scores, **facts)


def table(results: Path) -> str | None:
    records = load("gaussian", results)
    if not records:
        return None
    dims = sorted({r["case"]["dim"] for r in records})
    header = ["UVP in %, forward / backward"]
    header += [f"d = {dim}" for dim in dims]
    titles = {name: row.heading for name, row in FITS.items()} | REFERENCES
    rows = [
        [title, *(uvp_cell(select(records, method=name, dim=dim)) for dim in dims)]
        for name, title in titles.items()
        if select(records, method=name)
    ]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"


def uvp_cell(records: list[dict[str, Any]]) -> str:
    if not records:
        return "–"
    both = (values(records, f"uvp_{way}") for way in ("forward", "backward"))
    return " / ".join(median_and_worst(v, digits=2) for v in both)
