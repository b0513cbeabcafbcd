"""The commands themselves. Each imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from brenier.cli._running import FAILED, Commands, Interrupted, keep_compiled, print_json
from brenier.errors import InputError

app = typer.Typer(
    name="brenier",
    cls=Commands,
    help="Neural optimal transport through Hamilton-Jacobi equations.",
    epilog="Points: .npy, .npz, .csv, .tsv, .parquet, .h5ad (one array of several: file.npz:name, "
    "file.h5ad:X_pca; some of the cells: file.h5ad:X_pca:day=2). "
    "Exit status: 0 done, 1 the work failed, 2 the input or the arguments are wrong, 3 another process of the fit "
    "was lost.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_JUDGED = 4096  # points of each side by which a default is chosen
_IN_MEMORY = 1 << 30  # bytes: a larger file of points stays on disk, as folders of files do


class Method(enum.StrEnum):
    """The methods by their names on the command line."""

    ncf = "ncf"
    hjpinn = "hjpinn"
    hota = "hota"
    diotm = "diotm"


class Preset(enum.StrEnum):
    """What one option of a method switches."""

    default = "default"
    published = "published"


def _duration(text: str) -> float:
    """Seconds from `90`, `90s`, `1.5m` or `2h`."""
    found = re.fullmatch(r"(\d+\.?\d*)\s*([smh]?)", text.strip().lower())
    if not found or not 0 < float(found[1]) < 1e9:
        raise typer.BadParameter(f"expected a time such as 60s, 2m or 1h, found {text!r}.")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _number(kind: type, low: float, high: float, expected: str) -> dict[str, Any]:
    """Options of a number in a range; the parser's own messages do not say what was found."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise typer.BadParameter(f"expected {expected}, found {str(text)!r}.")
        return value

    return {"parser": parse, "metavar": "N" if kind is int else "X"}


MapFile = Annotated[Path, typer.Argument(metavar="MAP", help="A map written by `brenier fit`.")]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Points of the source.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="Points of the target.")]
Seed = Annotated[
    int,
    typer.Option(
        **_number(int, 0, 2**32 - 1, "a whole number from 0 to 4294967295"),
        help="Same seed, same machine: same bits.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        **_number(int, 1, 10**12, "a whole number of at least 1"),
        help="Planned optimiser steps; the method's own by default.",
    ),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        parser=_duration, metavar="TIME", help="For the whole fit: 60s, 2m, 1h; it ends in time."
    ),
]
StateCostFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Walls: a picture whose dark pixels they are, or a .npy of cells from 0 to 1 (wall).",
    ),
]
Extent = Annotated[
    tuple[str, str, str, str] | None,  # parsed by `read_walls`, which says what was found
    typer.Option(metavar="X_MIN X_MAX Y_MIN Y_MAX", help="Where the whole of --state-cost lies."),
]
ReportFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a page about the map: .html.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but errors and the JSON.")]


def main() -> None:
    """The console script."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"brenier {version('brenier')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    # Both act before a command runs: see `Commands.main` and `_print_version`.
    pass


@app.command()
def fit(
    source: Source,
    target: Target,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the map.")],
    method: Annotated[Method, typer.Option(help="How to fit.")] = Method.ncf,
    preset: Annotated[
        Preset, typer.Option(help="Our recipe, or the one of the method's paper.")
    ] = Preset.default,
    seed: Seed = 0,
    steps: Steps = None,
    time_budget: TimeBudget = None,
    validation: Annotated[
        float,
        typer.Option(
            **_number(float, 0.0, 0.5, "a share from 0 to 0.5"),
            help="Share of the points held out for the scores.",
        ),
    ] = 0.1,
    gaussian_start: Annotated[
        bool, typer.Option("--gaussian-start", help="Start from the linear (Gaussian) map.")
    ] = False,
    cost: Annotated[
        str,
        typer.Option(
            metavar="NAME[:PARAM]",
            help="Cost of a move: quadratic, power:3, coordinatewise-power:3, squared-norm:1.5, "
            "pseudo-huber:1, relativistic:10 or cosh:1.",
        ),
    ] = "quadratic",
    state_cost: StateCostFile = None,
    extent: Extent = None,
    wall_height: Annotated[
        float | None,
        typer.Option(
            **_number(float, 0.0, 1e30, "a number of at least 0"),
            help="Price of unit time in a wall; by default 40 times what straight paths cost.",
        ),
    ] = None,
    noise: Annotated[
        float,
        typer.Option(
            **_number(float, 0.0, 1e30, "a number of at least 0"),
            help="Strength of the noise along the paths; such a map has no inverse.",
        ),
    ] = 0.0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Continue from here if it exists; written as it goes."),
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(parser=_duration, metavar="TIME", help="Between two checkpoints.")
    ] = "30s",  # type: ignore[assignment]  # parsed, as what is typed
    devices: Annotated[
        int,
        typer.Option(
            **_number(int, 1, 10**6, "a whole number of at least 1"),
            help="Split every batch over this many devices.",
        ),
    ] = 1,
    coordinator: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Work with other processes, which meet where process 0 runs; start this command once for each.",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            **_number(int, 1, 10**6, "a whole number of at least 1"), help="How many they are."
        ),
    ] = None,
    process_id: Annotated[
        int | None,
        typer.Option(
            **_number(int, 0, 10**6, "a whole number of at least 0"),
            help="Which of them this one is, from 0; the first one writes the files.",
        ),
    ] = None,
    wait: Annotated[
        int,
        typer.Option(
            **_number(int, 1, 10**6, "a whole number of at least 1"),
            help="Seconds from the start of this command in which all have to meet.",
        ),
    ] = 45,
    report: ReportFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a map and its inverse to two files of points, or folders of .npy or .parquet files.

    Around walls, and with noise, by `--method hota`. On several machines by `--coordinator`.
    Ctrl-C keeps the best map so far: it is written, and the exit status is 0.
    """
    from brenier.cli._hosts import is_watched, join, place_of, watch
    from brenier.files import check_output

    place = place_of(coordinator, processes, process_id, devices)
    if place is not None and not is_watched():
        raise typer.Exit(watch())
    hosts = join(place, wait)

    def check_outputs() -> None:
        inputs = [source, target, *([] if state_cost is None else [str(state_cost)])]
        _refuse_to_overwrite([out, checkpoint, report], inputs)
        check_output(out)
        if report is not None:
            from brenier.report import check_report_output

            check_report_output(report)
        if checkpoint is not None:
            if checkpoint.resolve() == out.resolve():
                raise InputError(
                    f"Expected two files for --out and --checkpoint, found '{out}' for both."
                )
            check_output(checkpoint)

    hosts.told(check_outputs)

    import dataclasses

    import equinox as eqx
    import jax

    import brenier
    from brenier.cli._costs import read_cost
    from brenier.cli._walls import check_options, check_plane, default_height, read_walls
    from brenier.progress import FitProgress
    from brenier.solution import Metadata

    check_options(method.value, state_cost=state_cost, noise=noise)
    keep_compiled()

    def read_problem() -> tuple[Any, Any]:
        walls = read_walls(state_cost, extent, wall_height)
        moving = read_cost(cost)
        problem = brenier.TransportProblem(_load(source), _load(target), moving, noise=noise)
        check_plane(walls, problem.dim)
        if walls is None:
            return problem, walls
        if wall_height is None:
            pools = problem.source.pool(_JUDGED, seed), problem.target.pool(_JUDGED, seed)
            walls = eqx.tree_at(lambda walls: walls.height, walls, default_height(*pools))
        return problem.replace(state_cost=walls), walls

    problem, walls = hosts.together(read_problem)
    families: dict[Method, Any] = {
        Method.ncf: brenier.NCF,
        Method.hjpinn: brenier.HJPINN,
        Method.diotm: brenier.DIOTM,
        Method.hota: brenier.HOTA,
    }
    recipe = families[method](preset=preset.value, gaussian_start=gaussian_start)
    title = (
        f"{method.value}, dimension {problem.dim}, "
        f"{problem.source.size} and {problem.target.size} points"
    )
    with FitProgress(title, quiet=quiet or not hosts.first) as progress:
        solution = brenier.fit(
            problem,
            recipe,
            key=jax.random.key(seed),
            steps=steps,
            time_budget=time_budget,
            validation=validation,
            callbacks=[progress],
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            devices=devices if place is None else "all",
        )
    if solution.status == "interrupted" and solution.info["steps"] == 0:
        raise Interrupted("Interrupted before the first step; nothing was written.")
    if walls is not None:
        facts = {"file": str(state_cost), "extent": walls.shape.extent, "height": walls.height}
        info = Metadata(solution.info | {"state_cost": facts})
        solution = dataclasses.replace(solution, info=info)

    def write() -> list[str]:
        brenier.save(out, solution)
        if report is None:
            return [str(out)]
        from brenier.validation import split_sides

        fitted, goal, x, y = split_sides(problem, validation, jax.random.key(seed))
        if x is None or y is None:  # nothing was held out: better the points of the fit than none
            x, y = (side.pool(_JUDGED, seed) for side in (fitted, goal))
        solution.report(report, x, y, state_cost=walls, title=title, seed=seed)
        return [str(out), str(report)]

    written = hosts.told(write)
    if not hosts.first:
        return
    _report(
        {
            "files": written,
            "status": solution.status,
            "message": solution.message,
            "scores": solution.scores,
            "info": solution.info,
        },
        lambda: (
            f"{solution.message}\n{_scores_line(solution.scores)}"
            + "\n".join(f"Wrote {path}." for path in written)
        ),
        as_json,
        quiet,
    )


@app.command()
def transport(
    map_file: MapFile,
    points: Annotated[str, typer.Argument(metavar="POINTS", help="Points to move.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Where to write them; of cells in .h5ad a copy with one more entry of obsm: file.h5ad:X_moved.",
        ),
    ],
    inverse: Annotated[
        bool, typer.Option("--inverse", help="POINTS are of the target: move them back.")
    ] = False,
    time: Annotated[
        float | None,
        typer.Option(
            **_number(float, 0.0, 1.0, "a time from 0 (source) to 1 (target)"),
            help="Where they are at this time, from 0 (source) to 1 (target).",
        ),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine", help="Solve for the lines, so that none cross; some fifty times as slow."
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Move points with a map.

    They are worked through in blocks, so that memory does not grow with their number.
    """
    from brenier.cells import ENTRY, check_entry, provenance
    from brenier.points import (
        check_points_output,
        read_blocks,
        split_key,
        write_into_cells,
        write_points,
    )

    into_cells = all(split_key(path)[0].suffix.lower() == ".h5ad" for path in (points, out))
    entry = ENTRY
    if into_cells:
        file, name = split_key(out)
        out, entry = file, check_entry(name or ENTRY)
    check_points_output(out)
    blocks = read_blocks(points)

    import brenier

    keep_compiled()
    solution = brenier.load(map_file)
    transport = solution.refined() if refine else solution.transport
    count = 0

    def moved() -> Any:
        nonlocal count
        for number, block in enumerate(blocks):
            yield _mover(_with_seed(transport, number), inverse, time)(block)
            count += len(block)

    if into_cells:
        facts = provenance(solution, points=points, inverse=inverse, time=time)
        write_into_cells(out, moved(), source=points, entry=entry, facts=facts)
    else:
        write_points(out, moved())
    _report(
        {"files": [str(out)], "points": count} | ({"entry": entry} if into_cells else {}),
        lambda: (
            f"Moved {count} points.\nWrote {out}"
            + (f", where they are obsm['{entry}']." if into_cells else ".")
        ),
        as_json,
        quiet,
    )


@app.command()
def trajectories(
    map_file: MapFile,
    points: Annotated[str, typer.Argument(metavar="POINTS", help="Points of the source.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Paths: .npz, or .csv.")],
    times: Annotated[
        int,
        typer.Option(
            **_number(int, 2, 100_000, "a whole number of at least 2"),
            help="Moments from 0 to 1, both included.",
        ),
    ] = 51,
    state_cost: StateCostFile = None,
    extent: Extent = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the paths: .png, .svg or .pdf.")
    ] = None,
    animation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Film them: .gif, or .mp4 with ffmpeg.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Follow points from the source to the target: the whole of their paths.

    With walls it says how much of the time the paths are inside them, at the moments written.
    """
    from brenier.points import check_paths_output, read_points

    inputs = [str(map_file), points, *([] if state_cost is None else [str(state_cost)])]
    _refuse_to_overwrite([out, picture, animation], inputs)
    check_paths_output(out)
    if picture is not None or animation is not None:
        from brenier.plotting import check_animation_output, check_figure_output

        if picture is not None:
            check_figure_output(picture)
        if animation is not None:
            check_animation_output(animation)

    import brenier
    from brenier.cli._trajectories import run_trajectories
    from brenier.cli._walls import read_walls

    walls = read_walls(state_cost, extent)
    x = read_points(points)
    keep_compiled()
    facts = run_trajectories(
        brenier.load(map_file),
        x,
        out,
        times=times,
        walls=walls,
        picture=picture,
        animation=animation,
        seed=seed,
    )

    def text() -> str:
        rows = [f"Followed {facts['points']} points through {times} moments."]
        if walls is not None:
            rows.append(
                f"Inside walls {facts['time_inside']:.2%} of the time, "
                f"{facts['deepest']:.3g} deep at most."
            )
        return "\n".join([*rows, *(f"Wrote {path}." for path in facts["files"])])

    _report(facts, text, as_json, quiet)


@app.command()
def evaluate(
    map_file: MapFile,
    source: Source,
    target: Target,
    seed: Seed = 0,
    state_cost: StateCostFile = None,
    extent: Extent = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit status 1 for a map that does not pass.")
    ] = False,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Score a map against sampling noise, simple maps and bounds on the cost.

    Give it points that it was not fitted to, and the walls that it was.
    """
    from brenier.points import read_points

    if report is not None:
        from brenier.report import check_report_output

        _refuse_to_overwrite([report], [str(map_file), source, target])
        check_report_output(report)
    x, y = read_points(source), read_points(target)

    import brenier
    from brenier.cli._scores import scores_in_words
    from brenier.cli._walls import check_plane, fitted_height, read_walls
    from brenier.verdict import evaluate as score

    keep_compiled()
    solution = brenier.load(map_file)
    walls = read_walls(state_cost, extent, fitted_height(solution) if state_cost else None)
    check_plane(walls, solution.transport.dim)
    scores = score(solution, x, y, state_cost=walls, seed=seed)
    if report is not None:
        name = map_file.stem
        solution.report(report, x, y, state_cost=walls, scores=scores, title=name, seed=seed)
        scores |= {"files": [str(report)]}
    _report(scores, lambda: scores_in_words(scores), as_json)
    if check and not scores["passed"]:
        raise typer.Exit(FAILED)


@app.command()
def color(
    picture_a: Annotated[Path, typer.Argument(metavar="A", help="A picture.")],
    picture_b: Annotated[Path, typer.Argument(metavar="B", help="Another picture.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write; made if missing.")],
    seed: Seed = 0,
    steps: Steps = None,
    time_budget: TimeBudget = None,
    report: ReportFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give each of two pictures the colours of the other."""
    from brenier.color import color_transfer, write_color_report
    from brenier.progress import FitProgress

    if report is not None:
        from brenier.report import check_report_output

        _refuse_to_overwrite([report], [str(picture_a), str(picture_b)])
        check_report_output(report)
    keep_compiled()
    with FitProgress(f"{picture_a.name} and {picture_b.name}", quiet=quiet) as progress:
        result = color_transfer(
            picture_a,
            picture_b,
            out=out,
            random_state=seed,
            steps=steps,
            time_budget=time_budget,
            callbacks=[progress],
        )
    facts = result.to_dict()
    written = list(facts["files"].values())
    if report is not None:
        write_color_report(report, picture_a, picture_b, result, seed=seed)
        written.append(str(report))
    _report(
        facts | {"files": written},
        lambda: "\n".join([facts["fit"]["message"], *(f"Wrote {path}." for path in written)]),
        as_json,
        quiet,
    )


@app.command()
def info(map_file: MapFile, as_json: Json = False) -> None:
    """Say how a map was fitted and how good it is."""
    import jax
    import numpy as np

    import brenier

    solution = brenier.load(map_file)
    arrays = (leaf for leaf in jax.tree.leaves(solution.transport) if hasattr(leaf, "shape"))
    facts = {
        "file": str(map_file),
        "bytes": map_file.stat().st_size,
        "dimension": solution.transport.dim,
        "numbers": sum(int(np.prod(array.shape)) for array in arrays),
        "status": solution.status,
        "message": solution.message,
        "scores": solution.scores,
        "info": solution.info,
    }

    def text() -> str:
        details = {"dimension": facts["dimension"], "numbers in the map": facts["numbers"]}
        details |= {
            key: value
            for key, value in _flat(solution.info)
            if value is not None and key != "cost at probes"  # digits that are not for reading
        }
        rows = [f"{name:28} {value}" for name, value in details.items()]
        return "\n".join([solution.message, _scores_line(solution.scores), *rows])

    _report(facts, text, as_json)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where to write; made if missing.")
    ] = Path("demo-output"),
    seed: Seed = 0,
    steps: Steps = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Exchange the colours of two photographs, in a minute."""
    from brenier.cli._demo import run_demo
    from brenier.progress import FitProgress

    keep_compiled()
    with FitProgress("two photographs", quiet=quiet) as progress:
        facts = run_demo(out, seed=seed, steps=steps, callbacks=[progress])
    sheet, scores, report = facts["files"]["contact_sheet"], facts["scores_file"], facts["report"]
    _report(
        facts | {"files": list(facts["files"].values())},
        lambda: (
            f"{facts['fit']['message']}\n"
            f"Open {sheet} to see both photographs before and after.\n"
            f"Open {report} to read what was done and how good it is.\n"
            f"Open {scores} to compute with the same numbers."
        ),
        as_json,
        quiet,
    )


def _report(
    facts: dict[str, Any], text: Callable[[], str], as_json: bool, quiet: bool = False
) -> None:
    """The result of a command on stdout."""
    if as_json:
        print_json(facts)
    elif not quiet:
        print(text())


def _load(path: str) -> Any:
    """Points in memory, where batches come from fastest, unless they are many."""
    import numpy as np

    from brenier.points import read_points
    from brenier.shards import SUFFIXES

    file = Path(path)
    if file.is_dir():
        return file
    if file.suffix.lower() in SUFFIXES and file.exists() and file.stat().st_size > _IN_MEMORY:
        return file
    points = read_points(path)
    return points if points.nbytes > _IN_MEMORY else np.array(points)


def _mover(transport: Any, inverse: bool, time: float | None) -> Callable[[Any], Any]:
    if time is None:
        return transport.inverse if inverse else transport.forward
    if inverse:
        return lambda block: transport.interpolate_back(block, time)
    return lambda block: transport.interpolate(block, time)


def _with_seed(transport: Any, seed: int) -> Any:
    """A map with noise draws it anew for every seed; others are as they are."""
    if not hasattr(transport, "seed"):
        return transport
    import dataclasses

    return dataclasses.replace(transport, seed=seed)


def _refuse_to_overwrite(outputs: list[Path | None], inputs: list[str]) -> None:
    for output in outputs:
        for path in map(Path, inputs):
            if output is not None and output.exists() and path.exists() and output.samefile(path):
                raise InputError(
                    f"Expected a new file to write to, found the input '{path}'; "
                    "choose another name."
                )


def _scores_line(scores: dict[str, float]) -> str:
    if not scores:
        return ""
    parts = (
        f"{way} {scores[f'energy_{way}']:.3g} (noise {scores[f'band_{way}']:.3g}, "
        f"linear map {scores[f'linear_{way}']:.3g})"
        for way in ("forward", "backward")
        if f"energy_{way}" in scores
    )
    return f"Held-out energy distance: {', '.join(parts)}.\n"


def _flat(facts: dict[str, Any], prefix: str = "") -> Any:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name.replace('_', ' ')} ")
        else:
            yield f"{prefix}{name.replace('_', ' ')}", value
