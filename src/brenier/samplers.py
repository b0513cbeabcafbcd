"""Where samples come from: arrays in memory, files on disk, or a function of a key.

`as_sampler` decides; `check_points` is the one place where point arrays are validated.
"""

from __future__ import annotations

import abc
import hashlib
import mmap
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from brenier.errors import InputError
from brenier.typing import ArrayLike, Key

Encode = Callable[[Any], Any]

_CHECKED_ROWS = 100_000
_READ_ROWS = 4096  # between two moments at which mapped pages are let go: each row may hold 64 KiB

_MOST_LEAVES = 2**14  # of a tree: more take seconds to cut
_LOOK = 4096  # points of a part, of which its widest axis is told
POOL = 100_000
"""Samples behind moments, bounding boxes and the linear map."""

_JUMP = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""Draws of a generator between two epochs: the golden section of its period, so that no two epochs meet."""

EVERY = slice(None)
"""All rows of a batch."""


def check_points(x: Any, name: str = "x", *, min_points: int = 1) -> np.ndarray:
    """An array of points as float32 or float64 of shape (n, d), or one clear sentence.

    Lists, integers, booleans, float16, pandas frames, read-only and non-contiguous arrays are accepted;
    float64 stays float64, float32 and float16 become float32, integers float64.

    Raises:
        InputError: not numeric, complex, not 2-D, no columns, fewer than `min_points` rows, NaN or infinite values.
    """
    if hasattr(x, "toarray"):
        raise InputError(f"{name} is a sparse matrix; pass {name}.toarray().")
    try:
        array = np.asarray(x)
        if array.dtype == object:
            array = array.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"Expected {name} to be a numeric array of shape (n, d); it cannot be converted ({error})."
        ) from None
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"Expected {name} to hold real numbers, found dtype {array.dtype}; convert it to float."
        )
    if array.ndim != 2:
        hint = f" Use {name}.reshape(-1, 1) for points on a line." if array.ndim == 1 else ""
        raise InputError(f"Expected {name} of shape (n, d), found shape {array.shape}.{hint}")
    n, dim = array.shape
    if dim == 0 or n < min_points:
        raise InputError(
            f"Expected {name} with at least {min_points} points and one column, found shape {array.shape}."
        )
    dtype = np.float32 if array.dtype in (np.float16, np.float32) else np.float64
    array = np.asarray(array, dtype)
    check_finite(array, name)
    return array


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise `InputError` naming the first row with a NaN, infinite or unusably large value."""
    # Squares of the values must be finite in float64; nothing physical comes near.
    bad = ~(np.abs(array) < 1e150) if array.dtype == np.float64 else ~np.isfinite(array)
    if bad.any():
        rows = np.flatnonzero(bad.any(axis=1))
        raise InputError(
            f"{name} has NaN, infinite or overflowing values in {len(rows)} of {len(array)} rows "
            f"(first: row {rows[0]}); remove or impute them."
        )


def check_spread(array: np.ndarray, name: str) -> None:
    """Raise `InputError` when all points are equal: a map can neither split nor leave a single point."""
    if len(array) > 1 and (array == array[0]).all():
        raise InputError(
            f"All {len(array)} points of {name} are equal; a transport map needs two distributions with spread."
        )


class Sampler(abc.ABC):
    """Independent samples of one distribution.

    Attributes:
        dim: d.
        size: the number of points behind it, `None` for a function.
        dtype: of the points as given.
        classes: labels of the classes that a batch has blocks of, none for most.
    """

    dim: int
    size: int | None
    dtype: np.dtype
    classes: tuple[Any, ...] = ()

    @abc.abstractmethod
    def draw(
        self,
        key: Key,
        start: int,
        count: int,
        n: int,
        *,
        stratified: bool = False,
        rows: slice = EVERY,
    ) -> ArrayLike:
        """The batches of steps `start` to `start + count`, shape (count, min(n, size), d).

        The batch of a step depends on the key and the step alone, not on how steps are grouped. A set of at most
        `n` points is returned whole every time: a full batch has no sampling noise. Where the points are in memory,
        `stratified` spreads each batch evenly over them. With `rows`, only these rows of each batch, and what is on
        disk is read for them alone: the share of one process of several.
        """

    @abc.abstractmethod
    def pool(self, n: int, seed: int) -> np.ndarray:
        """Up to `n` distinct points on the host, for moments, bounding boxes and validation."""

    def blocks(self, n: int) -> np.ndarray:
        """Up to `n` points on the host, as many of each class, one class after the other."""
        return self.pool(n, 0)

    @abc.abstractmethod
    def split(self, n: int, seed: int) -> tuple[Sampler, np.ndarray]:
        """A sampler of the rest and `n` held-out points, disjoint where the set is finite."""

    @abc.abstractmethod
    def encoded(self, encode: Encode, dtype: Any) -> Sampler:
        """The same distribution seen through a change of coordinates, in the given dtype."""

    @abc.abstractmethod
    def digest(self) -> str:
        """A short hash that changes when the data change."""

    @property
    def evenly(self) -> int | None:
        """The number of points of which every class can have as many, `None` for a function."""
        return self.size

    def batch(self, n: int) -> int:
        """The number of points `draw` returns when asked for `n`."""
        return n if self.size is None else min(n, self.size)


class ArraySampler(Sampler):
    """Batches of the rows of an array in memory, reshuffled every epoch.

    Within an epoch no row comes twice, so the sampling noise of consecutive steps cancels. Stratified batches have
    little of it to begin with: space is cut into `n` cells with equally many rows, and a batch takes one row of each.
    In the plane the mean over such a batch of a thousand rows is as exact as that over many thousands.

    References:
        Owen, *Monte Carlo theory, methods and examples*, 2013, section 8.4 (stratification).
    """

    def __init__(self, array: np.ndarray):
        self.array = array
        self.size, self.dim = array.shape
        self.dtype = array.dtype
        self._device: jax.Array | None = None
        self._epochs: tuple[Key, int, bool, _Epochs] | None = None
        self._cells: tuple[int, np.ndarray] = (0, np.zeros(0, np.int64))

    def draw(
        self,
        key: Key,
        start: int,
        count: int,
        n: int,
        *,
        stratified: bool = False,
        rows: slice = EVERY,
    ) -> ArrayLike:
        n = self.batch(n)
        array = self._near()
        if n == len(self.array):
            whole = array[rows]
            spread = np if isinstance(whole, np.ndarray) else jnp
            return spread.broadcast_to(whole, (count, *whole.shape))
        chosen = self._epochs_of(key, n, stratified).batches(start, count)[:, rows]
        # Several times as fast as brackets.
        return (
            array.take(chosen, axis=0) if isinstance(array, np.ndarray) else _taken(array, chosen)
        )

    def _near(self) -> ArrayLike:
        """The points where batches are taken: on an accelerator if there is one.

        On a CPU a program that takes some would wait for the steps that it is to be done beside.
        """
        if jax.default_backend() == "cpu":
            return self.array
        if self._device is None:
            self._device = jnp.asarray(self.array)
        return self._device

    def _epochs_of(self, key: Key, n: int, stratified: bool) -> _Epochs:
        # To compare keys by value would take as long as to draw a batch.
        if (
            self._epochs is None
            or self._epochs[0] is not key
            or self._epochs[1:3] != (n, stratified)
        ):
            size, cells = len(self.array), None
            if stratified and size >= 2 * n:
                if self._cells[0] != n:
                    self._cells = (n, cells_by_place(self.array, n))
                cells = self._cells[1]
            self._epochs = key, n, stratified, _Epochs(key, size, n, cells)
        return self._epochs[3]

    def pool(self, n: int, seed: int) -> np.ndarray:
        if n >= len(self.array):
            return self.array
        return self.array[np.random.default_rng(seed).choice(len(self.array), n, replace=False)]

    def split(self, n: int, seed: int) -> tuple[ArraySampler, np.ndarray]:
        order = np.random.default_rng(seed).permutation(len(self.array))
        return ArraySampler(self.array[order[n:]]), self.array[order[:n]]

    def encoded(self, encode: Encode, dtype: Any) -> ArraySampler:
        return ArraySampler(np.asarray(encode(self.array), dtype))

    def digest(self) -> str:
        return _hash(np.ascontiguousarray(self.array).tobytes(), str(self.array.dtype))


class _Epochs:
    """Numbers of the rows in the batches of `n`: in an epoch none twice, and in a batch one of each cell."""

    def __init__(self, key: Key, size: int, n: int, cell: np.ndarray | None = None):
        self._size, self._per_epoch = size, size // n
        self._bits = np.random.PCG64(np.asarray(jax.random.key_data(key)).tolist())
        self._rng, self._origin = np.random.Generator(self._bits), self._bits.state
        self._cell = self._last = None
        # A rest that fills no batch is left out of the epoch, another one each time.
        self._places = np.arange(n * self._per_epoch).reshape(self._per_epoch, n)
        if cell is not None:
            # Of 16 bits, for those NumPy sorts by counting.
            self._cell = cell.astype(np.min_scalar_type(n))
            self._places = np.searchsorted(np.sort(cell), np.arange(n)) + self._places[:, :1] // n

    def batches(self, start: int, count: int) -> np.ndarray:
        """Those of steps `start` to `start + count`, shape (count, n)."""
        first, last = start // self._per_epoch, -(-(start + count) // self._per_epoch)
        rows = np.concatenate([self._epoch(epoch) for epoch in range(first, last)])
        return rows[start - first * self._per_epoch :][:count]

    def _epoch(self, number: int) -> np.ndarray:
        if self._last is None or self._last[0] != number:
            # To make a generator would take longer than to set one back.
            self._bits.state = self._origin
            self._bits.advance(number * _JUMP)
            order = self._rng.permutation(self._size)
            if self._cell is not None:
                order = order[np.argsort(self._cell[order], kind="stable")]
            self._last = number, order[self._places]
        return self._last[1]


@jax.jit
def _taken(array: jax.Array, rows: jax.Array) -> jax.Array:
    # Compiled, for the ways of indexing take longer to tell apart than the rows to copy.
    return array[rows]


class RowsOnDisk(Protocol):
    """What a `MemmapSampler` reads from: an array that stays on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """The rows of these numbers, which increase."""
        ...


class MemmapSampler(Sampler):
    """Uniform draws, with replacement, from memory-mapped files; only the rows drawn are read, and none is kept."""

    def __init__(
        self,
        array: RowsOnDisk,
        encode: Encode | None = None,
        dtype: Any = None,
        held_out: np.ndarray | None = None,
        name: str = "source",
    ):
        self._array, self._encode, self._name = array, encode, name
        # Sorted held-out rows minus their rank: row i of the rest is i plus the number of entries <= i.
        self._held_out = np.zeros(0, np.int64) if held_out is None else held_out
        self._count = len(array) - len(self._held_out)
        self.size, self.dim = self._count, array.shape[1]
        self.dtype = np.dtype(dtype or (np.float64 if array.dtype == np.float64 else np.float32))

    def _numbers(self, index: np.ndarray) -> np.ndarray:
        """The numbers in the file of rows of the rest."""
        return index + np.searchsorted(self._held_out, index, side="right")

    def _rows(self, index: np.ndarray) -> np.ndarray:
        index = self._numbers(index)
        order = np.argsort(index)  # Reading in file order keeps the disk's read-ahead useful.
        rows = np.empty((len(index), self.dim), np.promote_types(self._array.dtype, np.float32))
        for start in range(0, len(index), _READ_ROWS):
            some = order[start : start + _READ_ROWS]
            rows[some] = self._array[index[some]]
            _let_go(self._array)
        check_finite(rows, self._name)
        return np.asarray(rows if self._encode is None else self._encode(rows), self.dtype)

    def draw(
        self,
        key: Key,
        start: int,
        count: int,
        n: int,
        *,
        stratified: bool = False,
        rows: slice = EVERY,
    ) -> ArrayLike:
        del stratified  # reading everything would defeat the purpose
        n = self.batch(n)
        if n == self._count:
            everything = self._rows(np.arange(n)[rows])
            return jnp.broadcast_to(everything, (count, *everything.shape))
        seed = np.asarray(jax.random.key_data(key)).tolist()
        generators = (np.random.default_rng((*seed, start + i)) for i in range(count))
        chosen = np.stack([g.integers(self._count, size=n)[rows] for g in generators])
        # Of all steps at once: opening a file takes longer than reading the few rows of it that one step wants.
        return jnp.asarray(self._rows(chosen.ravel()).reshape(*chosen.shape, self.dim))

    def pool(self, n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        if n >= self._count:
            return self._rows(np.arange(self._count))
        return self._rows(rng.choice(self._count, n, replace=False, shuffle=False))

    def split(self, n: int, seed: int) -> tuple[MemmapSampler, np.ndarray]:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(self._count, n, replace=False, shuffle=False))
        held_out = self._rows(rows)
        before = self._held_out + np.arange(len(self._held_out))
        gone = np.sort(np.concatenate([before, self._numbers(rows)]))
        rest = gone - np.arange(len(gone))
        return MemmapSampler(self._array, self._encode, self.dtype, rest, self._name), held_out

    def encoded(self, encode: Encode, dtype: Any) -> MemmapSampler:
        return MemmapSampler(self._array, encode, dtype, self._held_out, self._name)

    def digest(self) -> str:
        return _hash(self.pool(4096, 0).tobytes(), f"{self._array.shape}{self._array.dtype}")


class FunctionSampler(Sampler):
    """Fresh samples from `function(key, n) -> (n, d)`; compiled when JAX can trace it, called eagerly otherwise."""

    def __init__(
        self,
        function: Callable[[Key, int], Any],
        encode: Encode | None = None,
        dtype: Any = None,
        name: str = "source",
    ):
        self._function, self._encode, self._name = function, encode, name
        first = check_points(function(jax.random.key(0), 16), f"{name}(key, 16)")
        if len(first) != 16:
            raise InputError(
                f"Expected {name}(key, n) to return n points; for n=16 it returned shape {first.shape}."
            )
        self.size, self.dim = None, first.shape[1]
        self.dtype = np.dtype(dtype or first.dtype)
        self._traceable = True
        try:
            jax.eval_shape(lambda key: self._batch(key, 16), jax.random.key(0))
        except Exception:  # Whatever stops the trace, the eager call below just worked.
            self._traceable = False
        self._draws: dict[int, Callable[[jax.Array], jax.Array]] = {}

    def _batch(self, key: Key, n: int) -> jax.Array:
        x = jnp.asarray(self._function(key, n))
        return jnp.asarray(x if self._encode is None else self._encode(x), self.dtype)

    def draw(
        self,
        key: Key,
        start: int,
        count: int,
        n: int,
        *,
        stratified: bool = False,
        rows: slice = EVERY,
    ) -> ArrayLike:
        del stratified  # samples are made as they are needed
        keys = jax.vmap(partial(jax.random.fold_in, key))(start + jnp.arange(count))
        if not self._traceable:
            return jnp.stack([self._batch(key, n)[rows] for key in keys])
        if n not in self._draws:
            self._draws[n] = jax.jit(jax.vmap(lambda key: self._batch(key, n)))
        return self._draws[n](keys)[:, rows]

    def pool(self, n: int, seed: int) -> np.ndarray:
        return check_points(self._batch(jax.random.key(seed), n), f"{self._name}(key, {n})")

    def split(self, n: int, seed: int) -> tuple[FunctionSampler, np.ndarray]:
        return self, self.pool(n, seed)

    def encoded(self, encode: Encode, dtype: Any) -> FunctionSampler:
        return FunctionSampler(self._function, encode, dtype, self._name)

    def digest(self) -> str:
        return _hash(self.pool(64, 0).tobytes(), "function")


def as_sampler(data: Any, name: str = "source") -> Sampler:
    """A `Sampler` from what a user has.

    Args:
        data: an array-like (n, d) with at least two points; a memory-mapped array, or a path to a `.npy` or
            `.parquet` file or to a folder of such files, which stay on disk; a function `(key, n) -> (n, d)`,
            traceable by JAX or not; or a `Sampler`.
        name: used in error messages.

    Raises:
        InputError: see `check_points`; a missing or unreadable file; all points equal.
    """
    if isinstance(data, Sampler):
        return data
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        if path.is_dir() or path.suffix.lower() == ".parquet":
            from brenier.shards import sharded_sampler  # which is made of what is here

            return sharded_sampler(path, name)
        data = _map_file(data, name)
    if isinstance(data, np.memmap):
        if data.ndim != 2 or len(data) < 2 or data.dtype.kind not in "fiu":
            raise InputError(
                f"Expected {name} to map a real array of shape (n, d), n >= 2; "
                f"found shape {data.shape}, dtype {data.dtype}."
            )
        sampler = MemmapSampler(data, name=name)
        check_spread(sampler.pool(_CHECKED_ROWS, 0), name)
        return sampler
    if callable(data):
        return FunctionSampler(data, name=name)
    array = check_points(data, name, min_points=2)
    check_spread(array, name)
    return ArraySampler(array)


def cells_by_place(points: np.ndarray, count: int) -> np.ndarray:
    """The cell, 0 to `count - 1`, of each of the points (n, d), n >= count: neighbours together, equally many in each.

    The leaves of a k-d tree: every part is cut across its widest axis, told from a few thousand of its points. No cell
    has fewer than `n // count` points.
    """
    cell = np.zeros(len(points), np.int64)
    parts = [(np.arange(len(points)), 0, count)]
    while parts:
        rows, first, cells = parts.pop()
        if cells == 1:
            cell[rows] = first
            continue
        left = cells // 2
        cut = len(points) * (first + left) // count - len(points) * first // count
        some = points[rows[:: max(len(rows) // _LOOK, 1)]]
        order = np.argpartition(points[rows, np.argmax(some.var(axis=0))], cut)
        parts += [(rows[order[:cut]], first, left), (rows[order[cut:]], first + left, cells - left)]
    return cell


def spread_order(points: np.ndarray) -> np.ndarray:
    """Numbers of the points (n, d) in an order in which any few in a row are spread evenly over all.

    The leaves of a k-d tree, as van der Corput visits the binary fractions: from one half to the other, and so on down.

    References:
        Owen, *Randomly permuted (t,m,s)-nets and (t,s)-sequences*, 1995 (the scrambling).
    """
    if len(points) < 2:
        return np.arange(len(points))
    levels = min(len(points), _MOST_LEAVES).bit_length() - 1
    leaf = cells_by_place(points, 2**levels)
    # Which half comes first is drawn for every part: otherwise all parts would show the same side of theirs.
    rng = np.random.default_rng(0)
    turn = np.zeros_like(leaf)
    for level in range(levels):
        second = rng.integers(0, 2, 2**level)[leaf >> (levels - level)]
        turn |= ((leaf >> (levels - level - 1) & 1) ^ second) << level
    order = np.argsort(turn, kind="stable")
    visit = np.arange(len(points)) - np.searchsorted(turn[order], turn[order])
    # A visit of some leaves alone would leave gaps: what is left is spread on its own.
    left = order[visit == len(points) >> levels]
    order = order[np.argsort(visit, kind="stable")][: len(points) - len(left)]
    return np.concatenate([order, left[spread_order(points[left])]])


def _let_go(array: Any) -> None:
    """Give back the memory of the pages that were read; the system's own cache keeps them while it has room."""
    mapped = getattr(array, "base", None)
    # What was written to a private mapping would be lost, and a slice does not own its mapping.
    if isinstance(mapped, mmap.mmap) and array.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _map_file(path: str | os.PathLike[str], name: str) -> np.memmap:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{name}: no file at {os.fspath(path)}.") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{name}: {os.fspath(path)} is not a readable .npy file ({error})."
        ) from None


def _hash(data: bytes, kind: str) -> str:
    return hashlib.sha256(kind.encode() + data).hexdigest()[:16]
