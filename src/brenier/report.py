"""One page about one map: its verdict, its scores, its paths and how to make it again.

The page is a single HTML file that opens without a network: figures are drawn by matplotlib and
held in it, and the points that its slider moves are a sample, so that its size does not grow with
the data.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
import json
from collections.abc import Mapping
from html import escape
from string import Template
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from brenier.errors import InputError
from brenier.files import PathLike, atomic_write, check_output
from brenier.plotting import wall_shades
from brenier.samplers import check_points
from brenier.solution import Solution
from brenier.state_costs import as_state_cost
from brenier.validation import WAYS
from brenier.verdict import BASELINES, SCORES, evaluate

_SHOWN = 500  # points that move
_MOMENTS = 21
_ARROWS = 250
_GRID, _FINE = 13, 60  # lines of the grid a side, and points on each
_INK = "#7d7d84"  # read on white and on black
_BLUE, _ORANGE = "#3a8fc9", "#d98a00"  # told apart by all eyes, by day and by night
_LONGEST_SIDE = 900  # pixels of a picture

Pictures = Mapping[str, Any]


def write_report(
    path: PathLike,
    solution: Solution,
    Xs: Any = None,
    Xt: Any = None,
    *,
    state_cost: Any = None,
    scores: dict[str, Any] | None = None,
    pictures: Pictures | None = None,
    title: str = "Transport map",
    seed: int = 0,
) -> None:
    """Write a page about a map.

    Args:
        path: of the page, `.html`.
        solution: of the fit.
        Xs, Xt: points of both sides, best held out, for the verdict and the pictures of paths;
            without them the page has what the fit recorded.
        state_cost: the `U` of the problem, where there was one; in the plane it is drawn.
        scores: what `brenier.evaluate` found, where it is known already.
        pictures: by caption, pixels (h, w, 3) in [0, 1] or as bytes, or paths of pictures.
        title: of the page.
        seed: of the verdict and of the choice of points that are shown.

    Raises:
        InputError: only one side is given; points of another dimension; not an `.html` file.
        OutputError: the file cannot be written.
    """
    check_report_output(path)
    if (Xs is None) != (Xt is None):
        raise InputError(
            "Expected both Xs and Xt, or neither, found one; give points of each side."
        )
    rng = np.random.default_rng(seed)
    parts = []
    if Xs is None:
        parts.append(_banner(None, solution.message))
    else:
        if scores is None:
            scores = evaluate(solution, Xs, Xt, state_cost=state_cost, seed=seed)
        x, y = (
            np.asarray(p[rng.permutation(len(p))[:_SHOWN]], np.float64)
            for p in (check_points(Xs, "Xs"), check_points(Xt, "Xt"))
        )
        parts += [
            _banner(scores["passed"], scores["verdict"]),
            _scores_section(scores),
            _bounds_section(scores),
            _paths_section(solution, x, y, state_cost),
            _still_section(solution, x),
        ]
    if pictures:
        shown = (_picture(caption, pixels) for caption, pixels in pictures.items())
        parts.append(_section("Pictures", f'<div class="row pictures">{"".join(shown)}</div>'))
    parts += [_classes_section(solution), _training_section(solution), _facts_section(solution)]
    script = _template("report.js") if Xs is not None else ""
    page = Template(_template("report.html")).substitute(
        title=escape(title), body="\n".join(parts), script=script
    )
    atomic_write(path, page.encode())


def check_report_output(path: PathLike) -> None:
    """`check_output` for a page."""
    if not str(path).lower().endswith((".html", ".htm")):
        raise InputError(f"Expected a report of type .html, found '{path}'; rename it.")
    check_output(path)


# Sections


def _section(heading: str, *parts: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def _banner(passed: bool | None, words: str) -> str:
    kind = {True: "good", False: "bad", None: ""}[passed]
    mark = {True: "✓ This map passes.", False: "✗ This map does not pass.", None: ""}[passed]
    strong = f"<strong>{mark}</strong>" if mark else ""
    return f'<div class="verdict {kind}" id="verdict">{strong}<p>{escape(words)}</p></div>'


def _table(header: list[str], rows: list[list[str]], own: int | None = None) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        f"<tr{' class=own' if i == own else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}g}"


def _scores_section(scores: dict[str, Any]) -> str:
    header = ["", "energy, forward", "energy, backward", "/ noise", *SCORES.values()]
    keys = ("forward", "backward", "ratio", *SCORES)
    rows = [
        [name.replace("_", " "), *(_number(scores[name][key]) for key in keys)]
        for name in ("map", *BASELINES)
    ]
    noise = {"ratio": 1.0} | scores["noise_band"]
    rows.append(["sampling noise (95 %)", *(_number(noise[key]) for key in keys)])
    more = [
        f"Scored on {scores['points']['scored'][0]} and {scores['points']['scored'][1]} points."
    ]
    if scores["round_trip"] is not None:
        more.append(f"Round trip S(T(x)): {_number(scores['round_trip'])} of the variance.")
    if scores["violations"] is not None:
        more.append(f"Inside walls {scores['violations']['time_inside']:.2%} of the time.")
    return _section(
        "How well it matches",
        _figure(
            _score_bars(scores), "Misfits of the map and of simple maps, in units of the noise"
        ),
        _table(header, rows, own=0),
        f'<p class="muted">{escape(" ".join(more))}</p>',
    )


def _bounds_section(scores: dict[str, Any]) -> str:
    found = scores["certificate"]
    if found is None:
        return ""
    low, high = found["interval"]
    kind = "lower bound, sampled" if found["sampled"] else "lower bound"
    rows = [
        [kind, _number(found["lower"], 5)],
        ["upper bound", _number(found["upper"], 5)],
        ["gap", f"{found['gap']:.2%}"],
        [f"{found['level']:.0%} interval of the true cost", f"{low:.5g} to {high:.5g}"],
        ["cost of the map", _number(found["map_cost"], 5)],
    ]
    for name, text in (
        ("exact", "between these points alone"),
        ("map_error", "map error at most, UVP %"),
    ):
        if found[name] is not None:
            rows.append([text, _number(found[name], 5)])
    if found["crossing"] is not None:
        rows.append(["paths that cross", f"{found['crossing']:.2%} of the pairs"])
    return _section("What the cost must be", _table(["optimal cost", ""], rows))


def _classes_section(solution: Solution) -> str:
    """Of a fit with labels, what it recorded of its held-out points."""
    classes = solution.info.get("classes")
    if not classes:
        return ""
    header = ["class", "energy, forward", "noise", "energy, backward", "noise"]
    keys = ("energy_forward", "band_forward", "energy_backward", "band_backward")
    rows = [
        [label, *(_number(found[key]) for key in keys)]
        + [f"{found[f'kept_{way}']:.1%}" for way in WAYS]
        for label, found in classes.items()
    ]
    return _section(
        "Class by class",
        _table([*header, "kept, forward", "kept, backward"], rows),
        '<p class="muted">On points that the fit held out. Kept: the share of images whose nearest '
        "sample on the other side is of their class.</p>",
    )


def _paths_section(solution: Solution, x: np.ndarray, y: np.ndarray, state_cost: Any) -> str:
    times = np.linspace(0.0, 1.0, _MOMENTS)
    paths = np.asarray(solution.transport.trajectory(x, times), np.float64)
    view, axes = _projection(paths, y)
    flat, target = view(paths.reshape(-1, x.shape[1])).reshape(_MOMENTS, -1, 2), view(y, 1)
    both = np.concatenate([flat.reshape(-1, 2), target])
    low, high = both.min(axis=0), both.max(axis=0)
    pad = 0.05 * max(float((high - low).max()), 1e-9)
    low, high = low - pad, high + pad
    middle, half = (low + high) / 2, np.maximum((high - low) / 2, 0.25 * (high - low).max())
    low, high = middle - half, middle + half
    window = (low[0], high[0], low[1], high[1])
    walls = None
    if state_cost is not None and x.shape[1] == 2:
        shades = wall_shades(as_state_cost(state_cost, 2, points=x), window)
        walls = _data_uri(Image.fromarray(np.uint8(255 * shades)), "PNG")
    precision = max(3 - int(np.floor(np.log10(float((high - low).max())))), 0)
    data = {
        "paths": np.round(flat, precision).tolist(),
        "target": np.round(target, precision).tolist(),
        "window": [float(w) for w in window],
        "colors": [ImageColor.getrgb(color) for color in (_BLUE, _ORANGE)],
        "walls": walls,
    }
    height = round(900 * float((high - low)[1] / (high - low)[0]))
    key = (
        f'<p class="muted"><span class="key"><svg viewBox="0 0 10 10"><circle cx="5" cy="5" r="4" '
        f'fill="{_BLUE}"/></svg>source</span><span class="key"><svg viewBox="0 0 10 10"><circle '
        f'cx="5" cy="5" r="4" fill="{_ORANGE}"/></svg>transported</span><span class="key"><svg '
        'viewBox="0 0 10 10"><path d="M5 0V10M0 5H10" stroke="#8e8e94"/></svg>target</span></p>'
    )
    return _section(
        "From source to target",
        key,
        f'<canvas id="paths" width="900" height="{height}" role="img" '
        'aria-label="Points on their way from source to target"></canvas>',
        '<div class="slider"><input type="range" id="time" min="0" max="1" step="0.01" value="1" '
        'aria-label="time"><output id="now" for="time"></output>'
        '<label><input type="checkbox" id="arrows" checked> paths</label></div>',
        f'<p class="muted">{escape(axes)} {len(x)} points, chosen at random.</p>',
        f'<script type="application/json" id="path-data">{_json(data)}</script>',
    )


def _projection(paths: np.ndarray, y: np.ndarray) -> tuple[Any, str]:
    """A view of points (n, d) in the plane, and what its axes are."""
    dim = y.shape[1]
    if dim == 2:
        return (lambda p, _=0: p), "Both coordinates."
    if dim == 1:
        # By rank, so that points on a line do not hide each other.
        rank = np.argsort(np.argsort(paths[0, :, 0])) / max(paths.shape[1] - 1, 1)
        spread = float(np.ptp(np.concatenate([paths.ravel(), y.ravel()]))) or 1.0

        def lifted(p: np.ndarray, side: int = 0) -> np.ndarray:
            if side:
                heights = np.argsort(np.argsort(p[:, 0])) / max(len(p) - 1, 1)
            else:
                heights = np.tile(rank, len(p) // len(rank))
            return np.stack([p[:, 0], 0.6 * spread * heights], axis=1)

        return (
            lifted,
            "The coordinate, and upwards the rank in the source (in the target, crosses).",
        )
    ends = np.concatenate([paths[0], paths[-1], y])
    center = ends.mean(axis=0)
    _, spreads, axes = np.linalg.svd(ends - center, full_matrices=False)
    share = float(np.sum(spreads[:2] ** 2) / max(np.sum(spreads**2), 1e-300))
    words = f"The two principal axes of source and target together, {share:.0%} of their variance."
    return (lambda p, _=0: (p - center) @ axes[:2].T), words


def _still_section(solution: Solution, x: np.ndarray) -> str:
    if x.shape[1] != 2:
        return ""
    shown = [_figure(_arrows(solution, x), "Displacements of source points")]
    if solution.transport.invertible:
        shown.append(
            _figure(_warped_grid(solution, x), "A square grid, and where the map takes it")
        )
    return _section("The map", f'<div class="row">{"".join(shown)}</div>')


def _training_section(solution: Solution) -> str:
    if not len(solution.history.get("step", [])):
        return ""
    return _section("Training", _figure(_curves(solution), "Loss and held-out score by step"))


def _facts_section(solution: Solution) -> str:
    known = {name: fact for name, fact in solution.info.items() if name != "classes"}
    facts = list(_flat(known | {"status": solution.status}))
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="long">{escape(str(value))}</td></tr>'
        for name, value in facts
        if value is not None
    )
    return _section(
        "How to make it again",
        f'<p class="muted">{escape(solution.message)}</p>',
        f'<div class="wide"><table id="facts"><tbody>{rows}</tbody></table></div>',
    )


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Any:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            shown = f"{value:.6g}" if isinstance(value, float) else value
            yield f"{prefix}{name}".replace("_", " "), shown


# Figures


def _blank(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    axes = np.atleast_1d(figure.subplots(1, panels)).tolist()
    for ax in axes:
        ax.patch.set_alpha(0.0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[:].set_color(_INK)
        ax.tick_params(which="both", colors=_INK, labelsize=9)
    return figure, axes


def _score_bars(scores: dict[str, Any]) -> Figure:
    """Every score in units of its noise, on one scale: left of the line is as good as it gets."""
    figure, (ax,) = _blank(7.2, 2.9)
    names = ("map", *BASELINES)
    noise = scores["noise_band"]
    for name, height, marker in zip(names, range(len(names))[::-1], "osD^v", strict=True):
        ways = [(scores[name][w], noise[w]) for w in ("forward", "backward", *SCORES)]
        ratios = [max(v / b, 1e-2) for v, b in ways if v is not None and b]
        color = _BLUE if name == "map" else _INK
        ax.plot([min(ratios), max(ratios)], [height] * 2, color=color, lw=1, alpha=0.6)
        ax.plot(ratios, [height] * len(ratios), marker, color=color, ms=6, ls="")
    ax.axvline(1.0, color=_ORANGE, lw=1.5, ls="--")
    ax.set_xscale("log")
    ax.set_yticks(range(len(names))[::-1], [name.replace("_", " ") for name in names])
    ax.set_xlabel("score / sampling noise (dashed: the noise)", color=_INK, fontsize=9)
    return figure


def _curves(solution: Solution) -> Figure:
    history = {k: np.asarray(v, np.float64) for k, v in solution.history.items()}
    scored = "score" in history and len(history.get("score_step", [])) > 0
    figure, axes = _blank(7.2, 2.6, 2 if scored else 1)
    axes[0].plot(history["step"], history["loss"], color=_BLUE, lw=1.2)
    axes[0].set_ylabel("loss", color=_INK, fontsize=9)
    if (history["loss"] > 0).all():
        axes[0].set_yscale("log")
    if scored:
        axes[1].plot(history["score_step"], history["score"], color=_BLUE, lw=1.2, marker="o", ms=3)
        axes[1].axhline(1.0, color=_ORANGE, lw=1.2, ls="--")
        axes[1].set_yscale("symlog", linthresh=1.0)
        axes[1].set_ylabel("held-out misfit / noise", color=_INK, fontsize=9)
    for ax in axes:
        ax.set_xlabel("step", color=_INK, fontsize=9)
        ax.locator_params(axis="x", nbins=5)
    return figure


def _arrows(solution: Solution, x: np.ndarray) -> Figure:
    x = x[:_ARROWS]
    moves = np.asarray(solution.transport.forward(x), np.float64) - x
    figure, (ax,) = _blank(4.2, 4.2)
    ax.quiver(*x.T, *moves.T, angles="xy", scale_units="xy", scale=1, width=0.003, color=_BLUE)
    ends = np.concatenate([x, x + moves])
    ax.update_datalim(ends)
    ax.autoscale_view()
    ax.set_aspect("equal", adjustable="datalim")
    return figure


def _warped_grid(solution: Solution, x: np.ndarray) -> Figure:
    low, high = np.quantile(x, [0.02, 0.98], axis=0)
    lines = []
    for axis in (0, 1):
        along = np.linspace(low[axis], high[axis], _FINE)
        for at in np.linspace(low[1 - axis], high[1 - axis], _GRID):
            line = np.empty((_FINE, 2))
            line[:, axis], line[:, 1 - axis] = along, at
            lines.append(line)
    moved = np.asarray(solution.transport.forward(np.concatenate(lines)), np.float64)
    figure, axes = _blank(6.4, 3.4, 2)
    for ax, drawn, color in zip(
        axes, (lines, np.split(moved, len(lines))), (_INK, _BLUE), strict=True
    ):
        for line in drawn:
            ax.plot(*line.T, color=color, lw=0.8)
        ax.set_aspect("equal", adjustable="datalim")
    return figure


def _figure(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "brenier"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    source = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _picture(caption: str, pixels: Any) -> str:
    if isinstance(pixels, np.ndarray):
        if pixels.dtype != np.uint8:
            pixels = np.uint8(np.rint(255 * np.clip(pixels, 0.0, 1.0)))
        image = Image.fromarray(pixels)
    else:
        image = Image.open(pixels)
    image = image.convert("RGB")
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    text = escape(caption)
    uri = _data_uri(image, "JPEG")
    return f'<figure><img src="{uri}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _data_uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _json(data: Any) -> str:
    # Within a script element nothing may look like its end.
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _template(name: str) -> str:
    return (importlib.resources.files("brenier") / "templates" / name).read_text("utf-8")
