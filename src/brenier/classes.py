"""Samples with class labels: each class of the source goes to the same class of the target.

A side is the even mixture of its classes, whatever their numbers of points are, and every class is a problem of
its own for the one potential of all. So classes may have other shares on one side than on the other.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from brenier.errors import BrenierWarning, InputError
from brenier.samplers import EVERY, ArraySampler, Encode, Sampler, as_sampler
from brenier.typing import ArrayLike, Key, Point

UNLABELLED = -1
"""The label of a point without one, as in POT."""

_SHOWN = 5  # labels named in a message


class ClassSampler(Sampler):
    """As many samples of each class, one class after the other.

    Attributes:
        classes: the labels, in the order of the blocks.
    """

    def __init__(self, parts: dict[Any, ArraySampler]):
        self.classes = tuple(parts)
        self._parts = list(parts.values())
        self._repeated: dict[tuple[int, int], ArraySampler] = {}
        self.dim, self.dtype = self._parts[0].dim, self._parts[0].dtype
        self.size = sum(len(part.array) for part in self._parts)

    @property
    def _smallest(self) -> int:
        return min(len(part.array) for part in self._parts)

    @property
    def evenly(self) -> int:
        return len(self._parts) * self._smallest

    def batch(self, n: int) -> int:
        largest = max(len(part.array) for part in self._parts)
        return len(self._parts) * min(n // len(self._parts), largest)

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
        share = self.batch(n) // len(self._parts)
        blocks = [
            self._part(k, share).draw(
                jax.random.fold_in(key, k), start, count, share, stratified=stratified
            )
            for k in range(len(self._parts))
        ]
        join = np if isinstance(blocks[0], np.ndarray) else jnp
        return join.concatenate(blocks, axis=1)[:, rows]

    def _part(self, k: int, share: int) -> ArraySampler:
        """The sampler of a class; its points are repeated where it has fewer than its share."""
        part = self._parts[k]
        if len(part.array) >= share:
            return part
        if (k, share) not in self._repeated:
            self._repeated[k, share] = ArraySampler(np.resize(part.array, (share, self.dim)))
        return self._repeated[k, share]

    def blocks(self, n: int) -> np.ndarray:
        share = min(n // len(self._parts), self._smallest)
        return np.concatenate([part.pool(share, 0) for part in self._parts])

    def pool(self, n: int, seed: int) -> np.ndarray:
        return ArraySampler(np.concatenate([part.array for part in self._parts])).pool(n, seed)

    def split(self, n: int, seed: int) -> tuple[ClassSampler, np.ndarray]:
        share = n // len(self._parts)
        rest, held_out = zip(*(part.split(share, seed) for part in self._parts), strict=True)
        return ClassSampler(dict(zip(self.classes, rest, strict=True))), np.concatenate(held_out)

    def encoded(self, encode: Encode, dtype: Any) -> ClassSampler:
        parts = (part.encoded(encode, dtype) for part in self._parts)
        return ClassSampler(dict(zip(self.classes, parts, strict=True)))

    def digest(self) -> str:
        return " ".join(
            f"{label!r}:{part.digest()}"
            for label, part in zip(self.classes, self._parts, strict=True)
        )


def with_classes(
    source: Any, source_labels: Any, target: Any, target_labels: Any
) -> tuple[Sampler, Sampler]:
    """Samplers of both sides by class.

    Args:
        source, target: arrays (n, d) and (m, d).
        source_labels, target_labels: a label for each row; see `check_labels`. Points with the label -1 have none and
            are left out, with a warning: nothing says where they may go.

    Raises:
        InputError: labels for one side only, or for samples that are no arrays; a class on one side only, or with fewer
            than two points on a side; no labelled points.
    """
    if source_labels is None or target_labels is None:
        missing = "source" if source_labels is None else "target"
        raise InputError(
            f"Expected class labels for both sides or for none, found none for the {missing}; a class is "
            "matched with the class of the same label."
        )
    parts = [
        _parts(as_sampler(data, name), labels, name)
        for data, labels, name in (
            (source, source_labels, "source"),
            (target, target_labels, "target"),
        )
    ]
    lone = parts[0].keys() ^ parts[1].keys()
    if lone:
        which = _listed(sorted(lone, key=_order))
        raise InputError(
            f"Expected every class on both sides, found {which} on one side only; give its points the label of the "
            f"class they belong with, or {UNLABELLED} to leave them out."
        )
    # A class on both sides at least: neither is empty.
    order = sorted(parts[0], key=_order)
    source_sampler, target_sampler = (ClassSampler({k: side[k] for k in order}) for side in parts)
    return source_sampler, target_sampler


def nearest_class(
    points: Float[Array, "*n d"], samples: Float[Array, "kr d"], classes: int
) -> Int[Array, "*n"]:
    """The class of the sample that is nearest to each point, of samples in blocks of equal length, one a class."""
    blocks = jnp.reshape(samples, (classes, -1, samples.shape[1]))
    halves = 0.5 * jnp.sum(blocks**2, axis=2)

    def nearest(point: Point) -> Int[Array, ""]:
        # The least of each class first: XLA on a CPU is slow at finding where a minimum is.
        products = jnp.matmul(blocks, point, precision="highest")
        return jnp.argmin(jnp.min(halves - products, axis=1))

    return jnp.vectorize(nearest, signature="(d)->()")(points)


def check_labels(labels: Any, n: int, name: str = "labels") -> np.ndarray:
    """Labels as Python ints and strings in an array of objects, shape (n,).

    Integers, whole floats (1.0 is the class 1), booleans (0 and 1) and strings are accepted, in any sequence.

    Raises:
        InputError: another shape or number of labels; fractions, NaN, None and other objects.

    Example:
        >>> check_labels([1.0, 2.0, -1.0], 3).tolist()
        [1, 2, -1]
        >>> check_labels(["cat", "dog"], 2).tolist()
        ['cat', 'dog']
    """
    array = np.asarray(labels)
    if array.shape != (n,):
        raise InputError(
            f"Expected {name} with one label for each of the {n} points, shape ({n},), found shape {array.shape}."
        )
    found = np.empty(n, object)
    for i, label in enumerate(array.tolist()):
        whole = isinstance(label, int | float) and float(label).is_integer()
        if not whole and not isinstance(label, str):
            raise InputError(
                f"Expected {name} to hold whole numbers or strings, found {label!r} in row {i}; "
                f"use {UNLABELLED} for points without a label."
            )
        found[i] = label if isinstance(label, str) else int(label)
    return found


def _parts(sampler: Sampler, labels: Any, name: str) -> dict[Any, ArraySampler]:
    if not isinstance(sampler, ArraySampler):
        raise InputError(
            f"Expected {name} as an array where there are class labels, found a file or a function; load it first."
        )
    found = check_labels(labels, len(sampler.array), f"{name}_labels")
    without = int(np.sum(found == UNLABELLED))
    if without == len(found):
        raise InputError(
            f"Expected {name}_labels to name a class, found {UNLABELLED} (no label) alone; leave the labels of both "
            "sides out to fit without classes."
        )
    if without:
        warnings.warn(
            f"{without} of {len(found)} points of {name} have no label ({UNLABELLED}) and are left out of the fit.",
            BrenierWarning,
            stacklevel=5,
        )
    rows: dict[Any, list[int]] = {}
    for i, label in enumerate(found):
        if label != UNLABELLED:
            rows.setdefault(label, []).append(i)
    few = [label for label, members in rows.items() if len(members) < 2]
    if few:
        raise InputError(
            f"Expected at least 2 points of every class, found 1 of {_listed(few)} in {name}."
        )
    return {label: ArraySampler(sampler.array[members]) for label, members in rows.items()}


def _order(label: Any) -> tuple[bool, Any]:
    """Numbers before strings."""
    return isinstance(label, str), label


def _listed(labels: list[Any]) -> str:
    shown = ", ".join(map(repr, labels[:_SHOWN]))
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return f"{'class' if len(labels) == 1 else 'the classes'} {shown}{more}"
