"""The demonstration: two photographs that scikit-learn ships exchange their colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.datasets import load_sample_image

from brenier.callbacks import Callback
from brenier.color import STEPS, color_transfer, write_png
from brenier.errors import OutputError
from brenier.files import atomic_write

PHOTOGRAPHS = ("china", "flower")
TIME_BUDGET = 50.0
"""Seconds of fitting at most; two cores usually need fewer."""

_SCORES = {
    "histogram_intersection": "histogram intersection ↑",
    "emd_positions": "earth mover's distance ↓",
    "energy_distance": "energy distance ↓",
}
_METHODS = {
    "unchanged": "unchanged",
    "histogram_matching": "histogram matching",
    "reinhard": "Reinhard",
    "brenier": "**transport map**",
}


def run_demo(
    folder: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Write the photographs, both in each other's colours, a contact sheet, scores and a report.

    Args:
        folder: where to; created where missing.
        seed: of all randomness.
        steps: planned optimiser steps.
        callbacks: watch the fit.

    Returns:
        The facts of the colour transfer, JSON-able, and the path of the `report`.

    Raises:
        OutputError: the folder or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot create the folder '{folder}': {error.strerror}; choose another one."
        ) from error
    originals = [folder / f"{name}.png" for name in PHOTOGRAPHS]
    for path, name in zip(originals, PHOTOGRAPHS, strict=True):
        write_png(path, load_sample_image(f"{name}.jpg"))
    result = color_transfer(
        *originals,
        out=folder,
        random_state=seed,
        steps=STEPS if steps is None else steps,
        time_budget=TIME_BUDGET,
        callbacks=callbacks,
    )
    facts = result.to_dict()
    facts["report"] = str(folder / "report.md")
    atomic_write(facts["report"], _report(facts).encode())
    return facts


def _report(facts: dict[str, Any]) -> str:
    """What was done and how good it is, as Markdown."""
    fit, seconds = facts["fit"], facts["seconds"]
    titles = {
        "source_to_target": "china in the colours of flower",
        "target_to_source": "flower in the colours of china",
    }
    lines = [
        "# Two photographs exchange their colours",
        "",
        f"![Both photographs before and after]({Path(facts['files']['contact_sheet']).name})",
        "",
        "A photograph is a cloud of colours in the RGB cube. One optimal transport map carries the "
        "first cloud onto the second, and its inverse carries the second onto the first.",
        "",
        f"{fit['message']} It took {seconds['fit']:.0f} s.",
        "",
    ]
    for direction, title in titles.items():
        lines += [
            f"## {title[0].upper()}{title[1:]}",
            "",
            f"| | {' | '.join(_SCORES.values())} |",
            f"|---{'|---:' * len(_SCORES)}|",
        ]
        for method, label in _METHODS.items():
            values = facts["scores"][direction][method]
            row = " | ".join(f"{values[score]:.4f}" for score in _SCORES)
            lines.append(f"| {label} | {row} |")
        lines.append("")
    lines += [
        "Histogram matching treats the three channels one by one; the energy distance compares "
        "the clouds of colours themselves.",
        "",
    ]
    return "\n".join(lines)
