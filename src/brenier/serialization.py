"""Save and load a `Solution`: one safetensors file, no pickle, no import path from a file.

The tree of objects is JSON in the header; its arrays are tensors named by their place in the tree:

    null, true, 1, 0.5, "text", [...]     stand for themselves; floats keep their bits,
    {"float": "nan"}                      is a float that JSON has no word for,
    {"tuple": [...]}                      a tuple,
    {"dict": {...}}, {"metadata": {...}}  a dict with string keys, a `Metadata`,
    {"array": name, "as": "jax"}          a tensor; "numpy" or "scalar" where it belongs to numpy,
    {"class": name, "fields": {...}}      one of `CLASSES`; its fields are set, no code of it runs,
    {"given": "cost"}, {"given": "drift"} a cost or a drift of the user's own, which is given to `load` again.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from brenier.coordinates import ClassCoordinates, Frame, PairCoordinates
from brenier.costs import (
    CoordinatewisePower,
    Cosh,
    Cost,
    FramedCost,
    Mahalanobis,
    Power,
    PseudoHuber,
    Quadratic,
    Relativistic,
    SquaredNorm,
    fingerprint,
    unframed,
)
from brenier.drifts import DriftFunction, FramedDrift, probed
from brenier.errors import BrenierWarning, FileFormatError, InputError
from brenier.files import PathLike, read_container, write_container
from brenier.flow import FlowTransport
from brenier.gaussian import GaussianPotential
from brenier.hopf_lax import EndSlices, HopfLaxPotential
from brenier.networks import (
    MLP,
    Comoving,
    ConvPotential,
    DenseQuadratic,
    FiLM,
    ResidualMap,
    ResNet,
    SumPotential,
    UNet,
)
from brenier.networks._images import Block, Convolution
from brenier.solution import STATUS, Metadata, Solution
from brenier.transport import CharacteristicTransport, MapTransport, Transport

CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Block,
        CharacteristicTransport,
        ClassCoordinates,
        Comoving,
        Convolution,
        ConvPotential,
        CoordinatewisePower,
        Cosh,
        DenseQuadratic,
        EndSlices,
        FiLM,
        FlowTransport,
        Frame,
        FramedCost,
        FramedDrift,
        GaussianPotential,
        HopfLaxPotential,
        MLP,
        Mahalanobis,
        MapTransport,
        PairCoordinates,
        Power,
        PseudoHuber,
        Quadratic,
        Relativistic,
        ResNet,
        ResidualMap,
        Solution,
        SquaredNorm,
        SumPotential,
        UNet,
    )
}
"""Every class a file may name. Their names and fields are the format; see `files.VERSION`."""


def save(path: PathLike, solution: Solution) -> None:
    """Write a solution to one file, from which `load` gives it back bit for bit.

    The write is atomic: whatever happens, `path` holds the old file or the complete new one.

    Args:
        path: the file to create or replace, `map.brenier` by convention; its folder must exist.
        solution: what `fit` returned.

    Raises:
        InputError: the solution holds something only your program can rebuild, such as a network
            of your own. (A cost of your own, and a drift, are left out, and asked for by `load`.)
        OutputError: the file cannot be written.

    Example:
        >>> brenier.save("map.brenier", solution)  # doctest: +SKIP
    """
    if not isinstance(solution, Solution):
        raise InputError(f"Expected a brenier.Solution to save, found {type(solution).__name__}.")
    tensors: dict[str, np.ndarray] = {}
    tree = _encode(solution, (), tensors)
    _check(solution)  # what `load` would refuse is never written
    write_container(path, "solution", tree, tensors)


class _Missing(InputError):
    """A file leaves its cost or its drift to the caller."""


def load(path: PathLike, *, cost: Cost | None = None, drift: Any = None) -> Solution:
    """Read a solution that `save` wrote, bit for bit.

    Arrays come back as what they were, jax arrays on the default device. Where jax runs without
    x64, jax arrays saved in float64 are rounded to float32, with a warning: jax would round them
    at their first use. numpy arrays always keep their dtype.

    Args:
        path: the file.
        cost: the cost of the fit where it was one of your own, a `brenier.costs.ConvexCost` or a
            subclass of `Cost`: a file holds no code. Not used otherwise.
        drift: the base drift of the fit, where there was one, likewise.

    Raises:
        FileFormatError: the file is missing, damaged, foreign, of another kind or from a newer
            version.
        InputError: the map was fitted with a cost of your own or a drift, and none or another one was given.

    Example:
        >>> solution = brenier.load("map.brenier")  # doctest: +SKIP
        >>> y = solution.transport.forward(x)  # doctest: +SKIP
    """
    tree, tensors = read_container(path, "solution")
    given = {"cost": cost, "drift": None if drift is None else DriftFunction(drift)}
    try:
        solution = _decode(tree, tensors, given)
        _check(solution)
    except _Missing as error:
        raise InputError(
            f"'{path}' holds a map for a {error} of your own, which is code and not in the file; "
            f"pass the {error} it was fitted with: brenier.load(path, {error}=...)."
        ) from error
    # The checksum was right, so other hands made this file, and it can fail in any way at all.
    except Exception as error:
        reason = error if isinstance(error, InputError) else "Its parts do not fit together."
        raise FileFormatError(
            f"'{path}' does not describe a map that this version of brenier knows. {reason} "
            "Upgrade brenier if a newer one wrote it."
        ) from error
    _check_given(path, solution, given)
    loaded: dict[str, np.ndarray] = {}
    _encode(solution, (), loaded)
    # Other hands may have given arrays other names.
    if any(array.dtype != tensors.get(name, array).dtype for name, array in loaded.items()):
        warnings.warn(
            f"'{path}' holds a map in float64, now rounded to float32; to keep all its digits set "
            "JAX_ENABLE_X64=1 before Python starts.",
            BrenierWarning,
            stacklevel=2,
        )
    return solution


def _encode(value: Any, path: tuple[str, ...], tensors: dict[str, np.ndarray]) -> Any:
    """The JSON for `value`, which sits at `path`; its arrays are added to `tensors`."""

    def children(items: dict[str, Any]) -> dict[str, Any]:
        return {name: _encode(child, (*path, name), tensors) for name, child in items.items()}

    cls = type(value)
    if value is None or cls in (bool, int, str):
        return value
    if cls is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if cls in (list, tuple):
        items = children({str(i): child for i, child in enumerate(value)}).values()
        return list(items) if cls is list else {"tuple": list(items)}
    if cls in (dict, Metadata) and all(type(key) is str for key in value):
        return {"dict" if cls is dict else "metadata": children(value)}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        name = ".".join(path)
        while name in tensors:  # a key with a dot in it can spell the path of another array
            name += "'"
        tensors[name] = np.asarray(value)
        owner = "scalar" if isinstance(value, np.generic) else "numpy"
        return {"array": name, "as": "jax" if isinstance(value, jax.Array) else owner}
    if CLASSES.get(cls.__name__) is cls:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"class": cls.__name__, "fields": children(fields)}
    if isinstance(value, Cost):
        return {"given": "cost"}
    if isinstance(value, DriftFunction):
        return {"given": "drift"}
    raise InputError(
        f"Cannot save '{'.'.join(path)}', a {cls.__module__}.{cls.__qualname__}: expected arrays, "
        f"plain values or one of {', '.join(CLASSES)}."
    )


def _decode(node: Any, tensors: dict[str, np.ndarray], given: dict[str, Any]) -> Any:
    """The value that `_encode` turned into `node`, with what is `given` where it had none to write."""
    if isinstance(node, list):
        return [_decode(child, tensors, given) for child in node]
    if not isinstance(node, dict):
        return node
    match node:
        case {"float": str(word)}:
            return float(word)
        case {"tuple": list(items)}:
            return tuple(_decode(items, tensors, given))
        case {"dict": dict(items)}:
            return {key: _decode(child, tensors, given) for key, child in items.items()}
        case {"metadata": dict(items)}:
            return Metadata({key: _decode(child, tensors, given) for key, child in items.items()})
        case {"array": str(name), "as": "jax"}:
            return jnp.array(tensors[name])
        case {"array": str(name), "as": "numpy"}:
            return tensors[name]
        case {"array": str(name), "as": "scalar"}:
            return tensors[name][()]
        case {"class": str(name), "fields": dict(fields)}:
            return _build(name, {k: _decode(child, tensors, given) for k, child in fields.items()})
        case {"given": "cost" | "drift" as name}:
            if given[name] is None:
                raise _Missing(name)
            return given[name]
    raise InputError(f"It holds an unknown object with the entries {sorted(node)}.")


def _build(name: str, fields: dict[str, Any]) -> Any:
    """An instance with these fields; `__init__` draws new networks and cannot put old ones back."""
    if name not in CLASSES:
        raise InputError(f"It names the class '{name}', not one of {', '.join(CLASSES)}.")
    expected = sorted(field.name for field in dataclasses.fields(CLASSES[name]))
    if sorted(fields) != expected:
        raise InputError(f"It gives {name} the fields {sorted(fields)} instead of {expected}.")
    instance = object.__new__(CLASSES[name])
    for key, value in fields.items():
        object.__setattr__(instance, key, value)
    return instance


def _check_given(path: PathLike, solution: Solution, given: dict[str, Any]) -> None:
    """Raise unless the cost and the drift that were given are those of the fit, where they were needed."""
    transport, info = solution.transport, solution.info
    cost, drift = given["cost"], given["drift"]
    used = getattr(transport, "cost", None)
    if cost is not None and used is not None and unframed(used) is cost:
        found, expected = fingerprint(cost, transport.dim), info.get("cost_at_probes")
        if expected is not None and not np.allclose(found, expected, rtol=1e-3):
            raise InputError(
                f"Expected the cost that '{path}' was fitted with, found another {type(cost).__name__}: it differs "
                "at the velocities that were kept to compare them."
            )
    if drift is not None and getattr(transport, "drift", None) is not None:
        found, expected = probed(drift, transport.dim), info.get("drift_at_probes")
        if expected is not None and not np.allclose(found, expected, rtol=1e-3, atol=1e-6):
            raise InputError(
                f"Expected the drift that '{path}' was fitted with, found another one: it differs at the points that "
                "were kept to compare them."
            )


def _check(solution: Any) -> None:
    """Raise unless `solution` is whole. Tracing its maps, without computing, tries every array."""
    if not (
        isinstance(solution, Solution)
        and isinstance(solution.transport, Transport)
        and isinstance(solution.history, dict)
        and all(isinstance(column, np.ndarray) for column in solution.history.values())
        and solution.status in STATUS
        and isinstance(solution.message, str)
        and isinstance(solution.scores, Metadata)
        and isinstance(solution.info, Metadata)
    ):
        raise InputError("Its parts are not those of a Solution.")
    transport = solution.transport
    floats = [leaf for leaf in jax.tree.leaves(transport) if eqx.is_inexact_array(leaf)]
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in floats):
        raise InputError("Not all numbers of its maps are finite.")
    dtype = jnp.result_type(*floats)
    points = jax.ShapeDtypeStruct((2, transport.dim), dtype)
    point, time = jax.ShapeDtypeStruct(points.shape[1:], dtype), jax.ShapeDtypeStruct((), dtype)
    shapes = [
        jax.eval_shape(transport.forward, points).shape,
        jax.eval_shape(
            transport.inverse if transport.invertible else transport.forward, points
        ).shape,
        jax.eval_shape(transport.potential, time, point).shape,
    ]
    if shapes != [points.shape, points.shape, ()]:
        raise InputError(f"Its maps turn points {points.shape} into {shapes}.")
