import errno
import json
import os
import pickle
import stat
import struct

import numpy as np
import pytest
import safetensors.numpy

from brenier.errors import FileFormatError, InputError, OutputError
from brenier.files import VERSION, atomic_write, read_container, write_container

CONTENT = {"text": "ü", "floats": [0.1, 5e-324, -0.0, float("inf")], "none": None, "tree": {"n": 1}}
TENSORS = {
    "weights": np.arange(12.0).reshape(3, 4),
    "count": np.asarray(7, np.int32),
    "empty": np.zeros((0, 2), np.float32),
}
UNKNOWN = r"damaged or not a brenier file|Cannot read"


@pytest.fixture
def path(tmp_path):
    write_container(tmp_path / "a.brenier", "solution", CONTENT, TENSORS)
    return tmp_path / "a.brenier"


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class TestAtomicWrite:
    def test_creates_and_replaces(self, tmp_path):
        for data in (b"old", b"", b"new" * 100_000):
            atomic_write(str(tmp_path / "a"), data)
            assert (tmp_path / "a").read_bytes() == data
        assert os.listdir(tmp_path) == ["a"]

    def test_relative_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        atomic_write("a", b"x")
        assert (tmp_path / "a").read_bytes() == b"x"

    @pytest.mark.parametrize("call", ["fsync", "replace"])
    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
    def test_failure_leaves_the_old_file_alone(self, tmp_path, monkeypatch, call, error):
        atomic_write(tmp_path / "a", b"old")

        def fail(*args):
            raise error

        monkeypatch.setattr(os, call, fail)
        expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            atomic_write(tmp_path / "a", b"new")
        assert os.listdir(tmp_path) == ["a"]
        assert (tmp_path / "a").read_bytes() == b"old"

    def test_full_disk(self):
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full")
        # A device cannot take part in a rename, so it is refused before anything is written.
        with pytest.raises(OutputError, match="device"):
            atomic_write("/dev/full", b"x")

    def test_flushes_data_then_name(self, tmp_path, monkeypatch):
        calls = []
        for name in ("fsync", "replace"):
            call = getattr(os, name)
            monkeypatch.setattr(
                os, name, lambda *a, call=call, name=name: (calls.append(name), call(*a))
            )
        atomic_write(tmp_path / "a", b"x")
        assert calls == ["fsync", "replace", "fsync"]

    def test_a_folder_that_cannot_be_flushed_is_no_failure(self, tmp_path, monkeypatch):
        flush = os.fsync

        def fsync(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not supported")
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        atomic_write(tmp_path / "a", b"x")
        assert (tmp_path / "a").read_bytes() == b"x"

    def test_places_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        for name, words in {
            "missing/a": "does not exist",
            "file/a": "does not exist",
            ".": "is a folder",
            "n" * 300: "Cannot write",
        }.items():
            with pytest.raises(OutputError, match=words):
                atomic_write(tmp_path / name, b"x")
        assert os.listdir(tmp_path) == ["file"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_read_only_folder(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="Permission denied"):
            atomic_write(tmp_path / "a", b"x")
        tmp_path.chmod(0o700)

    @pytest.mark.parametrize("name", ["", "a\0b"])
    def test_what_is_no_path(self, name):
        with pytest.raises(InputError, match="Expected a path"):
            atomic_write(name, b"x")

    def test_follows_a_link(self, tmp_path):
        (tmp_path / "real").write_bytes(b"old")
        (tmp_path / "link").symlink_to("real")
        atomic_write(tmp_path / "link", b"new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real").read_bytes() == b"new"

    def test_respects_the_umask(self, tmp_path):
        before = os.umask(0o027)
        try:
            atomic_write(tmp_path / "a", b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


class TestContainer:
    def test_round_trip(self, path):
        content, tensors = read_container(path, "solution")
        assert repr(content) == repr(CONTENT)  # repr, because -0.0 == 0.0
        assert tensors.keys() == TENSORS.keys()
        assert all(same(tensors[name], TENSORS[name]) for name in TENSORS)

    @pytest.mark.parametrize(
        "dtype",
        [
            *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
            *("float16", "float32", "float64"),
        ],
    )
    def test_dtypes(self, tmp_path, dtype):
        values = np.frombuffer(np.random.default_rng(0).bytes(96), np.uint8)
        array = (values % 2).astype(bool) if dtype == "bool" else values.view(dtype)
        write_container(tmp_path / "a", "solution", None, {"x": array, "scalar": array[0, ...]})
        tensors = read_container(tmp_path / "a", "solution")[1]
        assert same(tensors["x"], array)
        assert same(tensors["scalar"], array[0, ...])

    def test_bfloat16(self, tmp_path):
        array = np.asarray([1.0, -2.5]).astype("bfloat16")
        write_container(tmp_path / "a", "solution", None, {"x": array})
        assert same(read_container(tmp_path / "a", "solution")[1]["x"], array)

    def test_memory_layouts(self, tmp_path):
        array = np.arange(24.0).reshape(4, 6)
        views = {"t": array.T, "s": array[::2, ::-3], "b": array.astype(">f8"), "r": array[0, :3]}
        write_container(tmp_path / "a", "solution", None, views)
        tensors = read_container(tmp_path / "a", "solution")[1]
        for name, view in views.items():
            np.testing.assert_array_equal(tensors[name], view)

    @pytest.mark.parametrize("dtype", ["complex128", "O", "U3", "M8[s]"])
    def test_other_dtypes_are_refused(self, tmp_path, dtype):
        with pytest.raises(InputError, match="Cannot store 'x'"):
            write_container(tmp_path / "a", "solution", None, {"x": np.zeros(2, dtype)})
        assert not os.listdir(tmp_path)

    def test_content_that_is_not_json(self, tmp_path):
        with pytest.raises(InputError, match="not JSON"):
            write_container(tmp_path / "a", "solution", {"f": print}, {})

    def test_same_content_same_bytes(self, path):
        before = path.read_bytes()
        write_container(path, "solution", CONTENT, dict(reversed(TENSORS.items())))
        assert path.read_bytes() == before

    def test_every_byte_is_header_or_tensor(self, path):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        assert list(header.pop("__metadata__")) == ["brenier"]
        ends = [entry["data_offsets"][1] for entry in header.values()]
        assert 8 + length + max(ends) == len(data)

    def test_flipped_bytes(self, path):
        data = bytearray(path.read_bytes())
        rng = np.random.default_rng(0)
        some = rng.integers(len(data), size=200)
        for at in [*range(16), *some, len(data) - 1]:
            for flip in (1 << int(rng.integers(8)), int(rng.integers(1, 256))):
                changed = data.copy()
                changed[at] ^= flip
                path.write_bytes(changed)
                try:
                    content, tensors = read_container(path, "solution")
                except FileFormatError:
                    continue
                # Only white space in the header can change without notice.
                assert repr(content) == repr(CONTENT)
                assert all(same(tensors[name], TENSORS[name]) for name in TENSORS)

    def test_cut_short_or_extended(self, path):
        data = path.read_bytes()
        lengths = [*range(0, len(data), 23), *range(len(data) - 9, len(data))]
        for changed in [data[:length] for length in lengths] + [data + b"\0", data + data]:
            path.write_bytes(changed)
            with pytest.raises(FileFormatError, match=UNKNOWN):
                read_container(path, "solution")

    def test_swapped_tensor_is_noticed(self, path):
        """A valid safetensors file with our header and other numbers."""
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata()
        changed = TENSORS | {"weights": TENSORS["weights"] + 1e-12}
        path.write_bytes(safetensors.numpy.save(changed, metadata))
        with pytest.raises(FileFormatError, match="checksum"):
            read_container(path, "solution")

    def test_not_there(self, tmp_path):
        with pytest.raises(FileFormatError, match="does not exist"):
            read_container(tmp_path / "a", "solution")
        with pytest.raises(FileFormatError, match=r"is a folder"):
            read_container(tmp_path, "solution")

    def test_a_pipe_does_not_hang(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileFormatError, match="device"):
            read_container(tmp_path / "pipe", "solution")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, path):
        path.chmod(0)
        with pytest.raises(FileFormatError, match="Cannot read"):
            read_container(path, "solution")

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"x",
            b"a plain text file, longer than eight bytes\n",
            b"\x89PNG\r\n\x1a\n" + bytes(100),
            pickle.dumps({"network": [1.0, 2.0]}),
            b"\xff" * 64,
            safetensors.numpy.save({"x": np.zeros(2)}),
            safetensors.numpy.save({"x": np.zeros(2)}, {"format": "pt"}),
            *(
                safetensors.numpy.save({}, {"brenier": text})
                for text in (
                    "",
                    "[]",
                    "1",
                    "{}",
                    '{"version": "1"}',
                    '{"version": null}',
                    '{"version": 1, "kind": "solution", "content": 0}',
                    '{"version": 1, "kind": [], "content": 0, "sha256": ""}',
                    "[" * 100_000,
                )
            ),
        ],
        ids=range(17),
    )
    def test_foreign(self, tmp_path, data):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(FileFormatError, match=UNKNOWN):
            read_container(tmp_path / "a", "solution")

    def test_tensor_of_a_dtype_numpy_does_not_have(self, path):
        data = path.read_bytes()
        changed = data.replace(b'"dtype":"I32","shape":[]', b'"dtype":"F8_E4M3","shape":[4]')
        changed = (
            struct.pack("<Q", struct.unpack("<Q", data[:8])[0] + len(changed) - len(data))
            + changed[8:]
        )
        path.write_bytes(changed)
        with pytest.raises(FileFormatError, match="damaged or not a brenier file"):
            read_container(path, "solution")

    def test_newer_version(self, path):
        """Its checksum may be computed in a way we do not know, so it is not looked at."""
        header = json.dumps({"version": VERSION + 1, "anything": []})
        path.write_bytes(safetensors.numpy.save(TENSORS, {"brenier": header}))
        with pytest.raises(FileFormatError, match=f"version {VERSION + 1}.*Upgrade brenier"):
            read_container(path, "solution")

    def test_wrong_kind(self, path):
        with pytest.raises(FileFormatError, match=r"is a map.*: expected a checkpoint"):
            read_container(path, "checkpoint")
        write_container(path, "checkpoint", {}, {})
        with pytest.raises(FileFormatError, match=r"is a checkpoint.*: expected a map"):
            read_container(path, "solution")
