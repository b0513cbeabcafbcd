from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jaxtyping import Array, Shaped

_TOGETHER = 2**18  # entries of the largest array, for all to be drawn at that size


def normals(keys: Shaped[Array, "n ..."], shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Standard normals, for each of `keys` (n,) an array of a shape of its own.

    A draw for every layer takes XLA seconds to compile, more than all of them take to run. A draw's first entries are
    the same however many follow, so small ones are one draw of the largest size.

    Example:
        >>> [a.shape for a in normals(jax.random.split(jax.random.key(0)), [(2, 3), (3,)])]
        [(2, 3), (3,)]
    """
    sizes = [math.prod(shape) for shape in shapes]
    if max(sizes) > _TOGETHER:
        return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    drawn = jax.vmap(lambda key: jax.random.normal(key, (max(sizes),)))(keys)
    drawn = zip(drawn, sizes, shapes, strict=True)
    return [row[:size].reshape(shape) for row, size, shape in drawn]
