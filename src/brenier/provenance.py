"""What a run was made from: in its result, and in its checkpoints, which continue no other run."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform

import numpy as np

from brenier.costs import fingerprint
from brenier.drifts import probed
from brenier.problem import TransportProblem

PROBED = 1000
"""Points a side at which a state cost is tried."""


def data_hash(problem: TransportProblem) -> str:
    """Sixteen digits that change when the samples do."""
    both = problem.source.digest() + problem.target.digest()
    return hashlib.sha256(both.encode()).hexdigest()[:16]


def state_cost_hash(problem: TransportProblem) -> str | None:
    """The same for the state cost, by what it says around the samples."""
    if problem.state_cost is None:
        return None
    sides = problem.source.pool(PROBED, 0), problem.target.pool(PROBED, 0)
    prices = problem.state_cost.evaluate(surroundings(*sides, 0).astype(problem.dtype))
    return hashlib.sha256(prices.tobytes()).hexdigest()[:16]


def cost_at_probes(problem: TransportProblem) -> list[float]:
    """What tells the cost from another, to the digits that do not depend on where it is computed."""
    return [float(f"{c:.4g}") for c in fingerprint(problem.cost, problem.dim)]


def drift_at_probes(problem: TransportProblem) -> list[float] | None:
    """The same for the base drift."""
    if problem.drift is None:
        return None
    return [float(f"{f:.4g}") for f in probed(problem.drift, problem.dim)]


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a result."""
    return dict(_versions())


@functools.cache  # they are read from files
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("brenier", "jax", "equinox", "optax", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def surroundings(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Where paths may lead: at the samples, between them and around them."""
    rng = np.random.default_rng(seed)
    n = min(len(x), len(y), PROBED)
    x, y = x[rng.permutation(len(x))[:n]], y[rng.permutation(len(y))[:n]]
    low, high = np.minimum(x.min(0), y.min(0)), np.maximum(x.max(0), y.max(0))
    reach = 0.25 * (high - low)
    between = x + rng.uniform(size=(n, 1)) * (y - x)
    around = rng.uniform(low - reach, high + reach, size=x.shape)
    return np.concatenate([x, y, between, around])
