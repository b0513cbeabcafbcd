"""The command line: results, messages and exit statuses, for good input and for bad."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import brenier
import brenier.plotting
import brenier.points
from brenier.cli import _demo, app
from brenier.coordinates import Frame
from brenier.costs import Quadratic
from brenier.solution import Metadata

COMMANDS = ("fit", "transport", "trajectories", "evaluate", "color", "info", "demo")
SHIFT = np.array([3.0, -1.0])
MATRIX = np.array([[2.0, 0.5], [0.5, 1.0]])


@pytest.fixture(autouse=True)
def _keep_the_settings_of_jax():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def points(tmp_path, monkeypatch):
    """A folder with `x.npy` and its image `y.npy` under a linear optimal map."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(300, 2))
    np.save("x.npy", x)
    np.save("y.npy", x @ MATRIX + SHIFT)
    return x


@pytest.fixture(scope="session")
def exact_map(tmp_path_factory):
    """A file with the optimal map from N(0, 1) to N(SHIFT, MATRIX²) in closed form."""
    potential = brenier.GaussianPotential.from_moments(
        np.zeros(2), np.eye(2), SHIFT, MATRIX @ MATRIX
    )
    transport = brenier.CharacteristicTransport(
        jax.tree.map(jax.numpy.asarray, potential), Frame.identity(2), Quadratic()
    )
    info = Metadata(method={"name": "NCF"}, steps=7, dim=2)
    scores = {
        f"{kind}_{way}": 0.5
        for kind in ("energy", "band", "linear")
        for way in ("forward", "backward")
    }
    solution = brenier.Solution(
        transport, {}, "completed", "A map in closed form.", Metadata(scores), info
    )
    path = tmp_path_factory.mktemp("maps") / "exact.brenier"
    brenier.save(path, solution)
    return str(path)


@pytest.fixture(scope="session", params=[0.0, 0.1], ids=["flow", "noisy"])
def flow_map(request, exact_map, tmp_path_factory):
    """The same map as the flow of its potential, without noise and with."""
    solution = brenier.load(exact_map)
    straight = solution.transport
    flow = brenier.FlowTransport(
        straight.network,
        straight.frame,
        straight.cost,
        noise=request.param,
        steps=30 if request.param else 0,
    )
    scores = {k: v for k, v in solution.scores.items() if flow.invertible or "backward" not in k}
    path = tmp_path_factory.mktemp("maps") / "flow.brenier"
    brenier.save(path, dataclasses.replace(solution, transport=flow, scores=Metadata(scores)))
    return str(path)


@pytest.fixture
def walls(points):
    """A picture of a wall with a gap, and the same as cells, around the points."""
    cells = np.zeros((20, 30))
    cells[:, 18:20] = 1
    cells[8:12, 18:20] = 0
    np.save("cells.npy", cells)
    Image.fromarray(np.uint8(255 * (1 - cells))).save("walls.png")
    return "walls.png"


EXTENT = ("--extent", -10, 10, "-7.5", 7.5)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def result_of(*arguments):
    """The one JSON object on stdout."""
    return json.loads(succeed(*arguments, "--json").stdout)


def fail(status, *arguments):
    """The one line on stderr of a command that must fail, also as JSON on stdout."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if ": fitting;" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    again = run(*arguments, "--json")
    error = json.loads(again.stdout)["error"]
    assert again.exit_code == error["exit_status"] == status
    assert f"error: {error['message']}" == lines[0]
    return lines[0]


def forbid_fitting(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the fit must not start")

    monkeypatch.setattr(brenier, "fit", refuse)


def test_fit_takes_folders_of_shards(points, monkeypatch):
    os.mkdir("x")
    for i, part in enumerate(np.array_split(points, 3)):
        np.save(f"x/{i}.npy", part)
    seen = []

    def refuse(problem, *args, **kwargs):
        seen.append(problem)
        raise brenier.InputError("enough")

    monkeypatch.setattr(brenier, "fit", refuse)
    assert "enough" in fail(2, "fit", "x", "y.npy", "--out", "map.brenier")
    np.testing.assert_array_equal(seen[0].source.pool(300, 0), points)
    os.remove("x/1.npy")
    assert "found no '1.npy'" in fail(2, "fit", "x", "y.npy", "--out", "map.brenier")


def test_fit_says_how_many_devices_there_are(points):
    message = fail(2, "fit", "x.npy", "y.npy", "--out", "map.brenier", "--devices", 1000)
    assert "found 1000" in message


# Results


def test_help_and_version():
    for command in COMMANDS:
        assert command in succeed("--help").stdout
        assert "Usage" in succeed(command, "-h").stdout
    assert succeed("--version").stdout == f"brenier {brenier.__version__}\n"


def test_no_command_at_all():
    result = run()
    assert result.exit_code == 2
    assert result.output == "error: Missing command. Try `brenier --help`.\n"


def test_fit_then_info(points):
    found = result_of("fit", "x.npy", "y.npy", "--out", "m.brenier", "--steps", 2, "--seed", 3)
    assert found["files"] == ["m.brenier"]
    assert found["status"] in brenier.solution.STATUS
    assert found["info"]["steps"] == 2
    assert found["info"]["method"]["name"] == "NCF"
    solution = brenier.load("m.brenier")
    assert solution.message == found["message"]
    assert solution.transport.forward(points).shape == points.shape
    facts = result_of("info", "m.brenier")
    assert facts["dimension"] == 2
    assert facts["info"] == found["info"]
    assert facts["scores"] == found["scores"]
    text = succeed("info", "m.brenier").stdout
    assert text.startswith(solution.message)
    assert re.search(r"^n source +300$", text, re.MULTILINE)


def test_fit_passes_its_options_on(points, exact_map, monkeypatch):
    seen = {}

    def fake(problem, method, **options):
        seen.update(options, problem=problem, method=method)
        return brenier.load(exact_map)

    monkeypatch.setattr(brenier, "fit", fake)
    result = succeed(
        *("fit", "x.npy", "y.npy", "--out", "m.brenier", "--method", "hjpinn"),
        *("--preset", "published", "--seed", 5, "--steps", 11, "--time-budget", "2m"),
        *("--validation", 0.25, "--gaussian-start", "--checkpoint", "run.checkpoint"),
    )
    assert "A map in closed form." in result.stdout
    assert result.stdout.endswith("Wrote m.brenier.\n")
    assert seen["method"] == brenier.HJPINN(preset="published", gaussian_start=True)
    assert jax.random.key_data(seen["key"]).tolist() == [0, 5]
    assert seen["steps"] == 11
    assert seen["time_budget"] == 120.0
    assert seen["validation"] == 0.25
    assert str(seen["checkpoint"]) == "run.checkpoint"
    assert seen["problem"].source.size == 300
    assert succeed("fit", "x.npy", "y.npy", "--out", "m.brenier", "-q").output == ""


@pytest.mark.slow
def test_fit_around_walls_then_follow(points, walls):
    found = result_of(
        *("fit", "x.npy", "y.npy", "--out", "m.brenier", "--method", "hota", "--steps", 5),
        *("--state-cost", walls, *EXTENT, "--wall-height", 30, "--noise", 0.05, "-q"),
    )
    assert found["info"]["noise"] == 0.05
    assert found["info"]["state_cost"] == {
        "file": walls,
        "extent": [-10.0, 10.0, -7.5, 7.5],
        "height": 30.0,
    }
    assert "energy_forward" not in found["scores"] or "energy_backward" not in found["scores"]
    assert brenier.load("m.brenier").transport.noise > 0
    assert "state cost height" in succeed("info", "m.brenier").stdout
    facts = result_of("trajectories", "m.brenier", "x.npy", "--out", "p.npz", "--times", 3)
    assert facts == {"files": ["p.npz"], "points": 300, "times": 3, "seed": 0}


def test_walls_reach_the_problem(points, walls, exact_map, monkeypatch):
    seen = []

    def fake(problem, method, **options):
        seen.append((problem, method))
        return brenier.load(exact_map)

    monkeypatch.setattr(brenier, "fit", fake)
    hota = (*FIT, "--method", "hota", "--preset", "published")
    succeed(*hota, "--state-cost", walls, *EXTENT, "--noise", 0.5)
    succeed(*hota, "--state-cost", "cells.npy", *EXTENT, "--wall-height", 7)
    succeed(*hota)
    picture, cells, nothing = (problem for problem, _ in seen)
    assert all(method == brenier.HOTA(preset="published") for _, method in seen)
    wall, gap = jax.numpy.array([2.5, 5.0]), jax.numpy.array([2.5, 0.0])
    y = points @ MATRIX + SHIFT
    apart = np.mean(np.sum((points[:, None] - y) ** 2, axis=-1))
    assert picture.state_cost(wall) == pytest.approx(40 * apart / 2, rel=0.05)  # two digits
    assert (picture.state_cost(gap), picture.noise) == (0, 0.5)
    assert (cells.state_cost(wall), cells.state_cost(gap), cells.noise) == (7, 0, 0)
    assert nothing.state_cost is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("1.5m", 90), ("1h", 3600), ("7", 7), (" 2 M ", 120)]
)
def test_time_budgets(points, exact_map, monkeypatch, text, seconds):
    seen = {}
    monkeypatch.setattr(
        brenier, "fit", lambda *_, **options: seen.update(options) or brenier.load(exact_map)
    )
    succeed("fit", "x.npy", "y.npy", "--out", "m.brenier", "--time-budget", text)
    assert seen["time_budget"] == seconds


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], lambda x: x @ MATRIX + SHIFT),
        (["--inverse"], lambda y: (y - SHIFT) @ np.linalg.inv(MATRIX)),
        (["--time", 0], lambda x: x),
        (["--time", 0.25], lambda x: 0.75 * x + 0.25 * (x @ MATRIX + SHIFT)),
        (["--time", 1], lambda x: x @ MATRIX + SHIFT),
        (["--inverse", "--time", 1], lambda y: y),
        (["--inverse", "--time", 0], lambda y: (y - SHIFT) @ np.linalg.inv(MATRIX)),
    ],
)
def test_transport_moves_points_to_where_they_belong(points, exact_map, options, expected):
    found = result_of("transport", exact_map, "x.npy", "--out", "moved.npy", *options)
    assert found == {"files": ["moved.npy"], "points": 300}
    # Round-off of the closed form, in float64.
    np.testing.assert_allclose(np.load("moved.npy"), expected(points), atol=1e-9)


def test_refined_lines_are_those_of_a_map_that_is_exact(points, exact_map):
    succeed("transport", exact_map, "y.npy", "--out", "back.npy", "--inverse", "--refine")
    np.testing.assert_allclose(np.load("back.npy"), points, atol=1e-3)


def test_only_characteristics_are_refined(points, flow_map):
    found = fail(2, "transport", flow_map, "x.npy", "--out", "moved.npy", "--refine")
    assert "map of NCF to refine" in found


def test_lines_of_classes_have_to_cross(points, exact_map):
    solution = brenier.load(exact_map)
    info = Metadata(solution.info | {"classes": {"a": {}, "b": {}}})
    brenier.save("labelled.brenier", dataclasses.replace(solution, info=info))
    found = fail(2, "transport", "labelled.brenier", "x.npy", "--out", "moved.npy", "--refine")
    assert "without labels" in found


def test_transport_between_file_types(points, exact_map):
    succeed("transport", exact_map, "x.npy", "--out", "a.csv")
    succeed("transport", exact_map, "a.csv", "--out", "b.npz", "--inverse")
    np.testing.assert_allclose(np.load("b.npz")["points"], points, atol=1e-9)


def test_transport_reads_moves_and_writes_by_blocks(points, exact_map, monkeypatch):
    monkeypatch.setattr(brenier.points.read_blocks, "__defaults__", (64,))
    sizes = []
    forward = brenier.CharacteristicTransport.forward
    monkeypatch.setattr(
        brenier.CharacteristicTransport,
        "forward",
        lambda self, x: sizes.append(len(x)) or forward(self, x),
    )
    succeed("transport", exact_map, "x.npy", "--out", "moved.npy")
    assert sizes[-5:] == [64, 64, 64, 64, 44]  # after those that loading tries the map with
    np.testing.assert_allclose(np.load("moved.npy"), points @ MATRIX + SHIFT, atol=1e-9)


def test_every_block_has_noise_of_its_own(points, flow_map, monkeypatch):
    monkeypatch.setattr(brenier.points.read_blocks, "__defaults__", (64,))
    np.save("same.npy", np.zeros((128, 2)))
    succeed("transport", flow_map, "same.npy", "--out", "moved.npy")
    moved = np.load("moved.npy")
    alike = np.array_equal(moved[:64], moved[64:])
    assert alike == brenier.load(flow_map).transport.invertible


def test_trajectories_of_a_flow(points, walls, flow_map, monkeypatch):
    monkeypatch.setitem(brenier.plotting.paths_animation.__kwdefaults__, "frames", 12)
    animation = ("--animation", "p.gif") if brenier.load(flow_map).transport.invertible else ()
    found = result_of(
        *("trajectories", flow_map, "x.npy", "--out", "p.npz", "--times", 11, "--seed", 5),
        *("--state-cost", walls, *EXTENT, "--picture", "p.png", *animation),
    )
    assert found["files"] == ["p.npz", "p.png", *animation[1:]]
    assert (found["points"], found["times"], found["seed"]) == (300, 11, 5)
    with np.load("p.npz") as paths:
        times, way = paths["times"], paths["points"]
    np.testing.assert_allclose(times, np.linspace(0, 1, 11))
    assert way.shape == (11, 300, 2)
    np.testing.assert_allclose(way[0], points)
    transport = brenier.load(flow_map).transport
    if transport.invertible:
        # the tolerance of the solver
        np.testing.assert_allclose(way[-1], points @ MATRIX + SHIFT, atol=1e-2)
    # columns 18 and 19 of 30 over [-10, 10]; rows 8 to 11 of 20 over [-7.5, 7.5] are free
    inside = (np.abs(way[..., 0] - 8 / 3) < 2 / 3) & (np.abs(way[..., 1]) > 1.5)
    share = np.trapezoid(inside.mean(axis=1), times)
    assert found["time_inside"] == pytest.approx(share, abs=1e-9)
    assert 0.01 < share < 0.5
    assert 0.1 < found["deepest"] < 0.8
    for name in ("p.png", *animation[1:]):
        with Image.open(name) as picture:
            assert picture.size[0] > 400
    again = ("trajectories", flow_map, "x.npy", "--times", 11)
    succeed(*again, "--out", "q.npz", "--seed", 5)
    succeed(*again, "--out", "r.npz", "--seed", 6)
    np.testing.assert_array_equal(np.load("q.npz")["points"], way)
    assert np.array_equal(np.load("r.npz")["points"], way) == transport.invertible


def test_trajectories_as_a_table(points, exact_map, monkeypatch):
    monkeypatch.setattr(brenier.points, "BLOCK_ROWS", 64)  # 21 points at a time
    text = succeed("trajectories", exact_map, "x.npy", "--out", "p.csv", "--times", 3).stdout
    assert text == "Followed 300 points through 3 moments.\nWrote p.csv.\n"
    with open("p.csv") as file:
        assert file.readline() == "point,time,x1,x2\n"
        table = np.loadtxt(file, delimiter=",")
    np.testing.assert_array_equal(table[:, 0], np.repeat(np.arange(300), 3))
    np.testing.assert_array_equal(table[:, 1], np.tile([0.0, 0.5, 1.0], 300))
    end = points @ MATRIX + SHIFT
    expected = np.stack([points, (points + end) / 2, end], axis=1).reshape(-1, 2)
    np.testing.assert_allclose(table[:, 2:], expected, atol=1e-9)


def test_trajectories_say_how_much_is_in_walls(points, walls, exact_map):
    options = ("--state-cost", "cells.npy", *EXTENT, "--times", 5)
    text = succeed("trajectories", exact_map, "x.npy", "--out", "p.npz", *options).stdout
    assert re.search(r"^Inside walls \d+\.\d\d% of the time, \S+ deep at most\.$", text, re.M)


@pytest.mark.slow
def test_maps_without_an_inverse_and_with_curved_paths(points, flow_map):
    invertible = brenier.load(flow_map).transport.invertible
    text = succeed("info", flow_map).stdout
    assert "forward 0.5" in text
    assert ("backward 0.5" in text) == invertible
    scores = result_of("evaluate", flow_map, "x.npy", "y.npy")
    assert (scores["round_trip"] is not None) == invertible
    assert scores["map_cost"] is None
    ways = "each side into the other" if invertible else "the source into the target"
    assert ways in scores["verdict"]
    assert scores["verdict"].endswith("do not call for more, unless there are walls or noise.")
    assert scores["certificate"] is None  # whether there were walls, this file does not say
    for name in ("map", "noise_band"):
        assert (scores[name]["backward"] is not None) == invertible
    printed = succeed("evaluate", flow_map, "x.npy", "y.npy").stdout
    assert ("round trip" in printed) == invertible
    assert ("–" in printed) != invertible
    np.save("shifted.npy", points + 5.0)
    verdict = result_of("evaluate", flow_map, "x.npy", "shifted.npy")["verdict"]
    assert verdict.endswith("a mean shift stays within it: fit longer.")
    checked = run("evaluate", flow_map, "x.npy", "shifted.npy", "--check")
    assert checked.exit_code == 1
    assert verdict in checked.stdout
    back = ("transport", flow_map, "y.npy", "--out", "back.npy", "--inverse")
    if invertible:
        succeed(*back)
        np.testing.assert_allclose(np.load("back.npy"), points, atol=1e-2)
        succeed(*back, "--time", 1.0)
        np.testing.assert_allclose(np.load("back.npy"), np.load("y.npy"), atol=1e-2)
        return
    for more in ((), ("--time", 0.5)):
        assert "a point has no single origin" in fail(2, *back, *more)
    assert not os.path.exists("back.npy")


def test_evaluate_an_optimal_map(points, exact_map):
    scores = result_of("evaluate", exact_map, "x.npy", "y.npy")
    # `y` is the exact image of `x`, so that only the bias of the U-statistic is left, below zero.
    assert scores["map"]["ratio"] <= 0.0
    assert scores["linear"]["ratio"] <= 0.0
    assert scores["identity"]["ratio"] > 10.0
    assert 1.0 < scores["mean_shift"]["ratio"] < scores["identity"]["ratio"]
    assert scores["round_trip"] < 1e-20
    cost = 0.5 * np.mean(np.sum((points @ MATRIX + SHIFT - points) ** 2, axis=1))
    assert scores["map_cost"] == pytest.approx(cost, rel=1e-12)
    # Complementary slackness: u(1, T(x)) - u(0, x) = ½|T(x) - x|² at every single point.
    assert scores["dual_value"] == pytest.approx(cost, rel=1e-9)
    assert scores["verdict"].startswith("The map turns each side into the other within")
    assert (
        "and so does the linear (Gaussian) map: these points do not call for more."
        in (scores["verdict"])
    )
    bounds = scores["certificate"]
    assert bounds["lower"] <= bounds["exact"]
    assert bounds["upper"] == pytest.approx(bounds["lower"], rel=1e-6)
    assert scores["passed"]
    text = succeed("evaluate", exact_map, "x.npy", "y.npy", "--check").stdout
    assert text.endswith(f"\n\n{scores['verdict']}\n")
    assert f"dual value  {cost:.6g}" in text


def test_evaluate_far_from_the_origin_and_on_other_scales(points, exact_map):
    near = result_of("evaluate", exact_map, "x.npy", "y.npy")
    np.save("far_x.npy", points + 1e6)
    np.save("far_y.npy", points @ MATRIX + SHIFT + 1e6)
    far = result_of("evaluate", exact_map, "far_x.npy", "far_y.npy")
    # float64 keeps ten digits of the differences at 1e6.
    for way in ("forward", "backward"):
        assert far["mean_shift"][way] == pytest.approx(near["mean_shift"][way], rel=1e-5)
        assert far["noise_band"][way] == pytest.approx(near["noise_band"][way], rel=1e-5)


def test_evaluate_says_when_a_map_is_no_better_than_a_simple_one(points, exact_map):
    np.save("shifted.npy", points + 5.0)
    scores = result_of("evaluate", exact_map, "x.npy", "shifted.npy")
    assert scores["map"]["ratio"] > 1.0
    assert re.search(r"while a mean shift stays within it: fit longer", scores["verdict"])
    np.save("skewed.npy", -np.exp(points))
    scores = result_of("evaluate", exact_map, "x.npy", "skewed.npy")
    assert scores["map"]["ratio"] > scores["linear"]["ratio"] > 1.0
    assert re.search(r"no better than .* times\): fit longer", scores["verdict"])
    assert not scores["passed"]


def test_reports_of_a_fit_and_of_an_evaluation(points, exact_map):
    # Nothing else takes so little time to compile.
    fitted = (*FIT, "--steps", 2, "--preset", "published", "--validation", 0)
    assert "type .html" in fail(2, *fitted, "--report", "r.txt")
    assert not os.path.exists("m.brenier")
    assert result_of(*fitted, "--report", "r.html")["files"] == ["m.brenier", "r.html"]
    found = result_of("evaluate", exact_map, "x.npy", "y.npy", "--report", "e.html")
    assert found["files"] == ["e.html"]
    with open("e.html") as page:
        assert found["verdict"] in page.read()
    same = ("evaluate", exact_map, "x.npy", "y.npy", "--report", "y.npy")
    assert "a new file to write to" in fail(2, *same)


def test_color_names_its_pictures(tmp_path, monkeypatch):
    import brenier.color

    seen = {}
    pictures = {"source_in_target_colors": "o/a.png", "contact_sheet": "o/sheet.png"}

    class Result:
        def to_dict(self):
            return {"files": pictures, "scores": {}, "fit": {"message": "Fitted."}}

    monkeypatch.setattr(
        brenier.color, "color_transfer", lambda *a, **k: seen.update(k, pictures=a) or Result()
    )
    options = ("color", "a.png", "b.png", "--out", "o", "--steps", 9, "--time-budget", "1m")
    assert result_of(*options)["files"] == list(pictures.values())
    assert [str(p) for p in seen["pictures"]] == ["a.png", "b.png"]
    assert (str(seen["out"]), seen["steps"], seen["time_budget"]) == ("o", 9, 60.0)
    assert succeed(*options).stdout == "Fitted.\nWrote o/a.png.\nWrote o/sheet.png.\n"

    monkeypatch.setattr(brenier.color, "write_color_report", lambda *a, **k: seen.update(page=a))
    assert result_of(*options, "--report", "c.html")["files"] == [*pictures.values(), "c.html"]
    assert [str(p) for p in seen["page"][:3]] == ["c.html", "a.png", "b.png"]
    seen.clear()
    assert "type .html" in fail(2, *options, "--report", "c.txt")
    assert not seen


def test_demo_writes_its_pictures_and_says_what_to_open(tmp_path, monkeypatch):
    class Lighter:
        class solution_:
            status, message, info = "completed", "Fitted.", {"steps": 1, "method": {}}

        def fit(self, *, Xs, Xt):
            assert Xs.shape[1] == Xt.shape[1] == 3

        def transform(self, Xs):
            return Xs + 0.1

        def inverse_transform(self, Xt):
            return Xt - 0.1

    transfer, seen = _demo.color_transfer, {}

    def fake(*pictures, out, random_state, **options):
        seen.update(options)
        for picture in pictures:
            Image.open(picture).resize((64, 48)).save(picture)
        return transfer(*pictures, out=out, random_state=random_state, transport=Lighter())

    monkeypatch.setattr(_demo, "color_transfer", fake)
    monkeypatch.chdir(tmp_path)
    lines = succeed("demo").stdout.splitlines()
    assert seen["time_budget"] < 60.0
    assert [line.split()[:2] for line in lines[-3:]] == [
        ["Open", "demo-output/contact_sheet.png"],
        ["Open", "demo-output/report.md"],
        ["Open", "demo-output/scores.json"],
    ]
    assert sum(line.startswith("Open") for line in lines) == 3
    report = (tmp_path / "demo-output/report.md").read_text()
    for name in ("china.png", "flower.png", "contact_sheet.png", "scores.json"):
        assert (tmp_path / "demo-output" / name).stat().st_size > 0
    scores = json.loads((tmp_path / "demo-output/scores.json").read_text())["scores"]
    ours = scores["source_to_target"]["brenier"]["energy_distance"]
    assert f"{ours:.4f}" in report
    assert "](contact_sheet.png)" in report


# Wrong input and arguments: exit status 2


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("nan", [[0.0, np.nan], [1, 2]], "NaN"),
        ("infinite", [[0.0, np.inf], [1, 2]], "infinite"),
        ("other dimension", np.eye(3), "same dimension; found 2 and 3 columns"),
        ("1-D", np.arange(9.0), r"shape \(n, d\), found shape \(9,\)"),
        ("no point", np.zeros((0, 2)), "no rows"),
        ("one point", [[0.0, 1.0]], "at least 2 points"),
        ("all equal", np.ones((9, 2)), "All 9 points of target are equal"),
        ("complex", np.eye(2) * 1j, "real numbers"),
    ],
)
def test_fit_refuses_bad_points(points, monkeypatch, name, array, message):
    forbid_fitting(monkeypatch)
    np.save("bad.npy", np.asarray(array))
    assert re.search(message, fail(2, "fit", "x.npy", "bad.npy", "--out", "m.brenier"))
    assert sorted(os.listdir()) == ["bad.npy", "x.npy", "y.npy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    {
        "five points": lambda x: x[:5],
        "a constant column": lambda x: x * [1.0, 0.0],
        "tiny": lambda x: 1e-12 * x,
        "huge": lambda x: 1e12 * x,
        "far away": lambda x: x + 1e6,
        "every point twice": lambda x: np.concatenate([x, x]),
        "integers": lambda x: np.rint(10 * x).astype(np.int16),
        "half precision": lambda x: x.astype(np.float16),
    }.items(),
    ids=lambda item: item[0],
)
def test_unusual_points_are_fitted_moved_and_scored(points, change):
    x = change[1](points)
    np.save("x.npy", x)
    np.save("y.npy", 2 * x)
    succeed("fit", "x.npy", "y.npy", "--out", "m.brenier", "--steps", 2)
    succeed("transport", "m.brenier", "x.npy", "--out", "moved.npy")
    assert np.isfinite(np.load("moved.npy")).all()
    assert result_of("evaluate", "m.brenier", "x.npy", "y.npy")["verdict"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found no 'bad.npy'"),
        (b"", "an empty file"),
        (b"no array at all", "damaged one or one of another type"),
    ],
)
def test_files_that_hold_no_points(points, exact_map, content, message):
    if content is not None:
        with open("bad.npy", "wb") as file:
            file.write(content)
    for command in (
        ("fit", "x.npy", "bad.npy", "--out", "m.brenier"),
        ("transport", exact_map, "bad.npy", "--out", "o.npy"),
        ("evaluate", exact_map, "x.npy", "bad.npy"),
    ):
        assert message in fail(2, *command)
    assert not os.path.exists("m.brenier")
    assert not os.path.exists("o.npy")


def test_points_of_another_dimension_than_the_map(points, exact_map):
    np.save("wide.npy", np.zeros((4, 3)))
    found = fail(2, "transport", exact_map, "wide.npy", "--out", "o.npy")
    assert "2 columns" in found
    assert "found 3" in found
    assert not os.path.exists("o.npy")
    assert "source points with 2 columns" in fail(2, "evaluate", exact_map, "wide.npy", "x.npy")


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_points_to_score(points, exact_map, count):
    np.save("few.npy", points[:count])
    assert "noise band needs at least" in fail(2, "evaluate", exact_map, "few.npy", "y.npy")


def test_files_that_are_no_maps(points):
    for content in (b"", b"not a map"):
        with open("m.brenier", "wb") as file:
            file.write(content)
        for command in (["info"], ["transport", "x.npy", "--out", "o.npy"]):
            assert "m.brenier" in fail(2, command[0], "m.brenier", *command[1:])
    assert "missing.brenier" in fail(2, "info", "missing.brenier")


FIT = ("fit", "x.npy", "y.npy", "--out", "m.brenier")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fly",), "No such command"),
        (("fit", "x.npy", "y.npy"), "Missing option '--out'"),
        (("fit", "x.npy", "--out", "m.brenier"), "Missing argument"),
        (
            (*FIT, "--steps", "-3"),
            "--steps': expected a whole number of at least 1, found '-3'. Try `brenier fit --help`.",
        ),
        ((*FIT, "--steps", "0"), "found '0'"),
        ((*FIT, "--steps", "many"), "found 'many'"),
        ((*FIT, "--time-budget", "banana"), "a time such as 60s, 2m or 1h, found 'banana'"),
        ((*FIT, "--time-budget", "0s"), "found '0s'"),
        ((*FIT, "--time-budget", "-1s"), "found '-1s'"),
        ((*FIT, "--seed", "x"), "a whole number from 0 to 4294967295, found 'x'"),
        ((*FIT, "--seed", "-1"), "found '-1'"),
        ((*FIT, "--validation", "0.9"), "a share from 0 to 0.5, found '0.9'"),
        ((*FIT, "--validation", "nan"), "found 'nan'"),
        ((*FIT, "--method", "magic"), "'magic' is not one of"),
        ((*FIT, "--preset", "best"), "'best' is not one of"),
        ((*FIT, "--checkpoint", "m.brenier"), "two files for --out and --checkpoint"),
        (("fit", "x.npy", "y.npy", "--out", "x.npy"), "a new file to write to"),
        (("transport", "MAP", "x.npy", "--out", "o.npy", "--time", "1.5"), "found '1.5'"),
        (("transport", "MAP", "x.npy", "--out", "o.npy", "--time", "nan"), "found 'nan'"),
        (("transport", "MAP", "x.npy", "--out", "o.txt"), "an output file of type .npy"),
        (("color", "no.png", "no.png", "--out", "o"), "no.png does not exist"),
    ],
)
def test_wrong_arguments(points, exact_map, arguments, message):
    arguments = [exact_map if a == "MAP" else a for a in arguments]
    assert message in fail(2, *arguments)
    assert sorted(os.listdir()) == ["x.npy", "y.npy"]


HOTA = (*FIT, "--method", "hota")
WALLS = ("--state-cost", "walls.png")
FOLLOW = ("trajectories", "MAP", "x.npy", "--out", "p.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (*FIT, *WALLS, *EXTENT),
            "Expected --method hota with --state-cost, found ncf, which moves points along "
            "straight lines; add --method hota or leave --state-cost out.",
        ),
        ((*FIT, "--method", "hjpinn", "--noise", "0.1"), "hota with --noise, found hjpinn"),
        ((*HOTA, *WALLS), "Expected --extent X_MIN X_MAX Y_MIN Y_MAX with --state-cost"),
        ((*HOTA, *EXTENT), "Expected --state-cost with --extent, found none"),
        ((*FIT, "--wall-height", 3), "Expected --state-cost with --wall-height, found none"),
        ((*HOTA, *WALLS, "--extent", 0, 1, 1, 0), "found (0.0, 1.0, 1.0, 0.0)"),
        (
            (*HOTA, *WALLS, "--extent", 0, 1, "a", 0),
            "Expected four numbers X_MIN X_MAX Y_MIN Y_MAX for --extent, found 0 1 a 0",
        ),
        ((*HOTA, "--wall-height", -1), "a number of at least 0, found '-1'"),
        ((*HOTA, "--noise", "inf"), "a number of at least 0, found 'inf'"),
        ((*HOTA, "--state-cost", "no.png", *EXTENT), "no.png does not exist"),
        ((*HOTA, "--state-cost", "no.npy", *EXTENT), "a .npy file of cells, found no 'no.npy'"),
        ((*HOTA, "--state-cost", "bad.npy", *EXTENT), "cells at 'bad.npy', found a damaged one"),
        ((*HOTA, "--state-cost", "torn.npy", *EXTENT), "cells at 'torn.npy', found a damaged one"),
        (
            (*HOTA, "--state-cost", "x.npy", *EXTENT),
            "'x.npy' holds no walls. Expected cells between 0 (free) and 1 (wall)",
        ),
        (
            ("fit", "wide.npy", "wide.npy", "--out", "m.brenier", *HOTA[5:], *WALLS, *EXTENT),
            "points with 2 columns for --state-cost, found 3",
        ),
        (
            ("fit", "x.npy", "y.npy", "--out", "walls.png", *HOTA[5:], *WALLS, *EXTENT),
            "a new file to write to, found the input 'walls.png'",
        ),
        ((*FOLLOW[:3], "--out", "p.npy"), "type .npz or .csv for paths, found 'p.npy'"),
        ((*FOLLOW, "--times", 1), "a whole number of at least 2, found '1'"),
        ((*FOLLOW, "--picture", "p.gif"), "a picture of type .png, .svg, .pdf, found 'p.gif'"),
        ((*FOLLOW, "--animation", "p.png"), "an animation of type .gif, .mp4, found 'p.png'"),
        ((*FOLLOW, "--animation", "p.mp4"), "Expected ffmpeg to be installed for 'p.mp4'"),
        ((*FOLLOW, *WALLS), "Expected --extent"),
        ((*FOLLOW, *EXTENT), "Expected --state-cost with --extent"),
        ((*FOLLOW, "--picture", "walls.png", *WALLS, *EXTENT), "found the input 'walls.png'"),
        (("trajectories", "MAP", "wide.npy", *FOLLOW[3:]), "points with 2 columns, as the map"),
        (("trajectories", "LINE", "line.npy", *FOLLOW[3:], *WALLS, *EXTENT), "2 columns for"),
        (("trajectories", "LINE", "line.npy", *FOLLOW[3:], "--picture", "p.png"), "to draw"),
    ],
)
def test_wrong_walls_and_paths(points, walls, exact_map, monkeypatch, arguments, message):
    forbid_fitting(monkeypatch)
    monkeypatch.setattr(brenier.plotting.writers, "is_available", lambda name: False)
    np.save("wide.npy", points[:99].reshape(-1, 3))
    np.save("line.npy", np.zeros((4, 1)))
    with open("bad.npy", "wb") as file:
        file.write(b"no array at all")
    with open("torn.npy", "wb") as file:  # a bracket that never closes
        file.write(b"\x93NUMPY\x01\0\x10\0{'descr': ('<f8'\n")
    if "LINE" in arguments:
        on_a_line = brenier.load(exact_map)
        potential = brenier.GaussianPotential.from_moments(
            np.zeros(1), np.eye(1), np.ones(1), np.eye(1)
        )
        transport = brenier.CharacteristicTransport(
            jax.tree.map(jax.numpy.asarray, potential), Frame.identity(1), Quadratic()
        )
        brenier.save("line.brenier", dataclasses.replace(on_a_line, transport=transport))
    before = sorted(os.listdir())
    known = {"MAP": exact_map, "LINE": "line.brenier"}
    assert message in fail(2, *(known.get(a, a) for a in arguments))
    assert sorted(os.listdir()) == before


def test_no_way_through_the_walls(points):
    """A room without a door; said before the first step."""
    room = np.ones((20, 20))
    room[2:-2, 2:-2] = 0
    np.save("room.npy", room)
    np.save("far.npy", points + 20.0)
    walls = ("--state-cost", "room.npy", "--extent", "-6", 6, "-6", 6)
    message = fail(2, "fit", "x.npy", "far.npy", "--out", "m.brenier", "--method", "hota", *walls)
    assert "Expected a free path from source to target, found none" in message
    assert not os.path.exists("m.brenier")


# Work that failed: exit status 1


def test_unwritable_outputs_are_found_before_the_fit(points, exact_map, monkeypatch):
    forbid_fitting(monkeypatch)
    for out in ("x.npy/m.brenier", "missing/m.brenier", "."):
        assert "Cannot write" in fail(1, "fit", "x.npy", "y.npy", "--out", out)
    assert "Cannot write" in fail(1, *FIT, "--checkpoint", "missing/run")
    assert "Cannot write" in fail(1, "transport", exact_map, "x.npy", "--out", "x.npy/o.npy")
    assert "Cannot create the folder" in fail(1, "demo", "--out", "x.npy/demo")
    assert sorted(os.listdir()) == ["x.npy", "y.npy"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (brenier.DivergenceError("hint", solution=object()), "The fit diverged"),
        (KeyboardInterrupt(), "Interrupted before there was a result; nothing was written."),
        (MemoryError(), "enough memory"),
        (
            RuntimeError("boom\nwith details"),
            "Unexpected RuntimeError: boom; rerun with --debug for the traceback.",
        ),
    ],
)
def test_fits_that_fail(points, monkeypatch, error, message):
    def fake(*args, **kwargs):
        raise error

    monkeypatch.setattr(brenier, "fit", fake)
    assert message in fail(1, *FIT)
    assert not os.path.exists("m.brenier")
    assert "Traceback" in run(*FIT, "--debug").stderr


def test_an_interruption_before_the_first_step_writes_nothing(points, exact_map, monkeypatch):
    solution = brenier.load(exact_map)
    solution = dataclasses.replace(
        solution, status="interrupted", info=Metadata(solution.info | {"steps": 0})
    )
    monkeypatch.setattr(brenier, "fit", lambda *_, **__: solution)
    assert "before the first step" in fail(1, *FIT)
    assert not os.path.exists("m.brenier")


def test_warnings_are_one_line_on_stderr(points, exact_map, monkeypatch):
    def fake(*args, **kwargs):
        import warnings

        warnings.warn("of a dependency", UserWarning, stacklevel=1)
        warnings.warn("Stopped after 3 steps: in the message as well.", brenier.BrenierWarning, 1)
        warnings.warn("a grey picture", brenier.BrenierWarning, stacklevel=1)
        return brenier.load(exact_map)

    monkeypatch.setattr(brenier, "fit", fake)
    lines = succeed(*FIT, "--json").stderr.splitlines()
    assert lines[1:] == ["warning: a grey picture"]


# Real processes


def start(*arguments, **settings):
    # Whoever starts the tests in the background may have Ctrl-C ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "import sys; sys.argv[0] = 'brenier'; from brenier.cli import main; main()"
    environment = os.environ | {"TERM": "xterm", "JAX_ENABLE_X64": "1"}  # as in this process
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], text=True, env=environment, **settings
    )


def test_ctrl_c_keeps_the_best_map_so_far(points):
    pty = pytest.importorskip("pty")
    terminal, stderr = pty.openpty()
    shown = b""
    # Nothing else takes so little time to compile.
    endless = ("--steps", "1000000", "--json", "--preset", "published", "--validation", "0")
    with start(*FIT, *endless, stdout=subprocess.PIPE, stderr=stderr) as process:
        os.close(stderr)
        try:
            while b"step " not in shown:  # compiled, and the first chunk is done
                shown += os.read(terminal, 4096)
            process.send_signal(signal.SIGINT)
            while os.read(terminal, 4096):
                pass
        except OSError:  # what Linux says when the other end of a terminal is closed
            pass
        finally:
            os.close(terminal)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    found = json.loads(output)
    assert found["status"] == "interrupted"
    assert found["info"]["steps"] > 0
    assert brenier.load("m.brenier").status == "interrupted"


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(points, exact_map):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start("info", exact_map, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


# Compiled programs


@pytest.mark.parametrize(
    ("ours", "jaxs", "expected"),
    [
        ("cache", None, "cache"),
        ("cache", "other", "cache"),
        ("", None, None),
        (None, "other", "unchanged"),
        (None, None, "xdg/brenier/jax"),
        ("x.npy/cache", None, "unchanged"),
    ],
)
def test_compiled_programs_are_kept(points, exact_map, monkeypatch, ours, jaxs, expected):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
    for name, value in (("BRENIER_CACHE_DIR", ours), ("JAX_COMPILATION_CACHE_DIR", jaxs)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    jax.config.update("jax_compilation_cache_dir", "unchanged")
    succeed("transport", exact_map, "x.npy", "--out", "o.npy")
    assert jax.config.jax_compilation_cache_dir == expected
