"""From one cloud of points to another: the map, its inverse and the paths between them.

`python examples/two_clouds.py --out FOLDER` draws `hero.png`, the picture at the top of the README, and prints how far
points land from where they started after a round trip. Under a minute on two cores; `--quick` is a smoke run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection

import brenier
from brenier.datasets import eight_gaussians, gaussian

INK = "#22223b"


def main() -> None:
    """Fit eight Gaussians to one, draw five moments of the way, and check the inverse."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("two-clouds-output"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="does it run? few steps")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    picture = given.out / "hero.png"

    source, target, fresh = jax.random.split(jax.random.key(0), 3)
    X, Y = np.asarray(eight_gaussians(source, 50_000)), np.asarray(gaussian(target, 50_000))
    est = brenier.NCFTransport(steps=25 if given.quick else None, random_state=0).fit(Xs=X, Xt=Y)

    x = np.asarray(eight_gaussians(fresh, 3000))
    times = np.linspace(0.0, 1.0, 5)
    path = est.solution_.transport.trajectory(x, times)
    color = np.arctan2(x[:, 1], x[:, 0])

    figure, axes = plt.subplots(1, 5, figsize=(12.5, 2.9), dpi=160, sharex=True, sharey=True)
    for axis, t, points in zip(axes, times, path, strict=True):
        if t == 1.0:
            axis.scatter(*Y[:3000].T, s=1.5, color="#c9c9d2", linewidths=0)
        trails = np.stack([x, points], axis=1)[:200]
        axis.add_collection(
            LineCollection(list(trails), colors="#8d8da6", linewidths=0.3, alpha=0.6)
        )
        axis.scatter(*points.T, s=2.2, c=color, cmap="twilight_shifted", linewidths=0)
        axis.set_title(f"t = {t:g}", fontsize=10, color=INK)
        axis.set_aspect("equal")
        axis.axis("off")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.02, wspace=0.02)
    figure.savefig(picture)

    returned = est.inverse_transform(Xt=est.transform(Xs=x))
    error = np.mean(np.sum((returned - x) ** 2, axis=1)) / np.sum(np.var(x, axis=0))
    print(est.solution_.message)
    print(f"Round trip: {100 * error:.2f} % of the variance. Picture: {picture}")


if __name__ == "__main__":
    main()
