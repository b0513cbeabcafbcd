"""The whole application: from two pictures to recoloured ones, a contact sheet and scores."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from brenier.callbacks import Callback
from brenier.color.baselines import histogram_matching, reinhard
from brenier.color.images import ColorImage, encode_png, read_image
from brenier.color.mapping import ColorMap, color_samples, transfer
from brenier.color.scores import color_scores
from brenier.color.sheet import Recolored, contact_sheet
from brenier.errors import BrenierWarning, InputError, OutputError
from brenier.estimators import NCFTransport
from brenier.files import PathLike, atomic_write, check_output

STEPS = 500
"""Planned for two pictures: under half a minute on two cores, and histograms change little after."""

REPORTED = 2000
"""Colours of each picture in a report."""

PICTURES = ("source_in_target_colors", "target_in_source_colors", "contact_sheet")


@runtime_checkable
class ColorTransport(Protocol):
    """What `color_transfer` asks of an estimator; points are colours in [0, 1], (n, 3)."""

    def fit(self, *, Xs: np.ndarray, Xt: np.ndarray) -> Any: ...

    def transform(self, Xs: np.ndarray) -> np.ndarray: ...

    def inverse_transform(self, Xt: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class ColorResult:
    """What a colour transfer made.

    Attributes:
        files: the PNG pictures written, by the names in `PICTURES`; the first two at full
            resolution, with the alpha channel of the picture they recolour.
        scores_file: `scores.json`: `scores`, `fit` and `seconds`.
        scores: `color_scores` for each direction (`source_to_target`, `target_to_source`) and
            method (`unchanged`, `histogram_matching`, `reinhard`, `brenier`).
        fit: how the fit ended (`status`, `message`, `steps`, `method`); empty for an estimator
            without `solution_`.
        seconds: for the fit (`fit`) and for everything (`total`).
        transport: the fitted estimator.
    """

    files: dict[str, Path]
    scores_file: Path
    scores: dict[str, dict[str, dict[str, float]]]
    fit: dict[str, Any]
    seconds: dict[str, float]
    transport: ColorTransport

    def to_dict(self) -> dict[str, Any]:
        """Everything but the estimator, ready for JSON."""
        return {
            "files": {name: str(path) for name, path in self.files.items()},
            "scores_file": str(self.scores_file),
            "scores": self.scores,
            "fit": self.fit,
            "seconds": self.seconds,
        }


def color_transfer(
    source: PathLike,
    target: PathLike,
    *,
    out: PathLike,
    transport: ColorTransport | None = None,
    random_state: int | None = 0,
    samples: int = 50_000,
    steps: int | None = None,
    time_budget: float | None = None,
    dequantize: bool = True,
    callbacks: Sequence[Callback] = (),
) -> ColorResult:
    """Gives each of two pictures the colours of the other, with one map and its inverse.

    A picture is a cloud of points in the RGB cube. The optimal transport map between the clouds
    is fitted once, on random pixels of both, and applied to every pixel. All files are encoded
    before the first one is written.

    Args:
        source: picture A; see `read_image` for what can be read.
        target: picture B.
        out: folder for the results, created where missing.
        transport: unfitted estimator with `fit`, `transform` and `inverse_transform`;
            `NCFTransport` by default.
        random_state: seed of the pixel draw and of the default estimator.
        samples: pixels drawn from each picture to fit on.
        steps: optimiser steps of the default estimator; `STEPS` without a time budget.
        time_budget: seconds the default estimator may take.
        dequantize: see `color_samples`.
        callbacks: for the default estimator.

    Raises:
        InputError: a picture cannot be read or has a single colour; arguments that cannot be used.
        OutputError: the folder or a file cannot be written.
        DivergenceError: the fit diverged.

    Warns:
        BrenierWarning: a picture is grey.

    Example:
        >>> result = color_transfer("beach.jpg", "sunset.jpg", out="both")  # doctest: +SKIP
        >>> result.files["contact_sheet"]                                   # doctest: +SKIP
        PosixPath('both/contact_sheet.png')

    Reference:
        Park, Liu, Zhou and Osher, *Neural Hamilton–Jacobi Characteristic Flows for Optimal
        Transport*, ICLR 2026, experiment on colour transfer.
    """
    began = time.perf_counter()
    a, b = read_image(source), read_image(target)
    _check_colors(a, b)
    folder = Path(out)
    paths = {name: folder / f"{name}.png" for name in PICTURES}
    scores_file = folder / "scores.json"
    _check_folder(folder, [*paths.values(), scores_file])

    if transport is None:
        transport = NCFTransport(
            steps=STEPS if steps is None and time_budget is None else steps,
            time_budget=time_budget,
            random_state=random_state,
            callbacks=tuple(callbacks),
        )
    elif steps is not None or time_budget is not None or callbacks:
        raise InputError(
            "steps, time_budget and callbacks are options of the default estimator; "
            "give them to your transport instead."
        )
    seed_a, seed_b = np.random.SeedSequence(random_state).spawn(2)
    transport.fit(
        Xs=color_samples(a, samples, np.random.default_rng(seed_a), dequantize=dequantize),
        Xt=color_samples(b, samples, np.random.default_rng(seed_b), dequantize=dequantize),
    )
    seconds = {"fit": time.perf_counter() - began}

    forward = _recolored(a, b, transport.transform)
    backward = _recolored(b, a, transport.inverse_transform)
    fit = _facts(transport)
    contents = {
        paths["source_in_target_colors"]: encode_png(forward.after, a.alpha),
        paths["target_in_source_colors"]: encode_png(backward.after, b.alpha),
        paths["contact_sheet"]: contact_sheet(forward, backward, _note(fit)),
    }
    scores = {"source_to_target": forward.scores, "target_to_source": backward.scores}
    seconds["total"] = time.perf_counter() - began
    record = {"source": a.name, "target": b.name, "scores": scores, "fit": fit, "seconds": seconds}
    contents[scores_file] = (json.dumps(record, indent=2) + "\n").encode()
    for path, content in contents.items():
        atomic_write(path, content)
    return ColorResult(paths, scores_file, scores, fit, seconds, transport)


def write_color_report(
    path: PathLike, source: PathLike, target: PathLike, result: ColorResult, *, seed: int = 0
) -> None:
    """Write a page about the map of a colour transfer, with the pictures before and after.

    Args:
        path: of the page, `.html`.
        source, target: pictures A and B of the transfer.
        result: of the default estimator, or of another one that has a `solution_`.
        seed: of the colours that are scored, fresh ones, and of the verdict.

    Raises:
        InputError: a picture cannot be read; an estimator without `solution_`.
        OutputError: the page cannot be written.
    """
    solution = getattr(result.transport, "solution_", None)
    if solution is None:
        raise InputError(
            f"Expected an estimator with a solution_ to report on, found "
            f"{type(result.transport).__name__}; use the default one."
        )
    a, b = read_image(source), read_image(target)
    # Not the draw of the fit: its seeds are spawned from another sequence.
    rng = np.random.default_rng([seed, 1])
    colors = (color_samples(image, REPORTED, rng) for image in (a, b))
    pictures = {
        f"A: {a.name}": source,
        "A in the colours of B": result.files["source_in_target_colors"],
        f"B: {b.name}": target,
        "B in the colours of A": result.files["target_in_source_colors"],
    }
    title = f"The colours of {a.name} and {b.name}"
    solution.report(path, *colors, pictures=pictures, title=title, seed=seed)


def _check_colors(*images: ColorImage) -> None:
    for image in images:
        pixels = image.visible()
        if (pixels == pixels[0]).all():
            raise InputError(
                f"Expected at least two colours, but {image.name} has the single colour "
                f"{tuple(pixels[0].tolist())}; a map cannot split it."
            )
        if (pixels == pixels[:, :1]).all():
            warnings.warn(
                f"{image.name} is grey: each of its grey levels can become one colour only, so it "
                "cannot take all colours of the other picture.",
                BrenierWarning,
                stacklevel=3,
            )


def _check_folder(folder: Path, files: Sequence[Path]) -> None:
    """Before the minutes of a fit: can its results be written?"""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot create the folder '{folder}': {error.strerror}; choose another one."
        ) from error
    for file in files:
        check_output(file)


def _recolored(image: ColorImage, other: ColorImage, color_map: ColorMap) -> Recolored:
    after = transfer(image, color_map)
    results = {
        "unchanged": image.visible(),
        "histogram_matching": histogram_matching(image, other),
        "reinhard": reinhard(image, other),
        "brenier": image.visible(after),
    }
    scores = {name: color_scores(result, other.visible()) for name, result in results.items()}
    return Recolored(image, after, other, scores)


def _facts(transport: Any) -> dict[str, Any]:
    solution = getattr(transport, "solution_", None)
    if solution is None:
        return {}
    return {
        "status": solution.status,
        "message": solution.message,
        "steps": solution.info["steps"],
        "method": solution.info["method"],
    }


def _note(fit: dict[str, Any]) -> str:
    return f"{fit['steps']:,} steps, {fit['status'].replace('_', ' ')}" if fit else ""
