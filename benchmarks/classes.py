"""Classes: how many held-out points keep theirs, with the labels and without.

Each class is a Gaussian cut off at three deviations, so that supports are apart, two deviations and more. Those of the
source lie on a circle, those of the target on it in another order, so that the cheapest map, which moves every point as
little as possible, would change the class of nearly all.
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
from brenier.metrics import crossing_share

COUNTS = (4, 10)
POINTS, FRESH = 2000, 500  # of each class
DEVIATION, CUT = 0.5, 3.0
STEPS = 2000
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
    """Shares of fresh points that keep their class, and of the paths within a class that cross."""
    rng = np.random.default_rng(seed)
    here, there = centers(classes)
    count = 100 if quick else POINTS
    (x, xs), (y, ys) = draw(here, count, rng), draw(there, count, rng)
    labels = {"ys": xs, "yt": ys} if labelled else {}
    estimator = brenier.NCFTransport(
        objective="energy" if name == "energy" else "dual",
        steps=4 if quick else STEPS,
        early_stopping=False,
        random_state=seed,
    ).fit(Xs=x, Xt=y, **labels)
    (x, xs), (y, ys) = draw(here, FRESH, rng), draw(there, FRESH, rng)
    images, preimages = estimator.transform(x), estimator.inverse_transform(y)
    crossing = [crossing_share(x[xs == k], images[xs == k]) for k in range(classes)]
    scores = {
        "kept_forward": kept(images, there, xs),
        "kept_backward": kept(preimages, here, ys),
        "crossing": 100.0 * float(np.mean(crossing)),
    }
    info = estimator.solution_.info
    return scores, {"seconds": info["timings"], "steps": info["steps"], "settings": info["method"]}


def table(results: Path) -> str | None:
    records = load("classes", results)
    if not records:
        return None
    header = ["points that keep their class in %, forward / backward; crossing paths in %"]
    header += [f"{classes} classes" for classes in COUNTS]
    rows = []
    for name, (title, _) in CASES.items():
        row = [title]
        for classes in COUNTS:
            found = select(records, case=name, classes=classes)
            ways = [
                median_and_worst(values(found, f"kept_{way}"), better=max)
                for way in ("forward", "backward")
            ]
            cross = median_and_worst(values(found, "crossing"), digits=2)
            row.append(f"{' / '.join(ways)}; {cross}")
        rows.append(row)
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
