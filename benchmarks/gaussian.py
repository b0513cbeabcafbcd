"""Gaussian pairs: how close to the exact map, in how many seconds.

Both covariances have uniform eigenvectors and log-eigenvalues uniform on [log ½, log 2]; 100 000
samples a side are given, and UVP is taken on 2^14 fresh points of either side. All fits of one
dimension have the same seconds, compilation included, and use them up: the energy distance, which
decides on an early stop, is blind to a UVP of a few per cent. One row shows what the stop costs.
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
from brenier.metrics import total_variance, uvp

SAMPLES, FRESH = 100_000, 2**14
SECONDS = {2: 60.0, 8: 120.0, 64: 180.0}


@dataclass(frozen=True)
class Row:
    """One line of the table: a method, the dimensions it is tried in, arguments of `fit`."""

    title: str
    method: brenier.NCF | brenier.HJPINN
    dims: tuple[int, ...] = (2, 8)
    fit: dict[str, Any] = field(default_factory=lambda: {"early_stopping": False})


FITS = {
    "ncf": Row("NCF", brenier.NCF()),
    "ncf-early-stop": Row("NCF, early stopping", brenier.NCF(), fit={}),
    "published": Row("NCF as published", brenier.NCF(preset="published")),
    "hjpinn": Row("HJ-PINN", brenier.HJPINN()),
    "gaussian-start": Row(
        "NCF from the closed form", brenier.NCF(gaussian_start=True), dims=(2, 8, 64)
    ),
}
REFERENCES = {
    "linear": "closed form from the samples",
    "identity": "identity",
}
Maps = tuple[HostMap, HostMap]


def run(options: Options) -> None:
    for seed in options.seeds:
        for dim in SECONDS:
            cases = [name for name, row in FITS.items() if dim in row.dims] + list(REFERENCES)
            wanted = [n for n in cases if options.wants({"method": n, "dim": dim})]
            if wanted:
                _run_pair(options, dim, seed, wanted)


def _run_pair(options: Options, dim: int, seed: int, cases: list[str]) -> None:
    exact = brenier.datasets.gaussian_pair(dim, seed)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), dim), 5)
    n = 2000 if options.quick else SAMPLES
    x, y = np.asarray(exact.source(keys[0], n)), np.asarray(exact.target(keys[1], n))
    fresh = np.asarray(exact.source(keys[2], FRESH)), np.asarray(exact.target(keys[3], FRESH))

    def report(case: str, maps: Maps, **facts: Any) -> None:
        (forward, inverse), (x, y) = maps, fresh
        scores = {
            "uvp_forward": uvp(forward(x), exact.forward(x), total_variance(y)),
            "uvp_backward": uvp(inverse(y), exact.inverse(y), total_variance(x)),
        }
        keep(options, "gaussian", {"method": case, "dim": dim}, seed, scores=scores, **facts)

    linear = brenier.GaussianPotential.from_samples(x, y)
    references: dict[str, Maps] = {
        "linear": (linear.forward, linear.inverse),
        "identity": (lambda x: x, lambda y: y),
    }
    for case in cases:
        if case in references:
            report(case, references[case], seconds={})
            continue
        row = FITS[case]
        length = {"steps": 4} if options.quick else {"time_budget": SECONDS[dim]}
        problem = brenier.TransportProblem(x, y)
        solution = brenier.fit(problem, row.method, key=keys[4], **length, **row.fit)
        report(
            case,
            (on_host(solution.transport.forward), on_host(solution.transport.inverse)),
            seconds=solution.info["timings"],
            steps=solution.info["steps"],
            status=solution.status,
            settings=solution.info["method"],
        )


def table(results: Path) -> str | None:
    records = load("gaussian", results)
    if not records:
        return None
    dims = sorted({r["case"]["dim"] for r in records})
    header = ["UVP in %, forward / backward"]
    header += [f"d = {dim}, {SECONDS[dim]:.0f} s" for dim in dims]
    titles = {name: row.title for name, row in FITS.items()} | REFERENCES
    rows = [
        [title, *(_cell(select(records, method=name, dim=dim)) for dim in dims)]
        for name, title in titles.items()
        if select(records, method=name)
    ]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"


def _cell(records: list[dict[str, Any]]) -> str:
    if not records:
        return "–"
    both = (values(records, f"uvp_{way}") for way in ("forward", "backward"))
    return " / ".join(median_and_worst(v, digits=2) for v in both)
