"""Sources of samples and the validation of points."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import brenier
from brenier.errors import InputError
from brenier.samplers import (
    ArraySampler,
    FunctionSampler,
    MemmapSampler,
    as_sampler,
    cells_by_place,
    check_points,
    spread_order,
)

KEY = jax.random.key(0)
POINTS = np.random.default_rng(0).normal(size=(500, 2))


@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "points.npy"
    np.save(path, POINTS)
    return path


def sources(mapped):
    return {
        "array": POINTS,
        "memmap": np.load(mapped, mmap_mode="r"),
        "path": mapped,
        "function": lambda key, n: jax.random.normal(key, (n, 2)),
        "numpy function": lambda key, n: np.random.default_rng(
            np.asarray(jax.random.key_data(key))
        ).normal(size=(n, 2)),
    }


@pytest.mark.parametrize("kind", ["array", "memmap", "path", "function", "numpy function"])
def test_every_source_draws_reproducibly(kind, mapped):
    sampler = as_sampler(sources(mapped)[kind])
    first, again = sampler.draw(KEY, 5, 3, 64), sampler.draw(KEY, 5, 3, 64)
    assert first.shape == (3, 64, 2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    # One key, one batch: what a step sees does not depend on how steps are grouped.
    np.testing.assert_array_equal(first[1], sampler.draw(KEY, 6, 1, 64)[0])
    assert abs(float(jnp.mean(first))) < 0.3


@pytest.mark.parametrize("kind", ["array", "path"])
def test_held_out_rows_are_never_drawn(kind, mapped):
    rest, held_out = as_sampler(sources(mapped)[kind]).split(100, 0)
    assert rest.size == 400
    everything = np.concatenate([held_out, np.asarray(rest.pool(400, 0))])
    np.testing.assert_array_equal(np.unique(everything, axis=0), np.unique(POINTS, axis=0))
    drawn = {tuple(p) for p in np.asarray(rest.draw(KEY, 0, 3, 300)).reshape(-1, 2)}
    assert drawn.isdisjoint({tuple(p) for p in held_out})


@pytest.mark.parametrize("kind", ["array", "path", "function"])
def test_encoded_samples_are_in_other_coordinates(kind, mapped):
    sampler = as_sampler(sources(mapped)[kind])
    encoded = sampler.encoded(lambda x: 2.0 * x + 1.0, np.float32)
    np.testing.assert_allclose(
        encoded.draw(KEY, 0, 3, 32), 2.0 * sampler.draw(KEY, 0, 3, 32) + 1.0, rtol=1e-6
    )
    assert encoded.draw(KEY, 0, 3, 32).dtype == np.float32


def test_an_epoch_of_an_array_shows_every_row_once():
    sampler = as_sampler(POINTS)
    epochs = np.asarray(sampler.draw(KEY, 0, 10, 100)).reshape(2, 500, 2)
    for epoch in epochs:
        np.testing.assert_array_equal(np.unique(epoch, axis=0), np.unique(POINTS, axis=0))
    assert not np.array_equal(*epochs)


def test_stratified_batches_are_spread_evenly():
    points = np.random.default_rng(1).normal(size=(10_050, 2))
    sampler = as_sampler(points)
    batches = np.asarray(sampler.draw(KEY, 0, 10, 1000, stratified=True))
    whole = batches.reshape(-1, 2)
    assert len({tuple(p) for p in whole}) == len(whole)  # one epoch, no row twice
    assert {tuple(p) for p in whole} <= {tuple(p) for p in points}
    even, plain = (
        np.asarray(sampler.draw(KEY, 0, 200, 1000, stratified=s)).mean(1).var(0)
        for s in (True, False)
    )
    assert (even < plain / 20).all()
    np.testing.assert_array_equal(batches[3], sampler.draw(KEY, 3, 1, 1000, stratified=True)[0])
    # The rest that fills no batch changes from epoch to epoch, so every row is as likely.
    counts = np.unique(
        np.asarray(sampler.draw(KEY, 0, 60, 1000, stratified=True))[..., 0], return_counts=True
    )
    assert len(counts[0]) > 10_040


@pytest.mark.parametrize("stratified", [False, True])
def test_an_epoch_is_the_same_wherever_draws_begin(stratified):
    def draw(start, count, key=KEY):
        return as_sampler(POINTS).draw(key, start, count, 70, stratified=stratified)

    batches = np.asarray(draw(0, 40))
    np.testing.assert_array_equal(batches[33:36], draw(33, 3, jax.random.key(0)))
    assert not np.array_equal(batches[:7], batches[7:14])
    assert not np.array_equal(batches[33:36], draw(33, 3, jax.random.key(1)))


def test_cells_are_even_and_compact():
    points = np.random.default_rng(1).uniform(size=(4100, 2))
    cell = cells_by_place(points, 60)
    assert set(np.bincount(cell, minlength=60)) <= {68, 69}
    widths = [np.ptp(points[cell == i], axis=0).max() for i in range(60)]
    assert np.median(widths) < 0.25  # squares of this mass have sides of 0.13
    assert sorted(np.bincount(cells_by_place(np.zeros((100, 3)), 64))) == [1] * 28 + [2] * 36


@pytest.mark.parametrize("n", [1, 2, 37, 1000, 20_000])
def test_any_few_in_a_row_of_spread_points_are_spread_evenly(n):
    points = np.random.default_rng(1).normal(size=(n, 2))
    order = spread_order(points)
    assert sorted(order) == list(range(n))
    if n < 1000:
        return
    # Shares of half planes and quadrants: of 100 independent points they are .05 off.
    for first in (0, 300, n - 100):
        few = points[order[first : first + 100]]
        for part in (lambda p: p[:, 0] > 0, lambda p: p[:, 1] > 0.5, lambda p: (p > 0).all(axis=1)):
            assert abs(part(few).mean() - part(points).mean()) < 0.045
    halves = points[order].reshape(2, -1, 2).mean(axis=1)
    assert np.abs(halves[0] - halves[1]).max() < 0.02  # of random ones .06


def test_a_small_set_is_used_whole():
    batch = as_sampler(POINTS[:5]).draw(KEY, 0, 3, 64)
    assert batch.shape == (3, 5, 2)
    np.testing.assert_array_equal(batch[0], POINTS[:5])


def test_the_kind_of_source_is_recognised(mapped):
    assert isinstance(as_sampler(POINTS.tolist()), ArraySampler)
    assert isinstance(as_sampler(str(mapped)), MemmapSampler)
    assert isinstance(as_sampler(lambda key, n: jax.random.normal(key, (n, 3))), FunctionSampler)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        ([[1, 2], [3, 4]], np.float64),
        (np.ones((3, 2), np.int8), np.float64),
        (np.ones((3, 2), np.float16), np.float32),
        (np.ones((3, 2), np.float32), np.float32),
        (np.ones((3, 4))[:, ::2], np.float64),
        (np.ones((2, 3)).T, np.float64),
        (pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]}), np.float64),
        (np.array([[1, 2.5], [3, 4]], dtype=object), np.float64),
        (jnp.ones((3, 2), jnp.float32), np.float32),
    ],
    ids=["list", "int8", "float16", "float32", "strided", "fortran", "pandas", "object", "jax"],
)
def test_points_are_accepted(given, dtype):
    points = check_points(given)
    assert points.dtype == dtype
    np.testing.assert_array_equal(points, np.asarray(given, np.float64))


def test_read_only_points_are_accepted():
    points = POINTS.copy()
    points.setflags(write=False)
    assert as_sampler(points).draw(KEY, 0, 3, 8).shape == (3, 8, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros(5), r"reshape\(-1, 1\)"),
        (np.zeros((2, 2, 2)), r"shape \(n, d\)"),
        (np.zeros((0, 2)), "at least 1"),
        (np.zeros((5, 0)), "one column"),
        ([["a", "b"]], "cannot be converted|real numbers"),
        (np.ones((2, 2), complex), "real numbers"),
        ([[1.0], [2.0, 3.0]], "cannot be converted"),
        ([[1.0, np.nan]], r"1 of 1 rows \(first: row 0\)"),
        ([[1.0, 2.0], [np.inf, 0.0]], "row 1"),
        ([[1e200, 1.0]], "overflowing"),
        (scipy.sparse.eye(3), "toarray"),
        (None, "cannot be converted|shape"),
    ],
)
def test_points_are_refused_with_a_reason(given, message):
    with pytest.raises(InputError, match=message):
        check_points(given, "Xs")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (POINTS, POINTS[:, :1], "same dimension; found 2 and 1"),
        (POINTS[:1], POINTS, "at least 2 points"),
        (np.ones((9, 2)), POINTS, "All 9 points of source are equal"),
        (lambda key, n: jax.random.normal(key, (n,)), POINTS, "shape"),
        (lambda key, n: jnp.zeros((3, 2)), POINTS, "for n=16 it returned"),
        ("missing.npy", POINTS, "no file"),
    ],
)
def test_problems_are_refused_with_a_reason(source, target, message):
    with pytest.raises(InputError, match=message):
        brenier.TransportProblem(source, target)


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_must_be_a_finite_number(noise):
    with pytest.raises(InputError, match="noise"):
        brenier.TransportProblem(POINTS, POINTS, noise=noise)


@pytest.mark.parametrize(
    "content", [b"", b"not an array", b"\x93NUMPY broken"], ids=["empty", "text", "broken"]
)
def test_files_that_cannot_be_mapped(tmp_path, content):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable"):
        brenier.TransportProblem(path, POINTS)


def test_a_mapped_file_with_nan_is_named(tmp_path):
    bad = POINTS.copy()
    bad[7, 0] = np.nan
    np.save(tmp_path / "x.npy", bad)
    with pytest.raises(InputError, match="NaN"):
        brenier.TransportProblem(tmp_path / "x.npy", POINTS)
