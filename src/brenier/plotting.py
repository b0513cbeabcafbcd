"""Pictures of paths in the plane: how points move, past which walls, from where to where.

All functions take arrays and give matplotlib objects, without a screen and without touching
pyplot's state. Time runs along one colour map throughout, whose colours differ in lightness too.
"""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.animation import FFMpegWriter, FuncAnimation, PillowWriter, writers
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from scipy.spatial import KDTree

from brenier.errors import InputError, OutputError
from brenier.files import PathLike, atomic_write, check_output
from brenier.shapes import Raster
from brenier.state_costs import StateCost, evaluate_at

MAX_PATHS = 300
"""Paths drawn at most: more of them hide each other."""

INK, MUTED, FAINT, PAPER = "#1c1c1e", "#6e6e73", "#c7c7cc", "#ffffff"
WALL, GOAL = "#48484d", "#d3d3d9"
# The lightest part would be lost on the paper.
TIME = LinearSegmentedColormap.from_list(
    "time", matplotlib.colormaps["plasma"](np.linspace(0.0, 0.82, 256))
)
FIGURES, ANIMATIONS = (".png", ".svg", ".pdf"), (".gif", ".mp4")
DPI, FRAME_DPI = 160, 100

_INSIDE = 6.4  # inches: the longer side of the plot
_MARGINS = (0.62, 0.24, 0.56, 0.58)  # left, right, bottom, top
_CELLS, _FINER = 1000, 2  # walls: along the longer side of a window, and samples a side of a cell
_TAIL, _TAIL_PARTS = 0.12, 6  # share of the time a tail shows, and its segments
_FRAMES, _PER_SECOND = 60, 15
_HOLD = 1200  # milliseconds: a film that repeats shows its end for a while


@dataclass(frozen=True, eq=False)
class _Scene:
    """What both pictures draw: at most `MAX_PATHS` paths (k, n, 2), and what is around them."""

    times: np.ndarray
    paths: np.ndarray
    total: int
    dim: int
    walls: StateCost | None
    target: np.ndarray | None
    window: tuple[float, float, float, float]

    @property
    def caption(self) -> str:
        shown = self.paths.shape[1]
        if shown < self.total:
            return f"{shown} of {self.total} paths, chosen at random"
        return f"{shown} path{'s' if shown > 1 else ''}"


def paths_figure(
    times: Any,
    points: Any,
    *,
    state_cost: StateCost | None = None,
    target: Any = None,
    window: tuple[float, float, float, float] | None = None,
    seed: int = 0,
) -> Figure:
    """Paths as thin lines coloured by time, their starts as rings and their ends as dots.

    Args:
        times: of the points, increasing, shape (k,).
        points: shape (k, n, d) with d >= 2, as `Transport.trajectory` gives them; of more than two
            coordinates the first two are drawn, and the axes say so.
        state_cost: its obstacle is drawn as walls, or its price in greys where none is known; in
            the plane only.
        target: points (m, d) drawn underneath, for comparison.
        window: `(x_min, x_max, y_min, y_max)`; all of the paths and of a picture of walls by
            default.
        seed: of the choice of `MAX_PATHS` paths where there are more.

    Raises:
        InputError: arrays of other shapes, d = 1, a window that is not in order.

    Example:
        >>> figure = paths_figure([0.0, 1.0], np.array([[[0.0, 0.0]], [[1.0, 2.0]]]))
        >>> figure.axes[0].get_xlabel()
        'x₁'
    """
    scene = _scene(times, points, state_cost, target, window, seed)
    figure, axes = _page(scene, DPI)
    segments = np.stack([scene.paths[:-1], scene.paths[1:]], axis=2)
    middles = (scene.times[:-1] + scene.times[1:]) / 2
    # One path after the other: where they overlap, none has only its end on top.
    order = segments.transpose(1, 0, 2, 3).reshape(-1, 2, 2)
    lines = LineCollection(
        list(order),
        cmap=TIME,
        linewidths=0.9 if scene.paths.shape[1] > 60 else 1.3,
        alpha=0.75,
        capstyle="round",
        zorder=3,
    )
    lines.set_array(np.tile(middles, scene.paths.shape[1]))
    lines.set_clim(scene.times[0], scene.times[-1])
    axes.add_collection(lines)
    start, end = scene.paths[0], scene.paths[-1]
    axes.scatter(*start.T, s=13, facecolors=PAPER, edgecolors=[TIME(0.0)], linewidths=0.8, zorder=4)
    axes.scatter(*end.T, s=13, color=[TIME(1.0)], edgecolors=PAPER, linewidths=0.4, zorder=5)
    _legend(figure, scene, moving=False)
    _time_bar(figure, scene)
    return figure


def paths_animation(
    times: Any,
    points: Any,
    *,
    state_cost: StateCost | None = None,
    target: Any = None,
    window: tuple[float, float, float, float] | None = None,
    seed: int = 0,
    frames: int = _FRAMES,
) -> FuncAnimation:
    """The points of `paths_figure` on their way, each with a short tail; for `save_animation`.

    Args:
        times, points, state_cost, target, window, seed: as in `paths_figure`.
        frames: evenly spaced in time; positions between `times` are interpolated.
    """
    scene = _scene(times, points, state_cost, target, window, seed)
    figure, axes = _page(scene, FRAME_DPI)
    first, last = scene.times[0], scene.times[-1]
    tails = LineCollection([], capstyle="round", zorder=3)
    axes.add_collection(tails)
    heads = axes.scatter(*scene.paths[0].T, s=15, edgecolors=PAPER, linewidths=0.4, zorder=4)
    clock = _time_bar(figure, scene)
    clock.set_visible(True)
    _legend(figure, scene, moving=True)
    shares = np.linspace(0.0, 1.0, _TAIL_PARTS + 1)

    def draw(frame: int) -> tuple[Any, ...]:
        now = first + (last - first) * min(frame / max(frames - 1, 1), 1.0)
        moments = np.maximum(now + (shares - 1.0) * _TAIL * (last - first), first)
        nodes = _positions(scene, moments)
        segments = np.stack([nodes[:-1], nodes[1:]], axis=2)
        color = TIME((now - first) / (last - first))
        # Towards the paper instead of transparent: fewer colours, and a smaller file.
        faded = [_mix(PAPER, color, 0.15 + 0.75 * share) for share in shares[1:]]
        tails.set_segments(list(segments.reshape(-1, 2, 2)))
        tails.set_color([c for c in faded for _ in range(nodes.shape[1])])
        tails.set_linewidth(np.repeat(0.5 + 1.5 * shares[1:], nodes.shape[1]).tolist())
        heads.set_offsets(nodes[-1])
        heads.set_facecolor([color])
        clock.set_xdata([(now - first) / (last - first)])
        return tails, heads, clock

    return FuncAnimation(figure, draw, frames=frames, interval=1000 / _PER_SECOND)


def save_figure(path: PathLike, figure: Figure) -> None:
    """Write a figure as `.png`, `.svg` or `.pdf`, atomically.

    Raises:
        InputError: a file of another type.
        OutputError: the file cannot be written.
    """
    check_figure_output(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix[1:].lower())
    atomic_write(path, buffer.getvalue())


def save_animation(path: PathLike, animation: FuncAnimation) -> None:
    """Write an animation as `.gif`, or as `.mp4` where ffmpeg is installed, atomically.

    Raises:
        InputError: a file of another type, or no ffmpeg for `.mp4`.
        OutputError: the file cannot be written.
    """
    check_animation_output(path)
    if Path(path).suffix.lower() == ".gif":
        atomic_write(path, _gif(animation))
        return
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        try:
            # Half of the players know no other format of pixels, which needs even sides.
            options = ["-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
            animation.save(film, FFMpegWriter(fps=_PER_SECOND, extra_args=options))
        except Exception as error:  # whatever ffmpeg stumbles over
            raise OutputError(
                f"Cannot write '{path}': ffmpeg failed ({type(error).__name__}). "
                "Write a .gif instead."
            ) from error
        atomic_write(path, film.read_bytes())


class _Gif(PillowWriter):
    """Frames of one palette, without dithering: what does not move costs nothing."""

    _frames: list[Image.Image]
    data: bytes = b""

    def grab_frame(self, **savefig_kwargs: Any) -> None:
        # The animation has just drawn it; the parent would draw it once more.
        canvas = self.fig.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        self._frames.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))

    def finish(self) -> None:
        palette = _palette()
        # Pillow's own search is not exact: white would become a light grey.
        levels = np.linspace(0, 255, 32)
        cells = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
        nearest = np.asarray(KDTree(palette).query(cells)[1], np.uint8)
        images = []
        for frame in self._frames:
            cell = np.rint(np.asarray(frame) * (31 / 255)).astype(int)
            images.append(Image.fromarray(nearest[tuple(np.moveaxis(cell, -1, 0))], "P"))
            images[-1].putpalette(palette.tobytes())
        buffer = io.BytesIO()
        images[0].save(
            buffer,
            "GIF",
            save_all=True,
            append_images=images[1:],
            duration=[round(1000 / self.fps)] * (len(images) - 1) + [_HOLD],
            loop=0,
        )
        self.data = buffer.getvalue()


def _palette() -> np.ndarray:
    """256 colours of an animation, shape (256, 3): time at several strengths, and greys."""
    strengths = (1.0, 0.7, 0.45, 0.2)
    time = TIME(np.linspace(0.0, 1.0, 48))[:, :3]
    colors = np.concatenate([1.0 - s * (1.0 - time) for s in strengths])
    greys = np.repeat(np.linspace(0.0, 1.0, 256 - len(colors))[:, None], 3, axis=1)
    return np.rint(255 * np.concatenate([colors, greys])).astype(np.uint8)


def _gif(animation: FuncAnimation) -> bytes:
    writer = _Gif(fps=_PER_SECOND)
    animation.save("film.gif", writer)  # a name that nothing is written to
    return writer.data


def check_figure_output(path: PathLike) -> None:
    """`check_output` for a picture, of a known type."""
    if Path(path).suffix.lower() not in FIGURES:
        raise InputError(
            f"Expected a picture of type {', '.join(FIGURES)}, found '{path}'; rename it."
        )
    check_output(path)


def check_animation_output(path: PathLike) -> None:
    """`check_output` for an animation, of a known type that can be written here."""
    suffix = Path(path).suffix.lower()
    if suffix not in ANIMATIONS:
        raise InputError(
            f"Expected an animation of type {', '.join(ANIMATIONS)}, found '{path}'; rename it."
        )
    if suffix == ".mp4" and not writers.is_available("ffmpeg"):
        raise InputError(
            f"Expected ffmpeg to be installed for '{path}', found none; install it, or write "
            f"'{Path(path).with_suffix('.gif').name}' instead."
        )
    check_output(path)


# What is drawn


def _scene(
    times: Any, points: Any, state_cost: StateCost | None, target: Any, window: Any, seed: int
) -> _Scene:
    times, points = np.asarray(times, np.float64), np.asarray(points, np.float64)
    if points.ndim != 3 or times.shape != points.shape[:1] or len(times) < 2 or points.size == 0:
        raise InputError(
            "Expected times (k,) and points (k, n, d) with k >= 2, "
            f"found shapes {times.shape} and {points.shape}."
        )
    if not (np.diff(times) > 0).all():
        raise InputError("Expected increasing times, found others; sort them and the points.")
    if not np.isfinite(points).all():
        raise InputError("Expected finite points, found NaN or infinity; leave those paths out.")
    _, total, dim = points.shape
    check_drawable(dim)
    if target is not None:
        target = np.asarray(target, np.float64)
        if target.ndim != 2 or target.shape[1] != dim:
            raise InputError(f"Expected target points (m, {dim}), found shape {target.shape}.")
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(total)[:MAX_PATHS])
    paths = points[:, chosen, :2]
    walls = state_cost if dim == 2 else None
    return _Scene(
        times=times,
        paths=paths,
        total=total,
        dim=dim,
        walls=walls,
        target=None if target is None else rng.permutation(target)[: 4 * MAX_PATHS, :2],
        window=_window(paths, walls, target, window),
    )


def check_drawable(dim: int) -> None:
    """`InputError` where points have one coordinate only."""
    if dim < 2:
        raise InputError(
            "Expected points with at least 2 coordinates to draw, found 1; plot them over time."
        )


def _window(
    paths: np.ndarray, walls: StateCost | None, target: np.ndarray | None, window: Any
) -> tuple[float, float, float, float]:
    if window is not None:
        x_min, x_max, y_min, y_max = map(float, window)
        if not (-np.inf < x_min < x_max < np.inf and -np.inf < y_min < y_max < np.inf):
            raise InputError(
                "Expected a window (x_min, x_max, y_min, y_max) in order, "
                f"found {(x_min, x_max, y_min, y_max)}."
            )
        return x_min, x_max, y_min, y_max
    shown = paths.reshape(-1, 2)
    if target is not None:
        shown = np.concatenate([shown, target[:, :2]])
    low, high = shown.min(axis=0), shown.max(axis=0)
    if walls is not None and isinstance(walls.obstacle, Raster):
        x_min, x_max, y_min, y_max = walls.obstacle.extent
        if (low >= [x_min, y_min]).all() and (high <= [x_max, y_max]).all():
            return walls.obstacle.extent
        low, high = np.minimum(low, [x_min, y_min]), np.maximum(high, [x_max, y_max])
    margin = 0.05 * max(float((high - low).max()), 1e-9 * float(np.abs([low, high]).max()), 1e-9)
    low, high = low - margin, high + margin
    # A strip too narrow to see would also be a figure without a height.
    middle, half = (low + high) / 2, (high - low) / 2
    half = np.maximum(half, 0.25 * half.max())
    (x_min, y_min), (x_max, y_max) = (middle - half).tolist(), (middle + half).tolist()
    return x_min, x_max, y_min, y_max


def _positions(scene: _Scene, moments: np.ndarray) -> np.ndarray:
    """The paths at other times, shape (len(moments), n, 2), linear between the given ones."""
    after = np.clip(np.searchsorted(scene.times, moments), 1, len(scene.times) - 1)
    t0, t1 = scene.times[after - 1], scene.times[after]
    share = ((moments - t0) / (t1 - t0))[:, None, None]
    return (1 - share) * scene.paths[after - 1] + share * scene.paths[after]


# The page


def _page(scene: _Scene, dpi: int) -> tuple[Figure, Axes]:
    x_min, x_max, y_min, y_max = scene.window
    longer = max(x_max - x_min, y_max - y_min)
    width, height = _INSIDE * (x_max - x_min) / longer, _INSIDE * (y_max - y_min) / longer
    left, right, bottom, top = _MARGINS
    # The header has a width of its own, whatever the window is.
    page_width, page_height = max(width, 4.6) + left + right, height + bottom + top
    figure = Figure(figsize=(page_width, page_height), dpi=dpi, facecolor=PAPER)
    FigureCanvasAgg(figure)
    x = left + (page_width - left - right - width) / 2
    axes = figure.add_axes(
        (x / page_width, bottom / page_height, width / page_width, height / page_height)
    )
    axes.set(xlim=(x_min, x_max), ylim=(y_min, y_max), aspect="equal")
    axes.spines[:].set(color=FAINT, linewidth=0.6)
    axes.tick_params(length=2.5, width=0.6, color=FAINT, labelcolor=MUTED, labelsize=8)
    axes.locator_params(nbins=6)
    axes.set_axisbelow(True)
    more = "" if scene.dim == 2 else f"  (first two of {scene.dim} coordinates)"
    axes.set_xlabel(f"x₁{more}", color=MUTED, fontsize=9)
    axes.set_ylabel("x₂", color=MUTED, fontsize=9)
    if scene.walls is not None:
        _walls(axes, scene)
    if scene.target is not None:
        axes.scatter(*scene.target.T, s=5, color=GOAL, linewidths=0, zorder=2)
    return figure, axes


def _walls(axes: Axes, scene: _Scene) -> None:
    """The obstacle in dark grey, or else the price in greys."""
    assert scene.walls is not None
    axes.imshow(
        wall_shades(scene.walls, scene.window),
        extent=scene.window,
        interpolation="antialiased" if scene.walls.obstacle is not None else "bilinear",
        zorder=1,
    )


def wall_shades(walls: StateCost, window: tuple[float, float, float, float]) -> np.ndarray:
    """The obstacle in dark grey, or else the price in greys, as pixels (rows, columns, 4) in [0, 1].

    Args:
        walls: of the plane.
        window: `(x_min, x_max, y_min, y_max)`.
    """
    x_min, x_max, y_min, y_max = window
    obstacle = walls.obstacle
    # A price may be a slow function of Python.
    cells, finer = (_CELLS, _FINER) if obstacle is not None else (_CELLS // 5, 1)
    longer = max(x_max - x_min, y_max - y_min)
    columns, rows = (
        max(round(cells * side / longer), 2) for side in (x_max - x_min, y_max - y_min)
    )
    x, y = (
        low + (np.arange(finer * count) + 0.5) * (high - low) / (finer * count)
        for low, high, count in ((x_min, x_max, columns), (y_max, y_min, rows))
    )
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    if obstacle is not None:
        shade = np.asarray(evaluate_at(obstacle.inside, grid), np.float64)
    else:
        shade = walls.evaluate(grid)
        shade = shade / max(float(shade.max()), 1e-300)
    # Edges are printed smooth.
    shade = shade.reshape(rows, finer, columns, finer).mean(axis=(1, 3))
    color = np.ones((rows, columns, 4)) * [*to_rgb(WALL), 1.0]
    color[..., 3] = shade
    return color


def _legend(figure: Figure, scene: _Scene, *, moving: bool) -> None:
    def dot(label: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="", label=label, **style)

    start, end = TIME(0.0), TIME(1.0)
    handles = (
        []
        if moving
        else [
            dot("start", marker="o", ms=4, mfc=PAPER, mec=start, mew=0.9),
            dot("end", marker="o", ms=4.4, mfc=end, mec=PAPER, mew=0.4),
        ]
    )
    if scene.target is not None:
        handles.append(dot("target", marker="o", ms=3.6, mfc=GOAL, mec=GOAL))
    if scene.walls is not None:
        label = "price" if scene.walls.obstacle is None else "wall"
        handles.append(dot(label, marker="s", ms=5.5, mfc=WALL, mec=WALL))
    width, height = figure.get_size_inches()
    left, _, _, _ = _MARGINS
    figure.text(left / width, 1 - 0.2 / height, scene.caption, fontsize=9.5, color=INK, va="center")
    if handles:
        figure.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(left / width, 1 - 0.42 / height),
            ncols=len(handles),
            frameon=False,
            fontsize=8.5,
            labelcolor=MUTED,
            handletextpad=0.15,
            columnspacing=1.1,
            borderpad=0,
            borderaxespad=0,
            handlelength=1.2,
        )


def _time_bar(figure: Figure, scene: _Scene) -> Line2D:
    """The colours of time at the top right, and the hand that an animation moves along them."""
    width, height = figure.get_size_inches()
    right = _MARGINS[1]
    bar = figure.add_axes(
        ((width - right - 1.5) / width, 1 - 0.44 / height, 1.5 / width, 0.1 / height)
    )
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=TIME, extent=(0, 1, 0, 1), aspect="auto")
    bar.set(xlim=(0, 1), ylim=(0, 1), yticks=[], xticks=[])
    bar.spines[:].set_visible(False)
    first, last = scene.times[0], scene.times[-1]
    style: dict[str, Any] = {"fontsize": 8.5, "color": MUTED, "va": "center"}
    bar.text(-0.04, 0.5, f"time {first:g}", ha="right", **style)
    bar.text(1.03, 0.5, f"{last:g}", ha="left", **style)
    (hand,) = bar.plot([0], [1.7], marker="v", ms=4.5, color=INK, clip_on=False, visible=False)
    return hand


def _mix(one: Any, other: Any, share: float) -> tuple[float, float, float]:
    red, green, blue = (1 - share) * np.array(to_rgb(one)) + share * np.array(to_rgb(other))
    return red, green, blue
