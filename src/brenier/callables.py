"""Functions that users give: tried without being run, kept in pytrees, and their errors in words."""

from __future__ import annotations

import os
from typing import Any

import equinox as eqx
import jax
import numpy as np


def as_pytree(function: Any) -> Any:
    """A function as a static part of a pytree; an Equinox module has arrays of its own."""
    if isinstance(function, eqx.Module):
        return function
    try:
        hash(function)
    except TypeError:
        return jax.tree_util.Partial(lambda *arguments: function(*arguments))
    return jax.tree_util.Partial(function)


def sketch(function: Any, *arguments: Any) -> Any:
    """What `function` returns for such arguments, unevaluated, or the exception it raises."""
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever stops the trace
        return error


def words(error: BaseException | None) -> str:
    """An exception in a sentence: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}."


def kind(value: Any) -> str:
    """What a value is, for an error message."""
    if isinstance(value, np.ndarray | jax.Array):
        return f"an array of shape {value.shape}, dtype {value.dtype}"
    if isinstance(value, str | os.PathLike):
        return f"the path '{os.fspath(value)}'"
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def coordinates(point: Any) -> str:
    """A point for an error message, shortened where it has many coordinates."""
    return np.array2string(np.asarray(point), precision=6, threshold=6, separator=", ")
