"""Energy distance between two samples, over all pairs of points or over random projections.

Both estimators are losses and scores. Their gradient costs little more than their value: it is
computed in the same pass, only for the sample that is being differentiated, and kept until the
backward pass asks for it. They have reverse-mode derivatives only (`jax.grad`, not `jax.jvp`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from brenier.devices import split, whole
from brenier.errors import InputError
from brenier.typing import ArrayLike, Key, Points, Scalar

Statistic = Literal["U", "V"]
"""Whether the distance of a point to itself is left out of the means ("U") or not ("V")."""

_DIFFERENCES_UP_TO = 4
"""Largest dimension where `|a - b|` is computed from differences: as fast there as a matrix
product, and free of its cancellation, which is worst when close pairs are common."""

# The fastest of the sizes measured at 2000 and 10 000 points, 2 to 64 dimensions, two CPU cores.
_DISTANCES_AT_ONCE = 2**20
_FEWEST_ROWS = 128
_PROJECTIONS_AT_ONCE = 8

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

_Estimate = tuple[Array, tuple[Any, Any]]
"""A value and its derivatives in the two samples, None for one that is not wanted."""


def energy_distance(
    x: ArrayLike, y: ArrayLike, *, statistic: Statistic = "U", chunk_size: int | None = None
) -> Scalar:
    r"""Energy distance `2 E|X-Y| - E|X-X'| - E|Y-Y'|`, estimated from all pairs of points.

    It is the squared maximum mean discrepancy of the kernel `-|a-b|`: never negative, and zero only
    between equal laws. The U-statistic

        2/(nm) Σ_ij |x_i-y_j| - 1/(n(n-1)) Σ_{i≠j} |x_i-x_j| - 1/(m(m-1)) Σ_{i≠j} |y_i-y_j|

    is unbiased and may be negative. The V-statistic divides by `n²` and `m²`: it is the energy
    distance of the two empirical measures, at least zero up to round-off, and biased upwards.

    Time is O((n+m)² d), memory O(max(n, m) (chunk_size + d)); in one dimension the points are
    sorted instead, in O((n+m) log(n+m)). Points that coincide, or that round-off cannot tell apart,
    are at distance zero and pull on each other with zero force.

    Args:
        x: samples of the first law, shape `(n, d)`. At least two points for the U-statistic.
        y: samples of the second, shape `(m, d)`.
        statistic: "U" or "V".
        chunk_size: rows of the distance matrix held in memory at a time, by default as many as
            stay in cache. The result does not depend on it, up to round-off.

    Returns:
        The estimate, in the units of the points; float64 if one of the samples is, else float32.

    Raises:
        InputError: too few points, shapes that do not match, or an unknown statistic.

    Example:
        >>> x = jnp.array([[0.0], [1.0]])
        >>> y = jnp.array([[2.0], [4.0]])
        >>> float(energy_distance(x, y))  # 2 (2 + 4 + 1 + 3)/4 - 1 - 2
        2.0
        >>> float(energy_distance(x, y, statistic="V"))  # 2 (2 + 4 + 1 + 3)/4 - 1/2 - 1
        3.5

    Reference:
        Székely & Rizzo 2013, "Energy statistics: A class of statistics based on distances" (energy
        distance); Sejdinovic et al. 2013, "Equivalence of distance-based and RKHS-based statistics
        in hypothesis testing" (as a maximum mean discrepancy).
    """
    x, y = _samples(x, y, statistic)
    if chunk_size is None:
        chunk_size = max(_FEWEST_ROWS, _DISTANCES_AT_ONCE // max(len(x), len(y)))
    if chunk_size < 1:
        raise InputError(f"Expected chunk_size of at least 1, found {chunk_size}.")
    if x.shape[1] == 1:
        return _estimate(_setting(_sliced, statistic=statistic), x, y, jnp.ones_like(x[:1]))
    return _estimate(_setting(_pairwise, statistic=statistic, chunk=chunk_size), x, y)


def classwise_energy_distance(
    x: ArrayLike, y: ArrayLike, classes: int, *, statistic: Statistic = "U"
) -> Float[Array, "classes"]:
    """The energy distance of each class of `x` to the same class of `y`.

    Args:
        x, y: shape (n, d) and (m, d), in `classes` blocks of equal length, one class after the other.
        classes: their number; one compares all points.
        statistic: "U" or "V".

    Example:
        >>> x = jnp.array([[0.0], [1.0], [5.0], [6.0]])
        >>> classwise_energy_distance(x, x[::-1], 1).item() < 0.0  # the U-statistic of a match
        True
        >>> [round(e, 4) for e in classwise_energy_distance(x, x[::-1], 2).tolist()]
        [8.0, 8.0]

    Reference:
        Park, Liu, Zhou and Osher 2026, "Neural Hamilton-Jacobi Characteristic Flows for Optimal Transport", the
        class-conditional loss.
    """
    if classes == 1:  # the chunks of one long pair of samples are larger
        return energy_distance(x, y, statistic=statistic)[None]
    x, y = (jnp.asarray(side).reshape(classes, -1, side.shape[1]) for side in (x, y))
    return jax.vmap(partial(energy_distance, statistic=statistic))(x, y)


def sliced_energy_distance(
    x: ArrayLike,
    y: ArrayLike,
    *,
    key: Key,
    projections: int = 64,
    statistic: Statistic = "U",
) -> Scalar:
    r"""Energy distance estimated by sorting the points along random directions.

    For a uniform direction θ, `E|θ·z| = c_d |z|` with `c_d = Γ(d/2) / (√π Γ((d+1)/2))`. So the
    energy distance of the projections, divided by `c_d` and averaged over directions, is an
    unbiased estimate of `energy_distance(x, y, statistic=statistic)`. On a line its derivatives are
    differences of ranks, which sorting gives. The directions come in orthonormal frames, which
    leaves much less noise than independent ones.

    Time is O(projections (n+m)(d + log(n+m))), memory O((n+m)(d + 8)).

    Args:
        x: samples of the first law, shape `(n, d)`. At least two points for the U-statistic.
        y: samples of the second, shape `(m, d)`.
        key: random key of the directions.
        projections: number of directions. In one dimension a single one is exact and all there is.
        statistic: "U" or "V".

    Returns:
        The estimate, in the units of the points; float64 if one of the samples is, else float32.

    Raises:
        InputError: too few points or projections, shapes that do not match, an unknown statistic.

    Example:
        >>> x = jnp.array([[0.0], [1.0]])
        >>> y = jnp.array([[2.0], [4.0]])
        >>> float(sliced_energy_distance(x, y, key=jax.random.key(0)))
        2.0

    Reference:
        Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures" (projections and
        sorting, there for the Wasserstein distance).
    """
    x, y = _samples(x, y, statistic)
    if projections < 1:
        raise InputError(f"Expected at least 1 projection, found {projections}.")
    d = x.shape[1]
    directions = _random_directions(key, projections if d > 1 else 1, d, x.dtype)
    return _estimate(_setting(_sliced, statistic=statistic), x, y, directions)


def _samples(x: ArrayLike, y: ArrayLike, statistic: Statistic) -> tuple[Array, Array]:
    """Both samples as floating-point arrays of one type, or an error that says what is wrong."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] == 0:
        raise InputError(
            "Expected two sets of points of the same dimension, shapes (n, d) and (m, d), "
            f"found {x.shape} and {y.shape}."
        )
    if statistic not in ("U", "V"):
        raise InputError(f"Expected statistic 'U' or 'V', found {statistic!r}.")
    fewest = 2 if statistic == "U" else 1
    if min(len(x), len(y)) < fewest:
        raise InputError(
            f"The {statistic}-statistic needs at least {fewest} points in each sample, "
            f"found {len(x)} and {len(y)}; pass more points."
        )
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(x.dtype, y.dtype, jnp.float32)
    return x.astype(dtype), y.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(estimator: Callable[..., _Estimate], x: Array, y: Array, *constants: Array):
    """The value of `estimator`; its gradients, which come with the value, are the derivative."""
    return estimator(x, y, *constants, wanted=(False, False))[0]


def _forward(estimator, x, y, *constants):
    # Symbolic zeros tell which sample is being differentiated: in training only one of them is.
    value, gradients = estimator(
        x.value, y.value, *(c.value for c in constants), wanted=(x.perturbed, y.perturbed)
    )
    return value, (*gradients, *(None for _ in constants))


def _backward(estimator, gradients, cotangent):
    del estimator
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return tuple(None for _ in gradients)
    return tuple(None if g is None else cotangent * g for g in gradients)


_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)

# Outside of a user's `jit`, one compiled program and one function object for each setting.
_estimate = jax.jit(_differentiable, static_argnums=0)
_setting = lru_cache(partial)


def _pairwise(
    x: Array, y: Array, *, wanted: tuple[bool, bool], statistic: Statistic, chunk: int
) -> _Estimate:
    n, m = len(x), len(y)
    left_out = 1 if statistic == "U" else 0
    a, b = _centred(x, y)
    across, across_gradients = _sum_of_distances(a, b, chunk, wanted)
    value, gradients = 2.0 / (n * m) * across, []
    for points, size, gradient in zip((x, y), (n, m), across_gradients, strict=True):
        weight = 1.0 / max(size * (size - left_out), 1)
        (centred,) = _centred(points)
        within, own = _sum_of_own_distances(centred, chunk, gradient is not None)
        if gradient is not None:
            gradient = 2.0 / (n * m) * gradient - 2.0 * weight * own
        value = value - weight * within
        gradients.append(gradient)
    return value, tuple(gradients)


def _centred(*samples: Array) -> tuple[Array, ...]:
    """The samples around their middle, where distances in floating point are most accurate."""
    # Of a power of two of the points the mean is a sum times an exact number. With another, XLA may
    # fuse the product into the subtraction here and there, and one point gets two positions.
    firsts = [sample[: 2 ** (len(sample).bit_length() - 1)] for sample in samples]
    means = [jnp.mean(first, axis=0, keepdims=True) for first in firsts]
    middle = means[0] if len(means) == 1 else 0.5 * (means[0] + means[1])
    return tuple(sample - middle for sample in samples)


def _sum_of_distances(
    a: Points, b: Float[Array, "m d"], chunk: int, wanted: tuple[bool, bool], *, own: bool = False
) -> _Estimate:
    """`Σ_ij |a_i - b_j|` and its derivatives in `a` and in `b`, by blocks of rows.

    The derivative in `a_i` is `Σ_j (a_i - b_j) w_ij = a_i Σ_j w_ij - Σ_j w_ij b_j` with the inverse
    distances `w`, so it is one more matrix product. With `own`, `a` and `b` are the same points and
    the diagonal is left out.
    """
    (n, d), in_a, in_b = a.shape, *wanted
    blocks = -(-n // chunk)
    rows = -(-n // blocks)
    padded = jnp.pad(a, ((0, blocks * rows - n), (0, 0))).reshape(blocks, rows, d)
    index = jnp.arange(blocks * rows).reshape(blocks, rows)
    # On several devices: every one has a share of the rows of each block, and all columns.
    padded, index, b = split(padded, axis=1), split(index, axis=1), whole(b)
    columns = b.T

    def step(carry, block):
        (total, gradient_b), (block, index) = carry, block
        counted = (index < n)[:, None]
        if own:
            counted = counted & (index[:, None] != jnp.arange(n)[None, :])
        distances = _distances(block, columns, counted)
        total = total + jnp.sum(jnp.sum(distances, axis=1))
        if not (in_a or in_b):
            return (total, None), None
        inverse = jnp.where(distances > 0, 1.0 / jnp.where(distances > 0, distances, 1.0), 0.0)
        gradient_a: Any = None
        if in_a:
            sums = jnp.sum(inverse, axis=1, keepdims=True)
            gradient_a = block * sums - _matmul(inverse, b)
        if in_b:
            sums = jnp.sum(inverse, axis=0, keepdims=True)
            gradient_b = gradient_b + columns * sums - _matmul(block.T, inverse)
        return (total, gradient_b), gradient_a

    start = jnp.zeros((), a.dtype), jnp.zeros_like(columns) if in_b else None
    sums: Any = jax.lax.scan(step, start, (padded, index))
    (total, gradient_b), gradient_a = sums
    gradient_a = gradient_a.reshape(blocks * rows, d)[:n] if in_a else None
    return total, (gradient_a, gradient_b.T if in_b else None)


def _sum_of_own_distances(a: Points, chunk: int, wanted: bool) -> tuple[Array, Any]:
    """`Σ_ij |a_i - a_j|` and its derivative, visiting the pairs across the two halves once."""
    if len(a) <= chunk:
        total, (gradient, _) = _sum_of_distances(a, a, chunk, (wanted, False), own=True)
        return total, gradient
    halves = jnp.array_split(a, 2)
    across, gradients = _sum_of_distances(halves[0], halves[1], chunk, (wanted, wanted))
    total, parts = 2.0 * across, []
    for half, gradient in zip(halves, gradients, strict=True):
        within, (own, _) = _sum_of_distances(half, half, chunk, (wanted, False), own=True)
        total = total + within
        parts += [gradient + own] if wanted else []
    return total, jnp.concatenate(parts) if wanted else None


def _distances(
    a: Points, columns: Float[Array, "d m"], counted: Bool[Array, "#n #m"]
) -> Float[Array, "n m"]:
    """Distances between the points `a` and the columns; zero for the pairs that are not counted."""
    if len(columns) <= _DIFFERENCES_UP_TO:
        squared = jnp.zeros((), a.dtype)
        for k in range(len(columns)):
            squared = squared + (a[:, k, None] - columns[None, k, :]) ** 2
        counted = counted & (squared > 0.0)
    else:
        norms = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(columns * columns, axis=0)[None, :]
        squared = norms - 2.0 * _matmul(a, columns)
        # twice the round-off seen between equal points (5 to 3072 dimensions, with offsets)
        noise = (8.0 + math.sqrt(len(columns))) * float(jnp.finfo(a.dtype).eps)
        counted = counted & (squared > noise * norms)
    # The root is taken where it is smooth, so that derivatives of every order stay finite.
    return jnp.where(counted, jnp.sqrt(jnp.where(counted, squared, 1.0)), 0.0)


def _random_directions(key: Key, number: int, d: int, dtype) -> Float[Array, "number d"]:
    """Directions in random orthonormal frames: each one uniform, together more even than chance."""
    size = min(d, number)
    gaussian = jax.random.normal(key, (-(-number // size), d, size), dtype)
    frames = jnp.swapaxes(jnp.linalg.qr(gaussian)[0], 1, 2)
    return frames.reshape(-1, d)[:number]


def _sliced(
    x: Array, y: Array, directions: Points, *, wanted: tuple[bool, bool], statistic: Statistic
) -> _Estimate:
    del wanted  # the gradient is a by-product of the value
    (number, d), n, m = directions.shape, len(x), len(y)
    left_out = 1 if statistic == "U" else 0
    x, y = _centred(x, y)

    def derivatives(lines):
        a, b = lines
        sorted_a, sorted_b = _sorted(a), _sorted(b)
        within_a = _mean_sign(a, sorted_a) * (n / max(n - left_out, 1))
        within_b = _mean_sign(b, sorted_b) * (m / max(m - left_out, 1))
        return (
            2.0 / n * (_mean_sign(a, sorted_b) - within_a),
            2.0 / m * (_mean_sign(b, sorted_a) - within_b),
        )

    def step(carry, group):
        value, gradient_x, gradient_y = carry
        a, b = _matmul(group, x.T), _matmul(group, y.T)
        slope_a, slope_b = jax.lax.map(derivatives, (a, b))
        # |.| is homogeneous: by Euler's theorem the energy distance is z . dE/dz
        return (
            value + jnp.sum(a * slope_a) + jnp.sum(b * slope_b),
            gradient_x + _matmul(slope_a.T, group),
            gradient_y + _matmul(slope_b.T, group),
        ), None

    group_size = min(number, _PROJECTIONS_AT_ONCE)
    # zero directions fill the last group: all points coincide there and nothing is added
    padded = jnp.pad(directions, ((0, -number % group_size), (0, 0)))
    start = jnp.zeros((), x.dtype), jnp.zeros_like(x), jnp.zeros_like(y)
    sums, _ = jax.lax.scan(step, start, padded.reshape(-1, group_size, d))
    scale = math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2)) / number
    value, gradient_x, gradient_y = (scale * total for total in sums)
    return value, (gradient_x, gradient_y)


def _mean_sign(z: Float[Array, "n"], ordered: Float[Array, "m"]) -> Float[Array, "n"]:
    """`mean_j sign(z_i - s_j)` for sorted `s`, zero for the `s_j` equal to `z_i`."""
    below = jnp.searchsorted(ordered, z, side="left")
    up_to = jnp.searchsorted(ordered, z, side="right")
    return (below + up_to - len(ordered)).astype(z.dtype) / len(ordered)


def _sorted(z: Float[Array, "n"]) -> Float[Array, "n"]:
    """Sort by the bits as integers, which XLA does several times faster than as floats on CPU."""
    integer = jnp.int64 if z.dtype.itemsize == 8 else jnp.int32
    bits = jax.lax.bitcast_convert_type(z, integer)

    def flip(bits):
        """Map bits of floats to integers of the same order, and back."""
        return bits ^ ((bits >> (8 * z.dtype.itemsize - 1)) & jnp.iinfo(integer).max)

    return jax.lax.bitcast_convert_type(flip(jnp.sort(flip(bits))), z.dtype)
