"""The pages: their examples run, their links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest

import brenier
from brenier.methods._characteristic import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = {page.name: page for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
EXAMPLES = {
    name: "\n".join(blocks)
    for name, page in PAGES.items()
    if (blocks := re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The pages show calls; how well a fit of full length does is tested elsewhere.
    monkeypatch.setitem(PRESETS["default"], "steps", 25)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 2)), rng.normal(size=(64, 2)) + 1.0
    brenier.save("map.brenier", brenier.fit(brenier.TransportProblem(x, y), brenier.NCF()))
    exec(EXAMPLES[name], {"X": x, "Y": y})


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", PAGES[name].read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (PAGES[name].parent / link).exists()] == []
