"""The page: complete, small, without a network; in a browser, where there is one."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brenier
from brenier.coordinates import Frame
from brenier.costs import Quadratic
from brenier.errors import InputError
from brenier.report import write_report
from brenier.solution import Metadata, Solution
from brenier.state_costs import Disc

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
HISTORY = {
    "step": np.array([25.0, 50.0]),
    "loss": np.array([0.2, 0.1]),
    "score_step": np.array([25.0, 50.0]),
    "score": np.array([3.0, 0.9]),
}


def solved(dim):
    """Twice as far from the middle, and one to the right."""
    mean = np.zeros(dim)
    u = brenier.GaussianPotential(mean, mean + 1.0, np.eye(dim), np.full(dim, 2.0))
    arrays = jax.tree.map(jnp.asarray, u)
    transport = brenier.CharacteristicTransport(arrays, Frame.identity(dim), Quadratic())
    info = Metadata({"versions": {"brenier": "0"}, "key": [0, 7], "data_hash": "c0ffee", "n": None})
    return Solution(transport, HISTORY, "completed", "Done <in> time.", Metadata({}), info)


def sides(dim, n=300):
    z = np.random.default_rng(0).normal(size=(2, n, dim))
    return z[0], 2 * z[1] + 1.0


@pytest.fixture(scope="module")
def scores():
    return solved(2).evaluate(*sides(2))


@pytest.fixture(scope="module")
def page(scores, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "map.html"
    write_report(
        path,
        solved(2),
        *sides(2),
        scores=scores,
        state_cost=Disc((9.0, 9.0), 1.0),
        pictures={"before & after": np.zeros((4, 6, 3)), "bytes": np.zeros((4, 6, 3), np.uint8)},
        title="A <map>",
    )
    return path


class Elements(HTMLParser):
    """The tags that stand open, all that were seen, and what they point to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "action")]
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        # within the pictures of the key elements close themselves
        while self.open and self.open[-1] != tag and self.open[-1] in ("circle", "path"):
            self.open.pop()
        assert self.open.pop() == tag


def path_data(text):
    found = re.search(r'id="path-data">(.*?)</script>', text, re.S)
    return json.loads(found[1])


def test_the_page_has_every_section_and_needs_no_network(page, scores):
    text = page.read_text()
    elements = Elements(text)
    assert elements.open == []
    assert all(link.startswith("data:") for link in elements.links)
    assert "http" not in re.sub(r'http-equiv|"data:[^"]*"', "", text)
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings == [
        "How well it matches",
        "What the cost must be",
        "From source to target",
        "The map",
        "Pictures",
        "Training",
        "How to make it again",
    ]
    assert elements.seen.count("img") == 6
    assert scores["verdict"] in text
    assert "A &lt;map&gt;" in text
    assert "before &amp; after" in text
    assert "c0ffee" in text


def test_the_points_that_move_are_those_of_the_map(page):
    data = path_data(page.read_text())
    paths = np.array(data["paths"])
    np.testing.assert_allclose(paths[-1], 2 * paths[0] + 1.0, atol=1e-2)
    np.testing.assert_allclose(paths[10], (paths[0] + paths[-1]) / 2, atol=1e-2)
    x_min, x_max, y_min, y_max = data["window"]
    assert x_min < paths[..., 0].min() < paths[..., 0].max() < x_max
    assert y_min < paths[..., 1].min() < paths[..., 1].max() < y_max
    assert data["walls"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(("dim", "words"), [(1, "the rank"), (5, "principal axes")])
def test_other_dimensions_are_shown_in_the_plane(dim, words, scores, tmp_path):
    write_report(tmp_path / "a.html", solved(dim), *sides(dim), scores=scores)
    text = (tmp_path / "a.html").read_text()
    assert words in text
    assert np.shape(path_data(text)["paths"])[2] == 2


def test_the_page_does_not_grow_with_the_points(scores, tmp_path):
    write_report(tmp_path / "a.html", solved(2), *sides(2, n=10**6), scores=scores)
    assert (tmp_path / "a.html").stat().st_size < 5e6


def test_a_page_without_points_has_what_the_fit_recorded(tmp_path):
    solved(2).report(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "Done &lt;in&gt; time." in text
    assert re.findall("<h2>(.*?)</h2>", text) == ["Training", "How to make it again"]


def test_classes_have_a_table_of_their_own(tmp_path):
    ways = ("forward", "backward")
    found = {f"energy_{w}": 0.0123 for w in ways} | {f"band_{w}": 0.04 for w in ways}
    found |= {"kept_forward": 0.987, "kept_backward": 1.0}
    solution = solved(2)
    info = Metadata({**solution.info, "classes": {"<cat>": found, "dog": found}})
    dataclasses.replace(solution, info=info).report(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    table = re.search("<h2>Class by class</h2>(.*?)</section>", text, re.S)[1]
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", table)]
    numbers = ["0.0123", "0.04", "0.0123", "0.04", "98.7%", "100.0%"]
    assert rows[1:] == [["&lt;cat&gt;", *numbers], ["dog", *numbers]]
    assert "cat" not in text[text.index('id="facts"') :]


def test_pages_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"of type \.html"):
        solved(2).report(tmp_path / "a.txt")
    with pytest.raises(InputError, match="both Xs and Xt"):
        solved(2).report(tmp_path / "a.html", np.zeros((9, 2)))


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_slider_moves_the_points_in_a_browser(page, tmp_path):
    probe = """<script>addEventListener("load", () => {
        const canvas = document.getElementById("paths"), slider = document.getElementById("time");
        const at = (t) => {
            slider.value = t; slider.dispatchEvent(new Event("input"));
            return document.getElementById("now").textContent + canvas.toDataURL().length;
        };
        document.title = [at(0), at(0.5), at(0)].join("|");
    });</script></body>"""
    copy = tmp_path / "probed.html"
    copy.write_text(page.read_text().replace("</body>", probe))
    command = [BROWSER, "--headless", "--no-sandbox", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    start, middle, again = re.search("<title>(.*?)</title>", done.stdout)[1].split("|")
    assert start.startswith("time 0.00")
    assert middle.startswith("time 0.50")
    assert start == again
    assert start.removeprefix("time 0.00") != middle.removeprefix("time 0.50")
