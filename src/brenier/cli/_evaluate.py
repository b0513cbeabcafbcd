"""How good a map is, held against sampling noise, three simple maps, and itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from brenier.discrepancies import energy_distance
from brenier.errors import InputError
from brenier.flow import FlowTransport
from brenier.gaussian import GaussianPotential
from brenier.metrics import noise_band, round_trip
from brenier.solution import Solution
from brenier.transport import StraightTransport, Transport

MAX_POINTS = 4096
"""Rows of each side that are scored: the energy distance takes all pairs of them."""

BASELINES = {
    "identity": "the identity",
    "mean_shift": "a mean shift",
    "linear": "the linear (Gaussian) map",
}

_Map = Callable[[np.ndarray], Any]


def evaluate(
    solution: Solution, source: np.ndarray, target: np.ndarray, *, seed: int = 0
) -> dict[str, Any]:
    """Score a map on samples, best on samples it was not fitted to.

    Args:
        solution: of the map.
        source: points (n, d); `MAX_POINTS` random ones are used where there are more.
        target: points (m, d), likewise.
        seed: of that choice and of the noise band.

    Returns:
        JSON-able. `map` and each of `BASELINES`: the energy distances `forward` (images of the
        source to the target) and `backward`, and `ratio`, the larger of both in units of its noise
        band. `noise_band`: what two samples of one distribution, of these sizes, stay below in 95 %
        of the cases. `round_trip`: `E|S(T(x)) - x|² / Var(x)`. `dual_value` and `map_cost`:
        `E u(1, y) - E u(0, x)` and `E L(T(x) - x)`, equal at the optimum. `verdict`: a sentence.
        A map without an inverse is scored forward only: `backward` and `round_trip` are None, and
        `ratio`, also of the baselines, is that of the way forward. `map_cost` is None where paths
        are not straight.
        The baselines are fitted to the very points they are scored on, which favours them.

    Raises:
        InputError: the map has another dimension; too few points.
    """
    transport = solution.transport
    for name, points in (("source", source), ("target", target)):
        if points.shape[1] != transport.dim:
            raise InputError(
                f"Expected {name} points with {transport.dim} columns, as the map was fitted on, "
                f"found {points.shape[1]}; give the files it belongs to."
            )
    rng = np.random.default_rng(seed)
    x, y = _some(source, rng), _some(target, rng)
    key = jax.random.key(seed)
    bands: dict[str, float | None] = {
        "forward": noise_band(y, len(x), len(y), key=key),
        "backward": noise_band(x, len(y), len(x), key=key) if transport.invertible else None,
    }
    shift = y.mean(axis=0) - x.mean(axis=0)
    linear = GaussianPotential.from_samples(x, y)
    maps: dict[str, tuple[_Map, _Map | None]] = {
        "map": (transport.forward, transport.inverse if transport.invertible else None),
        "identity": (lambda x: x, lambda y: y),
        "mean_shift": (lambda x: x + shift, lambda y: y - shift),
        "linear": (linear.forward, linear.inverse),
    }
    scores: dict[str, Any] = {
        name: _scored(forward(x), None if inverse is None else inverse(y), x, y, bands)
        for name, (forward, inverse) in maps.items()
    }
    images = np.asarray(transport.forward(x))
    return {
        "points": {"source": len(source), "target": len(target), "scored": [len(x), len(y)]},
        "noise_band": bands,
        **scores,
        "round_trip": round_trip(x, transport.inverse(images)) / 100
        if transport.invertible
        else None,
        "dual_value": _dual_value(solution, x, y),
        "map_cost": float(np.mean(np.asarray(transport.paid(images - x), np.float64)))
        if isinstance(transport, StraightTransport)
        else None,
        "verdict": _verdict(scores, transport),
    }


def _some(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if len(points) > MAX_POINTS:
        rows = np.sort(rng.choice(len(points), MAX_POINTS, replace=False, shuffle=False))
        points = points[rows]
    return np.asarray(points, np.float64)


def _scored(
    images: np.ndarray,
    preimages: np.ndarray | None,
    x: np.ndarray,
    y: np.ndarray,
    bands: dict[str, float | None],
) -> dict[str, float | None]:
    distances = {
        "forward": _energy(images, y),
        "backward": None if preimages is None else _energy(preimages, x),
    }
    ratios = [
        distance / band if band > 0 else np.inf
        for distance, band in zip(distances.values(), bands.values(), strict=True)
        if distance is not None and band is not None
    ]
    return distances | {"ratio": float(max(ratios))}


def _energy(images: np.ndarray, points: np.ndarray) -> float:
    # In float32 the digits of points far from the origin, or tiny, must not be lost.
    center = points.mean(axis=0)
    scale = float(np.sqrt(np.mean((points - center) ** 2))) or 1.0
    normal = (jnp.asarray((a - center) / scale) for a in (images, points))
    return scale * float(energy_distance(*normal))


def _dual_value(solution: Solution, x: np.ndarray, y: np.ndarray) -> float:
    """`E u(1, y) - E u(0, x)`: in float64, because it is a small difference of large numbers."""
    with jax.enable_x64(True):
        values = jax.jit(jax.vmap(solution.potential, in_axes=(None, 0)))
        ends = [values(jnp.asarray(t), jnp.asarray(p)) for t, p in ((1.0, y), (0.0, x))]
        return float(jnp.mean(ends[0]) - jnp.mean(ends[1]))


def _verdict(scores: dict[str, dict[str, float]], transport: Transport) -> str:
    ratio = scores["map"]["ratio"]
    enough = [name for name in BASELINES if scores[name]["ratio"] <= 1.0]  # the simplest first
    best = enough[0] if enough else min(BASELINES, key=lambda name: scores[name]["ratio"])
    rival, name = scores[best]["ratio"], BASELINES[best]
    curved = isinstance(transport, FlowTransport)
    # A simple map is no way out where there are walls or noise, which this file does not know.
    advice = "fit longer" if curved else "fit longer or use that"
    if ratio <= 1.0:
        moved = "each side into the other" if transport.invertible else "the source into the target"
        found = f"The map turns {moved} within sampling noise"
        if rival <= 1.0:
            more = "more, unless there are walls or noise" if curved else "more"
            return f"{found}, and so does {name}: these points do not call for {more}."
        return f"{found}; {name}, the best simple one, misses by {rival:.2g} times the noise."
    found = f"The map misses by {ratio:.2g} times the sampling noise"
    if rival <= 1.0:
        return f"{found}, while {name} stays within it: {advice}."
    if rival <= ratio:
        return f"{found} and is no better than {name} ({rival:.2g} times): {advice}."
    return f"{found}; {name}, the best simple one, misses by {rival:.2g} times."
