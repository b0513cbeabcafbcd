"""Energy distance between two samples: the pairwise and the sliced estimator."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.errors import InputError

Statistic = Literal["U", "V"]

_DIFFERENCES_UP_TO = 3


def energy_distance(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    *,
    statistic: Statistic = "U",
    chunk_size: int = 512,
) -> Float[Array, ""]:
    r"""Energy distance `2 E|X-Y| - E|X-X'| - E|Y-Y'|` estimated from all pairs of points."""
    _check(x, y, statistic)
    dtype = jnp.result_type(x, y)
    x, y = x.astype(dtype), y.astype(dtype)
    centre = jax.lax.stop_gradient(0.5 * (jnp.mean(x, axis=0) + jnp.mean(y, axis=0)))
    return _energy(x - centre[None, :], y - centre[None, :], statistic, chunk_size)


def _check(x, y, statistic):
    if statistic not in ("U", "V"):
        raise InputError(f"Expected statistic 'U' or 'V', found {statistic!r}.")
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InputError(
            "Expected two sets of points of shapes (n, d) and (m, d), "
            f"found {x.shape} and {y.shape}."
        )
    least = 2 if statistic == "U" else 1
    if min(x.shape[0], y.shape[0]) < least:
        raise InputError(
            f"Expected at least {least} points on each side for the {statistic}-statistic, "
            f"found {x.shape[0]} and {y.shape[0]}; give more points."
        )


def _squared_distances(a, b):
    """Squared distances with the ones that round-off cannot tell from zero set to zero."""
    if a.shape[1] <= _DIFFERENCES_UP_TO:
        return sum((a[:, k, None] - b[None, :, k]) ** 2 for k in range(a.shape[1]))
    norms = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None, :]
    sq = norms - 2.0 * jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    noise = 8.0 * float(jnp.finfo(a.dtype).eps)
    return jnp.where(sq > noise * norms, sq, 0.0)


def _block(a, b, rows, *, skip_diagonal, row_grad, col_grad):
    """Sum of the distances between two blocks, and its gradients in `a` and `b`."""
    sq = _squared_distances(a, b)
    if skip_diagonal:
        sq = jnp.where(rows[:, None] == jnp.arange(b.shape[0])[None, :], 0.0, sq)
    far = sq > 0.0
    inverse = jnp.where(far, 1.0 / jnp.sqrt(jnp.where(far, sq, 1.0)), 0.0)
    total = jnp.sum(sq * inverse)
    matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    grad_a = a * jnp.sum(inverse, axis=1)[:, None] - matmul(inverse, b) if row_grad else None
    grad_b = b * jnp.sum(inverse, axis=0)[:, None] - matmul(inverse.T, a) if col_grad else None
    return total, grad_a, grad_b


def _sum_of_distances(a, b, chunk, *, same=False, row_grad=False, col_grad=False):
    """`sum_ij |a_i - b_j|` and its gradients, over row blocks of `a`."""
    n, d = a.shape
    rows = jnp.arange(n)
    block = partial(_block, skip_diagonal=same, row_grad=row_grad, col_grad=col_grad)
    if n <= chunk:
        return block(a, b, rows)
    full = n // chunk
    cut = full * chunk

    def step(carry, block_of):
        total, grad_b = carry
        t, ga, gb = block(block_of[0], b, block_of[1])
        return (total + t, grad_b + gb if col_grad else None), ga

    start = (jnp.zeros((), a.dtype), jnp.zeros_like(b) if col_grad else None)
    (total, grad_b), grad_a = jax.lax.scan(
        step, start, (a[:cut].reshape(full, chunk, d), rows[:cut].reshape(full, chunk))
    )
    if row_grad:
        grad_a = grad_a.reshape(cut, d)
    if cut < n:
        t, ga, gb = block(a[cut:], b, rows[cut:])
        total = total + t
        grad_a = jnp.concatenate([grad_a, ga]) if row_grad else None
        grad_b = grad_b + gb if col_grad else None
    return total, grad_a, grad_b


def _value_and_grads(x, y, statistic, chunk, in_x, in_y):
    n, m = x.shape[0], y.shape[0]
    pairs = (lambda k: float(k * (k - 1))) if statistic == "U" else (lambda k: float(k * k))
    xy, gx, gy = _sum_of_distances(x, y, chunk, row_grad=in_x, col_grad=in_y)
    xx, gxx, _ = _sum_of_distances(x, x, chunk, same=True, row_grad=in_x)
    yy, gyy, _ = _sum_of_distances(y, y, chunk, same=True, row_grad=in_y)
    value = 2.0 / (n * m) * xy - xx / pairs(n) - yy / pairs(m)
    grad_x = 2.0 / (n * m) * gx - 2.0 / pairs(n) * gxx if in_x else None
    grad_y = 2.0 / (n * m) * gy - 2.0 / pairs(m) * gyy if in_y else None
    return value, grad_x, grad_y


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _energy(x, y, statistic, chunk):
    return _value_and_grads(x, y, statistic, chunk, False, False)[0]


def _energy_fwd(x, y, statistic, chunk):
    value, grad_x, grad_y = _value_and_grads(
        x.value, y.value, statistic, chunk, x.perturbed, y.perturbed
    )
    return value, (grad_x, grad_y)


def _energy_bwd(statistic, chunk, grads, cotangent):
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return None, None
    return tuple(None if g is None else cotangent * g for g in grads)


_energy.defvjp(_energy_fwd, _energy_bwd, symbolic_zeros=True)


def sliced_energy_distance(x, y, *, key, projections: int = 64, statistic: Statistic = "U"):
    """Energy distance averaged over random directions, scaled to estimate `energy_distance`."""
    _check(x, y, statistic)
    n, m, d = x.shape[0], y.shape[0], x.shape[1]
    directions = jax.random.normal(key, (projections if d > 1 else 1, d), x.dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    scale = math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    centre = jax.lax.stop_gradient(0.5 * (jnp.mean(x, axis=0) + jnp.mean(y, axis=0)))
    points = jnp.concatenate([x, y]) - centre[None, :]

    def one(direction):
        z = jnp.matmul(points, direction, precision=jax.lax.Precision.HIGHEST)
        order = jnp.argsort(jax.lax.stop_gradient(z))
        of_x = (order < n).astype(z.dtype)
        f, g = jnp.cumsum(of_x)[:-1] / n, jnp.cumsum(1.0 - of_x)[:-1] / m
        weights = 2.0 * (f - g) ** 2
        if statistic == "U":
            weights = weights - 2.0 / (n - 1) * f * (1.0 - f) - 2.0 / (m - 1) * g * (1.0 - g)
        return jnp.sum(weights * jnp.diff(z[order]))

    return scale * jnp.mean(jax.lax.map(one, directions, batch_size=8))
