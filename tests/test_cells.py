"""Single cells: the same points from an object as from its file, and results that the file can hold."""

import json

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import brenier
from brenier import cells
from brenier.cli import app
from brenier.coordinates import Frame
from brenier.costs import Quadratic
from brenier.errors import InputError
from brenier.solution import Metadata

anndata = pytest.importorskip("anndata")
pandas = pytest.importorskip("pandas")
pytestmark = pytest.mark.filterwarnings("default")  # those of optional packages are not ours

SHIFT = np.array([3.0, -1.0])
X = np.random.default_rng(0).normal(size=(6, 2))


@pytest.fixture
def adata():
    obs = pandas.DataFrame({"day": [0, 0, 0, 0, 4, 4]}, index=[f"cell{i}" for i in range(6)])
    return anndata.AnnData(obs=obs, obsm={"X_pca": X})


@pytest.fixture(scope="module")
def solution():
    """A translation in closed form."""
    potential = brenier.GaussianPotential.from_moments(np.zeros(2), np.eye(2), SHIFT, np.eye(2))
    transport = brenier.CharacteristicTransport(
        jax.tree.map(jax.numpy.asarray, potential), Frame.identity(2), Quadratic()
    )
    info = {"method": {"name": "NCF", "batch_size": None}, "key": [0, 5], "versions": {"jax": "1"}}
    scores = Metadata(energy_forward=0.5)
    return brenier.Solution(transport, {}, "completed", "Done.", scores, Metadata(info))


def test_points_and_back(adata, solution, tmp_path):
    early = cells.get_points(adata, "X_pca", where=("day", 0))
    np.testing.assert_array_equal(early, X[:4])
    moved = solution.transport.forward(early)
    cells.set_points(adata, "X_late", moved, solution, where=("day", 0), time=1.0)
    adata.write_h5ad(tmp_path / "x.h5ad")
    found = anndata.read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(found.obsm["X_late"][:4], moved)
    assert np.isnan(found.obsm["X_late"][4:]).all()
    facts = found.uns["brenier"]["X_late"]
    assert (facts["method"], facts["time"], facts["status"]) == ("NCF", 1.0, "completed")
    assert facts["seed"].tolist() == [0, 5]
    assert facts["scores"] == {"energy_forward": 0.5}
    assert json.loads(facts["settings"]) == {"name": "NCF", "batch_size": None}


def test_a_sparse_matrix_is_made_dense(adata):
    from scipy.sparse import csr_matrix

    sparse = anndata.AnnData(csr_matrix(X), obs=adata.obs)
    np.testing.assert_array_equal(cells.get_points(sparse, where=("day", 4)), X[4:])


def test_what_is_not_there(adata):
    with pytest.raises(InputError, match="entry 'X_umap' of obsm in the AnnData, found X_pca"):
        cells.get_points(adata, "X_umap")
    with pytest.raises(InputError, match=r"cells with day=2 .* found 0, 4"):
        cells.get_points(adata, "X_pca", where=("day", 2))
    with pytest.raises(InputError, match="one for each cell"):
        cells.set_points(adata, "X_late", X[:4])


def test_the_command_line(adata, solution, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRENIER_CACHE_DIR", "")
    adata.write_h5ad("x.h5ad")
    brenier.save("map.brenier", solution)

    def run(out):
        line = ["transport", "map.brenier", "x.h5ad:X_pca:day=0", "--out", out, "--time", "0.5"]
        return CliRunner().invoke(app, [*line, "--json"])

    result = run("y.h5ad:X_half")
    facts = {"files": ["y.h5ad"], "points": 4, "entry": "X_half"}
    assert json.loads(result.stdout) == facts
    found = anndata.read_h5ad("y.h5ad")
    np.testing.assert_allclose(found.obsm["X_half"][:4], X[:4] + SHIFT / 2, atol=1e-12)
    recorded = found.uns["brenier"]["X_half"]
    assert recorded["time"] == 0.5
    assert recorded["points"] == "x.h5ad:X_pca:day=0"
    assert json.loads(run("y.h5ad").stdout)["entry"] == cells.ENTRY
    assert run("y.h5ad:a/b").exit_code == 2
    assert "entry" not in json.loads(run("y.npy").stdout)
