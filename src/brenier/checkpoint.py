"""The state of a running fit on disk, so that a killed run continues with the same bits.

A checkpoint is the container of `files` with one tensor for each leaf of the state. It does not
describe the structure: the reader brings a state of the same run, just initialised, to fill in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from brenier.errors import FileFormatError
from brenier.files import PathLike, read_container, write_container

State = TypeVar("State")


def write_checkpoint(path: PathLike, state: Any, header: dict[str, Any]) -> None:
    """Replace the checkpoint at `path`; a kill at any moment leaves the old one or the new one.

    Args:
        path: the file; its folder must exist.
        state: a pytree. Arrays (jax, numpy, typed PRNG keys) and Python numbers are stored; other
            leaves, such as functions, are not.
        header: JSON-able facts that come back as they are, floats with the same bits (tuples as
            lists). Its entry "fingerprint" names the run: a dict of what must not change before
            the run continues.

    Raises:
        InputError: the header is not JSON, or an array has a dtype that cannot be stored.
        OutputError: the file cannot be written.

    Example:
        >>> header = {"fingerprint": {"seed": 0}, "step": 25}
        >>> write_checkpoint("run.ckpt", state, header)  # doctest: +SKIP
    """
    write_container(path, "checkpoint", header, packed(state))


def read_checkpoint(path: PathLike, like: State, fingerprint: Any) -> tuple[State, dict[str, Any]]:
    """Read what `write_checkpoint` wrote: `(state, header)`.

    Args:
        path: the file.
        like: a state of the same run. It gives the structure, the leaves that are not stored and,
            for the others, whether they are jax arrays, numpy arrays, keys or numbers.
        fingerprint: what the header's "fingerprint" must equal.

    Raises:
        FileFormatError: the file is missing, damaged, foreign or no checkpoint, belongs to another
            run, or holds arrays of other shapes or dtypes.

    Example:
        >>> state, header = read_checkpoint("run.ckpt", state, {"seed": 0})  # doctest: +SKIP
    """
    header, tensors = read_container(path, "checkpoint")
    was = header.get("fingerprint") if isinstance(header, dict) else None
    # Compared as JSON gives it back: a tuple in the fingerprint is a list in the file.
    _expect_same(path, "run", was, json.loads(json.dumps(fingerprint)))
    was, now = ({k: _layout(a) for k, a in arrays.items()} for arrays in (tensors, packed(like)))
    _expect_same(path, "state", was, now)
    return unpacked(tensors, like), header


def packed(state: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree that are stored, as arrays by their place."""
    return {name: _raw(leaf) for name, leaf in _leaves(state).items() if _is_stored(leaf)}


def unpacked(tensors: Mapping[str, np.ndarray], like: State) -> State:
    """The pytree that was packed; `like` gives the structure and all that is not stored."""
    restored = [
        _restore(tensors[name], leaf) if _is_stored(leaf) else leaf
        for name, leaf in _leaves(like).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def _expect_same(path: PathLike, what: str, was: Any, now: Any) -> None:
    if was != now:
        raise FileFormatError(
            f"'{path}' is a checkpoint of another {what}: {_difference(was, now)}. Go back to the "
            "settings it was written with, give another path or delete it."
        )


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their place, for example `state[0].network.head`."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {f"state{jax.tree_util.keystr(path)}": leaf for path, leaf in paths}


def _is_stored(leaf: Any) -> bool:
    return eqx.is_array_like(leaf)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _restore(array: np.ndarray, like: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.array(array), impl=jax.random.key_impl(like))
    if isinstance(like, jax.Array):
        return jnp.array(array)  # a copy that jax owns, since the loop donates its state
    if isinstance(like, np.ndarray):
        return array
    return array[()] if isinstance(like, np.generic) else array.item()


def _layout(array: np.ndarray) -> str:
    return f"{array.dtype.name}{list(array.shape)}"


def _difference(was: Any, now: Any, where: str = "") -> str:
    """The first entry in which two nested dicts differ, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in was | now:
            if was.get(key) != now.get(key):
                return _difference(was.get(key), now.get(key), f"{where}.{key}".lstrip("."))
    return f"{where or 'its fingerprint'} was {was!r} and is {now!r} now"
