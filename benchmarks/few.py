"""Few samples: how far from the exact map is one that was fitted to some hundred or thousand points?

The sources are mixtures of three Gaussians, the maps gradients of random convex potentials, another pair for every
seed (`brenier.datasets.convex_gradient`). UVP is taken on 2^14 fresh points. Beside our default stand the same method
with the networks and batches that it has for many samples, the linear map, and the optimal plan between the samples,
by which a fresh point moves as the sample that is nearest to it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
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
from brenier.datasets import convex_gradient
from brenier.metrics import uvp

DIMS, SIZES, FRESH = (2, 8, 32), (256, 1024, 4096), 2**14
AS_FOR_MANY: dict[int, dict[str, Any]] = {
    2: {"widths": (64, 64, 64, 32), "batch_size": 1024},
    8: {"widths": (80, 80, 80, 80, 40), "batch_size": 2048},
    32: {"widths": (128, 128, 64), "batch_size": 1024},
}

Fit = Callable[[np.ndarray, np.ndarray, int, int | None], tuple[HostMap, dict[str, Any]]]


def _ours(options: dict[int, dict[str, Any]]) -> Fit:
    def fit(x: np.ndarray, y: np.ndarray, seed: int, steps: int | None) -> Any:
        method = brenier.NCF(**options.get(x.shape[1], {}))
        key = jax.random.key(seed)
        solution = brenier.fit(brenier.TransportProblem(x, y), method, key=key, steps=steps)
        info = solution.info
        facts = {"steps": info["steps"], "settings": info["method"], "status": solution.status}
        return on_host(solution.transport.forward), facts

    return fit


def _linear(x: np.ndarray, y: np.ndarray, seed: int, steps: int | None) -> Any:
    return brenier.GaussianPotential.from_samples(x, y).forward, {}


def _discrete(x: np.ndarray, y: np.ndarray, seed: int, steps: int | None) -> Any:
    import ot
    from scipy.spatial import KDTree

    partner = np.argmax(ot.emd([], [], ot.dist(x, y), numItermax=10_000_000), axis=1)
    move, tree = y[partner] - x, KDTree(x)
    return lambda fresh: fresh + move[tree.query(fresh)[1]], {}


METHODS: dict[str, tuple[str, Fit]] = {
    "ncf": ("NCF", _ours({})),
    "many": ("NCF, as for many samples", _ours(AS_FOR_MANY)),
    "linear": ("linear (Gaussian) map", _linear),
    "discrete": ("optimal plan, the move of the nearest sample", _discrete),
}


def run(options: Options) -> None:
    for seed in options.seeds:
        for dim in DIMS:
            exact = convex_gradient(dim, seed)
            for n in SIZES[:1] if options.quick else SIZES:
                for name in METHODS:
                    case = {"method": name, "dim": dim, "n": n}
                    if options.wants(case):
                        _run(options, case, exact, seed)


def _run(options: Options, case: dict[str, Any], exact: Any, seed: int) -> None:
    keys = jax.random.split(jax.random.key(seed), 3)
    x, y = (
        np.asarray(side(key, case["n"]), np.float32)
        for side, key in zip((exact.source, exact.target), keys[:2], strict=True)
    )
    fresh = np.asarray(exact.source(keys[2], FRESH), np.float32)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", brenier.BrenierWarning)
        forward, facts = METHODS[case["method"]][1](x, y, seed, 4 if options.quick else None)
    seconds = time.perf_counter() - start
    scores = {"uvp": uvp(np.asarray(forward(fresh)), exact.forward(fresh))}
    keep(
        options,
        "few",
        case,
        seed,
        scores=scores,
        seconds={"wall": seconds},
        packages=("POT",),
        **facts,
    )


def table(results: Path) -> str | None:
    """UVP and seconds of every method by dimension and number of samples."""
    records = load("few", results)
    if not records:
        return None
    header = ["d", "samples a side"]
    header += [f"{title}: UVP, % / s" for title, _ in METHODS.values()]
    rows = []
    for dim in DIMS:
        for n in SIZES:
            row = [str(dim), str(n)]
            for method in METHODS:
                found = select(records, method=method, dim=dim, n=n)
                score = median_and_worst(values(found, "uvp")) if found else "–"
                seconds = f"{np.median(values(found, 'wall', 'seconds')):.2g}" if found else "–"
                row.append(f"{score} / {seconds}")
            rows.append(row)
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
