"""Walls on the command line: a picture or an array of cells, and where it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brenier.errors import InputError
from brenier.solution import Solution
from brenier.state_costs import DEFAULT_HEIGHT, OccupancyGrid

_STRAIGHT_LINES = 40.0

Extent = tuple[str, str, str, str]


def read_walls(
    path: Path | None, extent: Extent | None, height: float | None = None
) -> OccupancyGrid | None:
    """The walls in a file, or None without one.

    Args:
        path: a picture, whose dark pixels are walls, or a `.npy` with cells from 0 (free) to 1.
        extent: `(x_min, x_max, y_min, y_max)` of the whole of it, as typed.
        height: the price inside.

    Raises:
        InputError: only some of the three are given; a file that holds neither.
    """
    if path is None:
        for option, value in (("--extent", extent), ("--wall-height", height)):
            if value is not None:
                raise InputError(
                    f"Expected --state-cost with {option}, found none; name the file of the walls."
                )
        return None
    if extent is None:
        raise InputError(
            "Expected --extent X_MIN X_MAX Y_MIN Y_MAX with --state-cost, found none; "
            f"say where '{path}' lies in the coordinates of the points."
        )
    try:
        place = tuple(map(float, extent))
    except ValueError as error:
        raise InputError(
            f"Expected four numbers X_MIN X_MAX Y_MIN Y_MAX for --extent, found {' '.join(extent)}."
        ) from error
    height = DEFAULT_HEIGHT if height is None else height
    if path.suffix.lower() != ".npy":
        return OccupancyGrid.from_image(path, place, height=height)
    if not path.is_file():
        raise InputError(f"Expected a .npy file of cells, found no '{path}'; check the path.")
    try:
        # Mapped, so that a header cannot claim more than the file holds.
        cells = np.array(np.lib.format.open_memmap(path, mode="r"))
    except Exception as error:  # a parser fed damaged bytes may raise almost anything
        raise InputError(
            f"Expected a .npy file of cells at '{path}', found a damaged one or one of another "
            "type; write it again."
        ) from error
    try:
        return OccupancyGrid(cells, place, height)
    except InputError as error:
        raise InputError(f"'{path}' holds no walls. {error}") from error


def fitted_height(solution: Solution) -> float | None:
    """The price that a map was fitted with by the command line; None where it is not known."""
    facts = solution.info.get("state_cost")
    return facts.get("height") if isinstance(facts, dict) else None


def default_height(source: np.ndarray, target: np.ndarray) -> float:
    """A price at which a way around pays: forty times the mean cost of a straight line.

    What it costs to move grows with the square of the unit of length; a fixed price would be
    nothing to points in metres or pixels.

    Args:
        source: points (n, d).
        target: points (m, d).
    """
    apart = np.sum((source.mean(axis=0) - target.mean(axis=0)) ** 2)
    straight = 0.5 * float(apart + source.var(axis=0).sum() + target.var(axis=0).sum())
    return float(f"{_STRAIGHT_LINES * straight:.2g}") or DEFAULT_HEIGHT


def check_plane(walls: OccupancyGrid | None, dim: int) -> None:
    """`InputError` for walls with points that have not two coordinates."""
    if walls is not None and dim != 2:
        raise InputError(
            f"Expected points with 2 columns for --state-cost, found {dim}; "
            "a picture of walls is in the plane."
        )


def check_options(method: str, *, state_cost: Path | None, noise: float) -> None:
    """`InputError` for an option that `method` cannot use."""
    if method == "hota":
        return
    for option, given in (("--state-cost", state_cost is not None), ("--noise", noise > 0.0)):
        if given:
            raise InputError(
                f"Expected --method hota with {option}, found {method}, which moves points along "
                f"straight lines; add --method hota or leave {option} out."
            )
