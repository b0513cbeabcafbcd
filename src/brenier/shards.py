"""Samples spread over files: folders of `.npy` or `.parquet` shards of any size, read as they are needed.

Every shard is opened once before anything starts, so that one that is missing, cut short or of another width is named
at once. After that memory does not grow with the size of the files.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from brenier.errors import InputError
from brenier.points import map_npy, open_parquet, reading
from brenier.samplers import (
    EVERY,
    POOL,
    Encode,
    MemmapSampler,
    Sampler,
    check_finite,
    check_points,
    check_spread,
)
from brenier.typing import Key

SUFFIXES = (".npy", ".parquet")

_WINDOW = 16  # row groups a batch is drawn from
_KEPT = 16_384  # rows of each of them
_RENEWAL = 25  # steps until one of them is replaced

_NUMBERED = re.compile(r"(.*?)(\d+)(?:-of-(\d+))?([^\d]*)")


def sharded_sampler(path: Path, name: str = "source") -> Sampler:
    """The rows of a folder of shards, or of one such file, as a `Sampler`.

    Args:
        path: a folder of `.npy` or of `.parquet` files, with as many columns each; or one such file. Files that are
            numbered from 0 or 1, or `3-of-8`, have to be complete.
        name: used in error messages.

    Raises:
        InputError: no shards, or of both types; one is missing, cut short, not numeric or of another width than the
            first; fewer than two points, or all of them equal.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(3):
        ...         np.save(f"{folder}/part-{i}.npy", np.random.default_rng(i).normal(size=(100, 2)))
        ...     sharded_sampler(Path(folder)).size
        300
    """
    if not path.exists():
        raise InputError(f"{name}: no file at {path}.")
    files = shard_files(path) if path.is_dir() else [path]
    mapped = files[0].suffix.lower() == ".npy"
    sampler = MemmapSampler(NpyShards(files), name=name) if mapped else ParquetSampler(files)
    if sampler.size is not None and sampler.size < 2:
        raise InputError(f"Expected {name} with at least 2 points in '{path}', found one.")
    check_spread(sampler.pool(POOL, 0), name)
    return sampler


def shard_files(folder: Path) -> list[Path]:
    """The shards in a folder, in the order of their numbers or names.

    Raises:
        InputError: none, of both types, or one of a numbered row is missing.
    """
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith((".", "_"))
    ]
    if not files:
        raise InputError(
            f"Expected a folder of .npy or .parquet files, found none of them in '{folder}'."
        )
    types = sorted({file.suffix.lower() for file in files})
    if len(types) > 1:
        raise InputError(
            f"Expected files of one type in '{folder}', found {' and '.join(types)}; "
            "move those of one type elsewhere."
        )
    _check_numbers(folder, files)
    return sorted(
        files, key=lambda file: ([int(n) for n in re.findall(r"\d+", file.name)], file.name)
    )


def _check_numbers(folder: Path, files: Sequence[Path]) -> None:
    """Names the file that a row of numbered ones lacks."""
    rows: dict[tuple[str, str, str], dict[int, str]] = {}
    for file in files:
        if not file.exists():
            raise InputError(f"Expected a shard at '{file}', found a link to a file that is gone.")
        if found := _NUMBERED.fullmatch(file.stem):
            before, number, total, after = found.groups()
            rows.setdefault((before, total or "", after), {})[int(number)] = number
    for (before, total, after), numbers in rows.items():
        first, last = min(numbers), max(numbers)
        if first > 1:  # dates and the like count nothing
            continue
        last = max(last, first + int(total) - 1) if total else last
        for number in range(first, last + 1):
            if number not in numbers:
                digits = str(number).zfill(len(next(iter(numbers.values()))))
                missing = f"{before}{digits}{f'-of-{total}' if total else ''}{after}"
                raise InputError(
                    f"Expected the shards {first} to {last} in '{folder}', found no "
                    f"'{missing}{files[0].suffix}'; restore it, or number the others anew."
                )


def _expect_columns(file: Path, columns: int, first: Path, expected: int) -> None:
    if columns != expected:
        raise InputError(
            f"Expected {expected} columns in '{file}', as in '{first.name}', found {columns}."
        )


# -- .npy ----------------------------------------------------------------------------------------------------------


class _Shard(NamedTuple):
    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, int]
    order: Any

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Some rows. The mapping lives no longer than this: neither pages nor open files pile up."""
        with reading(self.path):
            mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)
            found = mapped[rows]
        check_finite(found, f"'{self.path}', in the rows drawn,")
        return found


class NpyShards:
    """One array of the rows of several `.npy` files, which stays on disk.

    Args:
        files: of arrays (n, d) of real numbers, with the same d.

    Raises:
        InputError: a file is damaged or cut short, or holds something else.
    """

    def __init__(self, files: Sequence[Path]):
        self._shards: list[_Shard] = []
        for file in files:
            array = map_npy(file)
            if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
                raise InputError(
                    f"Expected a real array of shape (n, d) in '{file}', "
                    f"found shape {array.shape}, dtype {array.dtype}."
                )
            _expect_columns(file, array.shape[1], files[0], (*self._shards, array)[0].shape[1])
            order = "C" if array.flags.c_contiguous else "F"
            self._shards.append(_Shard(file, array.offset, array.dtype, array.shape, order))
        sizes = [shard.shape[0] for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self.shape = (sum(sizes), self._shards[0].shape[1])
        self.dtype = np.result_type(*(shard.dtype for shard in self._shards))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers, which increase."""
        cuts = np.searchsorted(rows, self._starts)
        parts = [
            shard.read(rows[cuts[i] : cuts[i + 1]] - self._starts[i])
            for i, shard in enumerate(self._shards)
            if cuts[i] < cuts[i + 1]
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.shape[1]), self.dtype)


# -- .parquet ------------------------------------------------------------------------------------------------------


class _Group(NamedTuple):
    """A row group, and the rows taken out of it, in turns."""

    path: Path
    number: int
    rows: int
    taken: tuple[np.ndarray, ...] = ()

    def without(self, rows: np.ndarray) -> _Group:
        return self._replace(rows=self.rows - len(rows), taken=(*self.taken, rows))

    def read(self) -> np.ndarray:
        with open_parquet(self.path) as table:
            columns = [c.to_numpy() for c in table.read_row_group(self.number).columns]
        promised = self.rows + sum(map(len, self.taken))
        if found := {len(column) for column in columns} - {promised}:
            raise InputError(
                f"Expected {promised} rows in '{self.path}', row group {self.number}, as its end says, "
                f"found {found.pop()}; write it again."
            )
        block = np.column_stack(columns)
        block = check_points(block, f"'{self.path}', row group {self.number},")
        for rows in self.taken:
            block = np.delete(block, rows, axis=0)
        return block


class ParquetSampler(Sampler):
    """Uniform draws, with replacement, from Parquet files, a row group at a time.

    Parquet gives up whole row groups only. So batches are drawn from a window: up to 16 384 random rows of each of 16
    groups, chosen at random by their size, the oldest of which is replaced every 25 steps. Every row is as likely as
    any other, but the rows of one batch are independent only as far as the groups are alike: files that are sorted by
    something are better shuffled once.

    Args:
        files: with the same columns of numbers.

    Raises:
        InputError: a file is damaged or cut short, or holds other columns than the first.
    """

    def __init__(self, files: Sequence[Path]):
        groups: list[_Group] = []
        kinds: set[Any] = set()
        names: list[str] = []
        for file in files:
            with open_parquet(file) as table:
                schema = table.schema_arrow
                names = names or schema.names
                kinds.update(np.dtype(kind.to_pandas_dtype()) for kind in schema.types)
                sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
            _expect_columns(file, len(schema.names), files[0], len(names))
            if schema.names != names:
                raise InputError(
                    f"Expected the columns {', '.join(names)} in '{file}', as in "
                    f"'{files[0].name}', found {', '.join(schema.names)}."
                )
            groups += [_Group(file, i, size) for i, size in enumerate(sizes)]
        self.dim = len(names)
        self.dtype = np.dtype(np.float32 if kinds <= _SINGLE else np.float64)
        self._encode: Encode | None = None
        self._keep(groups)
        if self.size == 0:
            raise InputError(f"Expected rows in '{files[0].parent}', found none in any file.")

    def _keep(self, groups: Sequence[_Group]) -> None:
        self._groups = [group for group in groups if group.rows]
        self._ends = np.cumsum([group.rows for group in self._groups], dtype=np.int64)
        self.size = int(self._ends[-1]) if self._groups else 0
        self._parts: dict[Any, np.ndarray] = {}

    def _encoded(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows if self._encode is None else self._encode(rows), self.dtype)

    # -- batches ---------------------------------------------------------------------------------------------------

    def draw(
        self,
        key: Key,
        start: int,
        count: int,
        n: int,
        *,
        stratified: bool = False,
        rows: slice = EVERY,
    ) -> jax.Array:
        del stratified  # reading everything would defeat the purpose
        n = self.batch(n)
        if n == self.size:
            everything = self.pool(n, 0)[rows]
            return jnp.broadcast_to(everything, (count, *everything.shape))
        seed = tuple(np.asarray(jax.random.key_data(key)).tolist())
        batches = []
        for step in range(start, start + count):
            rng = np.random.default_rng((*seed, 0, step))
            window = self._window(seed, step // _RENEWAL)
            part = rng.integers(len(window), size=n)
            sizes = np.array([len(points) for points in window])
            row = (rng.random(n) * sizes[part]).astype(np.int64)[rows]
            part = part[rows]
            batch = np.empty((len(row), self.dim), self.dtype)
            for i, points in enumerate(window):
                batch[part == i] = points[row[part == i]]
            batches.append(batch)
        return jnp.asarray(np.stack(batches))

    def _window(self, seed: tuple[int, ...], moment: int) -> list[np.ndarray]:
        """The parts of the groups that are there at a moment; each part depends on the seed and its number alone."""
        numbers = [(*seed, 1, moment + i) for i in range(_WINDOW)]
        self._parts = {
            number: self._parts[number] if number in self._parts else self._part(number)
            for number in numbers
        }
        return list(self._parts.values())

    def _part(self, seed: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(seed)
        which = int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right"))
        rows = self._groups[which].read()
        if len(rows) > _KEPT:
            rows = rows[rng.choice(len(rows), _KEPT, replace=False)]
        return self._encoded(rows)

    # -- the rest of a sampler -------------------------------------------------------------------------------------

    def _some(self, n: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
        """Groups, and distinct rows of each, `n` in all: of few groups, so that not everything is read."""
        rng = np.random.default_rng(seed)
        n = min(n, int(self._ends[-1]))
        sizes = np.diff(self._ends, prepend=0)
        # Without replacement, larger groups first as often as they are larger.
        order = np.argsort(rng.exponential(size=len(sizes)) / sizes)
        enough = int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1
        chosen = np.sort(order[: max(_WINDOW, enough)])
        ends = np.cumsum(sizes[chosen])
        rows = np.sort(rng.choice(int(ends[-1]), n, replace=False, shuffle=False))
        cuts = np.searchsorted(rows, ends)
        for which, begin, cut, end in zip(chosen, (0, *cuts[:-1]), cuts, ends, strict=True):
            if begin < cut:
                yield int(which), rows[begin:cut] - (end - sizes[which])

    def pool(self, n: int, seed: int) -> np.ndarray:
        parts = [self._groups[which].read()[rows] for which, rows in self._some(n, seed)]
        return self._encoded(np.concatenate(parts))

    def split(self, n: int, seed: int) -> tuple[ParquetSampler, np.ndarray]:
        rest, groups = copy.copy(self), list(self._groups)
        for which, rows in self._some(n, seed):
            groups[which] = groups[which].without(rows)
        rest._keep(groups)
        return rest, self.pool(n, seed)

    def encoded(self, encode: Encode, dtype: Any) -> ParquetSampler:
        other = copy.copy(self)
        other._encode, other.dtype, other._parts = encode, np.dtype(dtype), {}
        return other

    def digest(self) -> str:
        facts = [
            f"{group.path.name} {group.path.stat().st_size} {group.number} {group.rows}"
            for group in self._groups
        ]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


_SINGLE = {np.dtype(np.float16), np.dtype(np.float32)}
