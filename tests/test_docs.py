"""The pages: their examples run, their links lead somewhere.

Blocks marked `python` run here, each page on two small samples X and Y; cells marked `{code-cell}` run when `make docs`
builds the site, and nowhere else.
"""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import brenier
from brenier.methods._characteristic import PRESETS
from brenier.methods.ncf import DUAL

ROOT = Path(__file__).parent.parent
PAGES = {page.name: page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
EXAMPLES = {
    name: "\n".join(blocks)
    for name, page in PAGES.items()
    if (blocks := re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the examples run, with the files they read."""
    folder = tmp_path_factory.mktemp("docs")
    problem = brenier.TransportProblem(*samples())
    brenier.save(
        folder / "map.brenier", brenier.fit(problem, brenier.NCF(), steps=25, validation=0.0)
    )
    return folder


# `make examples` runs the others.
@pytest.mark.parametrize(
    "name",
    [n if n == "README.md" else pytest.param(n, marks=pytest.mark.slow) for n in EXAMPLES],
)
def test_examples_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    # The pages show calls; how well a fit of full length does is tested elsewhere.
    for recipe in (PRESETS["default"], DUAL):
        monkeypatch.setitem(recipe, "steps", 25)
    exec(EXAMPLES[name], dict(zip("XY", samples(), strict=True)))


def samples():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 2)), rng.normal(size=(64, 2)) + 1.0


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\((?![a-z]+:)([^)#\s]*)#?([^)\s]*)\)", PAGES[name].read_text())
    for path, heading in links:
        page = PAGES[name].parent / path if path else PAGES[name]
        assert page.exists(), path
        assert not heading or heading in headings(page), heading


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_nb", reason="the docs extra")
    command = ["-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-d", tmp_path / "trees"]
    command = [sys.executable, *command, ROOT / "docs", tmp_path / "html"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "index.html").exists()


def test_the_reference_has_every_public_name():
    listed = set(re.findall(r"^   (\w+)$", PAGES["api.md"].read_text(), re.M))
    assert listed == {
        name
        for name, thing in vars(brenier).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }


def headings(page):
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
