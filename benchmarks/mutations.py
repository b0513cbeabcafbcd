"""Damage for files: random bytes, wrong lengths and headers, and maps that lie behind a correct checksum."""

from __future__ import annotations

import copy
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from brenier.files import read_container, write_container

Rng = np.random.Generator

_EXTREMES = [0, 1, -1, 2**7, 2**15, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63)]
_WORDS = [b"-1", b"0", b"3", b"99999999999999999999", b"1e400", b"nan", b"'", b"(", b'"', b"{", b""]


def damaged(data: bytes, other: bytes, rng: Rng) -> bytes:
    """`data` after one or two accidents; `other` is a file that it may be mixed up with."""
    for _ in range(rng.integers(1, 3)):
        accident = _ACCIDENTS[rng.integers(len(_ACCIDENTS))]
        data = bytes(accident(bytearray(data or b"\0"), other, rng))
    return data


def _flip(data: bytearray, other: bytes, rng: Rng) -> bytearray:
    for at in rng.integers(len(data), size=rng.integers(1, 9)):
        data[at] ^= 1 << int(rng.integers(8))
    return data


def _flip_early(data: bytearray, other: bytes, rng: Rng) -> bytearray:
    data[rng.integers(min(len(data), 256))] = rng.integers(256)
    return data


def _cut(data: bytearray, other: bytes, rng: Rng) -> bytearray:
    return data[: rng.integers(len(data))]


def _splice(data: bytearray, other: bytes, rng: Rng) -> bytearray:
    start, end = sorted(rng.integers(len(other) + 1, size=2))
    at, gone = rng.integers(len(data)), rng.integers(64)
    return data[:at] + other[start:end] + data[at + gone :]


def _foreign_header(data: bytearray, other: bytes, rng: Rng) -> bytearray:
    size = int(rng.integers(1, 257))
    return bytearray(other[:size]) + data[size:]


def _length(data: bytearray, other: bytes, rng: Rng) -> bytearray:
    width = int(rng.choice([1, 2, 4, 8]))
    value = _EXTREMES[rng.integers(len(_EXTREMES))] % 256**width
    at = int(rng.integers(min(len(data), 160)))
    data[at : at + width] = value.to_bytes(width, str(rng.choice(["little", "big"])))  # type: ignore
    return data


def _noise(data: bytearray, other: bytes, rng: Rng) -> bytearray:
    start, end = sorted(rng.integers(len(data) + 1, size=2))
    data[start:end] = rng.bytes(end - start)
    return data


def _repeat(data: bytearray, other: bytes, rng: Rng) -> bytearray:
    start, end = sorted(rng.integers(len(data) + 1, size=2))
    return data[:end] + data[start:]


def _word(data: bytearray, other: bytes, rng: Rng) -> bytearray:
    found = list(re.finditer(rb"\d+|[a-z_]+", bytes(data[:8192])))
    if found:
        chosen = found[rng.integers(len(found))]
        data[chosen.start() : chosen.end()] = _WORDS[rng.integers(len(_WORDS))]
    return data


Accident = Callable[[bytearray, bytes, Rng], bytearray]
_ACCIDENTS: list[Accident] = [
    *(_flip, _flip_early, _cut, _splice, _foreign_header, _length, _noise, _repeat, _word)
]


# Files made up from nothing but their format


def made_up(suffix: str, rng: Rng) -> bytes:
    """A file with a header of its format and anything at all in it."""
    return {".npy": _npy, ".csv": _csv, ".png": _png, ".brenier": _safetensors}[suffix](rng)


def _npy(rng: Rng) -> bytes:
    kinds = [
        "<f8",
        ">f4",
        "<f2",
        "|O",
        "|b1",
        "<i8",
        "<U99999999",
        "|V8",
        "<M8[ns]",
        "f",
        "nonsense",
    ]
    sizes = [0, 1, 2, 3, -1, 8, 64, 10**6, 10**12, 2**63, "n", None, 2.0]
    header = {
        "descr": [("a", "<f8")] if rng.random() < 0.05 else str(rng.choice(kinds)),
        "fortran_order": [True, False, 1, None][rng.integers(4)],
        "shape": tuple(sizes[i] for i in rng.integers(len(sizes), size=rng.integers(4))),
    }
    if rng.random() < 0.1:
        del header[str(rng.choice(list(header)))]
    text = repr(header).encode() + b" " * int(rng.integers(64)) + b"\n"
    version = bytes([int(rng.integers(1, 4)), 0])
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + rng.bytes(int(rng.integers(2048)))


def _csv(rng: Rng) -> bytes:
    cells = [
        "1",
        "-0.5",
        "1e999",
        "nan",
        "",
        '"',
        '"1"',
        "x",
        "é",
        "\0",
        "0x1f",
        "1_000",
        "1" * 5000,
        " ",
        "\ufeff",
    ]
    lines = [
        ",".join(cells[i] for i in rng.integers(2 if rng.random() < 0.7 else len(cells), size=2))
        for _ in range(rng.integers(1, 40))
    ]
    end = str(rng.choice(["\n", "\r\n", "\r"]))
    return end.join(lines).encode(str(rng.choice(["utf-8", "utf-16"])))


def _png(rng: Rng) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    sizes = [0, 1, 2, 9, 64, 20_000, 2**31 - 1, 2**32 - 1]
    width, height = (sizes[i] for i in rng.integers(len(sizes), size=2))
    depth, kind = int(rng.choice([1, 2, 4, 8, 16, 7])), int(rng.choice([0, 2, 3, 4, 6, 5]))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(rng.integers(3)))
    body = zlib.compress(rng.bytes(int(rng.integers(1, 4096))))
    palette = chunk(b"PLTE", rng.bytes(int(rng.integers(30)))) if kind == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def _safetensors(rng: Rng) -> bytes:
    values = [
        "null",
        "-1",
        "1e999",
        '"F32"',
        "[0,4]",
        "[4,0]",
        "[]",
        "{}",
        '"' + "x" * 100 + '"',
        "[" * 2000,
    ]
    names = ["__metadata__", "brenier", "a", "dtype", "shape", "data_offsets", ""]

    def value(depth: int) -> str:
        if depth == 0 or rng.random() < 0.4:
            return str(rng.choice(values))
        entries = (f'"{rng.choice(names)}":{value(depth - 1)}' for _ in range(rng.integers(1, 4)))
        return "{" + ",".join(entries) + "}"

    text = value(3).encode()
    claimed = len(text) if rng.random() < 0.7 else int(rng.choice([0, 1, 2**31, 2**62]))
    return struct.pack("<Q", claimed) + text + rng.bytes(int(rng.integers(64)))


# Maps whose checksum is right and whose content is not


def forged(path: Path, out: Path, rng: Rng) -> None:
    """Write the map in `path` to `out` with a part of it changed, and a checksum that says nothing is wrong."""
    content, tensors = read_container(path, "solution")
    for _ in range(rng.integers(1, 3)):
        if tensors and rng.random() < 0.4:
            _change_tensor(tensors, rng)
        else:
            _change_node(content, rng)
    write_container(out, "solution", content, tensors)


def _change_tensor(tensors: dict[str, np.ndarray], rng: Rng) -> None:
    name = list(tensors)[rng.integers(len(tensors))]
    array = tensors[name]
    match rng.integers(7):
        case 0:
            tensors[name] = array.reshape(-1)
        case 1:
            tensors[name] = array[None]
        case 2:
            tensors[name] = array[..., :0] if array.ndim else np.zeros(0, array.dtype)
        case 3:
            tensors[name] = array.astype(str(rng.choice(["float16", "float64", "int32", "bool"])))
        case 4:
            if array.dtype.kind == "f":
                extreme = float(rng.choice([np.nan, np.inf, -1e30, 1e30, 0.0]))
                tensors[name] = np.full_like(array, extreme)
        case 5:
            tensors[name] = np.concatenate([array, array]) if array.ndim else array
        case _:
            del tensors[name]


def _change_node(content: Any, rng: Rng) -> None:
    nodes = list(_nodes(content))
    parent, key = nodes[rng.integers(len(nodes))]
    elsewhere, other = nodes[rng.integers(len(nodes))]
    values: list[Any] = [
        *(None, True, -1, 0, 7, 10**30, 0.5, -1e300, "", "mlp", "../../x", [], {}),
        *({"float": "nan"}, {"float": "x"}, {"tuple": []}, {"array": "nowhere", "as": "jax"}),
        *({"class": "MLP", "fields": {}}, {"class": "os.system", "fields": {}}, {"given": "cost"}),
        copy.deepcopy(elsewhere[other]),
    ]
    if isinstance(parent, dict) and rng.random() < 0.1:
        del parent[key]
    else:
        parent[key] = values[rng.integers(len(values))]


def _nodes(tree: Any) -> Any:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, child in entries:
        yield tree, key
        if isinstance(child, dict | list):
            yield from _nodes(child)
