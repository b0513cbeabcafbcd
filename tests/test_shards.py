"""Samples spread over files: what is drawn, what is refused, what is kept in memory."""

import sys

import jax
import numpy as np
import pytest

import brenier
from brenier.errors import InputError
from brenier.points import write_points
from brenier.samplers import MemmapSampler, as_sampler
from brenier.shards import NpyShards, _Shard

KEY = jax.random.key(0)
# Every row is one of a kind, and says in which file it is.
POINTS = np.stack([np.arange(900.0), np.repeat([0.0, 1.0, 2.0], 300)], axis=1)


def write(folder, suffix, names=("part-0", "part-1", "part-2"), points=POINTS):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet")
    folder.mkdir(exist_ok=True)
    for name, part in zip(names, np.array_split(points, len(names)), strict=True):
        write_points(folder / f"{name}{suffix}", part)
    return folder


@pytest.fixture(params=[".npy", ".parquet"])
def folder(request, tmp_path):
    return write(tmp_path / "set", request.param)


def test_a_folder_is_one_set(folder):
    sampler = as_sampler(str(folder))
    assert (sampler.size, sampler.dim, sampler.dtype) == (900, 2, np.float64)
    everything = sampler.pool(1000, 0)
    np.testing.assert_array_equal(np.unique(everything, axis=0), POINTS)
    assert len({tuple(p) for p in sampler.pool(400, 1)}) == 400
    whole = sampler.draw(KEY, 0, 2, 900)
    np.testing.assert_array_equal(np.unique(whole[1], axis=0), POINTS)


def test_batches_are_uniform_and_depend_on_their_step_alone(folder):
    sampler, other = as_sampler(folder), as_sampler(folder)
    batches = np.asarray(sampler.draw(KEY, 0, 120, 250))
    # 30 000 draws of 900 rows: 33.3 of each on average, standard deviation 5.8 (a little more by row groups).
    rows, counts = np.unique(batches.reshape(-1, 2), axis=0, return_counts=True)
    np.testing.assert_array_equal(rows, POINTS)
    assert counts.max() < 100
    shares = np.bincount(batches[..., 1].astype(int).ravel()) / batches[..., 1].size
    # A window of 16 row groups, 20 windows: their shares have a standard deviation of 0.06.
    np.testing.assert_allclose(shares, 1 / 3, atol=0.25)
    for step in (70, 3, 24):
        np.testing.assert_array_equal(other.draw(KEY, step, 1, 250)[0], batches[step])
    assert not np.array_equal(sampler.draw(jax.random.key(1), 0, 1, 250)[0], batches[0])


def test_a_file_is_opened_once_for_the_batches_of_many_steps(tmp_path, monkeypatch):
    sampler, opened = as_sampler(write(tmp_path / "set", ".npy")), []
    read = _Shard.read
    monkeypatch.setattr(_Shard, "read", lambda self, rows: opened.append(self) or read(self, rows))
    assert sampler.draw(KEY, 0, 20, 200).shape == (20, 200, 2)
    assert len(opened) == 3


def test_held_out_rows_are_never_drawn(folder):
    rest, held = as_sampler(folder).split(200, 0)
    rest, more = rest.split(100, 1)
    assert (rest.size, len(held), len(more)) == (600, 200, 100)
    everything = np.concatenate([held, more, rest.pool(600, 0)])
    np.testing.assert_array_equal(np.unique(everything, axis=0), POINTS)
    drawn = {tuple(p) for p in np.asarray(rest.draw(KEY, 0, 50, 300)).reshape(-1, 2)}
    assert drawn <= {tuple(p) for p in rest.pool(600, 0)}


def test_encoded_and_digest(folder):
    sampler = as_sampler(folder)
    encoded = sampler.encoded(lambda x: 2.0 * x + 1.0, np.float32)
    drawn = encoded.draw(KEY, 0, 2, 64)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, 2.0 * sampler.draw(KEY, 0, 2, 64) + 1.0, rtol=1e-6)
    before = sampler.digest()
    assert as_sampler(folder).digest() == before
    write(folder, next(folder.iterdir()).suffix, points=POINTS[:-3] + 0.5)
    assert before != as_sampler(folder).digest()


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_shards_train_as_their_array_does(tmp_path, suffix):
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(64, 2)), rng.normal(size=(48, 2)) + 2.0
    problem = brenier.TransportProblem(
        write(tmp_path / "source", suffix, points=source),
        write(tmp_path / "target", suffix, points=target),
    )
    # Batches hold everything there is, so the order of the rows is the only difference.
    method = brenier.NCF(objective="energy", widths=(8,), batch_size=64, steps=30)
    options = {"key": KEY, "validation": 0.0}
    a = brenier.fit(problem, method, **options).transport.forward(source)
    b = brenier.fit(brenier.TransportProblem(source, target), method, **options)
    np.testing.assert_allclose(a, b.transport.forward(source), atol=1e-6)


def test_one_parquet_file_is_sampled_by_groups(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"x": POINTS[:, 0].astype(np.float32), "y": POINTS[:, 1].astype(np.int8)})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=100)
    sampler = as_sampler(tmp_path / "x.parquet")
    assert (sampler.size, sampler.dtype) == (900, np.float64)  # integers become float64
    assert {tuple(p) for p in np.asarray(sampler.draw(KEY, 0, 4, 200)).reshape(-1, 2)} <= {
        tuple(p) for p in POINTS
    }
    np.testing.assert_array_equal(np.unique(sampler.pool(900, 0), axis=0), POINTS)


def test_a_group_that_holds_other_rows_than_its_file_promises_is_named(tmp_path):
    """As after damage to the numbers at the end of a file, which nothing else checks."""
    pytest.importorskip("pyarrow")
    sampler = as_sampler(write(tmp_path / "set", ".parquet"))
    group = sampler._groups[0]
    assert len(group.without(np.array([1, 4])).read()) == group.rows - 2
    with pytest.raises(InputError, match=r"Expected .* rows in .* row group 0, .* found"):
        group._replace(rows=group.rows + 1).read()


def test_names_need_not_count(tmp_path):
    names = ("2024-01-05", "2024-03-01", "others")
    assert as_sampler(write(tmp_path / "a", ".npy", names)).size == 900
    (tmp_path / "a" / "README.txt").write_text("not a shard")
    assert as_sampler(write(tmp_path / "b", ".npy", ("x-1", "x-2", "y-1"))).size == 900


def fortran(folder):
    np.save(folder / "part-1.npy", np.asfortranarray(POINTS[300:600]))


def test_layouts_and_precisions_mix(tmp_path):
    folder = write(tmp_path / "set", ".npy")
    fortran(folder)
    np.save(folder / "part-2.npy", POINTS[600:].astype(np.int32))
    np.testing.assert_array_equal(np.unique(as_sampler(folder).pool(900, 0), axis=0), POINTS)


def truncate(folder):
    file = next(iter(sorted(folder.glob("*-1.*"))))
    with open(file, "r+b") as handle:
        handle.truncate(file.stat().st_size - 100)


def widen(folder):
    file = next(iter(sorted(folder.glob("*-1.*"))))
    write_points(file, np.ones((5, 3)))


def remove(folder):
    next(iter(folder.glob("*-1.*"))).unlink()


def dangle(folder):
    file = next(iter(folder.glob("*-1.*")))
    file.unlink()
    file.symlink_to("gone.npy")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"part-1\.\w+"),
        (widen, r"Expected 2 columns in .*part-1.*found 3"),
        (remove, r"found no 'part-1\.\w+'"),
        (dangle, r"part-1.*gone"),
    ],
)
def test_a_bad_shard_is_named_before_training(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        brenier.TransportProblem(folder, POINTS)


def test_a_number_of_shards_is_held_to(tmp_path):
    folder = write(
        tmp_path / "set", ".npy", ("x-00000-of-00004", "x-00001-of-00004", "x-00002-of-00004")
    )
    with pytest.raises(InputError, match=r"found no 'x-00003-of-00004\.npy'"):
        as_sampler(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "none of them"),
        ({"a.npy": np.zeros((4, 2)), "b.parquet": None}, "one type"),
        ({"a.npy": np.zeros(4)}, r"shape \(4,\)"),
        ({"a.npy": np.zeros((4, 2), complex)}, "complex"),
        ({"a.npy": np.zeros((4, 2))}, "equal"),
        ({"a.npy": np.ones((1, 2))}, "at least 2"),
    ],
)
def test_folders_that_are_refused(tmp_path, content, message):
    for name, array in content.items():
        (tmp_path / name).touch() if array is None else np.save(tmp_path / name, array)
    with pytest.raises(InputError, match=message):
        as_sampler(tmp_path)


def test_a_missing_file_and_values_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no file"):
        as_sampler(tmp_path / "x.parquet")
    folder = write(tmp_path / "set", ".npy")
    bad = POINTS[:300].copy()
    bad[7] = np.nan
    np.save(folder / "part-0.npy", bad)
    with pytest.raises(InputError, match=r"part-0\.npy.*NaN"):
        as_sampler(folder)


def test_a_shard_that_disappears_is_named(tmp_path):
    sampler = as_sampler(write(tmp_path / "set", ".npy"))
    (tmp_path / "set" / "part-2.npy").unlink()
    with pytest.raises(InputError, match=r"part-2\.npy"):
        sampler.draw(KEY, 0, 1, 100)


def resident_from_files():
    """MiB of this process's memory that mirror files."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("RssFile")).split()[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["shards", "array"])
def test_memory_does_not_grow_with_what_is_read(tmp_path, kind):
    # A sparse file of 512 MiB takes no disk, and reading all of it would show.
    path = tmp_path / "x.npy"
    rows = 1 << 22
    header = {"descr": "<f8", "fortran_order": False, "shape": (rows, 16)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ones(16).tobytes())
        file.truncate(file.tell() + (rows - 1) * 128)
    data = NpyShards([path]) if kind == "shards" else np.load(path, mmap_mode="r")
    sampler = MemmapSampler(data)
    before = resident_from_files()
    assert sampler.draw(KEY, 0, 4, 8192).shape == (4, 8192, 16)
    assert resident_from_files() - before < 64
