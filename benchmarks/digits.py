"""Images to images: digits 2 → 3 and trousers → dresses at 32 × 32, maps that answer in one pass.

At full size, for an accelerator, maps are U-Nets. In ten minutes a processor makes too few steps of those to turn
many digits; residual networks of vectors, the small size, turn most in five. Their maps change 1024 pixels each by a
matrix of its own: at the rate of maps in few dimensions they leave specks.

Scores on test images: a Fréchet distance between Gaussians fitted to 64 features of a small
classifier that is trained here, on all classes of the training set. It is **not** the Inception
FID of the literature, and comparable within one table only; beside it the same distance between
training and test images of the target class, which no map can be expected to undercut, and that
of the source images as they are.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import jax
import matplotlib.figure
import numpy as np
from scipy.linalg import sqrtm

import brenier
from benchmarks.harness import (
    RESULTS,
    ROOT,
    Options,
    conditions,
    keep,
    load,
    markdown,
    median_and_worst,
    number,
    on_host,
    select,
    values,
)
from brenier.networks import ConvPotential, UNet

SIDE = 32
TASKS = {"digits": ("mnist", 2, 3), "clothes": ("fashion_mnist", 1, 3)}
TITLES = {"digits": "MNIST, 2 → 3", "clothes": "Fashion-MNIST, trousers → dresses"}
SIZES: dict[str, dict[str, Any]] = {
    "small": {"batch_size": 256, "map_learning_rate": 2e-3, "hj_weight": 0.3},
    "full": {"widths": (64, 128, 256), "batch_size": 128, "learning_rate": 5e-4},
}
SECONDS = {"small": 300.0, "full": 540.0}
FIGURE = ROOT / "docs" / "images" / "digits.png"
SHOWN, MOMENTS = 8, (0.0, 0.25, 0.5, 0.75, 1.0)


def run(options: Options) -> None:
    assert options.data is not None
    size = "small" if jax.default_backend() == "cpu" else "full"
    panels = {}
    for task, (name, source, target) in TASKS.items():
        if not options.wants({"task": task, "size": size}):
            continue
        train, test = (_images(options.data / name, name, part) for part in ("train", "test_a"))
        features = _classifier(*train, quick=options.quick)
        pairs = [
            tuple(images[labels == label] for label in (source, target))
            for images, labels in (train, test)
        ]
        for seed in options.seeds:
            transport = _run_seed(options, task, size, pairs, features, seed)
            if seed == options.seeds[0]:
                way = transport.trajectory(pairs[1][0][:SHOWN], np.asarray(MOMENTS))
                panels[TITLES[task]] = np.asarray(way)
    if options.results == RESULTS and len(panels) == len(TASKS):
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        draw(panels).savefig(FIGURE)


def _images(folder: Path, name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Points of shape (n, 1024) in [-1, 1], with a border of background, and their labels."""
    with np.load(folder / f"{name}_{part}.npz") as file:
        images, labels = file["images"], file["labels"]
    border = (SIDE - images.shape[1]) // 2
    padded = np.pad(images, ((0, 0), (border, border), (border, border)))
    return (padded.reshape(len(images), -1) / 127.5 - 1.0).astype(np.float32), labels


class Features:
    """The last hidden layer of a classifier from scikit-learn."""

    def __init__(self, classifier: Any, accuracy: float):
        self.classifier, self.accuracy = classifier, accuracy

    def __call__(self, x: np.ndarray) -> np.ndarray:
        for weights, bias in zip(
            self.classifier.coefs_[:-1], self.classifier.intercepts_[:-1], strict=True
        ):
            x = np.maximum(x @ weights + bias, 0.0)
        return x


def _classifier(images: np.ndarray, labels: np.ndarray, *, quick: bool) -> Features:
    from sklearn.neural_network import MLPClassifier

    order = np.random.default_rng(0).permutation(len(images))
    held, rest = order[: len(order) // 10], order[len(order) // 10 :][: 500 if quick else None]
    classifier = MLPClassifier((256, 64), max_iter=2 if quick else 12, random_state=0)
    classifier.n_iter_no_change = 100  # twelve passes suffice, and are no failure to converge
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.fit(images[rest], labels[rest])
    return Features(classifier, float(classifier.score(images[held], labels[held])))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """`|m - n|² + tr(A + B - 2 (A B)^½)` between the Gaussians fitted to two samples."""
    gap = a.mean(0) - b.mean(0)
    one, two = (np.cov(side.T) for side in (a, b))
    root = np.real(np.asarray(sqrtm(one @ two)))
    return float(gap @ gap + np.trace(one + two - 2 * root))


def _method(size: str, seed: int, *, quick: bool) -> brenier.DIOTM:
    options = dict(SIZES[size], pair_coordinates=False)
    if quick:
        options["batch_size"] = 8
    if "widths" in options:
        shape, widths = (SIDE, SIDE, 1), options.pop("widths")
        u_key, map_key = jax.random.split(jax.random.key(seed))
        options["network"] = ConvPotential(shape, widths, key=u_key)
        options["map_network"] = UNet(shape, widths, key=map_key)
    return brenier.DIOTM(**options)


def _run_seed(
    options: Options, task: str, size: str, pairs: list[Any], features: Features, seed: int
) -> brenier.Transport:
    (x, y), (x_test, y_test) = pairs
    method = _method(size, seed, quick=options.quick)
    start = time.perf_counter()
    solution = brenier.fit(
        brenier.TransportProblem(x, y),
        method,
        key=jax.random.key(seed),
        validation=0.0,
        throw=False,
        steps=4 if options.quick else None,
        time_budget=None if options.quick else SECONDS[size],
    )
    seconds = time.perf_counter() - start
    transport = solution.transport
    forward, inverse = on_host(transport.forward), on_host(transport.inverse)
    images, preimages = forward(x_test), inverse(y_test)
    returned = inverse(images)
    f = features
    scores = {
        "frechet_forward": frechet(f(images), f(y_test)),
        "frechet_backward": frechet(f(preimages), f(x_test)),
        "floor_forward": frechet(f(y), f(y_test)),
        "floor_backward": frechet(f(x), f(x_test)),
        "identity": frechet(f(x_test), f(y_test)),
        "cost": float(0.5 * np.mean(np.sum((images - x_test) ** 2, axis=1))),
        "cycle": float(
            100 * np.mean(np.sum((returned - x_test) ** 2, axis=1)) / x_test.var(axis=0).sum()
        ),
        "recognised": float(np.mean(features.classifier.predict(images) == TASKS[task][2])),
    }
    keep(
        options,
        "digits",
        {"task": task, "size": size},
        seed,
        scores=scores,
        seconds={**solution.info["timings"], "wall": seconds},
        steps=solution.info["steps"],
        status=solution.status,
        settings=solution.info["method"],
        classifier_accuracy=features.accuracy,
        packages=("scikit-learn",),
    )
    return transport


def table(results: Path) -> str | None:
    records = load("digits", results)
    if not records:
        return None
    header = ["task", "Fréchet distance →", "←", "training against test →", "unchanged"]
    header += ["recognised as the target, %", "cost ½E\\|T(x) - x\\|²", "cycle error, %", "seconds"]
    rows = []
    for size in SIZES:
        for task in TASKS:
            chosen = select(records, task=task, size=size)
            if not chosen:
                continue
            recognised = [100 * v for v in values(chosen, "recognised")]
            rows.append(
                [
                    f"{TITLES[task]}, {size}",
                    median_and_worst(values(chosen, "frechet_forward")),
                    median_and_worst(values(chosen, "frechet_backward")),
                    number(float(np.median(values(chosen, "floor_forward")))),
                    number(float(np.median(values(chosen, "identity")))),
                    median_and_worst(recognised, better=max),
                    median_and_worst(values(chosen, "cost")),
                    median_and_worst(values(chosen, "cycle")),
                    f"{np.median(values(chosen, 'wall', 'seconds')):.0f}",
                ]
            )
    return f"{markdown(header, rows)}\n\n{conditions(records)}"


def draw(panels: dict[str, np.ndarray]) -> matplotlib.figure.Figure:
    """For each task a row per moment, from test images above to their images below."""
    figure = matplotlib.figure.Figure(figsize=(4.4 * len(panels), 3.2), dpi=130)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, way) in zip(axes, panels.items(), strict=True):
        moments, count, _ = way.shape
        tiles = way.reshape(moments, count, SIDE, SIDE).swapaxes(1, 2)
        axis.imshow(tiles.reshape(moments * SIDE, count * SIDE), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        places = SIDE * (np.arange(moments) + 0.5)
        axis.set_yticks(places, [f"t = {t:g}" for t in MOMENTS], fontsize=8)
        axis.tick_params(length=0)
    figure.tight_layout()
    return figure
