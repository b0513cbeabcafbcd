"""Pictures of paths: what is drawn where, what is refused, and the files."""

import re

import numpy as np
import pytest
from matplotlib.animation import writers
from matplotlib.colors import to_rgb
from PIL import Image

from brenier import plotting
from brenier.errors import InputError, OutputError
from brenier.plotting import paths_animation, paths_figure, save_animation, save_figure
from brenier.state_costs import Disc, JaxFunction, Obstacle, OccupancyGrid

TIMES = np.linspace(0.0, 1.0, 5)
STARTS = np.random.default_rng(0).normal(size=(7, 2))
POINTS = STARTS + TIMES[:, None, None] * np.array([3.0, 1.0])


def pixels(figure, points):
    """The colours at points of the plot, in [0, 1]."""
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    places = figure.axes[0].transData.transform(points).round().astype(int)
    return np.array([picture[len(picture) - 1 - y, x] for x, y in places])


def drawn(figure):
    """The segments of the paths, and the starts and ends."""
    lines, starts, ends = figure.axes[0].collections[-3:]
    return np.array(lines.get_segments()), starts.get_offsets(), ends.get_offsets()


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_every_path_is_drawn_from_its_start_to_its_end():
    figure = paths_figure(TIMES, POINTS, target=POINTS[-1])
    segments, starts, ends = drawn(figure)
    paths = segments.reshape(7, 4, 2, 2)
    np.testing.assert_array_equal(paths[:, :, 0], POINTS[:-1].swapaxes(0, 1))
    np.testing.assert_array_equal(paths[:, :, 1], POINTS[1:].swapaxes(0, 1))
    np.testing.assert_array_equal(starts, POINTS[0])
    np.testing.assert_array_equal(ends, POINTS[-1])
    assert texts(figure) == ["7 paths"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["start", "end", "target"]
    axes = figure.axes[0]
    assert axes.get_aspect() == 1.0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x₁", "x₂")


def test_colours_of_time_grow_lighter():
    weights = [0.2126, 0.7152, 0.0722]
    lightness = plotting.TIME(np.linspace(0.0, 1.0, 20))[:, :3] @ weights
    assert (np.diff(lightness) > 0).all()
    assert lightness[-1] < 0.75  # still seen on white


def test_many_paths_are_thinned_out():
    many = np.random.default_rng(0).normal(size=(2, 1000, 2))
    figure = paths_figure([0.0, 1.0], many)
    assert texts(figure) == ["300 of 1000 paths, chosen at random"]
    first, again, other = (
        drawn(paths_figure([0.0, 1.0], many, seed=seed))[1] for seed in (0, 0, 1)
    )
    assert len(first) == plotting.MAX_PATHS
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_more_than_two_coordinates():
    figure = paths_figure(TIMES, np.concatenate([POINTS, POINTS], axis=2), target=np.zeros((3, 4)))
    assert figure.axes[0].get_xlabel() == "x₁  (first two of 4 coordinates)"
    np.testing.assert_array_equal(drawn(figure)[1], POINTS[0])


def test_walls_are_dark_where_they_are():
    walls = OccupancyGrid(np.eye(2, dtype=bool), (-10, 10, -10, 10))  # top left, bottom right
    figure = paths_figure(TIMES, POINTS, state_cost=walls)
    assert figure.axes[0].get_xlim() == (-10, 10)
    assert figure.axes[0].get_ylim() == (-10, 10)
    dark, light = to_rgb(plotting.WALL), (1, 1, 1)
    found = pixels(figure, [(-8, 8), (8, -8), (8, 8), (-8, -8)])
    np.testing.assert_allclose(found, [dark, dark, light, light], atol=0.01)
    disc = paths_figure(TIMES, POINTS, state_cost=Obstacle(Disc((2.0, -3.0), 0.5)))
    assert disc.axes[0].get_ylim()[0] > -3.0  # a known obstacle may reach beyond the window
    assert [text.get_text() for text in disc.legends[0].get_texts()][-1] == "wall"


def test_a_price_without_an_obstacle_is_shaded():
    price = JaxFunction(lambda x: x[0] ** 2)
    figure = paths_figure(TIMES, POINTS, state_cost=price, window=(-8, 8, -8, 8))
    far, half, none = pixels(figure, [(7.9, -7.0), (5.6, -7.0), (0.0, -7.0)])[:, 0]
    assert far < half < none
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "price"


def test_paths_that_do_not_move():
    figure = paths_figure([0.0, 1.0], np.zeros((2, 3, 2)))
    low, high = figure.axes[0].get_xlim()
    assert low < 0.0 < high
    save = figure.canvas.buffer_rgba
    figure.canvas.draw()
    assert np.asarray(save()).size > 0


@pytest.mark.parametrize(
    ("times", "points", "options", "message"),
    [
        ([0.0, 1.0], np.zeros((3, 4, 2)), {}, "found shapes (2,) and (3, 4, 2)"),
        ([0.0], np.zeros((1, 4, 2)), {}, "k >= 2"),
        ([0.0, 1.0], np.zeros((2, 0, 2)), {}, "found shapes"),
        ([1.0, 0.0], np.zeros((2, 4, 2)), {}, "Expected increasing times"),
        ([0.0, 1.0], np.full((2, 4, 2), np.nan), {}, "Expected finite points"),
        ([0.0, 1.0], np.zeros((2, 4, 1)), {}, "at least 2 coordinates to draw, found 1"),
        (TIMES, POINTS, {"target": np.zeros((3, 3))}, "target points (m, 2), found shape (3, 3)"),
        (TIMES, POINTS, {"window": (1, 0, 0, 1)}, "Expected a window"),
        (TIMES, POINTS, {"window": (0, np.inf, 0, 1)}, "Expected a window"),
    ],
)
def test_what_cannot_be_drawn(times, points, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        paths_figure(times, points, **options)


# Files


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.PDF"])
def test_figures_are_saved(tmp_path, name):
    save_figure(tmp_path / name, paths_figure(TIMES, POINTS))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    start = (tmp_path / name).read_bytes()[:5]
    assert start in (b"\x89PNG\r", b"<?xml", b"%PDF-")


def test_a_film_starts_at_the_start_and_ends_at_the_end(tmp_path):
    walls = OccupancyGrid(np.eye(2, dtype=bool), (-10, 10, -10, 10))
    points = np.linspace([[0.0, 0.0]], [[8.0, 8.0]], 5)
    film = paths_animation(TIMES, points, state_cost=walls, frames=3)
    save_animation(tmp_path / "film.gif", film)
    assert [path.name for path in tmp_path.iterdir()] == ["film.gif"]
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames == 3
        shown = []
        for frame in range(3):
            gif.seek(frame)
            shown.append(np.asarray(gif.convert("RGB")) / 255)
    transform = paths_figure(TIMES, points, state_cost=walls).axes[0].transData
    scale = plotting.FRAME_DPI / plotting.DPI

    def colour(frame, place):
        x, y = (transform.transform(place) * scale).astype(int)
        return shown[frame][len(shown[frame]) - 1 - y, x]

    for frame, share in enumerate((0.0, 0.5, 1.0)):
        here = colour(frame, (8 * share, 8 * share))
        # 5 bits a channel
        np.testing.assert_allclose(here, plotting.TIME(share)[:3], atol=0.06)
        np.testing.assert_allclose(colour(frame, (-8, 8)), to_rgb(plotting.WALL), atol=0.03)
        np.testing.assert_array_equal(colour(frame, (8, 4)), 1.0)


def test_positions_between_the_given_times():
    scene = plotting._scene(
        [0.0, 0.5, 1.0], np.array([[[0, 0]], [[2, 0]], [[2, 4]]]), *[None] * 3, 0
    )
    found = plotting._positions(scene, np.array([0.0, 0.25, 0.5, 0.75, 1.0]))[:, 0]
    np.testing.assert_allclose(found, [[0, 0], [1, 0], [2, 0], [2, 2], [2, 4]])


def test_files_of_other_types_and_places(tmp_path):
    with pytest.raises(InputError, match=r"a picture of type .png, .svg, .pdf, found"):
        plotting.check_figure_output(tmp_path / "a.gif")
    with pytest.raises(InputError, match=r"an animation of type .gif, .mp4, found"):
        plotting.check_animation_output(tmp_path / "a.png")
    for check, name in (
        (plotting.check_figure_output, "a.png"),
        (plotting.check_animation_output, "a.gif"),
    ):
        with pytest.raises(OutputError, match="does not exist"):
            check(tmp_path / "missing" / name)


def test_mp4_needs_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "is_available", lambda name: False)
    with pytest.raises(InputError, match=r"ffmpeg .* or write 'film.gif' instead"):
        plotting.check_animation_output(tmp_path / "film.mp4")


@pytest.mark.skipif(not writers.is_available("ffmpeg"), reason="needs ffmpeg")
def test_mp4(tmp_path):
    save_animation(tmp_path / "film.mp4", paths_animation(TIMES, POINTS, frames=3))
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
