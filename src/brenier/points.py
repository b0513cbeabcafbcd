"""Files of points: NumPy, text tables, Parquet and AnnData, read and written by blocks of rows.

A path may carry a key where a file holds several arrays: `cells.h5ad:X_pca`, `samples.npz:source`; and, of an `.h5ad`,
which of the cells are meant: `cells.h5ad:X_pca:day=2`.
Every defect of a file is one `InputError` naming the file and, in a table, the line and column.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import itertools
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from brenier.cells import check_entry, entry_of, place, rows_where
from brenier.errors import BrenierError, InputError, OutputError
from brenier.files import PathLike, check_output, open_atomic
from brenier.samplers import check_points

BLOCK_ROWS = 65_536
"""Rows held in memory at a time by `read_blocks`."""

Blocks = Iterator[np.ndarray]

_TYPES = ".npy, .npz, .csv, .tsv, .parquet or .h5ad"
_EXTRAS = {
    "pyarrow": "parquet",
    "pyarrow.parquet": "parquet",
    "anndata": "anndata",
    "h5py": "anndata",
}


def read_points(path: PathLike) -> np.ndarray:
    """Read points, one a row, as an array of shape `(n, d)`.

    A `.npy` file of float32 or float64 numbers stays on disk (memory-mapped); the rest is loaded.

    Args:
        path: `.npy`; `.npz` (its only array, or the one named in `file.npz:name`); `.csv` or
            `.tsv` (with or without a line of column names); `.parquet` (needs the `parquet`
            extra); `.h5ad` (needs the `anndata` extra; `X`, or the entry of `obsm` named in
            `file.h5ad:X_pca`; of all cells, or of those with a value in a column of `obs`, as in
            `file.h5ad:X_pca:day=2`).

    Returns:
        Finite float32 or float64 numbers, at least one row and one column. Integers become float64
        and float16 becomes float32.

    Raises:
        InputError: the file is missing, a folder, unreadable, empty, damaged, of another type than
            its name says, not two-dimensional, not numeric, ragged, or holds NaN or infinity.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_points(f"{folder}/a.csv", np.eye(2))
        ...     read_points(f"{folder}/a.csv").tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    file, _ = _locate(path)
    if file.suffix.lower() == ".npy":
        array = map_npy(file)
        if array.dtype in (np.float32, np.float64) and array.dtype.isnative:
            for _ in _checked(path, _slices(array, BLOCK_ROWS)):
                pass
            return array
    return np.concatenate(list(read_blocks(path)))


def read_blocks(path: PathLike, rows: int = BLOCK_ROWS) -> Blocks:
    """Read points as `read_points` does, in successive arrays of at most `rows` rows.

    Memory does not grow with the number of points for `.npy`, `.csv`, `.tsv`, `.parquet` and the
    `X` of an `.h5ad`; an array of an `.npz` or of `obsm` is loaded whole.

    Args:
        path: as in `read_points`.
        rows: largest number of rows of a block.

    Returns:
        An iterator over arrays of shape `(m, d)` with `m <= rows`.

    Raises:
        InputError: as in `read_points`, at the latest when the faulty block is reached.
    """
    file, key = _locate(path)
    return _checked(path, _READERS[file.suffix.lower()](file, key, rows))


def write_points(path: PathLike, points: np.ndarray | Iterable[np.ndarray]) -> None:
    """Write points atomically: an error or a kill at any moment leaves the old file or the new one.

    Args:
        path: `.npy`, `.npz` (the array is named `points`), `.csv`, `.tsv`, `.parquet` or `.h5ad`.
            Tables have columns `x0`, `x1`, ..., and text has the shortest decimals that read back
            as the same numbers.
        points: an array of shape `(n, d)`, or its successive blocks of rows, which are then never
            held together (except for `.npz` and `.h5ad`). An array of shape `(times, n, d)` fits
            in `.npy` and `.npz` only.

    Raises:
        InputError: the file type is unknown or cannot hold an array of this shape.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    check_points_output(path)
    blocks = iter([points] if isinstance(points, np.ndarray) else points)
    first = next(blocks, None)
    if first is None or first.size == 0:
        raise InputError(f"Expected at least one point to write to '{path}', found none.")
    suffix = path.suffix.lower()
    if first.ndim != 2 and (first.ndim != 3 or suffix not in (".npy", ".npz")):
        raise InputError(
            f"Expected an array of shape (n, d) for '{path}', found shape {first.shape}; "
            "only .npy and .npz hold arrays of shape (times, n, d)."
        )
    with open_atomic(path) as handle:
        _WRITERS[suffix](handle, itertools.chain([first], blocks))


def write_paths(path: PathLike, times: np.ndarray, points: np.ndarray) -> None:
    """Write paths atomically.

    Args:
        path: `.npz`, with the arrays `times` (k,) and `points` (k, n, d); or `.csv`, a line for
            each point and time, with the columns `point`, `time`, `x1`, `x2`, ...
        times: shape (k,).
        points: shape (k, n, d).

    Raises:
        InputError: a file of another type.
        OutputError: the file cannot be written.
    """
    check_paths_output(path)
    with open_atomic(path) as handle:
        if Path(path).suffix.lower() == ".npz":
            np.savez(handle, times=times, points=points)
            return
        names = ["point", "time", *(f"x{i + 1}" for i in range(points.shape[2]))]
        handle.write((",".join(names) + "\n").encode())
        at_once = max(BLOCK_ROWS // len(times), 1)
        moments = times.astype(str)
        for start in range(0, points.shape[1], at_once):
            block = points[:, start : start + at_once].swapaxes(0, 1)
            numbers = np.arange(start, start + len(block)).astype(str)
            rows = np.concatenate(
                [
                    np.repeat(numbers, len(times))[:, None],
                    np.tile(moments, len(block))[:, None],
                    block.reshape(-1, points.shape[2]).astype(str),
                ],
                axis=1,
            )
            handle.write(("\n".join(map(",".join, rows.tolist())) + "\n").encode())


def write_into_cells(
    path: PathLike, blocks: Iterable[np.ndarray], *, source: PathLike, entry: str, facts: Any
) -> None:
    """Write a copy of an `.h5ad` with one more entry of `obsm`, atomically.

    Nothing else of the file is loaded, or changed.

    Args:
        path: `.h5ad`; it may be the file of `source` itself.
        blocks: points of shape (m, d), a row for each cell that `source` stands for, in successive
            blocks of rows. The other cells have NaN.
        source: `.h5ad`, with its key: `cells.h5ad:X_pca:day=2`.
        entry: the new entry's name. One of this name is replaced.
        facts: what becomes `uns["brenier"][entry]`; see `brenier.cells.provenance`.

    Raises:
        InputError: the source cannot be read, or the name holds a `/`.
        OutputError: the file cannot be written.
    """
    file, key = _locate(source)
    anndata, h5py = optional("anndata", file), optional("h5py", file)
    points = np.concatenate(list(blocks))
    with open_h5ad(file) as cells:
        where = split_choice(key)[1]
        chosen = None if where is None else rows_where(cells, where, f"'{file}'")
        placed = place(points, cells.n_obs, chosen, check_entry(entry))
    with open_atomic(path) as handle:
        with open(file, "rb") as original:
            shutil.copyfileobj(original, handle)
        with h5py.File(handle, "r+") as copy:
            anndata.io.write_elem(copy["obsm"], entry, placed)
            if "brenier" not in copy["uns"]:
                anndata.io.write_elem(copy["uns"], "brenier", {})
            anndata.io.write_elem(copy["uns/brenier"], entry, facts)


def check_paths_output(path: PathLike) -> None:
    """`check_output` for a file of paths, of a known type."""
    if Path(path).suffix.lower() not in (".npz", ".csv"):
        raise InputError(
            f"Expected an output file of type .npz or .csv for paths, found '{path}'; rename it."
        )
    check_output(path)


def check_points_output(path: PathLike) -> None:
    """`check_output` for a file of points: of a known type, whose extra must be installed."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise InputError(f"Expected an output file of type {_TYPES}, found '{path}'; rename it.")
    if suffix == ".parquet":
        optional("pyarrow.parquet", path)
    elif suffix == ".h5ad":
        optional("anndata", path)
    check_output(path)


def split_key(path: PathLike) -> tuple[Path, str | None]:
    """The file and the key within it: `file.npz:key`."""
    keyed = re.fullmatch(r"(.+\.(?:npz|h5ad)):(.+)", str(path), re.IGNORECASE)
    if keyed and not Path(path).exists():
        return Path(keyed[1]), keyed[2]
    return Path(path), None


def _locate(path: PathLike) -> tuple[Path, str | None]:
    """The file and the key within it, or the reason why it cannot hold points."""
    file, key = split_key(path)
    if file.suffix.lower() not in _READERS:
        raise InputError(f"Expected a file of points of type {_TYPES}, found '{file}'; convert it.")
    if not file.exists():
        raise InputError(f"Expected a file of points, found no '{file}'; check the path.")
    if not file.is_file():
        raise InputError(f"Expected a file of points, found a folder or a device at '{file}'.")
    if file.stat().st_size == 0:
        raise InputError(f"Expected points in '{file}', found an empty file; write it again.")
    return file, key


def _checked(path: PathLike, blocks: Iterable[Any]) -> Blocks:
    """The blocks as finite float32 or float64 arrays of shape `(m, d)`."""
    done = 0
    for block in blocks:
        name = f"'{path}'" if done == 0 else f"'{path}' from row {done} on"
        yield check_points(block, name, min_points=0)
        done += len(block)
    if done == 0:
        raise InputError(f"Expected points in '{path}', found no rows; write it again.")


def _slices(array: Any, rows: int) -> Iterator[Any]:
    # Also of an array that is no matrix, whose shape `_checked` then names.
    whole = array.ndim == 0 or array.shape[0] == 0
    return iter([array]) if whole else (array[i : i + rows] for i in range(0, len(array), rows))


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Whatever a parser throws at a damaged or foreign file becomes one `InputError`."""
    try:
        yield
    except (BrenierError, MemoryError):
        raise
    except PermissionError as error:
        raise InputError(f"Cannot read '{file}': permission denied; check its rights.") from error
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"Expected a {file.suffix.lower()} file of points at '{file}', found a damaged one or "
            f"one of another type ({detail[:200]}); write it again or correct its name."
        ) from error


def optional(module: str, file: Path) -> Any:
    """A module of an extra; `InputError` with the extra's name where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = _EXTRAS[module]
        raise InputError(
            f"Expected {module.partition('.')[0]} to be installed for '{file}', found it missing; "
            f"try `pip install 'brenier[{extra}]'`."
        ) from error


# Readers: (file, key, rows) -> blocks


def map_npy(file: Path) -> np.memmap:
    """The array of a `.npy` file, on disk; `InputError` where it is none or has been cut short."""
    with reading(file):
        return np.lib.format.open_memmap(file, mode="r")


def _read_npy(file: Path, key: str | None, rows: int) -> Iterator[Any]:
    return _slices(map_npy(file), rows)


def _read_npz(file: Path, key: str | None, rows: int) -> Iterator[Any]:
    with reading(file), np.load(file, allow_pickle=False) as archive:
        names = ", ".join(archive.files) or "none"
        if key is None and len(archive.files) != 1:
            raise InputError(
                f"Expected one array in '{file}', found {names}; choose one as '{file}:name'."
            )
        if key is not None and key not in archive.files:
            raise InputError(f"Expected an array '{key}' in '{file}', found {names}.")
        array = archive[key or archive.files[0]]
    return _slices(array, rows)


def _read_table(file: Path, rows: int, delimiter: str) -> Iterator[np.ndarray]:
    with reading(file), open(file, encoding="utf-8-sig", newline="") as handle:
        lines = ((number, line) for number, line in enumerate(handle, 1) if line.strip())
        head = list(itertools.islice(lines, 2))
        if not head:
            return
        columns, named = _header(file, head, delimiter)
        lines = itertools.chain(head[named:], lines)
        while block := list(itertools.islice(lines, rows)):
            yield _parse(file, block, delimiter, columns)


def _header(file: Path, head: list[tuple[int, str]], delimiter: str) -> tuple[int, bool]:
    """The number of columns, and whether the first line holds their names."""
    cells, *following = (_cells(line, delimiter) for _, line in head)
    if any(map(_is_number, cells)):
        # Column names 0, 1, 2, ... (a data frame made from a bare array) over decimal fractions.
        counted = cells == [str(i) for i in range(len(cells))]
        return len(cells), counted and any("." in cell for cell in itertools.chain(*following))
    if len(cells) > 1 and not cells[0].strip():
        raise InputError(
            f"Expected a name for every column in '{file}', found none for the first, which looks "
            "like an index of rows; write the file without it (pandas: index=False)."
        )
    return len(cells), True


def _parse(file: Path, lines: list[tuple[int, str]], delimiter: str, columns: int) -> np.ndarray:
    texts = [text for _, text in lines]
    with contextlib.suppress(ValueError):
        block = np.loadtxt(texts, delimiter=delimiter, comments=None, quotechar='"', ndmin=2)
        if block.shape[1] == columns and np.isfinite(block).all():
            return block
    # loadtxt is fast but does not know the line of the file; find the culprit again, slowly.
    for number, text in lines:
        cells = _cells(text, delimiter)
        if len(cells) != columns:
            raise InputError(
                f"Expected {columns} columns in every line of '{file}', "
                f"found {len(cells)} in line {number}."
            )
        for column, cell in enumerate(cells, 1):
            if not _is_number(cell) or not math.isfinite(float(cell)):
                raise InputError(
                    f"Expected a finite number in line {number}, column {column} of '{file}', "
                    f"found {cell[:40]!r}; correct or remove it."
                )
    raise InputError(f"Expected lines of {columns} plain numbers in '{file}', found others.")


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def open_parquet(file: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` whose columns are numbers; `InputError` where it is none."""
    parquet = optional("pyarrow.parquet", file)
    arrow = optional("pyarrow", file)
    with reading(file), parquet.ParquetFile(file) as table:
        for column in table.schema_arrow:
            kind = column.type
            if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind)):
                raise InputError(
                    f"Expected columns of numbers in '{file}', found column '{column.name}' of "
                    f"type {kind}; write the coordinates only (pandas: index=False)."
                )
            if column.name.startswith("__index_level_"):
                raise InputError(
                    f"Expected columns of coordinates in '{file}', found an index of rows "
                    f"('{column.name}'); write the file without it (pandas: index=False)."
                )
        yield table


def _read_parquet(file: Path, key: str | None, rows: int) -> Iterator[np.ndarray]:
    with open_parquet(file) as table:
        for batch in table.iter_batches(batch_size=rows):
            # A missing value comes out as NaN, which the check of the block names.
            yield np.column_stack([c.to_numpy(zero_copy_only=False) for c in batch.columns])


def _read_h5ad(file: Path, key: str | None, rows: int) -> Iterator[Any]:
    with open_h5ad(file) as cells:
        name, where = split_choice(key)
        array = entry_of(cells, name, f"'{file}'")
        chosen = None if where is None else rows_where(cells, where, f"'{file}'")
        for start in range(0, array.shape[0], rows):
            block = array[start : start + rows]
            if chosen is not None:
                block = block[chosen[start : start + rows]]
            if block.shape[0]:
                yield block.toarray() if hasattr(block, "toarray") else block


@contextlib.contextmanager
def open_h5ad(file: Path) -> Iterator[Any]:
    """An `anndata.AnnData` whose `X` stays on disk; `InputError` where the file holds none."""
    anndata = optional("anndata", file)
    if _stops_hdf5(file):
        raise InputError(
            f"Expected an .h5ad file of points at '{file}', found one so damaged that reading it does not end; "
            "write it again."
        )
    with reading(file):
        cells = anndata.read_h5ad(file, backed="r")
        try:
            yield cells
        finally:
            cells.file.close()


_WALK = """
import contextlib, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
import h5py
def walk(item):
    with contextlib.suppress(Exception):
        [item.attrs[key] for key in item.attrs]
    with contextlib.suppress(Exception):
        [walk(item[key]) for key in (item if isinstance(item, h5py.Group) else ())]
with h5py.File(sys.argv[1]) as file:
    walk(file)
"""


def _stops_hdf5(file: Path) -> bool:
    """Whether HDF5 crashes, or computes for seconds, on what describes the arrays of a file.

    In a damaged heap its C library can loop without end, and no thread or signal gets through to it: only
    a process of its own can be stopped. One that fails otherwise fails again, and says why, where the file is read.
    """
    if sys.platform == "win32":  # no limit on the computing of a process
        return False
    command = [sys.executable, "-c", _WALK, str(file)]
    return subprocess.run(command, capture_output=True, check=False).returncode < 0


def split_choice(key: str | None) -> tuple[str | None, tuple[str, str] | None]:
    """The entry and the choice of cells in `X_pca:day=2`, `X_pca`, `day=2` or nothing."""
    name, _, choice = (key or "").partition(":")
    if "=" in name and not choice:
        name, choice = "", name
    column, sign, value = choice.partition("=")
    if choice and not (column and sign and value):
        raise InputError(
            f"Expected the cells of an .h5ad as 'file.h5ad:entry:column=value', found '{choice}' "
            "after the entry."
        )
    return name or None, (column, value) if choice else None


_READERS: dict[str, Callable[[Path, str | None, int], Iterator[Any]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": lambda file, key, rows: _read_table(file, rows, ","),
    ".tsv": lambda file, key, rows: _read_table(file, rows, "\t"),
    ".parquet": _read_parquet,
    ".h5ad": _read_h5ad,
}


# Writers: (binary handle, blocks) -> None


def _write_npy(handle: IO[bytes], blocks: Blocks) -> None:
    first = next(blocks)
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": first.shape,
    }
    # The number of rows is known at the end only; numpy pads headers so that they can be rewritten.
    np.lib.format.write_array_header_2_0(handle, header)
    size, rows = handle.tell(), 0
    for block in itertools.chain([first], blocks):
        handle.write(np.ascontiguousarray(block, dtype=first.dtype).data)
        rows += len(block)
    handle.seek(0)
    np.lib.format.write_array_header_2_0(handle, header | {"shape": (rows, *first.shape[1:])})
    if handle.tell() != size:
        raise OutputError("Expected the header of a .npy file to keep its size, found it grown.")


def _write_npz(handle: IO[bytes], blocks: Blocks) -> None:
    np.savez(handle, points=np.concatenate(list(blocks)))


def _write_table(handle: IO[bytes], blocks: Blocks, delimiter: str) -> None:
    first = next(blocks)
    handle.write((delimiter.join(_names(first)) + "\n").encode())
    for block in itertools.chain([first], blocks):
        rows = map(delimiter.join, block.astype(str).tolist())
        handle.write(("\n".join(rows) + "\n").encode())


def _write_parquet(handle: IO[bytes], blocks: Blocks) -> None:
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    first = next(blocks)
    schema = arrow.schema([(name, arrow.from_numpy_dtype(first.dtype)) for name in _names(first)])
    with parquet.ParquetWriter(handle, schema) as writer:
        for block in itertools.chain([first], blocks):
            writer.write_table(arrow.table(list(np.ascontiguousarray(block.T)), schema=schema))


def _write_h5ad(handle: IO[bytes], blocks: Blocks) -> None:
    anndata, h5py = importlib.import_module("anndata"), importlib.import_module("h5py")
    with h5py.File(handle, "w") as file:
        anndata.io.write_elem(file, "/", anndata.AnnData(np.concatenate(list(blocks))))


def _names(block: np.ndarray) -> list[str]:
    return [f"x{i}" for i in range(block.shape[1])]


_WRITERS: dict[str, Callable[[IO[bytes], Blocks], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".csv": lambda handle, blocks: _write_table(handle, blocks, ","),
    ".tsv": lambda handle, blocks: _write_table(handle, blocks, "\t"),
    ".parquet": _write_parquet,
    ".h5ad": _write_h5ad,
}
