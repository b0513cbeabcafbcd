"""The one way brenier writes files, and the one container it reads back.

Writes are atomic: a kill at any moment leaves the old file or the new one. The container is a
safetensors file whose `__metadata__` has one entry, `brenier`, a JSON header:

    {"version": 1, "kind": "solution", "content": ..., "sha256": "..."}

`sha256` covers the header and every tensor's name, dtype, shape and bytes, so that damage is found
before anything is rebuilt. It guards against accidents, not against forgery: whoever reads
`content` still checks what it says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from brenier.errors import BrenierError, FileFormatError, InputError, OutputError

PathLike = str | os.PathLike[str]

VERSION = 1
"""Raised whenever older programs could not read the new files, or would misread them."""

KINDS = {
    "solution": "a map written by brenier.save",
    "checkpoint": "a checkpoint written by brenier.fit",
}

# What safetensors can both write from numpy and read back into it.
_DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64"),
]


def atomic_write(path: PathLike, data: bytes) -> None:
    """Write `data` to `path` so that no moment shows a partial file.

    The bytes go to a hidden temporary file in the same folder, are flushed to the disk and then
    take the name. A symbolic link is followed, not replaced.

    Args:
        path: the file to create or replace; its folder must exist.
        data: the whole content.

    Raises:
        OutputError: the folder is missing, not writable or full, or `path` is not an ordinary file.
            The old file, if any, is untouched and no temporary file stays behind.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atomic_write(f"{folder}/a.txt", b"new")
        ...     os.listdir(folder)
        ['a.txt']
    """
    with open_atomic(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_atomic(path: PathLike) -> Iterator[BinaryIO]:
    """A binary file, to be written piece by piece, with the promises of `atomic_write`.

    It takes the name `path` when the block ends well and vanishes otherwise.
    """
    target = _target(path)
    temporary = _temporary(target)
    try:
        # Unlike `tempfile`, mode "x" respects the user's umask.
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:  # Ctrl-C as well: nothing may stay behind
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, BrenierError):
            raise _unwritable(path, error) from error
        raise
    # The new name survives a power cut only once the folder is on the disk too. Not every file
    # system can do that, and the file is complete either way.
    with contextlib.suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_output(path: PathLike) -> None:
    """Make sure, before long work starts, that its result can be written to `path`.

    Raises:
        OutputError: the folder is missing or not writable, or `path` is not an ordinary file.
    """
    probe = _temporary(_target(path))
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _target(path: PathLike) -> Path:
    """The file behind `path`, its links followed; `OutputError` where no file can be."""
    path = _checked(path)
    target = Path(os.path.realpath(path))
    if os.path.exists(target) and not os.path.isfile(target):
        # Writing renames a finished file to `path`, which would replace a device such as /dev/null.
        raise OutputError(f"Cannot write '{path}': it is a folder or a device; give a file name.")
    if not os.path.isdir(target.parent):
        raise OutputError(
            f"Cannot write '{path}': the folder '{target.parent}' does not exist; create it first."
        )
    return target


def _temporary(target: Path) -> Path:
    return target.with_name(f".brenier-{secrets.token_hex(8)}.tmp")


def _unwritable(path: PathLike, error: OSError) -> OutputError:
    return OutputError(
        f"Cannot write '{path}': {error.strerror or error}. "
        "Choose a writable folder with enough space."
    )


def write_container(
    path: PathLike, kind: str, content: Any, tensors: dict[str, np.ndarray]
) -> None:
    """Write JSON `content` and named `tensors` as one checked file, atomically.

    The same arguments give the same bytes.

    Args:
        path: the file to create or replace.
        kind: a key of `KINDS`.
        content: anything `json.dumps` takes; floats come back with the same bits.
        tensors: arrays of any shape.

    Raises:
        InputError: `content` is not JSON, or an array has a dtype that cannot be stored.
        OutputError: see `atomic_write`.
    """
    tensors = {name: _plain(name, array) for name, array in tensors.items()}
    header = {"version": VERSION, "kind": kind, "content": content}
    try:
        # A round trip first: the checksum is that of what a reader will find (tuples become lists).
        header = json.loads(json.dumps(header))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"Cannot write '{path}': its header is not JSON ({error}).") from error
    header["sha256"] = _digest(header, tensors)
    # One entry, because safetensors shuffles several and equal content should give equal bytes.
    atomic_write(path, safetensors.numpy.save(tensors, {"brenier": json.dumps(header)}))


def read_container(path: PathLike, kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Read what `write_container` wrote: `(content, tensors)`.

    Raises:
        FileFormatError: the file is missing, unreadable, damaged, foreign, of another kind or from
            a newer version; the message names the file.
    """
    path = _checked(path)
    expected = f"expected {KINDS[kind]}"
    if not os.path.exists(path):
        raise FileFormatError(f"'{path}' does not exist: {expected}. Check the path.")
    if not os.path.isfile(path):
        raise FileFormatError(f"'{path}' is a folder or a device: {expected}.")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["brenier"])
            # Before anything that a newer version may do in another way.
            if header["version"] > VERSION:
                raise FileFormatError(
                    f"'{path}' has format version {header['version']}; this brenier reads up to "
                    f"{VERSION}. Upgrade brenier."
                )
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        intact = header.pop("sha256") == _digest(header, tensors)
        found, content = KINDS.get(header["kind"], "something else"), header["content"]
    except FileFormatError:
        raise
    except OSError as error:
        raise FileFormatError(
            f"Cannot read '{path}': {error.strerror or error}; {expected}."
        ) from error
    except (
        safetensors.SafetensorError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:  # what reading a header and tensors from any other bytes can raise
        raise FileFormatError(
            f"'{path}' is damaged or not a brenier file: {expected}. "
            "Check the path, restore a copy or fit again."
        ) from error
    if not intact:
        raise FileFormatError(
            f"'{path}' is damaged: its checksum does not match its content. "
            "Restore a copy or fit again."
        )
    if found != KINDS[kind]:
        raise FileFormatError(f"'{path}' is {found}: {expected}.")
    return content, tensors


def _checked(path: PathLike) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in os.fspath(path):
        raise InputError(f"Expected a path (str or os.PathLike), found {path!r}.")
    return Path(path)


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.name not in _DTYPES:
        raise InputError(
            f"Cannot store '{name}' of dtype {array.dtype}: expected one of {', '.join(_DTYPES)}."
        )
    # safetensors copies raw memory: it must be in C order and in the machine's byte order.
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _digest(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    names = sorted(tensors)
    layout = [(name, tensors[name].dtype.name, tensors[name].shape) for name in names]
    digest = hashlib.sha256(json.dumps([header, layout]).encode())
    for name in names:
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
