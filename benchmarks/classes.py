"""Classes: how many held-out points keep theirs, with labels and without, and how far the map is from the exact one.

Each class of the source is a Gaussian cut off at three deviations, so that supports are apart, two deviations and more.
They lie on a circle. Those of the target lie on it in another order, so that the cheapest map, which moves every point
as little as possible, would change the class of nearly all; and each is flattened along an axis of its own, so that
within a class the exact map is affine, in another way for every class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import brenier
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
from brenier.metrics import crossing_share, total_variance, uvp

COUNTS = (4, 10)
POINTS, FRESH = 2000, 500  # of each class
DEVIATION, CUT = 0.5, 3.0
FLATTENED = 0.5
TURN = 2.4  # radians from the axis of one class to that of the next
STEPS = 2000
WAYS = ("forward", "backward")
COLUMNS = {
    "kept": ("points that keep their class", max, 3),
    "crossing": ("crossing paths", min, 2),
    "uvp": ("UVP", min, 2),
}
CASES = {
    "dual": ("dual, with labels", True),
    "energy": ("energy distance, with labels", True),
    "unconditional": ("dual, without labels", False),
}


def centers(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each class in source and target, shape (classes, 2), eight deviations apart and more."""
    angle = 2 * np.pi * np.arange(classes) / classes
    radius = 2.0 / np.sin(np.pi / classes)
    circle = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    # Each class goes about a third of the way round.
    return circle, np.roll(circle, {4: 1, 10: 3}[classes], axis=0)


def draw(places: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points and labels, `count` of each class."""
    labels = np.repeat(np.arange(len(places)), count)
    share = rng.random(len(labels)) * (1.0 - np.exp(-0.5 * CUT**2))
    angle = rng.uniform(0.0, 2 * np.pi, len(labels))
    away = DEVIATION * np.sqrt(-2.0 * np.log1p(-share))
    return places[labels] + away[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), labels


def flattened(classes: int) -> np.ndarray:
    """The linear part of the exact map within each class, shape (classes, 2, 2): symmetric and positive."""
    axes = np.stack([f(TURN * np.arange(classes)) for f in (np.cos, np.sin)], axis=1)
    return np.eye(2) - (1.0 - FLATTENED) * axes[:, :, None] * axes[:, None]


def mapped(
    points: np.ndarray, labels: np.ndarray, here: np.ndarray, there: np.ndarray, linear: np.ndarray
) -> np.ndarray:
    """Points moved with their classes, from places (classes, 2) to others."""
    return there[labels] + np.einsum("nij,nj->ni", linear[labels], points - here[labels])


def kept(points: np.ndarray, places: np.ndarray, labels: np.ndarray) -> float:
    """Per cent of the points that are nearest to the centre of their own class."""
    nearest = np.argmin(np.sum((points[:, None] - places) ** 2, axis=-1), axis=1)
    return 100.0 * float(np.mean(nearest == labels))


def run(options: Options) -> None:
    for seed in options.seeds:
        for classes in COUNTS:
            for name, (_, labelled) in CASES.items():
                case = {"case": name, "classes": classes}
                if options.wants(case):
                    scores, facts = fit(name, classes, labelled, seed, quick=options.quick)
                    keep(options, "classes", case, seed, scores=scores, **facts)


def fit(
    name: str, classes: int, labelled: bool, seed: int, *, quick: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """Of fresh points, both ways: shares that keep their class, shares of the paths in a class that cross, UVP."""
    rng = np.random.default_rng(seed)
    here, there = centers(classes)
    forth = here, there, flattened(classes)
    back = there, here, np.linalg.inv(forth[2])

    def sides(count: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        source, (y, labels) = draw(here, count, rng), draw(here, count, rng)
        return source, (mapped(y, labels, *forth), labels)

    (x, xs), (y, ys) = sides(100 if quick else POINTS)
    labels = {"ys": xs, "yt": ys} if labelled else {}
    estimator = brenier.NCFTransport(
        objective="energy" if name == "energy" else "dual",
        steps=4 if quick else STEPS,
        early_stopping=False,
        random_state=seed,
    ).fit(Xs=x, Xt=y, **labels)
    scores = {}
    for way, move, (points, of), exact in zip(
        WAYS,
        (estimator.transform, estimator.inverse_transform),
        sides(FRESH),
        (forth, back),
        strict=True,
    ):
        images, right = move(points), mapped(points, of, *exact)
        crossing = [crossing_share(points[of == k], images[of == k]) for k in range(classes)]
        within = right - exact[1][of]
        scores |= {
            f"kept_{way}": kept(images, exact[1], of),
            f"crossing_{way}": 100.0 * float(np.mean(crossing)),
            f"uvp_{way}": uvp(images, right, total_variance(within)),
        }
    info = estimator.solution_.info
    return scores, {"seconds": info["timings"], "steps": info["steps"], "settings": info["method"]}


def table(results: Path) -> str | None:
    records = load("classes", results)
    if not records:
        return None
    header = ["classes", "case", *(f"{title}, %" for title, *_ in COLUMNS.values())]
    rows = []
    for classes in COUNTS:
        for name, (title, _) in CASES.items():
            found = select(records, case=name, classes=classes)
            cells = [
                " / ".join(
                    median_and_worst(values(found, f"{score}_{way}"), better=better, digits=digits)
                    for way in WAYS
                )
                for score, (_, better, digits) in COLUMNS.items()
            ]
            rows.append([str(classes), title, *cells])
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
