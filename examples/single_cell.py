"""What cells look like half-way between two snapshots, and which way they went.

`python examples/single_cell.py --data FOLDER` reads the snapshots `emt_a549.npz`, `mouse_hematopoiesis_2d.npz` and
`guo_qpcr.npz` from the folder; without one it makes up cells that branch in two. A cell is measured once and is gone:
the time points are samples of distributions, and a map between two of them is a guess of who became whom. The snapshot
in between is left out of the fit and tells how good the guess is.

Printed are the energy distance and the exact squared W2 between the predicted cells and the real ones, smaller is
better; beside the prediction of `brenier.NCFTransport` those of the best affine map, of exact discrete transport, and
the cells before as they are. Pictures, a map for each data set, and where anndata is installed an `.h5ad` with the
prediction in `obsm` go to `--out`. A few minutes on two cores; `--quick` takes seconds and predicts little.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import brenier
from brenier.metrics import wasserstein2_squared

COMPONENTS = 10  # of the embryo's 48 genes, for some dozens of cells a time point


class Cells(NamedTuple):
    """A data set: points (n, d), the time of each, and the three times of which the middle one is left out."""

    name: str
    points: np.ndarray
    times: np.ndarray
    triple: tuple[int, int, int]

    def at(self, time: int) -> np.ndarray:
        return self.points[self.times == time]


def data_sets(folder: Path | None) -> Iterator[Cells]:
    if folder is None:
        yield branching()
        return
    for name, file in (("emt", "emt_a549.npz"), ("blood", "mouse_hematopoiesis_2d.npz")):
        with np.load(folder / file) as arrays:
            x = np.concatenate([arrays["x_train"], arrays["x_test"]])
            t = np.concatenate([arrays["t_train"], arrays["t_test"]])
        yield Cells(name, x, t, (0, 1, 2))
    with np.load(folder / "guo_qpcr.npz") as arrays:
        x, stage = arrays["x"], arrays["stage"]
    # Axes of the two snapshots that the fit sees.
    seen = x[np.isin(stage, (16, 64))]
    axes = np.linalg.svd(seen - seen.mean(0), full_matrices=False)[2][:COMPONENTS].T
    yield Cells("embryo", x @ axes, stage, (16, 32, 64))


def branching(n: int = 600) -> Cells:
    """Cells that start alike and choose one of two fates; every snapshot has cells of its own."""
    rng = np.random.default_rng(0)
    times = np.repeat([0, 1, 2], n)
    start = rng.normal(size=(3 * n, 2)) * [0.6, 0.8]
    goal = start + np.stack([np.full(3 * n, 5.0), 3.0 * np.sign(start[:, 1])], axis=1)
    way = times[:, None] / 2
    return Cells("branching", (1 - way) * start + way * goal, times, (0, 1, 2))


def predictions(cells: Cells, *, quick: bool) -> tuple[dict[str, np.ndarray], brenier.NCFTransport]:
    """The cells at the time left out, by each method, one for each cell before."""
    before, _, after = (cells.at(time) for time in cells.triple)
    est = brenier.NCFTransport(steps=25 if quick else None, random_state=0)
    est.fit(Xs=before, Xt=after)
    affine = brenier.GaussianPotential.from_samples(before, after)
    n = min(len(before), len(after))
    rows, partners = linear_sum_assignment(cdist(before[:n], after[:n], "sqeuclidean"))
    return {
        "NCF": est.interpolate(Xs=before, t=0.5),
        "affine map": 0.5 * (before + affine.forward(before)),
        "discrete OT": 0.5 * (before[rows] + after[partners]),
        "cells before": before,
    }, est


def scores(predicted: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Energy distance, and the squared W2 between as many cells of both."""
    energy = brenier.energy_distance(predicted.astype(np.float32), real.astype(np.float32))
    n = min(len(predicted), len(real))
    rng = np.random.default_rng(0)
    few = (rng.permutation(sample)[:n] for sample in (predicted, real))
    return float(energy), wasserstein2_squared(*few)


def draw(cells: Cells, predicted: np.ndarray, path: Path) -> None:
    """The snapshots that were seen, the real one between, and the predicted one, along two axes."""
    before, between, after = (cells.at(time) for time in cells.triple)
    center = np.concatenate([before, after]).mean(0)
    axes = np.linalg.svd(np.concatenate([before, after]) - center, full_matrices=False)[2][:2].T
    panels = {"seen: before and after": (before, after), "real, left out": (between,)}
    panels["predicted"] = (predicted,)
    figure, places = plt.subplots(1, 3, figsize=(10.5, 3.4), dpi=140, sharex=True, sharey=True)
    for place, (title, samples) in zip(places, panels.items(), strict=True):
        for sample, color in zip(samples, ("#4c72b0", "#c44e52"), strict=False):
            place.scatter(*((sample - center) @ axes).T, s=4, c=color, alpha=0.6, linewidths=0)
        place.set_title(title, fontsize=10)
        place.set_xticks([])
        place.set_yticks([])
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def write_h5ad(cells: Cells, est: brenier.NCFTransport, path: Path) -> None:
    """All cells, and beside those before where they are half-way."""
    import anndata
    import pandas

    names = [f"cell{i}" for i in range(len(cells.points))]
    obs = pandas.DataFrame({"time": cells.times}, index=names)
    adata = anndata.AnnData(obs=obs, obsm={"X_features": cells.points})
    where = ("time", cells.triple[0])
    before = brenier.cells.get_points(adata, "X_features", where=where)
    half = est.interpolate(Xs=before, t=0.5)
    brenier.cells.set_points(adata, "X_half", half, est.solution_, where=where, time=0.5)
    adata.write_h5ad(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="snapshots as .npz")
    parser.add_argument("--out", type=Path, default=Path("single-cell-output"), metavar="FOLDER")
    parser.add_argument(
        "--quick", action="store_true", help="does it run? made-up cells, few steps"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"{'cells':12}{'predicted by':16}{'energy':>10}{'W2 squared':>12}")
    for cells in data_sets(None if given.quick else given.data):
        predicted, est = predictions(cells, quick=given.quick)
        real = cells.at(cells.triple[1])
        for method, sample in predicted.items():
            energy, w2 = scores(sample, real)
            print(f"{cells.name:12}{method:16}{energy:10.4f}{w2:12.4f}", flush=True)
        draw(cells, predicted["NCF"], given.out / f"{cells.name}.png")
        brenier.save(given.out / f"{cells.name}.brenier", est.solution_)
        if importlib.util.find_spec("anndata"):
            write_h5ad(cells, est, given.out / f"{cells.name}.h5ad")
    print(f"Pictures and maps are in {given.out}.")


if __name__ == "__main__":
    main()
