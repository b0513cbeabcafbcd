"""The contact sheet: one picture that shows what a colour transfer did, and how well."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from brenier.color.images import ColorImage
from brenier.color.scores import channel_histograms

INK, MUTED, FAINT, PANEL, PAPER = "#1c1c1e", "#6e6e73", "#c7c7cc", "#ececef", "#ffffff"
CHANNELS = {"R": "#d0453f", "G": "#3f9a57", "B": "#3c6fd1"}

# Inches.
WIDTH, MARGIN, GAP = 16.0, 0.6, 0.22
HEADER, CAPTION, SPACE = 0.8, 0.3, 0.4
TALLEST_PICTURE, TALLEST_STEP, HISTOGRAM = 4.2, 3.6, 1.15
INSIDE = WIDTH - 2 * MARGIN
CUBE = (INSIDE - 3 * GAP) / 4
DPI = 150

TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
CLOUD_POINTS, CLOUD_PATHS, PATH_STEPS, BINS = 4_000, 350, 8, 64

METHODS = {
    "unchanged": "Unchanged",
    "histogram_matching": "Histogram matching",
    "reinhard": "Reinhard (CIELAB)",
    "brenier": "Transport map",
}
SCORES = {  # heading, decimals, whether more is better
    "histogram_intersection": ("HI ↑", 3, True),
    "emd_positions": ("EMD ↓", 4, False),
    "energy_distance": ("energy ↓", 4, False),
}


@dataclass(frozen=True, eq=False)
class Recolored:
    """One direction of a transfer.

    Attributes:
        before: the picture.
        after: its new pixels, (height, width, 3).
        target: the picture it took the colours from.
        scores: for each method the scores of its result against `target`; ours under "brenier".
    """

    before: ColorImage
    after: np.ndarray
    target: ColorImage
    scores: dict[str, dict[str, float]]


def contact_sheet(forward: Recolored, backward: Recolored, note: str = "") -> bytes:
    """Pictures, their way, colour clouds, histograms and scores, as the bytes of a PNG.

    Args:
        forward: the source, A, in the colours of the target, B.
        backward: the target in the colours of the source.
        note: one line about the fit.
    """
    pictures = [
        _thumbnail(direction.before, pixels)
        for direction in (forward, backward)
        for pixels in (direction.before.pixels, direction.after)
    ]
    # Characteristics are straight: a pixel at time t is this blend, which commutes with resizing.
    start, end = (picture.astype(np.float32) for picture in pictures[:2])
    steps = [np.rint((1 - t) * start + t * end).astype(np.uint8) for t in TIMES]

    (pictures_height, picture_places) = _justified(pictures, TALLEST_PICTURE)
    (steps_height, step_places) = _justified(steps, TALLEST_STEP)
    rows = (pictures_height, steps_height, CUBE, 2 * HISTOGRAM + CAPTION + GAP)
    page = _Page(2 * MARGIN + HEADER + sum(rows) + 4 * CAPTION + 3 * SPACE)

    y = MARGIN
    page.text(MARGIN, y + 0.3, "Colour transfer", size=24, weight="bold")
    page.text(
        MARGIN,
        y + 0.62,
        f"A  {_short(forward.before.name)}     B  {_short(backward.before.name)}",
        size=12,
        color=MUTED,
    )
    page.text(WIDTH - MARGIN, y + 0.62, note, size=12, color=MUTED, ha="right")
    y += HEADER

    captions = ["A", "A in the colours of B", "B", "B in the colours of A"]
    y = page.pictures(y, pictures, captions, pictures_height, picture_places)
    y = page.pictures(y, steps, [f"A at t = {t:g}" for t in TIMES], steps_height, step_places)
    y = page.clouds(y, forward)
    page.histograms(y, forward, backward)
    page.scores(y, forward, backward)
    return page.png()


class _Page:
    """A figure measured in inches from its top left corner."""

    def __init__(self, height: float):
        from matplotlib.figure import Figure  # here, for who only reads pictures draws none

        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=PAPER)

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return buffer.getvalue()

    def text(
        self, x: float, y: float, text: str, *, size: float = 10.5, color=INK, **style
    ) -> None:
        # File names may hold dollar signs, which are not mathematics.
        self.figure.text(
            x / WIDTH,
            1 - y / self.height,
            text,
            size=size,
            color=color,
            va="baseline",
            parse_math=False,
            **style,
        )

    def axes(self, x: float, y: float, width: float, height: float, **options):
        bottom = 1 - (y + height) / self.height
        return self.figure.add_axes(
            (x / WIDTH, bottom, width / WIDTH, height / self.height), **options
        )

    def pictures(self, y, pictures, captions, height, places) -> float:
        for picture, caption, (x, width) in zip(pictures, captions, places, strict=True):
            self.text(x, y + CAPTION - 0.12, caption)
            axes = self.axes(x, y + CAPTION, width, height)
            axes.imshow(picture, aspect="auto", interpolation="antialiased")
            axes.set(xticks=[], yticks=[])
            # Without a frame a white sky would melt into the paper.
            axes.spines[:].set(color=FAINT, linewidth=0.5)
        return y + CAPTION + height + SPACE

    def clouds(self, y: float, direction: Recolored) -> float:
        rng = np.random.default_rng(0)
        before, after, target = (
            direction.before.visible(),
            direction.before.visible(direction.after),
            direction.target.visible(),
        )
        rows = rng.choice(len(before), min(CLOUD_POINTS, len(before)), replace=False, shuffle=False)
        others = rng.choice(
            len(target), min(CLOUD_POINTS, len(target)), replace=False, shuffle=False
        )
        start, end, other = before[rows] / 255, after[rows] / 255, target[others] / 255
        captions = ["Colours of A", "Transport", "A in the colours of B", "Colours of B"]
        for column, caption in enumerate(captions):
            x = MARGIN + column * (CUBE + GAP)
            self.text(x, y + CAPTION - 0.12, caption)
            axes = self.axes(x, y + CAPTION, CUBE, CUBE, projection="3d", computed_zorder=False)
            _cube(axes)
            if caption == "Transport":
                _paths(axes, start[:CLOUD_PATHS], end[:CLOUD_PATHS])
            else:
                points = {0: start, 2: end, 3: other}[column]
                axes.scatter(*points.T, c=points, s=3, linewidths=0, depthshade=False, zorder=2)
        return y + CAPTION + CUBE + SPACE

    def histograms(self, y: float, *directions: Recolored) -> None:
        width = (INSIDE / 2 - 2 * GAP) / 3
        edges = np.linspace(0, 256, BINS + 1)
        for row, (direction, letters) in enumerate(zip(directions, ("AB", "BA"), strict=True)):
            top = y + row * (CAPTION + HISTOGRAM + GAP)
            caption = (
                f"{letters[0]} in the colours of {letters[1]} (filled) and {letters[1]} (line)"
            )
            self.text(MARGIN, top + CAPTION - 0.12, caption)
            result, target = (
                channel_histograms(pixels).reshape(3, BINS, -1).sum(axis=2)
                for pixels in (
                    direction.before.visible(direction.after),
                    direction.target.visible(),
                )
            )
            for column, color in enumerate(CHANNELS.values()):
                axes = self.axes(
                    MARGIN + column * (width + GAP / 2), top + CAPTION, width, HISTOGRAM
                )
                axes.stairs(result[column], edges, fill=True, color=color, alpha=0.35)
                axes.stairs(target[column], edges, color=color, linewidth=1.3)
                # Clipped skies and shadows make spikes at the ends that would flatten the rest.
                inner = np.concatenate([result[column, 1:-1], target[column, 1:-1]])
                axes.set(xlim=(0, 256), ylim=(0, 1.15 * inner.max() + 1e-9), xticks=[], yticks=[])
                axes.spines[["top", "left", "right"]].set_visible(False)
                axes.spines.bottom.set_color(FAINT)

    def scores(self, y: float, *directions: Recolored) -> None:
        left, right = WIDTH / 2 + 2 * GAP, WIDTH - MARGIN
        first = left + 1.9
        step = (right - first) / (2 * len(SCORES))
        line = 0.42
        for index, (direction, letters) in enumerate(
            zip(directions, ("A → B", "B → A"), strict=True)
        ):
            start = first + index * len(SCORES) * step
            self.text(start + len(SCORES) * step, y + CAPTION - 0.12, letters, ha="right")
            for column, (score, (heading, decimals, more)) in enumerate(SCORES.items()):
                x = start + (column + 1) * step
                self.text(x, y + CAPTION + line - 0.12, heading, color=MUTED, ha="right")
                values = {method: direction.scores[method][score] for method in METHODS}
                best = (max if more else min)(values.values())
                for row, value in enumerate(values.values()):
                    self.text(
                        x,
                        y + CAPTION + (row + 2) * line - 0.12,
                        f"{value:.{decimals}f}",
                        ha="right",
                        weight="bold" if value == best else "normal",
                    )
        for row, name in enumerate(METHODS.values()):
            self.text(left, y + CAPTION + (row + 2) * line - 0.12, name)


def _justified(
    pictures: Sequence[np.ndarray], tallest: float
) -> tuple[float, list[tuple[float, float]]]:
    """A row of pictures of one height from margin to margin: that height, and (x, width) each."""
    aspects = [picture.shape[1] / picture.shape[0] for picture in pictures]
    gaps = len(pictures) - 1
    height = min(tallest, (INSIDE - gaps * GAP) / sum(aspects))
    gap = (INSIDE - height * sum(aspects)) / gaps
    lefts = np.concatenate([[0], np.cumsum([height * a + gap for a in aspects[:-1]])])
    return height, [(MARGIN + x, height * a) for x, a in zip(lefts, aspects, strict=True)]


def _short(name: str, longest: int = 40) -> str:
    half = longest // 2
    return name if len(name) <= longest else f"{name[: half - 1]}…{name[-half:]}"


def _thumbnail(image: ColorImage, pixels: np.ndarray) -> np.ndarray:
    """Small enough to draw, large enough for the widest place; transparency over the paper."""
    picture = Image.fromarray(pixels)
    if image.alpha is not None:
        picture.putalpha(Image.fromarray(image.alpha))
    size = (round(INSIDE / 2 * DPI), round(TALLEST_PICTURE * DPI))
    picture.thumbnail(size, Image.Resampling.LANCZOS)
    if image.alpha is not None:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, PAPER), picture)
    return np.asarray(picture.convert("RGB"))


def _cube(axes) -> None:
    """The empty RGB cube, seen so that the grey diagonal runs from left to right."""
    axes.set_axis_off()
    axes.set_facecolor(PANEL)  # white points would be lost on the paper
    axes.set(xlim=(0, 1), ylim=(0, 1), zlim=(0, 1))
    axes.set_box_aspect((1, 1, 1), zoom=1.0)
    axes.view_init(elev=20, azim=-55)
    corners = np.array([(i >> 2 & 1, i >> 1 & 1, i & 1) for i in range(8)], float)
    edges = [(a, b) for a in corners for b in corners if (a <= b).all() and np.sum(b - a) == 1]
    _lines(axes, edges, colors=FAINT, linewidths=0.8, zorder=1)
    # The outer edge parallel to each axis, and a place for its letter beside it.
    outer = {
        "R": ((0, 0, 0), (1, 0, 0), (0.5, -0.12, 0)),
        "G": ((1, 0, 0), (1, 1, 0), (1.12, 0.5, 0)),
        "B": ((0, 0, 0), (0, 0, 1), (-0.06, -0.06, 0.5)),
    }
    for name, (start, end, place) in outer.items():
        axes.plot(*zip(start, end, strict=True), color=CHANNELS[name], linewidth=1.2, zorder=1)
        axes.text(*place, name, color=CHANNELS[name], ha="center", va="center", size=10)


def _paths(axes, start: np.ndarray, end: np.ndarray) -> None:
    """Straight paths that change colour on the way, with a dot where they end."""
    times = np.linspace(0, 1, PATH_STEPS + 1)[:, None, None]
    points = (1 - times) * start + times * end
    segments = np.stack([points[:-1], points[1:]], axis=2).reshape(-1, 2, 3)
    _lines(axes, segments, colors=segments.mean(axis=1), linewidths=0.9, zorder=2)
    axes.scatter(*end.T, c=end, s=7, linewidths=0, depthshade=False, zorder=3)


def _lines(axes, segments, **style) -> None:
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    axes.add_collection3d(Line3DCollection(segments, **style))
