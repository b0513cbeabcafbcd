"""The paths of points under a map: to a file, a picture and an animation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from brenier.cli._walls import check_plane
from brenier.errors import InputError
from brenier.flow import FlowTransport
from brenier.metrics import violations
from brenier.points import write_paths
from brenier.solution import Solution
from brenier.state_costs import OccupancyGrid


def run_trajectories(
    solution: Solution,
    points: np.ndarray,
    out: Path,
    *,
    times: int,
    walls: OccupancyGrid | None = None,
    picture: Path | None = None,
    animation: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the paths of `points`, (n, d), at evenly spaced `times`, and draw them.

    Args:
        solution: of the map.
        out: `.npz` or `.csv`.
        walls: where they should not go.
        picture, animation: files of further outputs.
        seed: of the noise along the paths, where the map has some, and of those that are drawn.

    Returns:
        `files`, `points`, `times`, `seed`; with walls also `time_inside` and `deepest`, see
        `brenier.metrics.violations`.

    Raises:
        InputError: another dimension than the map's, or one that cannot be drawn.
        OutputError: a file cannot be written.
    """
    transport = solution.transport
    if points.shape[1] != transport.dim:
        raise InputError(
            f"Expected points with {transport.dim} columns, as the map was fitted on, "
            f"found {points.shape[1]}; give the file it belongs to."
        )
    check_plane(walls, transport.dim)
    if picture is not None or animation is not None:
        from brenier.plotting import check_drawable

        check_drawable(transport.dim)
    if isinstance(transport, FlowTransport):
        transport = dataclasses.replace(transport, seed=seed)
    moments = np.linspace(0.0, 1.0, times)
    paths = np.asarray(transport.trajectory(points, moments))
    facts: dict[str, Any] = {"files": [str(out)], "points": len(points), "times": times}
    facts["seed"] = seed
    if walls is not None:
        facts |= violations(moments, paths, walls)
    write_paths(out, moments, paths)
    if picture is not None:
        from brenier.plotting import paths_figure, save_figure

        save_figure(picture, paths_figure(moments, paths, state_cost=walls, seed=seed))
        facts["files"].append(str(picture))
    if animation is not None:
        from brenier.plotting import paths_animation, save_animation

        save_animation(animation, paths_animation(moments, paths, state_cost=walls, seed=seed))
        facts["files"].append(str(animation))
    return facts
