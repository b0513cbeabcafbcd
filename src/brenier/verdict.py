"""How good a map is: against sampling noise, simple maps and the bounds on the cost, in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from brenier.certificate import EXACT_UP_TO, Certificate, certificate
from brenier.discrepancies import energy_distance
from brenier.errors import InputError
from brenier.flow import FlowTransport
from brenier.gaussian import GaussianPotential
from brenier.metrics import (
    kolmogorov_smirnov,
    noise_band,
    round_trip,
    sliced_wasserstein2,
    total_variance,
    violations,
    wasserstein2_squared,
)
from brenier.samplers import check_points
from brenier.solution import Solution
from brenier.state_costs import as_state_cost
from brenier.transport import StraightTransport, Transport

MAX_POINTS = 4096
"""Rows of each side that are scored: the energy distance takes all pairs of them."""

BASELINES = {
    "identity": "the identity",
    "mean_shift": "a mean shift",
    "linear": "the linear (Gaussian) map",
    "discrete": "discrete transport",
}
"""The simple maps, the simplest first, as a sentence calls them."""

SCORES = {
    "sliced_w2": "sliced W2",
    "exact_w2": "exact W2",
    "kolmogorov_smirnov": "largest KS",
}
"""The other scores of the way forward, as a table calls them."""

_RIVALS = (
    "identity",
    "mean_shift",
    "linear",
)  # discrete transport is no map: it knows its points only

# A perfect map is above the 95 % band once in twenty times. Twice that level in the tail, or a misfit too
# small for the eye, is still called a match; a wrong map is many bands away.
_TOLERATED = 1.5
_NEGLIGIBLE = 1e-3  # of the mean distance between points of both sides
_WASTED, _WASTE_SEEN = 0.1, 1e-3  # of the map's cost; of the target's variance
_INSIDE_WALLS = 0.01  # of the time
_DISCRETE = 1024  # points a side of the discrete plan
_EXACT = 256  # points a side of the exact W2
_FEATURES = 64  # columns whose distribution functions are compared
_SPLITS, _QUANTILE = 50, 0.95
_CERTIFIED_EXACTLY = min(2048, EXACT_UP_TO)  # seconds, not minutes
_MOMENTS = 101  # of the paths past walls

_Map = Callable[[np.ndarray], Any]


def evaluate(
    solution: Solution, Xs: Any, Xt: Any, *, state_cost: Any = None, seed: int = 0
) -> dict[str, Any]:
    """Score a map on samples, best on samples it was not fitted to.

    Args:
        solution: of the map.
        Xs: source points (n, d); `MAX_POINTS` random ones are used where there are more.
        Xt: target points (m, d), likewise.
        state_cost: the `U` of the problem, where there was one.
        seed: of that choice, of the noise bands and of the certificate.

    Returns:
        JSON-able. `map` and each of `BASELINES`: the energy distances `forward` (images of the
        source to the target) and `backward`, `ratio`, the larger of both in units of its noise
        band, and `SCORES` of the way forward. `noise_band`: what two samples of one distribution,
        of these sizes, stay below in 95 % of the cases. `round_trip`: `E|S(T(x)) - x|² / Var(x)`.
        `dual_value` and `map_cost`: `E u(1, y) - E u(0, x)` and `E L(T(x) - x)`, equal at the
        optimum. `certificate`: the fields of a `brenier.Certificate`, None where the state cost is
        not known. `violations`: with walls, as `brenier.metrics.violations`. `passed`: whether the
        map holds what a user may expect: images that match the target, and no more than a tenth of
        the cost wasted. `verdict`: sentences.
        A map without an inverse is scored forward only: `backward` and `round_trip` are None, and
        `ratio`, also of the baselines, is that of the way forward. `map_cost` is None where paths
        are not straight.
        The first three baselines are fitted to the very points they are scored on, which favours
        them; discrete transport is fitted to one half of them and carries the other half with the
        nearest point. `SCORES` are taken on that half.

    Raises:
        InputError: the map has another dimension; too few points.

    Example:
        >>> found = evaluate(solution, X, Y)
        >>> sorted(found["map"])[:3]
        ['backward', 'exact_w2', 'forward']
    """
    transport = solution.transport
    source, target = (check_points(p, n) for p, n in ((Xs, "Xs"), (Xt, "Xt")))
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
        "discrete": _discrete(x, y),
    }
    half = slice(min(len(x), len(y)) // 2, None)
    scores: dict[str, Any] = {}
    images = {name: np.asarray(forward(x), np.float64) for name, (forward, _) in maps.items()}
    for name, (_, inverse) in maps.items():
        rows = half if name == "discrete" else slice(None)
        preimages = None if inverse is None else np.asarray(inverse(y[rows]), np.float64)
        scores[name] = _matched(images[name][rows], preimages, x[rows], y[rows], bands, x, y)
    more, more_bands = _more_scores({n: p[half] for n, p in images.items()}, y, half, rng)
    for name, found in more.items():
        scores[name] |= found

    known = _certificate(solution, x, y, state_cost, seed)
    walls = None
    if state_cost is not None:
        walls = _violations(transport, x, as_state_cost(state_cost, transport.dim, points=x))
    passed, words = _verdict(scores, transport, known, walls, total_variance(y))
    return {
        "points": {"source": len(source), "target": len(target), "scored": [len(x), len(y)]},
        "noise_band": bands | more_bands,
        **scores,
        "round_trip": round_trip(x, transport.inverse(images["map"])) / 100
        if transport.invertible
        else None,
        "dual_value": _dual_value(solution, x, y),
        "map_cost": float(np.mean(np.asarray(transport.paid(images["map"] - x), np.float64)))
        if isinstance(transport, StraightTransport)
        else None,
        "certificate": None if known is None else known.to_dict(),
        "violations": walls,
        "passed": passed,
        "verdict": words,
    }


def _some(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most `MAX_POINTS` of them, in a random order: halves are alike."""
    return np.asarray(points[rng.permutation(len(points))[:MAX_POINTS]], np.float64)


def _discrete(x: np.ndarray, y: np.ndarray) -> tuple[_Map, _Map]:
    """The optimal pairing of one half of the points, carried to others with the nearest point."""
    n = min(len(x) // 2, len(y) // 2, _DISCRETE)
    x, y = x[:n], y[:n]
    _, columns = linear_sum_assignment(cdist(x, y, "sqeuclidean"))
    partner = y[columns], x[np.argsort(columns)]

    def carried(own: np.ndarray, other: np.ndarray) -> _Map:
        tree = KDTree(own)

        def move(points: np.ndarray) -> np.ndarray:
            nearest = tree.query(points)[1]
            return points + (other - own)[nearest]

        return move

    return carried(x, partner[0]), carried(y, partner[1])


def _matched(
    images: np.ndarray,
    preimages: np.ndarray | None,
    x: np.ndarray,
    y: np.ndarray,
    bands: dict[str, float | None],
    all_x: np.ndarray,
    all_y: np.ndarray,
) -> dict[str, float | None]:
    """Energy distances of one map; `bands` belong to all points, and grow where some are scored."""
    smaller = (1 / len(x) + 1 / len(y)) / (1 / len(all_x) + 1 / len(all_y))
    found: dict[str, float | None] = {}
    ratios, misfits = [], []
    for way, moved, points in (("forward", images, y), ("backward", preimages, x)):
        found[way] = None if moved is None else _energy(moved, points)
        band, distance = bands[way], found[way]
        if distance is None or band is None or moved is None:
            continue
        ratios.append(distance / (band * smaller) if band > 0 else np.inf)
        apart = float(cdist(moved[:_EXACT], points[:_EXACT]).mean())
        misfits.append(distance / (2.0 * apart) if apart > 0 else 0.0)
    return found | {"ratio": float(max(ratios)), "misfit": float(max(misfits))}


def _energy(images: np.ndarray, points: np.ndarray) -> float:
    # In float32 the digits of points far from the origin, or tiny, must not be lost.
    center = points.mean(axis=0)
    scale = float(np.sqrt(np.mean((points - center) ** 2))) or 1.0
    normal = (jnp.asarray((a - center) / scale) for a in (images, points))
    return scale * float(energy_distance(*normal))


def _more_scores(
    images: dict[str, np.ndarray], y: np.ndarray, half: slice, rng: np.random.Generator
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """`SCORES` of every map's images against the target, and their bands, at equal sizes."""
    others = y[half]
    seed = int(rng.integers(2**31))
    columns = np.linspace(0, y.shape[1] - 1, min(y.shape[1], _FEATURES)).astype(int)
    n = min(len(images["map"]), len(others), len(y) // 2)
    statistics: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], int]] = {
        "sliced_w2": (lambda a, b: sliced_wasserstein2(a, b, seed=seed), n),
        "exact_w2": (lambda a, b: wasserstein2_squared(a, b) ** 0.5, min(n, _EXACT)),
        "kolmogorov_smirnov": (
            lambda a, b: float(kolmogorov_smirnov(a[:, columns], b[:, columns]).max()),
            n,
        ),
    }
    scores: dict[str, dict[str, float]] = {name: {} for name in images}
    bands = {}
    for statistic, (measure, size) in statistics.items():
        for name, points in images.items():
            scores[name][statistic] = measure(points[:size], others[:size])
        splits = (y[rng.permutation(len(y))[: 2 * size]] for _ in range(_SPLITS))
        noise = [measure(both[:size], both[size:]) for both in splits]
        bands[statistic] = float(np.quantile(noise, _QUANTILE))
    return scores, bands


def _dual_value(solution: Solution, x: np.ndarray, y: np.ndarray) -> float:
    """`E u(1, y) - E u(0, x)`: in float64, because it is a small difference of large numbers."""
    with jax.enable_x64(True):
        values = jax.jit(jax.vmap(solution.potential, in_axes=(None, 0)))
        ends = [values(jnp.asarray(t), jnp.asarray(p)) for t, p in ((1.0, y), (0.0, x))]
        return float(jnp.mean(ends[0]) - jnp.mean(ends[1]))


def _certificate(
    solution: Solution, x: np.ndarray, y: np.ndarray, state_cost: Any, seed: int
) -> Certificate | None:
    """The bounds on the cost, where all of the problem is known and there are points enough."""
    straight = isinstance(solution.transport, StraightTransport)
    if not straight and state_cost is None and solution.info.get("state_cost") is not False:
        return None
    if min(len(x), len(y)) < 16:
        return None
    return certificate(
        solution, x, y, state_cost=state_cost, seed=seed, exact_up_to=_CERTIFIED_EXACTLY
    )


def _violations(transport: Transport, x: np.ndarray, state_cost: Any) -> dict[str, float] | None:
    if state_cost.obstacle is None:
        return None
    times = np.linspace(0.0, 1.0, _MOMENTS)
    return violations(times, np.asarray(transport.trajectory(x[:_DISCRETE], times)), state_cost)


def _verdict(
    scores: dict[str, dict[str, float]],
    transport: Transport,
    known: Certificate | None,
    walls: dict[str, float] | None,
    variance: float,
) -> tuple[bool, str]:
    """Whether the map passes, and why, in plain words."""
    ratio, misfit = scores["map"]["ratio"], scores["map"]["misfit"]
    matches = ratio <= _TOLERATED or misfit <= _NEGLIGIBLE
    sentences = [_match_in_words(scores, transport, matches)]
    cheap = True
    if known is not None:
        beyond = (known.upper - known.lower) / known.lower if known.lower > 0.0 else np.inf
        if known.excess is not None and known.map_cost > 0.0:
            share = known.excess / known.map_cost
            cheap = share <= _WASTED or known.excess <= _WASTE_SEEN * variance
            if not cheap:
                sentences.append(f"Up to {share:.0%} of its cost is wasted: it is not optimal.")
        if cheap and beyond < 1.0:
            bound = "sampled lower bound" if known.sampled else "lower bound"
            sentences.append(f"Its cost is at most {100 * beyond:.2g} % above the {bound}.")
        elif cheap:
            sentences.append("The bounds on the cost are too far apart to prove anything.")
    free = True
    if walls is not None:
        free = walls["time_inside"] <= _INSIDE_WALLS
        sentences.append(f"Paths are inside walls {walls['time_inside']:.2%} of the time.")
    return bool(matches and cheap and free), " ".join(sentences)


def _match_in_words(
    scores: dict[str, dict[str, float]], transport: Transport, matches: bool
) -> str:
    ratio = scores["map"]["ratio"]
    enough = [name for name in _RIVALS if scores[name]["ratio"] <= 1.0]  # the simplest first
    best = enough[0] if enough else min(_RIVALS, key=lambda name: scores[name]["ratio"])
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
    if matches:
        found = f"{found}, which is little"
        return f"{found}; {name}, the best simple one, misses by {rival:.2g} times."
    if rival <= 1.0:
        return f"{found}, while {name} stays within it: {advice}."
    if rival <= ratio:
        return f"{found} and is no better than {name} ({rival:.2g} times): {advice}."
    return f"{found}; {name}, the best simple one, misses by {rival:.2g} times."
