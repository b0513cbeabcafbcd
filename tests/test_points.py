"""Files of points: what is written reads back bit for bit, every defect is one clear sentence."""

import importlib.util
import os
import sys

import numpy as np
import pytest

from brenier import points
from brenier.errors import InputError, OutputError
from brenier.files import check_output
from brenier.points import read_blocks, read_points, write_into_cells, write_points

TABLES = [".csv", ".tsv"]
OPTIONAL = {".parquet": "pyarrow", ".h5ad": "anndata"}
TYPES = [
    ".npy",
    ".npz",
    *TABLES,
    *(
        pytest.param(
            suffix,
            marks=pytest.mark.skipif(
                importlib.util.find_spec(module) is None, reason=f"needs {module}"
            ),
        )
        for suffix, module in OPTIONAL.items()
    ),
]
ANY_WARNING = pytest.mark.filterwarnings("default")  # those of optional packages are not ours


def sample(n=7, d=3, dtype=np.float64):
    return np.random.default_rng(0).normal(size=(n, d)).astype(dtype) * 10.0 ** np.arange(-d, 0)


@ANY_WARNING
@pytest.mark.parametrize("suffix", TYPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_written_reads_back(tmp_path, suffix, dtype):
    path, x = tmp_path / f"x{suffix}", sample(dtype=dtype).astype(dtype)
    write_points(path, x)
    found = read_points(path)
    np.testing.assert_array_equal(found.astype(dtype), x)  # text reads back as float64
    assert found.dtype == (np.float64 if suffix in TABLES else dtype)
    assert os.listdir(tmp_path) == [path.name]


@ANY_WARNING
@pytest.mark.parametrize("suffix", TYPES)
def test_blocks_join_to_the_whole(tmp_path, suffix):
    path, x = tmp_path / f"x{suffix}", sample(10)
    write_points(path, (x[i : i + 3] for i in range(0, 10, 3)))
    blocks = list(read_blocks(path, rows=4))
    assert [len(block) for block in blocks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), x)


def test_npy_stays_on_disk(tmp_path):
    write_points(tmp_path / "x.npy", sample())
    assert isinstance(read_points(tmp_path / "x.npy"), np.memmap)


def test_npy_written_in_blocks_is_an_ordinary_npy(tmp_path):
    x = sample(1000)
    write_points(tmp_path / "x.npy", (row[None] for row in x))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), x)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("i4", "f8"), ("u1", "f8"), ("?", "f8"), ("f2", "f4"), (">f4", "f8"), (">f8", "f8")],
)
def test_other_number_types_are_converted(tmp_path, dtype, expected, order):
    x = np.asarray([[1, 0], [0, 1], [1, 1]], dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    found = read_points(tmp_path / "x.npy")
    assert found.dtype == expected
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_paths_of_points_are_written(tmp_path, suffix):
    x = np.arange(24.0).reshape(2, 4, 3)
    write_points(tmp_path / f"x{suffix}", x)
    found = np.load(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(found if suffix == ".npy" else found["points"], x)


def test_an_array_of_an_npz_is_chosen_by_name(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 2)), b=np.ones((2, 2)))
    np.testing.assert_array_equal(read_points(f"{tmp_path}/x.npz:b"), np.ones((2, 2)))
    with pytest.raises(InputError, match=r"one array .* found a, b; choose one as '.*x\.npz:name'"):
        read_points(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"an array 'c' .* found a, b"):
        read_points(f"{tmp_path}/x.npz:c")


@pytest.mark.parametrize(
    "text",
    [
        "1,2\n3,4.5\n",
        "1,2\r\n3,4.5",
        "a,b\n1,2\n3,4.5\n",
        '"a","b"\n1,"2"\n\n3, 4.5\n\n',
        "\ufeffa,b\n1,2\n3,4.5\n",
        "0,1\n1.0,2.0\n3,4.5\n",  # the names a data frame gives to bare columns
    ],
)
def test_tables_with_and_without_names(tmp_path, text):
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(read_points(tmp_path / "x.csv"), [[1, 2], [3, 4.5]])


def test_a_first_line_of_counted_integers_over_integers_is_a_point(tmp_path):
    (tmp_path / "x.csv").write_text("0,1\n1,2\n")
    np.testing.assert_array_equal(read_points(tmp_path / "x.csv"), [[0, 1], [1, 2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,x\n", r"number in line 3, column 2 of '.*', found 'x'"),
        ("1,2\n3,\n", r"number in line 2, column 2 of '.*', found ''"),
        ("1,x\n3,4\n", r"number in line 1, column 2 of '.*', found 'x'"),
        ("1,2\n\n3,nan\n", r"finite number in line 3, column 2 of '.*', found 'nan'"),
        ("1,2\n3,-inf\n", r"finite number in line 2, column 2 of '.*', found '-inf'"),
        ("a,b\n1,2\n3\n", r"2 columns in every line of '.*', found 1 in line 3"),
        ("a,b,c\n1,2\n3,4\n", r"3 columns in every line of '.*', found 2 in line 2"),
        ("1_0,2\n", "plain numbers"),
        (",a,b\n0,1,2\n", "index of rows"),
        ("a,b\n", "found no rows"),
        ("\n \n", "found no rows"),
        ("a;b\n1;2\n", r"found '1;2'"),
    ],
)
def test_faulty_tables_name_the_place(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_points(tmp_path / "x.csv")


def test_lines_are_counted_across_blocks(tmp_path):
    (tmp_path / "x.csv").write_text("a\n" + "1\n" * 5 + "x\n")
    with pytest.raises(InputError, match="line 7, column 1"):
        list(read_blocks(tmp_path / "x.csv", rows=2))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), r"shape \(n, d\), found shape \(3,\)"),
        (np.zeros((2, 2, 2)), r"found shape \(2, 2, 2\)"),
        (np.float64(1.0), r"found shape \(\)"),
        (np.zeros((0, 2)), "no rows"),
        (np.zeros((2, 0)), r"found shape \(2, 0\)"),
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.array([[1.0], [np.inf]], np.float32), "infinite"),
        (np.zeros((2, 2), complex), "real numbers"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.array([[None, 1]]), "damaged one or one of another type"),  # pickled objects
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_faulty_arrays(tmp_path, array, message, suffix):
    path = tmp_path / f"x{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, points=array)
    with pytest.raises(InputError, match=message):
        read_points(path)


@pytest.mark.parametrize("suffix", TYPES)
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe neither a table nor an array", None])
@ANY_WARNING
def test_empty_foreign_and_missing_files(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=path.name):
        read_points(path)


def test_truncated_npy(tmp_path):
    np.save(tmp_path / "x.npy", sample(100))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="damaged"):
        read_points(tmp_path / "x.npy")


def test_npz_named_npy_and_the_reverse(tmp_path):
    np.savez(tmp_path / "x.npz", sample())
    os.rename(tmp_path / "x.npz", tmp_path / "a.npy")
    np.save(tmp_path / "x.npy", sample())
    os.rename(tmp_path / "x.npy", tmp_path / "b.npz")
    for name in ("a.npy", "b.npz"):
        with pytest.raises(InputError, match="another type"):
            read_points(tmp_path / name)


def test_folders_unknown_types_and_denied_files(tmp_path, monkeypatch):
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match="found a folder"):
        read_points(tmp_path / "folder.npy")
    (tmp_path / "x.txt").write_text("1,2")
    with pytest.raises(InputError, match=r"type \.npy, .* found '.*x\.txt'"):
        read_points(tmp_path / "x.txt")

    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    np.save(tmp_path / "x.npy", sample())
    monkeypatch.setattr(np.lib.format, "open_memmap", deny)  # root may read everything
    with pytest.raises(InputError, match="permission denied"):
        read_points(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("suffix", "module", "extra"),
    [(".parquet", "pyarrow", "parquet"), (".h5ad", "anndata", "anndata")],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, suffix, module, extra):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(points.importlib, "import_module", missing)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"x")
    for attempt in (lambda: read_points(path), lambda: write_points(path, sample())):
        with pytest.raises(InputError, match=rf"{module} .* `pip install 'brenier\[{extra}\]'`"):
            attempt()
    assert path.read_bytes() == b"x"


@ANY_WARNING
def test_parquet_defects(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for columns, message in [
        ({"a": [1.0, None]}, "NaN"),
        ({"a": [1.0], "name": ["x"]}, "column 'name' of type string"),
        ({"a": [1.0], "__index_level_0__": [0]}, "index of rows"),
    ]:
        parquet.write_table(arrow.table(columns), tmp_path / "x.parquet")
        with pytest.raises(InputError, match=message):
            read_points(tmp_path / "x.parquet")


@ANY_WARNING
def test_h5ad_entries(tmp_path):
    anndata = pytest.importorskip("anndata")
    import scipy.sparse

    x = sample(9)
    cells = anndata.AnnData(scipy.sparse.csr_matrix(x), obsm={"X_pca": x[:, :2]})
    cells.write_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(read_points(tmp_path / "x.h5ad"), x)
    np.testing.assert_array_equal(read_points(f"{tmp_path}/x.h5ad:X_pca"), x[:, :2])
    with pytest.raises(InputError, match=r"'X_umap' .* found X_pca"):
        read_points(f"{tmp_path}/x.h5ad:X_umap")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A file of nine cells at three times, in two entries of obsm."""
    anndata = pytest.importorskip("anndata")
    pandas = pytest.importorskip("pandas")
    names = [f"cell{i}" for i in range(9)]
    days = pandas.Categorical([0, 0, 2, 2, 2, 2, 7, 7, 7])
    obs = pandas.DataFrame({"day": days, "type": list("aabbbbccc"), "age": 0.5}, index=names)
    broken = np.where(np.arange(9)[:, None] == 3, np.nan, sample(9))
    path = tmp_path_factory.mktemp("cells") / "x.h5ad"
    anndata.AnnData(obs=obs, obsm={"X_pca": sample(9), "X_nan": broken}).write_h5ad(path)
    return path


@ANY_WARNING
@pytest.mark.parametrize("choice", ["day=2", "day=2.0", "type=b"])
def test_cells_are_chosen_by_a_column(cells, choice):
    path = f"{cells}:X_pca:{choice}"
    np.testing.assert_array_equal(read_points(path), sample(9)[2:6])
    assert [len(block) for block in read_blocks(path, rows=4)] == [2, 2]


@ANY_WARNING
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("X_umap", "entry 'X_umap' of obsm .* found X_nan, X_pca|found X_pca, X_nan"),
        ("day=2", "a matrix X .* found none; choose an entry"),
        ("X_pca:time=2", "column 'time' of obs .* found day, type, age"),
        ("X_pca:day=3", "cells with day=3 .* found 0, 2, 7 in that column"),
        ("X_pca:day", "'file.h5ad:entry:column=value', found 'day'"),
        ("X_pca:day=", "found 'day='"),
        ("X_nan", "NaN, .* 1 of 9 rows"),
    ],
)
def test_cells_that_cannot_be_chosen(cells, key, message):
    with pytest.raises(InputError, match=message):
        read_points(f"{cells}:{key}")


@ANY_WARNING
def test_moved_cells_go_into_a_copy(cells, tmp_path):
    anndata = pytest.importorskip("anndata")
    before, out = cells.read_bytes(), tmp_path / "out.h5ad"
    facts = {"time": 0.5, "scores": {"energy": 0.1}, "seed": np.array([0, 3]), "inverse": False}
    options = {"entry": "X_half", "facts": facts}
    write_into_cells(out, iter([sample(4)]), source=f"{cells}:X_pca:day=2", **options)
    assert cells.read_bytes() == before
    found = anndata.read_h5ad(out)
    np.testing.assert_array_equal(found.obsm["X_half"][2:6], sample(4))
    assert np.isnan(found.obsm["X_half"][[0, 1, 6, 7, 8]]).all()
    np.testing.assert_array_equal(found.obsm["X_pca"], sample(9))
    assert list(found.obs["type"]) == list("aabbbbccc")
    assert found.uns["brenier"]["X_half"]["scores"] == {"energy": 0.1}
    assert found.uns["brenier"]["X_half"]["seed"].tolist() == [0, 3]
    # Into the same file, beside the first and then in its place.
    write_into_cells(out, iter([sample(9)]), source=out, entry="X_all", facts={})
    write_into_cells(out, iter([sample(9)]), source=f"{out}:X_pca", **options)
    found = anndata.read_h5ad(out)
    np.testing.assert_array_equal(found.obsm["X_half"], found.obsm["X_all"])
    assert set(found.uns["brenier"]) == {"X_half", "X_all"}
    assert os.listdir(tmp_path) == ["out.h5ad"]
    with pytest.raises(InputError, match=r"shape \(9, d\) for 'X_half'"):
        write_into_cells(out, iter([sample(4)]), source=cells, **options)
    with pytest.raises(InputError, match="without '/'"):
        write_into_cells(out, iter([sample(9)]), source=cells, entry="a/b", facts={})


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file/x.npy", tmp_path / "missing/x.npy", tmp_path):
        with pytest.raises(OutputError, match="Cannot write"):
            check_output(path)
    with pytest.raises(OutputError, match="Cannot write"):
        write_points(tmp_path / "file/x.npy", sample())
    with pytest.raises(OutputError, match="device"):
        check_output(os.devnull)
    with pytest.raises(InputError, match=r"output file of type \.npy"):
        write_points(tmp_path / "x.txt", sample())
    with pytest.raises(InputError, match=r"shape \(1, 7, 3\)"):
        write_points(tmp_path / "x.csv", sample()[None])
    with pytest.raises(InputError, match="found none"):
        write_points(tmp_path / "x.npy", iter(()))
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    def broken():
        yield sample()
        raise InputError("the second block is faulty")

    def full_disk():
        yield sample()
        raise OSError(28, "No space left on device")

    write_points(tmp_path / "x.npy", sample(2))
    before = (tmp_path / "x.npy").read_bytes()
    with pytest.raises(InputError, match="second block"):
        write_points(tmp_path / "x.npy", broken())
    with pytest.raises(OutputError, match="No space left"):
        write_points(tmp_path / "x.npy", full_disk())
    assert os.listdir(tmp_path) == ["x.npy"]
    assert (tmp_path / "x.npy").read_bytes() == before


def test_a_file_can_be_replaced_while_it_is_read(tmp_path):
    x = sample(10)
    write_points(tmp_path / "x.npy", x)
    write_points(tmp_path / "x.npy", (2 * block for block in read_blocks(tmp_path / "x.npy", 3)))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), 2 * x)


@pytest.mark.skipif(sys.platform == "win32", reason="the computing of a process has no limit there")
def test_h5ad_that_hdf5_does_not_come_back_from(cells, monkeypatch):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass"
    monkeypatch.setattr(points, "_WALK", limited)
    with pytest.raises(InputError, match=r"'.*x\.h5ad', found one so damaged that reading it does"):
        read_points(f"{cells}:X_pca")
