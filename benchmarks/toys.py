"""Toys in the plane, one configuration for all: do both maps arrive, do paths cross, do they agree?

Four toys against the standard Gaussian, in both directions; `--pairs` adds every toy to every
other. 50 000 samples a side; scores on 2000 fresh points of either side. The energy distance is
given in units of its noise band, the 95 % quantile between two samples of this size of the same
distribution: up to 1, what the map gives cannot be told from the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.axes
import matplotlib.collections
import matplotlib.colors
import matplotlib.figure
import numpy as np

import brenier
from benchmarks.harness import (
    ROOT,
    Options,
    Record,
    conditions,
    keep,
    load,
    markdown,
    median_and_worst,
    on_host,
    select,
    values,
)
from brenier.datasets import TOYS
from brenier.metrics import crossing_share, noise_band, round_trip

SAMPLES, FRESH = 50_000, 2000
# A time before arrival: at 1, where the map contracts, paths differ by its errors alone.
BEFORE = 0.95
METHOD = brenier.NCF()
SHOWN = ("eight_gaussians", "moons", "checkerboard", "two_rings")
AGAINST_GAUSSIAN = [pair for toy in SHOWN for pair in (("gaussian", toy), (toy, "gaussian"))]
AMONG_TOYS = [(a, b) for a in SHOWN for b in SHOWN if a != b]
FIGURE = ROOT / "docs" / "images" / "toys.png"


@dataclass(frozen=True)
class Drawing:
    """The points of one fit: source, target, and the source's way in steps, (steps, n, 2)."""

    source: np.ndarray
    target: np.ndarray
    way: np.ndarray


def run(options: Options) -> None:
    pairs = AGAINST_GAUSSIAN + (AMONG_TOYS if options.pairs else [])
    for seed in options.seeds:
        drawings = {
            pair: _fit(options, *pair, seed) for pair in pairs if options.wants(_case(*pair))
        }
        if seed == options.seeds[0] and drawings.keys() >= set(AGAINST_GAUSSIAN):
            _save(draw(drawings), options)


def _save(figure: matplotlib.figure.Figure, options: Options) -> None:
    if options.results is not None:
        path = options.results / "toys.png" if options.quick else FIGURE
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def _case(source: str, target: str) -> dict[str, str]:
    return {"source": source, "to": "to", "target": target}


def _fit(options: Options, source: str, target: str, seed: int) -> Drawing:
    keys = jax.random.split(jax.random.key(seed), 7)
    n, fresh = (2000, 500) if options.quick else (SAMPLES, FRESH)
    x, y = (np.asarray(TOYS[t](k, n)) for t, k in zip((source, target), keys[:2], strict=True))
    solution = brenier.fit(
        brenier.TransportProblem(x, y), METHOD, key=keys[2], steps=4 if options.quick else None
    )
    transport = solution.transport
    assert isinstance(transport, brenier.CharacteristicTransport)

    x, y = (np.asarray(TOYS[t](k, fresh)) for t, k in zip((source, target), keys[3:5], strict=True))
    scores = {}
    for prefix, maps in (("", transport), ("refined_", transport.refined())):
        forward, inverse = on_host(maps.forward), on_host(maps.inverse)
        images, preimages = forward(x), inverse(y)
        scores |= {
            f"{prefix}energy_forward": _in_bands(images, y, target, keys[5]),
            f"{prefix}energy_backward": _in_bands(preimages, x, source, keys[6]),
            **{
                f"{prefix}crossing_{way}{name}": crossing_share(*pair, time=time)
                for way, pair in (("forward", (x, images)), ("backward", (y, preimages)))
                for name, time in (("", 1.0), ("_before", BEFORE))
            },
            f"{prefix}round_trip": round_trip(x, inverse(images)),
        }
    keep(
        options,
        "toys",
        _case(source, target),
        seed,
        scores=scores,
        seconds=solution.info["timings"],
        steps=solution.info["steps"],
        status=solution.status,
        settings=solution.info["method"],
    )
    return Drawing(x, y, np.asarray(transport.trajectory(x, np.linspace(0, 1, 9))))


def _in_bands(points: np.ndarray, exact: np.ndarray, toy: str, key: jax.Array) -> float:
    """Energy distance of mapped points to fresh ones, in noise bands of the distribution."""
    pool_key, split_key = jax.random.split(key)
    n, m = len(points), len(exact)
    band = noise_band(TOYS[toy](pool_key, n + m), n, m, key=split_key, permutations=500)
    return float(brenier.energy_distance(jnp.asarray(points), jnp.asarray(exact))) / band


def table(results: Path) -> str | None:
    """The table, and for `docs/` the figure where there is one."""
    text = _table(load("toys", results), AGAINST_GAUSSIAN)
    if text and FIGURE.exists():
        text += f"\n\n![Each toy from and to the Gaussian](images/{FIGURE.name})"
    return text


def pairs_table(results: Path) -> str | None:
    return _table(load("toys", results), AMONG_TOYS)


def _table(records: list[Record], pairs: list[tuple[str, str]]) -> str | None:
    chosen = [r for pair in pairs for r in select(records, **_case(*pair))]
    if not chosen:
        return None
    header = ["source → target"]
    for prefix, name in (("", "as read off"), ("refined_", "solved for")):
        if prefix + "round_trip" in chosen[0]["scores"]:
            header += [f"{name}: energy distance / noise band, forward / backward"]
            header += ["pairs in % that cross by t = 1", f"by t = {BEFORE:g}", "round trip in %"]
    rows = []
    for pair in pairs:
        if of_pair := select(records, **_case(*pair)):
            cells = []
            for prefix in ("", "refined_"):
                if prefix + "round_trip" not in of_pair[0]["scores"]:
                    continue
                for name, factor in (
                    ("energy_{}", 1),
                    ("crossing_{}", 100),
                    ("crossing_{}_before", 100),
                ):
                    ways = (prefix + name.format(way) for way in ("forward", "backward"))
                    cells.append(
                        " / ".join(
                            median_and_worst([factor * v for v in values(of_pair, way)], digits=2)
                            for way in ways
                        )
                    )
                cells.append(median_and_worst(values(of_pair, prefix + "round_trip"), digits=2))
            rows.append([" → ".join(name.replace("_", " ") for name in pair), *cells])
    return f"{markdown(header, rows)}\n\n{conditions(chosen)}"


def draw(drawings: dict[tuple[str, str], Drawing]) -> matplotlib.figure.Figure:
    """Every fit against the Gaussian: source, paths, transported, target."""
    captions = ("source", "paths", "transported", "target")
    side, gap, head = 2.0, 0.4, 0.45  # inches
    width, height = 2 * len(captions) * side + gap, len(SHOWN) * side + head
    figure = matplotlib.figure.Figure(figsize=(width, height), dpi=120)
    for row, toy in enumerate(SHOWN):
        for block, pair in enumerate((("gaussian", toy), (toy, "gaussian"))):
            panels = []
            for column, caption in enumerate(captions):
                left = (block * len(captions) + column) * side + block * gap
                bottom = (len(SHOWN) - 1 - row) * side
                axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
                axes.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8))
                axes.set_axis_off()
                if row == 0:
                    axes.set_title(caption, fontsize=13, color="#55555c", pad=6)
                panels.append(axes)
            _draw_row(panels, drawings[pair])
    return figure


def _draw_row(panels: list[matplotlib.axes.Axes], drawing: Drawing) -> None:
    """Points keep the colour of where they came from: mixed colours mean entangled paths."""
    colors = _wheel(drawing.source)
    dots = {"s": 5, "linewidths": 0}
    source, paths, transported, target = panels
    source.scatter(*drawing.source.T, c=colors, **dots)
    few = slice(0, 350)
    lines = np.moveaxis(drawing.way[:, few], 0, 1)
    paths.add_collection(
        matplotlib.collections.LineCollection(
            list(lines), colors=colors[few], linewidths=0.7, alpha=0.55
        )
    )
    paths.scatter(*drawing.way[-1, few].T, c=colors[few], s=7, linewidths=0, zorder=3)
    transported.scatter(*drawing.way[-1].T, c=colors, **dots)
    target.scatter(*drawing.target.T, c="#b9b9c0", **dots)


def _wheel(points: np.ndarray) -> np.ndarray:
    """Hue from the direction, paler towards the centre."""
    hue = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) % 1
    saturation = 0.25 + 0.6 * np.clip(np.linalg.norm(points, axis=1) / 2, 0, 1)
    return matplotlib.colors.hsv_to_rgb(
        np.stack([hue, saturation, np.full_like(hue, 0.82)], axis=1)
    )
