"""The one way brenier writes files, and the one container it reads back.

Writes are atomic: a kill at any moment leaves the old file or the new one. The container is a safetensors file
whose `__metadata__` holds a single entry, `brenier`, a JSON header:

    {"version": 1, "kind": "solution", "content": ..., "sha256": ...}

`sha256` covers the header and every tensor's name, dtype, shape and bytes, so damage is found before anything is
rebuilt. It protects against accidents, not against forgery; readers still check what `content` says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from brenier.errors import FileFormatError, InputError, OutputError

PathLike = str | os.PathLike[str]

VERSION = 1
KINDS = {
    "solution": "a map written by `brenier.save`",
    "checkpoint": "a checkpoint written by `brenier.fit(..., checkpoint=path)`",
}
# What safetensors can both write from numpy and read back into it.
_DTYPES = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 bfloat16 float16 float32 float64".split()
)
# What foreign or damaged bytes raise while they are read as a header and tensors.
_NOT_OURS = (
    safetensors.SafetensorError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def atomic_write(path: PathLike, data: bytes) -> None:
    """Write `data` to `path` so that no moment shows a partial file.

    The bytes go to a hidden temporary file in the same folder, reach the disk (fsync) and then take the name.
    A symbolic link is followed, not replaced.

    Args:
        path: the file to create or replace; its folder must exist.
        data: the whole content.

    Raises:
        OutputError: the folder is missing, not writable or full, or `path` is not an ordinary file. The old
            file, if any, is untouched and no temporary file stays behind.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atomic_write(f"{folder}/a.txt", b"new")
        ...     os.listdir(folder)
        ['a.txt']
    """
    path = check_path(path)
    target = Path(os.path.realpath(path))
    if os.path.exists(target) and not os.path.isfile(target):
        raise OutputError(f"Cannot write '{path}': it is a folder or a device; give a file name.")
    if not os.path.isdir(target.parent):
        raise OutputError(
            f"Cannot write '{path}': the folder '{target.parent}' does not exist; create it first."
        )
    temporary = target.with_name(f".brenier-{secrets.token_hex(8)}.tmp")
    try:
        # "x" makes the name ours alone, and unlike `tempfile` respects the user's umask.
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:  # also Ctrl-C: nothing may stay behind
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise OutputError(
                f"Cannot write '{path}': {reason}. Choose a writable folder with enough free space."
            ) from error
        raise
    # The new name itself is durable only once its folder is; some file systems cannot do that, and the file
    # is complete either way.
    with contextlib.suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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
        InputError: an array has a dtype that cannot be stored, or `content` is not JSON.
        OutputError: see `atomic_write`.
    """
    # safetensors copies raw memory, so the layout must be C order and the byte order the machine's.
    tensors = {name: _plain(name, array) for name, array in tensors.items()}
    header = {"version": VERSION, "kind": kind, "content": content}
    header["sha256"] = _digest(header, tensors)
    # One entry only: safetensors does not keep the order of several, and equal content should be equal bytes.
    metadata = {"brenier": json.dumps(header)}
    atomic_write(path, safetensors.numpy.save(tensors, metadata))


def read_container(path: PathLike, kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Read what `write_container` wrote: `(content, tensors)`.

    Raises:
        FileFormatError: the file is missing, unreadable, damaged, foreign, of another kind or written by a
            newer version; the message names the file.
    """
    path = check_path(path)
    expected = f"expected {KINDS[kind]}"
    if not os.path.exists(path):
        raise FileFormatError(f"'{path}' does not exist: {expected}. Check the path.")
    if not os.path.isfile(path):
        raise FileFormatError(f"'{path}' is a folder or a device: {expected}.")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["brenier"])
            # Read first: a newer version may store its tensors or compute its checksum in another way.
            newer = header["version"] > VERSION
            names = [] if newer else file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        intact = header.pop("sha256") == _digest(header, tensors)
        found = KINDS.get(header["kind"], "something else")
        content = header["content"]
    except OSError as error:
        reason = error.strerror or error
        raise FileFormatError(f"Cannot read '{path}': {reason}; {expected}.") from error
    except _NOT_OURS as error:
        raise FileFormatError(
            f"'{path}' is damaged or not a brenier file: {expected}. "
            "Check the path, restore a copy or fit again."
        ) from error
    if newer:
        raise FileFormatError(
            f"'{path}' has format version {header['version']}, and this brenier reads up to {VERSION}. "
            "Upgrade brenier."
        )
    if not intact:
        raise FileFormatError(
            f"'{path}' is damaged: its checksum does not match its content. Restore a copy or fit again."
        )
    if found != KINDS[kind]:
        raise FileFormatError(f"'{path}' is {found}: {expected}.")
    return content, tensors


def check_path(path: PathLike) -> Path:
    """`path` as a `Path`, or an `InputError` for what cannot name a file."""
    try:
        name = os.fspath(path)
    except TypeError:
        name = None
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"Expected a path (str or os.PathLike), found {path!r}.")
    return Path(name)


def _plain(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.name not in _DTYPES:
        raise InputError(
            f"Cannot store '{name}' of dtype {array.dtype}: expected one of {', '.join(sorted(_DTYPES))}."
        )
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _digest(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    names = sorted(tensors)
    layout = [(name, tensors[name].dtype.name, tensors[name].shape) for name in names]
    digest = hashlib.sha256(json.dumps([header, layout]).encode())
    for name in names:
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
