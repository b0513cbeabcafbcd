"""The examples run, small, from wherever they are started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("two_clouds", ["hero.png"]),
        ("single_cell", ["branching.brenier", "branching.png"]),
        ("floor_plan", ["plan.png", "paths.png", "paths.gif", "map.brenier"]),
        ("latent_images", ["quick/scores.json", "quick/clothes.png", "quick/style.png"]),
    ],
)
def test_an_example_runs(name, written, tmp_path):
    line = [sys.executable, EXAMPLES / f"{name}.py", "--quick", "--out", "results"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for file in written:
        assert (tmp_path / "results" / file).stat().st_size > 0
