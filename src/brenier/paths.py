"""Improving whole paths: a damped Newton method for their action, with a state cost that is only evaluated.

A path has nodes `x_0, …, x_k` at equal distances `τ` from its start to time 1. With `g` what its end is worth, it costs

    J = Σ_j |x_{j+1} - x_j|²/2τ + τ Σ_{j ≥ 1} w_j U(x_j) - g(x_k),    w_k = ½, otherwise 1,

and the minimiser is the optimal way on from `x_0`. With a base drift `f` only what the control adds is paid for:
`x_{j+1} - x_j - τ f` takes the place of `x_{j+1} - x_j`, with `f` in the middle between both nodes.

`U` may jump, so it is seen through a Gaussian blur, whose value and slope are averages of `U` itself at points nearby
(Stein's identity): `∇U_h(x) = E[U(x + h e) e] / h`.

Newton's system is block tridiagonal and solved by elimination from the end, as in linear-quadratic control. In place
of the curvature of `U_h` stands `∇U ∇Uᵀ / U`, exact where `U_h` decays exponentially, as it does before a wall, and
never negative; of the curvature of `g` only what makes an end firm is kept; that of `f` is left out, and in many
dimensions its slope as well.

All paths of a bundle are improved at once: nodes (k + 1, n, d), start times (n,).

References:
    Jacobson and Mayne, *Differential Dynamic Programming*, 1970 (elimination from the end).
    Nesterov and Spokoiny, *Random Gradient-Free Minimization of Convex Functions*, 2017 (the blur).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from brenier.typing import Point, Points, Scalar

Prices = Callable[[Float[Array, "nodes n d"]], tuple[Float[Array, "k n"], Float[Array, "k n d"]]]
"""The state cost of paths: values and slopes at the k = nodes - 1 nodes after the first."""

Worth = Callable[[Points], Float[Array, "n"]]
"""`g` at points (n, d)."""

Field = Callable[[Scalar, Point], Point]
"""`f(t, x)`, at one point."""

_FULL_BLOCKS = 16  # dimension up to which a node has a matrix of its own; beyond, a number
_SMALLEST = 1e-6  # price below which there is nothing to divide by
# No step is below half of Newton's: where prices are noisy, small ones drown in the noise and are refused.
_DAMPING = (1e-2, 1.0)
_EASED, _RAISED = 0.4, 3.0
FIRST_DAMPING = 0.1
_UNROLL = 4  # nodes in a turn of the elimination: on small blocks the turn itself takes as long as the work in it


class Improved(NamedTuple):
    """Paths after a step, the damping of the next one, and which were changed."""

    paths: Float[Array, "nodes n d"]
    damping: Float[Array, "n"]
    accepted: Bool[Array, "n"]


def blurred(
    state_cost: Callable[[Points], Float[Array, "n"]],
    paths: Float[Array, "nodes n d"],
    probes: Float[Array, "p d"],
    width: Scalar,
    shares: Float[Array, "p"],
    mirrors: Float[Array, "k n d"] | None = None,
) -> tuple[Float[Array, "k n"], Float[Array, "k n d"]]:
    """Value and slope of the blurred state cost along paths, at the k = nodes - 1 nodes after the first.

    A node stands for its halves of the intervals before and after it, the second one for all of the first interval. At
    nodes alone a path would pay nothing for a wall that it jumps over; were as much priced before a node as after it,
    nothing for one in what is left of a long interval beside a short one. With the same probes at all nodes the errors
    of all of them are alike, and add up.

    Args:
        state_cost: of points (n, d) at once.
        paths: nodes.
        probes: standard normal, in pairs `±e`.
        width: `h`.
        shares: in [-½, ½], where each probe is, as a share of the interval before the node or after it; the same for
            both of a pair.
        mirrors: unit vectors, random ones; each node sees the probes reflected along its own.

    Example:
        >>> probes = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
        >>> value, slope = blurred(lambda x: x[:, 0], jnp.ones((2, 1, 2)), probes, 0.5, jnp.zeros(2))
        >>> slope.tolist()
        [[[1.0, 0.0]]]
    """
    before = jnp.diff(paths, axis=0)
    after = jnp.concatenate([before[1:], jnp.zeros_like(before[:1])])
    before = before.at[0].multiply(2.0)
    # The paths come first, so that several devices can share them when all points are in a row.
    at, before, after = (jnp.swapaxes(a, 0, 1)[:, :, None] for a in (paths[1:], before, after))
    shares = shares[None, None, :, None]
    at = at + jnp.minimum(shares, 0.0) * before + jnp.maximum(shares, 0.0) * after
    at = at + width * probes[None, None]
    if mirrors is not None:
        across = jnp.swapaxes(mirrors, 0, 1)
        twice = 2.0 * jnp.einsum("nkd,pd->nkp", across, probes)
        at = at - width * twice[..., None] * across[:, :, None]
    found = state_cost(at.reshape(-1, at.shape[-1])).reshape(-1, len(probes))
    # Mean and slope in one product: with two consumers XLA evaluates the state cost anew in each of theirs.
    both = jnp.concatenate([jnp.ones_like(probes[:, :1]), probes / width], axis=1) / len(probes)
    value, *slope = jnp.moveaxis((found @ both).reshape(*at.shape[:2], -1), (0, 1, 2), (2, 1, 0))
    slope = jnp.stack(slope, axis=-1)
    if mirrors is not None:
        slope = slope - 2.0 * jnp.sum(slope * mirrors, axis=-1, keepdims=True) * mirrors
    return value, slope


def action(
    paths: Float[Array, "nodes n d"],
    starts: Float[Array, "n"],
    prices: Float[Array, "k n"],
    drift: Field | None = None,
) -> Float[Array, "n"]:
    """What paths cost, their ends' worth left out; `prices` at the nodes after the first."""
    kinetic, state = running(paths, starts, prices, drift)
    return jnp.sum(kinetic + state, axis=0)


def running(
    paths: Float[Array, "nodes n d"],
    starts: Float[Array, "n"],
    prices: Float[Array, "k n"],
    drift: Field | None = None,
) -> tuple[Float[Array, "k n"], Float[Array, "k n"]]:
    """The kinetic and the state cost of each interval."""
    tau = interval(paths, starts)[None]
    steps = controlled(paths, starts, drift)
    return 0.5 * jnp.sum(steps**2, -1) / tau, tau * _weights(paths) * prices


def controlled(
    paths: Float[Array, "nodes n d"], starts: Float[Array, "n"], drift: Field | None = None
) -> Float[Array, "k n d"]:
    """How far each interval leads beyond where the drift alone would: `τ v`.

    Example:
        >>> still = jnp.zeros((3, 1, 2))
        >>> controlled(still, jnp.zeros(1), lambda t, x: jnp.array([1.0, 0.0]))[:, 0].tolist()
        [[-0.5, 0.0], [-0.5, 0.0]]
    """
    steps = jnp.diff(paths, axis=0)
    if drift is None:
        return steps
    tau = interval(paths, starts)[None, :, None]
    return steps - tau * jax.vmap(jax.vmap(drift))(*_middles(paths, starts))


def _middles(
    paths: Float[Array, "nodes n d"], starts: Float[Array, "n"]
) -> tuple[Float[Array, "k n"], Float[Array, "k n d"]]:
    """Times and places in the middle of each interval."""
    half = jnp.arange(len(paths) - 1, dtype=paths.dtype)[:, None] + 0.5
    return starts[None] + half * interval(paths, starts)[None], 0.5 * (paths[1:] + paths[:-1])


def interval(paths: Float[Array, "nodes n d"], starts: Float[Array, "n"]) -> Float[Array, "n"]:
    """`τ` of each path."""
    return (1.0 - starts) / (len(paths) - 1)


def _weights(paths: Float[Array, "nodes n d"]) -> Float[Array, "k 1"]:
    return jnp.ones((len(paths) - 1, 1), paths.dtype).at[-1].set(0.5)


def improve(
    paths: Float[Array, "nodes n d"],
    damping: Float[Array, "n"],
    starts: Float[Array, "n"],
    prices: Prices,
    worth: Worth,
    tolerance: float = 3e-3,
    drift: Field | None = None,
) -> Improved:
    """One damped Newton step of each path, taken where it does not raise its action by more than `tolerance`.

    Args:
        paths: nodes; the first ones stay.
        damping: by which share the kinetic curvature is raised. (A multiple of the identity, as Levenberg and Marquardt
            have it, would hold back the long waves of a path most, which lead its end to where it should be.)
        starts: times of the first nodes.
        prices: one function for the whole step, so that what is compared is comparable.
        worth: `g`, twice differentiable.
        tolerance: of the comparison.
        drift: `f`, differentiable.

    Example:
        >>> still = jnp.zeros((5, 1, 2))
        >>> free = lambda x: (jnp.zeros(x[1:, :, 0].shape), jnp.zeros(x[1:].shape))
        >>> worth = lambda x: x[:, 0]
        >>> improve(still, jnp.full(1, 1e-6), jnp.zeros(1), free, worth).paths[-1, 0].round(3).tolist()
        [1.0, 0.0]
    """
    tau, weights = interval(paths, starts), _weights(paths)
    values, slopes = prices(paths)
    pull, bending = jax.linearize(jax.grad(lambda ends: jnp.sum(worth(ends))), paths[-1])
    before = action(paths, starts, values, drift) - worth(paths[-1])

    # The system times τ: second differences, and what the state cost and the worth add to them.
    step = controlled(paths, starts, drift)
    ahead = jnp.concatenate([step[1:], (tau[:, None] * pull)[None]])
    share = tau[None] ** 2 * weights
    gradient = step - ahead + share[..., None] * slopes
    if drift is not None:
        moved_by = lambda paths: jnp.diff(paths, axis=0) - controlled(paths, starts, drift)  # noqa: E731
        gradient = gradient - jax.vjp(moved_by, paths)[1](step)[0][1:]
    if paths.shape[-1] <= _FULL_BLOCKS:
        outer = slopes[..., :, None] * slopes[..., None, :]
    else:
        outer = jnp.sum(slopes**2, -1)[..., None, None]
    other = (share / jnp.maximum(values, _SMALLEST))[..., None, None] * outer
    other = other.at[-1].add(tau[:, None, None] * _curvature(bending, gradient[-1]))
    # Instead of raising what is kinetic, the rest is lowered by as much.
    ease = 1.0 / (1.0 + damping)
    eye = jnp.eye(other.shape[-1], dtype=paths.dtype)
    kinetic = jnp.full((len(step), 1, 1, 1), 2.0, paths.dtype).at[-1].set(1.0)
    blocks, across = kinetic * eye[None, None] + ease[None, :, None, None] * other, None
    if drift is not None and paths.shape[-1] <= _FULL_BLOCKS:
        more, across = _carried(paths, starts, drift)
        blocks = blocks + more
    moved = paths.at[1:].add(_solved(blocks, across, -ease[None, :, None] * gradient))

    after = action(moved, starts, prices(moved)[0], drift) - worth(moved[-1])
    accepted = after <= before + tolerance
    low, high = _DAMPING
    return Improved(
        jnp.where(accepted[None, :, None], moved, paths),
        jnp.where(
            accepted, jnp.maximum(_EASED * damping, low), jnp.minimum(_RAISED * damping, high)
        ),
        accepted,
    )


def _curvature(
    bending: Callable[[Points], Points], along: Float[Array, "n d"]
) -> Float[Array, "n b b"]:
    """The curvature of `-g` at ends where it is positive; beyond d = 16 a number, that of one direction.

    `bending` is the second derivative of `g`, as a linear function of directions (n, d).
    """
    d = along.shape[-1]
    if d > _FULL_BLOCKS:
        square = jnp.maximum(jnp.sum(along**2, axis=-1), 1e-30)
        found = -jnp.sum(along * bending(along), axis=-1) / square
        return jnp.maximum(found, 0.0)[:, None, None]
    eye = jnp.eye(d, dtype=along.dtype)
    found = jax.vmap(lambda axis: bending(jnp.broadcast_to(axis, along.shape)), out_axes=-1)(eye)
    sizes, axes = jnp.linalg.eigh(-0.5 * (found + jnp.swapaxes(found, -1, -2)))
    return (axes * jnp.maximum(sizes, 0.0)[:, None, :]) @ jnp.swapaxes(axes, -1, -2)


def _carried(
    paths: Float[Array, "nodes n d"], starts: Float[Array, "n"], drift: Field
) -> tuple[Float[Array, "k n d d"], Float[Array, "k n d d"]]:
    """What a drift changes in Newton's system: to be added to the diagonal blocks, and `C` for `_solved`.

    With `F = τ ∇f / 2` on an interval, its end counts by `I - F` and its start by `-(I + F)`.
    """
    slopes = jax.vmap(jax.vmap(jax.jacfwd(drift, argnums=1)))(*_middles(paths, starts))
    slopes = 0.5 * interval(paths, starts)[None, :, None, None] * slopes
    mirrored = jnp.swapaxes(slopes, -1, -2)
    both, square = slopes + mirrored, mirrored @ slopes
    more = (square - both).at[:-1].add((square + both)[1:])
    across = jnp.eye(paths.shape[-1], dtype=paths.dtype)[None, None] + slopes - mirrored - square
    return more, jnp.concatenate([across[1:], jnp.zeros_like(across[:1])])


def _solved(
    blocks: Float[Array, "k n b b"],
    across: Float[Array, "k n b b"] | None,
    right: Float[Array, "k n d"],
) -> Float[Array, "k n d"]:
    """The solution of symmetric block tridiagonal systems with the blocks `-C` below the diagonal, `C = I` if none."""

    def eliminate(carry, row):  # of the node after: S⁻¹ and the right-hand side
        inverse, rest = carry
        block, own, link = row
        seen, rest = inverse, _apply(inverse, rest)
        if link is not None:
            back = jnp.swapaxes(link, -1, -2)
            seen, rest = back @ inverse @ link, _apply(back, rest)
        inverse, rest = _inverse(block - seen), own + rest
        return (inverse, rest), (inverse, rest, link)

    nothing = jnp.zeros_like(blocks[0]), jnp.zeros_like(right[0])
    rows = blocks, right, across
    _, eliminated = jax.lax.scan(eliminate, nothing, rows, reverse=True, unroll=_UNROLL)

    def substitute(before, row):
        inverse, rest, link = row
        found = _apply(inverse, rest + before)
        return found if link is None else _apply(link, found), found

    return jax.lax.scan(substitute, nothing[1], eliminated, unroll=_UNROLL)[1]


def _apply(matrix: Float[Array, "n b b"], x: Points) -> Points:
    # One sum in place of a batch of small products, each of which XLA calls a library for.
    return jnp.sum(matrix * x[:, None, :], axis=-1) if matrix.shape[-1] > 1 else matrix[..., 0] * x


def _inverse(matrix: Float[Array, "n b b"]) -> Float[Array, "n b b"]:
    """In closed form where that is short: a batch of LAPACK calls is slow."""
    if matrix.shape[-1] == 1:
        return 1.0 / matrix
    if matrix.shape[-1] == 2:
        a, b, c, d = (matrix[:, i, j] for i in range(2) for j in range(2))
        rows = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2)
        return rows / (a * d - b * c)[:, None, None]
    return jnp.linalg.inv(matrix)


def at_times(
    paths: Float[Array, "nodes n d"],
    starts: Float[Array, "n"],
    chosen: Int[Array, "m"],
    times: Float[Array, "l m"],
) -> Float[Array, "l m d"]:
    """Where the `chosen` paths are at `times`, between their nodes on straight lines, before their start at it."""
    k = len(paths) - 1
    chosen = jnp.broadcast_to(chosen, times.shape)
    begun = starts[chosen]
    place = k * jnp.clip((times - begun) / (1.0 - begun), 0.0, 1.0)
    node = jnp.clip(jnp.floor(place).astype(int), 0, k - 1)
    share = (place - node)[..., None]
    return (1.0 - share) * paths[node, chosen] + share * paths[node + 1, chosen]
