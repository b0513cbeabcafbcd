"""Scenes with obstacles: what a path costs, whether it arrives, and how long it is in a wall.

Paths of 2000 fresh source points are rolled out in 300 Runge–Kutta steps, in the 30 of the
published evaluation, and in as many of Euler and Maruyama's, with the published noise. Costs are `E ∫ ½|v|² + U dt`
with the state cost's own sign and weight. Where `U` is soft at its edge, cutting through pays: to
keep out, a fit sees it `WEIGHTS` times as high. Arrival is the exact squared `W₂` between the ends
and 2000 fresh target points, beside that of two samples of the target; GMM with equally many points
in every component. The published tables have a Sinkhorn divergence at ε = 1e-3 there, after 30 of
Euler's steps and without a word on whether it converged: it stands beside, with whether it did.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import jax
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
from brenier.datasets.obstacles import Scene, baby_maze, box, gmm, slit, stunnel, vneck
from brenier.flow import simulate
from brenier.metrics import violations, wasserstein2_squared

JUDGED = 2000
ROLLOUTS: dict[str, tuple[int, Literal["rk4", "euler"]]] = {
    "300": (300, "rk4"),
    "30": (30, "rk4"),
    "300_euler": (300, "euler"),
    "30_euler": (30, "euler"),
}
WEIGHTS = {"baby_maze": 3.0, "stunnel": 5.0}
SCENES: dict[str, Callable[[], Scene]] = {
    "slit": slit,
    "box": box,
    "baby_maze": baby_maze,
    "vneck": vneck,
    "stunnel": stunnel,
    "gmm": lambda: gmm(stratified=True),
}
EXACT = {"scene": "gmm", "method": "exact"}
_BETWEEN = 5.0  # from an axis: the components there are closer, the others farther away
DISCRETE = 6400  # samples a side, of which the exact map is estimated


def run(options: Options) -> None:
    for seed in options.seeds:
        for name, make in SCENES.items():
            case = {"scene": name, "method": "hota"}
            if options.wants(case):
                weight = WEIGHTS.get(name, 1.0)
                measure(options, "obstacles", case, make(), brenier.HOTA(), seed, weight=weight)
        if options.wants(EXACT):
            _measure_exact(options, seed)


def problem(scene: Scene, weight: float = 1.0) -> brenier.TransportProblem:
    """The scene with its published noise, its state cost so many times as high."""
    return brenier.TransportProblem(
        scene.source,
        scene.target,
        state_cost=lambda x: weight * scene.state_cost(x),
        noise=scene.noise,
    )


def measure(
    options: Options,
    benchmark: str,
    case: dict[str, Any],
    scene: Scene,
    method: brenier.HOTA,
    seed: int,
    *,
    weight: float = 1.0,
    judged: int = JUDGED,
) -> None:
    """One fit to a scene, judged and kept."""
    fit_key, *keys = jax.random.split(jax.random.key(seed), 5)
    solution = brenier.fit(
        problem(scene, weight),
        method,
        key=fit_key,
        steps=4 if options.quick else None,
        validation=0.0,
        throw=False,
    )
    keep(
        options,
        benchmark,
        case,
        seed,
        scores=judge(
            solution.potential, scene, keys, min(judged, 200) if options.quick else judged
        ),
        seconds=solution.info["timings"],
        steps=solution.info["steps"],
        status=solution.status,
        settings=solution.info["method"] | {"weight": weight},
        reference=dict(scene.reference),
    )


def judge(potential: Any, scene: Scene, keys: Any, n: int) -> dict[str, float]:
    """Costs, arrival and violations of fresh paths along a potential."""
    x, y, other = _judged(scene, keys, n)
    posed = problem(scene)
    scores = {"floor": wasserstein2_squared(other, y)}
    for name, (steps, scheme) in ROLLOUTS.items():
        roll = jax.jit(partial(simulate, potential, posed, steps=steps, scheme=scheme))
        paths = roll(x=x, key=keys[3])
        found = {
            "kinetic": float(paths.kinetic.mean()),
            "state": float(paths.state.mean()),
            "w2_squared": wasserstein2_squared(np.asarray(paths.points[-1]), y),
            **violations(paths.times, np.asarray(paths.points), scene.state_cost),
        }
        found["total"] = found["kinetic"] + found["state"]
        scores |= {f"{score}_{name}": value for score, value in found.items()}
        if name == "30_euler":
            scores |= sinkhorn(paths.points[-1], y)
    return scores


def _judged(scene: Scene, keys: Any, n: int) -> list[np.ndarray]:
    """Fresh points of the source and of the target, and others of the target."""
    sides = scene.source, scene.target, scene.target
    return [np.asarray(side(key, n)) for side, key in zip(sides, keys[:3], strict=True)]


def sinkhorn(x: Any, y: Any) -> dict[str, float]:
    """The divergence of the published tables, and whether the iterations came to an end."""
    from ott.geometry.pointcloud import PointCloud  # pyright: ignore[reportMissingImports]
    from ott.tools.sinkhorn_divergence import sinkhorn_divergence  # pyright: ignore[reportMissingImports]

    divergence, found = jax.jit(lambda x, y: sinkhorn_divergence(PointCloud, x, y, epsilon=1e-3))(
        x, jax.numpy.asarray(y)
    )
    return {"sinkhorn": float(divergence), "sinkhorn_converged": float(all(found.converged))}


def _measure_exact(options: Options, seed: int) -> None:
    """Where an estimate of the exact map of gmm, without the discs, takes points that it has not seen."""
    scene = SCENES[EXACT["scene"]]()
    start = time.perf_counter()
    n = 160 if options.quick else DISCRETE
    forward = _exact_map(n)
    _, *keys = jax.random.split(jax.random.key(seed), 5)
    x, y, other = _judged(scene, keys, 200 if options.quick else JUDGED)
    scores = {
        "floor": wasserstein2_squared(other, y),
        "w2_squared": wasserstein2_squared(forward(x), y),
    }
    seconds = {"total": time.perf_counter() - start}
    keep(options, "obstacles", EXACT, seed, scores=scores, seconds=seconds, points=n)


@cache
def _exact_map(n: int) -> Callable[[np.ndarray], np.ndarray]:
    """From the dual of `n` samples a side: a point goes to the target sample of least cost less its dual value.

    The mixtures are symmetric to both axes and their diagonals, and so are the samples: of independent ones, the noise
    in how much goes to each component would be larger than what is to be measured. What is left of it, between the
    components on the axes and the others, is taken away: each have half of the source, by a shift of their dual values.
    """
    import ot

    scene, images = SCENES[EXACT["scene"]](), list(product((1, -1), (1, -1), (1, -1)))
    x, y = (
        np.concatenate([(points * (a, b))[:, ::c] for a, b, c in images])
        for points in (
            np.asarray(side(jax.random.key(k), n // len(images)), np.float64)
            for k, side in enumerate((scene.source, scene.target))
        )
    )
    _, found = ot.emd([], [], 0.5 * ot.dist(x, y), numItermax=10**8, log=True)
    values = np.tile(found["v"].reshape(len(images), -1).mean(0), len(images))

    def apart(points: np.ndarray) -> np.ndarray:
        return 0.5 * ot.dist(points, y) - values

    on_axes = np.abs(y).min(axis=1) < _BETWEEN
    many = np.split(np.asarray(scene.source(jax.random.key(2), 40 * n), np.float64), 40)
    lead = [(d := apart(part))[:, on_axes].min(1) - d[:, ~on_axes].min(1) for part in many]
    values[on_axes] += np.median(np.concatenate(lead))
    return lambda points: y[np.argmin(apart(points), axis=1)]


def table(results: Path) -> str | None:
    records = load("obstacles", results)
    if not records:
        return None
    header = ["scene", "kinetic + state", "total", "published", "hard optimum"]
    header += [
        "time in walls, %",
        "W₂²",
        "30 steps",
        "300 of Euler's",
        "30 of Euler's",
        "Sinkhorn's of these",
        "its iterations ended",
        "two target samples",
        "W₂² in units of that, 300 / 30 steps",
        "seconds",
    ]
    rows = []
    for scene in SCENES:
        chosen = select(records, scene=scene, method="hota")
        if not chosen:
            continue
        reference = chosen[0]["reference"]
        parts = [
            number(float(np.median(values(chosen, f"{p}_300"))), 4) for p in ("kinetic", "state")
        ]
        rows.append(
            [
                scene,
                " + ".join(parts),
                median_and_worst(values(chosen, "total_300"), digits=4),
                number(reference["published_cost"], 4),
                number(reference["hard"], 4) if "hard" in reference else "–",
                median_and_worst([100 * v for v in values(chosen, "time_inside_300")]),
                median_and_worst(values(chosen, "w2_squared_300")),
                *(
                    median_and_worst(values(chosen, f"w2_squared_{k}"))
                    for k in ("30", "300_euler", "30_euler")
                ),
                median_and_worst(values(chosen, "sinkhorn")),
                f"{sum(values(chosen, 'sinkhorn_converged')):.0f} of {len(chosen)}",
                number(float(np.median(floors := values(chosen, "floor")))),
                " / ".join(
                    median_and_worst(list(np.divide(values(chosen, f"w2_squared_{k}"), floors)))
                    for k in ("300", "30")
                ),
                f"{np.median(values(chosen, 'total', 'seconds')):.0f}",
            ]
        )
    exact = select(records, **EXACT)
    fits = [record for record in records if record not in exact]
    text = f"{markdown(header, rows)}\n\n{conditions(fits)}"
    if exact:
        ratios = list(np.divide(values(exact, "w2_squared"), values(exact, "floor")))
        text += (
            f"\nThe exact map of gmm without its discs, estimated from {exact[0]['points']} samples a side: "
            f"W₂² in units of that of two target samples {median_and_worst(ratios)}; {len(exact)} seeds."
        )
    return text
