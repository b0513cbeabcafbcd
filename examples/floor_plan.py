"""A crowd walks through a flat, from the front door to the one of the balcony, around walls and furniture.

`python examples/floor_plan.py` draws a floor plan as one would by hand, and reads it again as a picture in which what
is dark is in the way: no more is known of the flat. `brenier.HOTA` finds a field of velocities that leads the
whole crowd through the doors at once. For a plan of your own the lines from `OccupancyGrid.from_image` on are enough.

Printed are the cost, the share of the time in walls beside that of straight lines, and the exact squared W2 between
where the crowd ends and where it should, beside that of two samples of the latter. The plan, a picture and an animation
of the way go to `--out`. Some minutes on two cores; `--quick` takes seconds and leads into walls.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageDraw

import brenier
from brenier.flow import simulate
from brenier.metrics import violations, wasserstein2_squared
from brenier.plotting import paths_animation, paths_figure, save_animation, save_figure
from brenier.state_costs import OccupancyGrid

METRES = (10.0, 7.0)
EXTENT = (0.0, METRES[0], 0.0, METRES[1])
PIXELS = 48  # a metre
SMOOTH = 4  # pixels that are drawn for each that is kept, a side
INK, SOLID, PENCIL, PAPER = 25, 70, 185, 250  # brightness

FRONT_DOOR, BALCONY_DOOR = (0.7, 1.5), (9.3, 5.4)  # the middle of the crowd, before and after
# The price in a wall: to dash through .26 m at the best speed costs .26 √(2 · 30 000) = 64, the way round some 35.
HEIGHT = 30_000.0
SWAY = 0.05  # of the crowd's walk, metres per square root of the time

WALLS = [  # in metres; a gap between two lines is a door
    [(0.1, 0.9), (0.1, 0.1), (9.9, 0.1), (9.9, 4.8)],
    [(9.9, 6.0), (9.9, 6.9), (0.1, 6.9), (0.1, 2.1)],
    [(3.4, 0.1), (3.4, 4.2)],
    [(3.4, 5.4), (3.4, 6.9)],
    [(6.7, 0.1), (6.7, 1.1)],
    [(6.7, 2.3), (6.7, 6.9)],
    [(0.1, 3.6), (1.3, 3.6)],
    [(2.5, 3.6), (3.4, 3.6)],
]
FURNITURE = [  # corners of boxes and of what surrounds discs
    ("box", (0.25, 5.9), (1.9, 6.7)),
    ("disc", (4.5, 2.6), (5.7, 3.8)),
    ("box", (3.6, 0.3), (5.4, 0.9)),
    ("box", (7.6, 2.9), (9.0, 3.9)),
    ("disc", (8.9, 0.4), (9.6, 1.1)),
]
ROOMS = {"hall": (1.2, 2.6), "kitchen": (4.2, 5.9), "bath": (0.6, 4.7), "living": (7.4, 6.2)}


def draw_plan(path: Path) -> None:
    """A plan with lines that are not quite straight, and what pencil added and nobody runs into."""
    rng = np.random.default_rng(3)
    scale = PIXELS * SMOOTH
    page = Image.new("L", (round(METRES[0] * scale), round(METRES[1] * scale)), PAPER)
    pen = ImageDraw.Draw(page)

    def place(x: float, y: float) -> tuple[float, float]:
        return x * scale, (METRES[1] - y) * scale

    def stroke(corners: list[tuple[float, float]], ink: int, width: float) -> None:
        points: list[tuple[float, float]] = []
        for start, end in itertools.pairwise(corners):
            pieces = max(round(np.hypot(end[0] - start[0], end[1] - start[1]) / 0.4), 1)
            share = np.linspace(0.0, 1.0, pieces + 1)[:, None]
            line = (1.0 - share) * np.array(start) + share * np.array(end)
            line[1:-1] += 0.02 * rng.normal(size=(pieces - 1, 2))
            points += [place(*point) for point in line]
        pen.line(points, fill=ink, width=round(width * scale), joint="curve")

    for name, (x, y) in ROOMS.items():
        pen.text(place(x, y), name, fill=PENCIL, font_size=0.4 * scale)
    for (x, y), radius, angles in (
        ((3.4, 4.2), 1.2, (270, 325)),
        ((6.7, 1.1), 1.2, (270, 325)),
        ((1.3, 3.6), 1.2, (0, 50)),
    ):
        box = [place(x - radius, y + radius), place(x + radius, y - radius)]
        pen.arc([*box[0], *box[1]], *angles, fill=PENCIL, width=round(0.03 * scale))
    for kind, low, high in FURNITURE:
        box = [*place(low[0], high[1]), *place(high[0], low[1])]
        (pen.rectangle if kind == "box" else pen.ellipse)(box, fill=SOLID)
    for wall in WALLS:
        stroke(wall, INK, 0.26)
    small = page.resize((page.width // SMOOTH, page.height // SMOOTH), Image.Resampling.LANCZOS)
    small.quantize(16).save(path, optimize=True)


def crowd(middle: tuple[float, float], n: int, seed: int) -> np.ndarray:
    """People in a disc of half a metre."""
    rng = np.random.default_rng(seed)
    radius, angle = 0.5 * np.sqrt(rng.uniform(size=n)), rng.uniform(0.0, 2.0 * np.pi, n)
    return np.asarray(middle) + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("floor-plan-output"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, help="of the fit")
    parser.add_argument("--quick", action="store_true", help="does it run? few steps and people")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    plan = given.out / "plan.png"
    draw_plan(plan)

    walls = OccupancyGrid.from_image(plan, EXTENT, height=HEIGHT, outside="wall")
    X, Y = crowd(FRONT_DOOR, 4000, 0), crowd(BALCONY_DOOR, 4000, 1)
    problem = brenier.TransportProblem(X, Y, state_cost=walls, noise=SWAY)
    method = brenier.HOTA(search=True)
    steps = 4 if given.quick else given.steps
    solution = brenier.fit(problem, method, key=jax.random.key(0), steps=steps, validation=0.0)

    n = 100 if given.quick else 1000
    x, y, other = (
        crowd(*c) for c in ((FRONT_DOOR, n, 2), (BALCONY_DOOR, n, 3), (BALCONY_DOOR, n, 4))
    )
    paths = jax.jit(lambda x, key: simulate(solution.potential, problem, x, key, 300))(
        jax.numpy.asarray(x), jax.random.key(0)
    )
    times, points = np.asarray(paths.times), np.asarray(paths.points)
    straight = x + times[:, None, None] * (y - x)
    kinetic, price = float(paths.kinetic.mean()), float(paths.state.mean())
    print(
        f"cost                {kinetic + price:8.2f}   ({kinetic:.2f} of walking, {price:.2f} of walls)"
    )
    for name, moves in (("in walls", points), ("of straight lines", straight)):
        print(
            f"{name:19} {100 * violations(times, moves, walls)['time_inside']:8.2f} % of the time"
        )
    print(f"squared W2          {wasserstein2_squared(points[-1], y):8.4f} m²")
    print(f"of two samples      {wasserstein2_squared(other, y):8.4f} m²")

    shown = {"state_cost": walls, "window": EXTENT}
    save_figure(given.out / "paths.png", paths_figure(times[::3], points[::3, :80], **shown))
    save_animation(
        given.out / "paths.gif",
        paths_animation(times, points[:, :80], **shown, **({"frames": 4} if given.quick else {})),
    )
    brenier.save(given.out / "map.brenier", solution)
    print(f"Plan, picture, animation and map are in {given.out}.")


if __name__ == "__main__":
    main()
