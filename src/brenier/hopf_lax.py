"""The Hopf–Lax formula, `u(t, z) = min_x [u(0, x) + t L((z - x) / t)]`, and the solver for its minimiser.

The minimiser is the foot of the characteristic through `(t, z)`: the `x` with `x + t ∇H(∇u(0, x)) = z`. At t = 1 the
formula is the conjugate of the Kantorovich dual, `E_ν u(1, ·) - E_μ u(0, ·)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from brenier.coordinates import ClassCoordinates, PairCoordinates
from brenier.costs import Cost
from brenier.hamiltonian import backward_map, forward_map
from brenier.typing import Point, Points, Potential, Scalar

T = TypeVar("T")
Columns = Float[Array, "d n"]

_MEMORY = 3  # steps
_RELAXATION = 0.5  # share of the misfit in a step
_FIRST = 0.2  # the same where no step before tells how much the map stretches
_DAMPING = 1e-2
_NEWTON_STEPS = 40
_RESTING = 0.8  # tolerances from its target within which a foot rests; half as much beyond, steps are whole
_FOOT_ITERATIONS = 60
_HALVINGS = 16
_FIRST_LENGTH = 0.05
_APART = 100.0  # tolerances from its foot at which a point is another: where a map contracts, feet are that uncertain
_LONGEST_STEP = 2.0  # in units of the spread of the points that are to be reached


class Feet(NamedTuple):
    """What `solve_feet` found.

    Attributes:
        points: the feet, shape (n, d).
        values: `u(0, x) + c(x, y)` at them, shape (n,).
        misses: `|T(x) - y|` at them, shape (n,).
        iterations: evaluations of the map beyond the first, in the first stage.
    """

    points: Float[Array, "n d"]
    values: Float[Array, "n"]
    misses: Float[Array, "n"]
    iterations: Int[Array, ""]


def solve_feet(
    u: Potential,
    cost: Cost,
    y: Points,
    start: Points,
    *,
    tolerance: Scalar | float,
    enough: Sequence[float] = (1.0,),
    max_iterations: int = 100,
    spread: float | None = None,
) -> Feet:
    """The points `x` with `T(x) = x + ∇H(∇u(0, x)) = y`, for a batch at once.

    A descent of `u(0, x) + c(x, y)`, whose minimiser over `x` is the foot: the misfit `y - T(x)` is a descent
    direction for every convex cost. Steps are Anderson's, with a memory of three; one that would raise the value is
    not taken, and the next one is a short step along the misfit. So a point that starts below every other valley
    ends in its own, never on a ridge or a saddle between two, where `T(x) = y` holds as well. Points that are
    already there rest, at no gain in time, but so that others do not decide where they end.

    Args:
        u: potential; only its slice at t = 0 is used.
        y: where the characteristics shall arrive, shape (n, d).
        start: first guesses, shape (n, d).
        tolerance: on `|T(x) - y|`.
        enough: share of the points within tolerance at which the iteration ends. Each of several, in rising order, ends
            a stage, and the next one goes on with the rest alone: those that are farthest from their targets.
        max_iterations: at which a stage ends in any case.
        spread: root mean square distance of all there is from its mean; that of `y` by default.

    References:
        Walker and Ni, *Anderson acceleration for fixed-point iterations*, SIAM J. Numer. Anal. 49 (2011).
    """
    longest = _LONGEST_STEP * (
        jnp.sqrt(jnp.sum(jnp.var(y, axis=0))) if spread is None else jnp.asarray(spread, y.dtype)
    )
    rounding, tiny = 8 * float(jnp.finfo(y.dtype).eps), float(jnp.finfo(y.dtype).tiny)
    resting = _RESTING * tolerance
    # A column a point: sums over the few coordinates of many points are fast along the points alone.
    y, start = y.T, start.T

    def evaluate(x: Columns, y: Columns) -> tuple[Float[Array, "n"], Columns, Float[Array, "n"]]:
        def one(x: Point, y: Point) -> tuple[Scalar, Point, Scalar]:
            value, p = jax.value_and_grad(lambda x: u(jnp.zeros((), x.dtype), x))(x)
            paid = cost.static(x, y)
            # The sum is known to the rounding of its terms, which may be far larger than it is.
            doubt = rounding * (1.0 + jnp.abs(value) + jnp.abs(paid))
            return value + paid, y - x - cost.grad_hamiltonian(p), doubt

        return jax.vmap(one, in_axes=1, out_axes=(0, 1, 0))(x, y)

    def iterate(carry, y):
        k, (x, value, misfit, doubt), memory, radius = carry
        remembers = _norm(memory[0][0]) > 0.0
        share = jnp.where(remembers, _RELAXATION, _FIRST)[None]
        plain = share * misfit
        weights = _least_squares([df for _, df in memory], misfit)
        step = plain - sum(
            w[None] * (dx + share * df) for w, (dx, df) in zip(weights, memory, strict=True)
        )
        downhill = jnp.sum(step * misfit, axis=0) > 0.0
        step = _choose(downhill, step, plain)
        # Were all to move until the last has arrived, or each by a whole step or none, then round-off
        # of misfits near the tolerance would decide where feet are.
        haste = jnp.clip((_norm(misfit) - resting) / (0.5 * resting + tiny), 0.0, 1.0)
        step = step * (haste * jnp.minimum(1.0, radius / (_norm(step) + 1e-9)))[None]
        new = (x + step, *evaluate(x + step, y))
        first_look = k < 0
        taken = first_look | (new[1] <= value + doubt)
        # A refused step of Anderson's says that the memory misleads; only a refused plain one was too long.
        was_plain = ~(remembers & downhill)
        shorter = jnp.where(was_plain, 0.25 * _norm(step), radius)
        radius = jnp.where(taken, jnp.minimum(2.0 * radius, longest), shorter)
        here = _choose(taken, new, (x, value, misfit, doubt))
        longer = ((step, new[2] - misfit), *memory[:-1])
        forgotten = jax.tree.map(jnp.zeros_like, memory)
        memory = _choose(taken & ~first_look, longer, forgotten)
        return k + 1, here, memory, radius

    n = y.shape[1]
    radius = jnp.full(n, longest)
    # The first round goes nowhere and evaluates the start: the potential is compiled once.
    unknown = jnp.full(n, jnp.inf, y.dtype)
    nowhere = (start, unknown, jnp.zeros_like(start), unknown)
    nothing = ((jnp.zeros_like(start), jnp.zeros_like(start)),) * _MEMORY
    columns = nowhere, nothing, radius

    def stage(k: int, share: float, columns: Any, y: Columns) -> tuple[Int[Array, ""], Any]:
        def unfinished(carry):
            k, (_, _, misfit, _), *_ = carry
            arrived = jnp.mean(_norm(misfit) <= tolerance) >= share
            return (k < 0) | ((k < max_iterations) & ~arrived)

        start = (jnp.full((), k, jnp.int32), *columns)
        done, *columns = jax.lax.while_loop(unfinished, lambda carry: iterate(carry, y), start)
        return done, tuple(columns)

    # What is known of a point as one column: to take and put back a dozen arrays would take longer than a stage.
    unravel = ravel_pytree(jax.tree.map(lambda a: a[..., 0], columns))[1]
    pack = jax.vmap(lambda column: ravel_pytree(column)[0], -1, -1)
    unpack = jax.vmap(unravel, -1, -1)

    iterations, columns = stage(-1, enough[0], columns, y)
    for before, share in pairwise(enough):
        left = int(np.ceil((1.0 - before) * n))
        _, late = jax.lax.top_k(_norm(columns[0][2]), left)
        share_of_late = 1.0 - (1.0 - share) * n / left
        known = pack(columns)
        _, moved = stage(0, share_of_late, unpack(known[:, late]), y[:, late])
        columns = unpack(known.at[:, late].set(pack(moved)))
    x, values, misfit, _ = columns[0]
    return Feet(x.T, values, _norm(misfit), iterations)


def _solved(linear: Callable[[Point], Point], y: Point) -> Point:
    return jnp.linalg.solve(jax.jacobian(linear)(y), y)


def _newton(misfit: Callable[[Point], Point], x: Point) -> Point:
    """A root by Newton's method; a step that does not help is halved."""
    tolerance = 100 * float(jnp.finfo(x.dtype).eps)

    def unfinished(carry):
        k, x, f, _ = carry
        return (k < _NEWTON_STEPS) & (jnp.sum(f * f) > (tolerance * (1.0 + jnp.sqrt(x @ x))) ** 2)

    def iterate(carry):
        k, x, f, length = carry
        step = jnp.linalg.solve(jax.jacobian(misfit)(x), f)
        moved = x - length * step
        new = misfit(moved)
        helps = jnp.sum(new * new) < jnp.sum(f * f)
        x, f = jnp.where(helps, moved, x), jnp.where(helps, new, f)
        return k + 1, x, f, jnp.where(helps, jnp.ones_like(length), 0.5 * length)

    first = (jnp.zeros((), jnp.int32), x, misfit(x), jnp.ones((), x.dtype))
    return jax.lax.while_loop(unfinished, iterate, first)[1]


def _least_squares(vectors: Sequence[Columns], f: Columns) -> list[Float[Array, "n"]]:
    """Per column, the weights of the sum of vectors that is closest to `f`, damped; zero where a vector is."""
    tiny = float(jnp.finfo(f.dtype).tiny) ** 0.5
    numbers = range(len(vectors))
    gram = [[jnp.sum(a * b, axis=0) for b in vectors] for a in vectors]
    for i in numbers:
        gram[i][i] = gram[i][i] * (1.0 + _DAMPING) + tiny
    found = [jnp.sum(a * f, axis=0) for a in vectors]
    # Elimination by hand: a library's solver of many systems as small as these takes longer than a network.
    for i in numbers:
        for j in numbers[i + 1 :]:
            share = gram[j][i] / gram[i][i]
            gram[j] = [b - share * a for a, b in zip(gram[i], gram[j], strict=True)]
            found[j] = found[j] - share * found[i]
    for i in reversed(numbers):
        known = sum(gram[i][j] * found[j] for j in numbers[i + 1 :])
        found[i] = (found[i] - known) / gram[i][i]
    return found


def _choose(which: Bool[Array, "n"], yes: T, no: T) -> T:
    """Column by column."""
    return jax.tree.map(
        lambda a, b: jnp.where(which if a.ndim == 1 else which[None], a, b), yes, no
    )


def _norm(x: Columns) -> Float[Array, "n"]:
    return jnp.sqrt(jnp.sum(x * x, axis=0))


class EndSlices(eqx.Module):
    """Both ends of a potential as networks of their own, each used at its own time only: what the dual trains."""

    start: Potential
    end: Potential
    level: Float[Array, ""]
    """Added to `end`: gradients alone leave it open."""


class OneEnd(eqx.Module):
    """A `HopfLaxPotential` at t = 0 or at t = 1 alone: nothing to solve, little to compile."""

    potential: HopfLaxPotential
    last: bool = eqx.field(static=True)

    def __call__(self, t: Scalar, x: Point) -> Scalar:
        del t
        return self.potential.end(x) if self.last else self.potential.start(x)


class HopfLaxPotential(eqx.Module):
    """`u(t, z)` from its slices at both ends; in between, by the Hopf–Lax formula from the one at t = 0.

    At 0 < t < 1 every value costs the solution of `x + t ∇H(∇u(0, x)) = z`, in exchange for a potential that solves
    the Hamilton–Jacobi equation to the solver's tolerance wherever characteristics do not cross. It is differentiable
    any number of times: the solution by the implicit function theorem.

    Attributes:
        slices: of the potential at both ends, in pair coordinates where there are some.
        cost: the cost of a velocity.
        coordinates: the pair coordinates the slices were trained in, or `None`.
    """

    slices: EndSlices
    cost: Cost
    coordinates: PairCoordinates | ClassCoordinates | None = None

    def start(self, x: Point) -> Scalar:
        """`u(0, x)`."""
        if self.coordinates is None:
            return self.slices.start(jnp.zeros((), x.dtype), x)
        return self.coordinates.start_slice(self.slices.start, x)

    def end(self, y: Point) -> Scalar:
        """`u(1, y)`."""

        def end(t: Scalar, y: Point) -> Scalar:
            return self.slices.end(t, y) + self.slices.level

        if self.coordinates is None:
            return end(jnp.ones((), y.dtype), y)
        return self.coordinates.end_slice(end, y)

    def foot(self, t: Scalar, z: Point) -> Point:
        """Where the characteristic through `(t, z)` was at time 0."""
        p = (1.0 - t) * jax.grad(self.start)(z) + t * jax.grad(self.end)(z)
        guess = jax.lax.stop_gradient(z - t * self.cost.grad_hamiltonian(p))

        def misfit(x: Point) -> Point:
            return x + t * self.cost.grad_hamiltonian(jax.grad(self.start)(x)) - z

        return jax.lax.custom_root(misfit, guess, _newton, _solved)

    def dual_terms(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"]
    ) -> tuple[Float[Array, "n"], Float[Array, "m"]]:
        """`-u(0, x)` and `min_x [u(0, x) + c(x, y)]`, whose means add up to the dual value of the slice at t = 0.

        The minimum is the lower of two: near the foot that the slice at t = 1 proposes, and over the points `x`.
        """
        start, end, pair = self.slices.start, self.slices.end, self.coordinates
        inner_y = y if pair is None else pair.encode_target(y)
        proposed = jax.vmap(lambda y: backward_map(end, self.cost, y))(inner_y)
        tolerance = 1e-3 * jnp.sqrt(jnp.sum(jnp.var(inner_y, axis=0)))
        feet = solve_feet(
            start,
            self.cost,
            inner_y,
            proposed,
            tolerance=tolerance,
            enough=(0.99,),
            max_iterations=15,
        ).points
        if pair is not None:
            feet = pair.decode_source(feet)
        values = jax.vmap(self.start)
        at_x, at_feet = values(x), values(feet) + jax.vmap(self.cost.static)(feet, y)
        # Whatever the solver did, the value stays below that of the discrete problem between the same points.
        discrete = jnp.min(at_x[:, None] + self.cost.pairwise(x, y), axis=0)
        return -at_x, jnp.minimum(at_feet, discrete)

    def __call__(self, t: Scalar, z: Point) -> Scalar:
        def between(t: Scalar, z: Point) -> Scalar:
            x = self.foot(t, z)
            return self.start(x) + t * self.cost.lagrangian((z - x) / t)

        which = jnp.where(t <= 0.0, 0, jnp.where(t >= 1.0, 1, 2))
        # The untaken branches see t = ½, so that under vmap, where all are evaluated, none divides by zero.
        inside = jnp.where(which == 2, t, 0.5)
        return jax.lax.switch(
            which,
            (lambda t, z: self.start(z), lambda t, z: self.end(z), between),
            inside,
            z,
        )


class Envelope(eqx.Module):
    """The c-concave envelope of `u(0, ·)`, the greatest potential below it with the same feet, as maps of one point.

    Feet are minimisers, hence cyclically monotone whatever `u` is: no two of the lines that end in them cross.
    Where the characteristic from `x` ends at a point whose foot is not `x`, no optimal line starts at `x`: the
    slice is above its envelope there, and only the latter leads on.

    Attributes:
        start, end: the slices, in pair coordinates where there are some; the one at t = 1 only proposes feet.
        cost: the cost of a velocity.
        coordinates: the pair coordinates, or `None`. Otherwise the spread of either side is about `√d`.
        tolerance: on `|T(S(y)) - y|`, in units of that spread.

    References:
        Villani 2009, "Optimal Transport: Old and New", definition 5.2, proposition 5.8 and theorem 5.10 (iii).
        Amos, *On amortizing convex conjugates for optimal transport*, ICLR 2023: a guess, then a solver.
    """

    start: Potential
    end: Potential
    cost: Cost
    coordinates: PairCoordinates | ClassCoordinates | None
    tolerance: float = eqx.field(static=True)

    def foot(self, y: Point) -> Point:
        """`S(y) = argmin_x u(0, x) + c(x, y)` (d,). Differentiable, by the implicit function theorem."""
        if self.coordinates is None:
            return self._foot(y)
        return self.coordinates.decode_source(self._foot(self.coordinates.encode_target(y)))

    def missed(self, x: Point, y: Point) -> Bool[Array, ""]:
        """Whether the foot of `y`, where the characteristic from `x` ends, is another point."""
        if self.coordinates is not None:
            x, y = self.coordinates.encode_source(x), self.coordinates.encode_target(y)
        apart = self._foot(y) - x
        return apart @ apart > (_APART * self.tolerance) ** 2 * len(x)

    def head(self, x: Point, y: Point) -> Point:
        """Where the envelope leads `x`, when its characteristic ends at `y`: the `y` with `x` among its feet.

        There `min_x' [u(0, x') + c(x', y)] - c(x, y)` is greatest. It is searched for along the one ascent from `y`, by
        bisection: at the top the foot jumps over `x`.
        """
        if self.coordinates is None:
            return self._head(x, y)
        x, y = self.coordinates.encode_source(x), self.coordinates.encode_target(y)
        return self.coordinates.decode_target(self._head(x, y))

    def _foot(self, y: Point) -> Point:
        spread = len(y) ** 0.5

        def solve(misfit: Callable[[Point], Point], guess: Point) -> Point:
            del misfit  # a minimum is wanted, not any root
            found = solve_feet(
                self.start,
                self.cost,
                y[None],
                guess[None],
                tolerance=self.tolerance * spread,
                max_iterations=_FOOT_ITERATIONS,
                spread=spread,
            )
            return found.points[0]

        def misfit(x: Point) -> Point:
            return forward_map(self.start, self.cost, x) - y

        guess = jax.lax.stop_gradient(backward_map(self.end, self.cost, y))
        return jax.lax.custom_root(misfit, guess, solve, _solved)

    def _head(self, x: Point, y: Point) -> Point:
        def uphill(y: Point) -> Point:
            momentum = self.cost.grad_lagrangian
            return momentum(y - self._foot(y)) - momentum(y - x)

        direction = uphill(y)

        def narrow(_, bracket):
            low, high, unbounded = bracket
            middle = jnp.where(unbounded, high, 0.5 * (low + high))
            rising = uphill(y + middle * direction) @ direction > 0.0
            higher = jnp.where(unbounded, 4.0 * high, high)
            return (
                jnp.where(rising, middle, low),
                jnp.where(rising, higher, middle),
                unbounded & rising,
            )

        first = (jnp.zeros((), x.dtype), jnp.full((), _FIRST_LENGTH, x.dtype), jnp.full((), True))
        low, *_ = jax.lax.fori_loop(0, _HALVINGS, narrow, first)
        return y + low * direction
