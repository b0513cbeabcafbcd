"""Bounds on the optimal cost from held-out samples: how good a map is, proved and not believed.

Everything rests on one inequality. With `f = -u(0, ·)` and its conjugate
`f^c(y) = min_x [c(x, y) - f(x)]`, the excess

    e(x, y) = c(x, y) - f(x) - f^c(y) >= 0

is never negative, so every coupling `π` of source and target costs `E_π c = D + E_π e`, at least
the dual value `D = E_μ f + E_ν f^c`, whatever `u` is. The optimal cost is `D + OT_e(μ, ν)`, and what
the second term can be is known from the maps: `OT_e(μ, T♯μ) <= E e(x, T(x))` and
`OT_e(S♯ν, ν) <= E e(S(y), y)`, so that

    OT_c(μ, ν) <= D + ½ E e(x, T(x)) + ½ E e(S(y), y) + Δ,
    Δ = OT_e(μ, ν) - ½ OT_e(μ, T♯μ) - ½ OT_e(S♯ν, ν).

`Δ` is what images and targets miss each other by. It is taken between samples of equal sizes, whose
bias, large in many dimensions, cancels in it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from scipy.optimize import linear_sum_assignment

from brenier.costs import Cost, Quadratic, unframed
from brenier.drifts import Drift
from brenier.errors import InputError
from brenier.flow import FlowTransport, Paths, drifts, simulate, velocities
from brenier.hamiltonian import pde_residual
from brenier.hopf_lax import solve_feet
from brenier.metrics import crossing_share, total_variance
from brenier.problem import TransportProblem
from brenier.samplers import check_points
from brenier.solution import Solution
from brenier.typing import Point, Points, Potential, Scalar

MAX_POINTS = 16_384
"""Rows of each side that are used: the conjugate visits all pairs of them."""

EXACT_UP_TO = 5_000
"""Points up to which the discrete optimum is computed; its time grows like their cube."""

_FEWEST = 16
_BLOCK, _BLOCKS = 512, 8  # rows of the discrete problems behind the mismatch; at least so many
_TOLD_APART = 2.0  # standard errors of the mismatch
_RESAMPLES = 500
_ROWS = 256  # compared at once, against all the others
_DESCENDING = 4096  # of them, their minima sharpened at once
_FOOT_STEPS, _FOOT_TOLERANCE = 60, 1e-5  # values are accurate to the square of it
_MOST_LOST = 0.9
_CURVATURES = 256  # points at which the potential's curvature is taken
_LARGEST_HESSIAN = 64  # dimension
_STEERED = 2048  # paths of a dynamic bound
_TIMES, _STEPS = 33, 100  # of the residual's supremum, and of the simulation
_ROUNDING = 1e-12  # of the largest terms: far above what float64 loses, far below what matters


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Two bounds on the optimal cost, and what they say about a map; costs are in the units of `c`.

    Attributes:
        lower: the dual value on the held-out points. Never above `exact`, whatever the network did;
            with walls or noise it rests on a sampled supremum (`sampled`).
        upper: what the map costs, and the cost of what is still missing where that can be told from
            sampling noise.
        gap: `(upper - lower) / upper`: 0 for a proof of optimality, 1 for no proof at all.
        exact: the optimal cost between the two samples, a linear programme. In expectation it lies
            above the true cost, in many dimensions far above. None beyond the size asked for, and
            with walls or noise.
        interval: holds the true cost, that between the laws, with probability `level`: the bounds
            widened by what the samples leave open.
        level: of the interval.
        map_cost: `E c(x, T(x))`; with walls or noise, of the simulated paths.
        excess: `E e(x, T(x))`: what the map pays at most beyond the optimum for its own images.
        mismatch, mismatch_error: `Δ`, what is missing between images and targets, and its standard
            error; with walls or noise, what steering to the targets costs.
        map_error: a bound on `100 E|T(x) - T*(x)|² / Var(ν)`, the UVP, at two standard errors of
            the mismatch. It assumes the quadratic cost, and that Brenier's potential
            `ψ(x) = ½|x|² + u(0, x)` is convex and `smoothness`-smooth. None where it says nothing.
        smoothness: `β`, the largest eigenvalue of `∇²ψ` at held-out points.
        crossing: share of the pairs of points whose straight paths cross; None for curved ones.
        points: held-out points of each side that were used.
        sampled: whether the lower bound rests on a supremum over sampled places and times.
    """

    lower: float
    upper: float
    exact: float | None
    interval: tuple[float, float]
    level: float
    map_cost: float
    excess: float | None
    mismatch: float
    mismatch_error: float
    map_error: float | None
    smoothness: float | None
    crossing: float | None
    points: int
    sampled: bool

    @property
    def gap(self) -> float:
        """`(upper - lower) / upper`."""
        return relative_gap(self.lower, self.upper)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the gap, JSON-able."""
        facts = dataclasses.asdict(self)
        return facts | {"gap": self.gap, "interval": list(self.interval)}

    def __str__(self) -> str:
        low, high = self.interval
        kind = "sampled lower bound" if self.sampled else "lower bound"
        exact = "" if self.exact is None else f", discrete optimum {self.exact:.6g}"
        return (
            f"optimal cost: {kind} {self.lower:.6g}, upper bound {self.upper:.6g} "
            f"(gap {self.gap:.2%}){exact}; true cost in [{low:.6g}, {high:.6g}] "
            f"with probability {self.level:.0%}"
        )


def relative_gap(lower: float, upper: float) -> float:
    """`(upper - lower) / upper` of two bounds on a cost; 0 where both are."""
    difference = upper - lower
    return difference / upper if upper > 0.0 else (0.0 if difference <= 0.0 else float("inf"))


def certificate(
    solution: Solution,
    Xs: Any,
    Xt: Any,
    *,
    state_cost: Any = None,
    level: float = 0.99,
    exact_up_to: int = EXACT_UP_TO,
    seed: int = 0,
) -> Certificate:
    """Bound the optimal cost from both sides, on samples that the map was not fitted to.

    Both sides are used in equal numbers, the smaller one's, at most `MAX_POINTS`; which rows, the
    seed decides. All is computed in float64, in blocks: memory is O(n), and O(n²) for `exact`.

    Without walls and noise the bounds are those of the module's inequality. The map's error follows
    from the gap: where `ψ` is convex and `β`-smooth, `e(x, y) >= |y - ∇ψ(x)|² / 2β`, and hence
    `E|∇ψ - T*|² <= 2β (OT(μ, ν) - D)` and `E|T - ∇ψ|² <= 2β E e(x, T(x))`. For the inverse the
    strong convexity `λ` of `ψ` takes the place of `1/β`.

    With a state cost `U`, a base drift `f` or noise `σ` the bounds are dynamic. For every control, by Itô's formula,

        E ∫ L + U dt >= E_ν u(1, ·) - E_μ u(0, ·) - ∫ sup_x r(t, x) dt

    with the residual `r = ∂t u + f·∇u + H(∇u) - U + ½σ²Δu`, whose supremum is taken over sampled places:
    along the paths and straight lines, and around them. The upper bound is the cost of simulated
    paths, each steered at constant speed to a target point of its own.

    Args:
        solution: of the fit.
        Xs: source points (n, d), best held out.
        Xt: target points (m, d).
        state_cost: the `U` of the problem, as in `TransportProblem`; needed where there was one.
        level: of the interval.
        exact_up_to: number of points up to which the discrete optimum is computed.
        seed: of the choice of rows, the blocks and the resamples.

    Raises:
        InputError: too few points, another dimension, a fit with a state cost that was not given.

    Example:
        >>> found = certificate(solution, X, Y)
        >>> bool(found.lower <= found.exact)
        True

    References:
        Villani 2009, "Optimal Transport: Old and New", theorem 5.10 (duality). Makkuva et al. 2020,
        "Optimal transport mapping via input convex neural networks", theorem 3.6, and Korotin et
        al. 2021, "Wasserstein-2 generative networks", theorem D.1 (the error from the gap).
    """
    transport = solution.transport
    x, y = (check_points(p, n, min_points=_FEWEST) for p, n in ((Xs, "Xs"), (Xt, "Xt")))
    for name, points in (("Xs", x), ("Xt", y)):
        if points.shape[1] != transport.dim:
            raise InputError(
                f"Expected {name} with {transport.dim} columns, as the map was fitted on, found "
                f"{points.shape[1]}; give points of the same problem."
            )
    if state_cost is None and solution.info.get("state_cost"):
        raise InputError(
            "Expected the state cost that the map was fitted with, found none; pass state_cost=..."
        )
    if not 0.0 < level < 1.0:
        raise InputError(f"Expected a level between 0 and 1, found {level!r}.")
    rng = np.random.default_rng(seed)
    moving = isinstance(transport, FlowTransport) and (
        transport.noise > 0.0 or transport.drift is not None
    )
    dynamic = moving or state_cost is not None
    n = min(len(x), len(y), _STEERED if dynamic else MAX_POINTS)
    # Rows of both sides in orders of their own: some users keep the image of a point in its row.
    x, y = (p[rng.permutation(len(p))[:n]].astype(np.float64) for p in (x, y))
    if dynamic:
        return _dynamic(transport, x, y, state_cost, level, rng)
    return _static(transport, x, y, level, exact_up_to, rng)


def discrete_optimum(cost: Cost, x: np.ndarray, y: np.ndarray) -> float:
    """The least mean cost of pairing points `x` (n, d) with points `y` (n, d), exactly.

    Example:
        >>> x = np.array([[0.0], [1.0]])
        >>> discrete_optimum(Quadratic(), x, x[::-1] + 2.0)
        2.0
    """
    return _least_mean(_cost_matrix(cost, x, y))


def _cost_matrix(cost: Cost, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`c(x_i, y_j)` in float64, for points (n, d) and (m, d)."""
    center = x.mean(axis=0)
    with jax.enable_x64(True):
        blocks = [
            _pairs(cost, jnp.asarray(x[k : k + _ROWS] - center), jnp.asarray(y - center))
            for k in range(0, len(x), _ROWS)
        ]
        return np.concatenate(blocks)


# Straight paths


def _static(
    transport: Any, x: np.ndarray, y: np.ndarray, level: float, exact_up_to: int, rng: Any
) -> Certificate:
    n = len(x)
    cost = unframed(transport.cost)
    images, origins = (
        np.asarray(move(p), np.float64)
        for move, p in ((transport.forward, x), (transport.inverse, y))
    )
    if not (np.isfinite(images).all() and np.isfinite(origins).all()):
        raise InputError("Expected a map with finite images, found NaN or infinity; fit it again.")
    with jax.enable_x64(True):
        start = transport.potential_at(0.0)
        f, f_origins = (_finite(-_values(start, p)) for p in (x, origins))
        to_images, from_origins = (
            np.asarray(_paired(cost, *map(jnp.asarray, pair)))
            for pair in ((x, images), (origins, y))
        )
        at_images = _conjugate(start, cost, x, f, images)
        at_y = np.minimum(_conjugate(start, cost, x, f, y), from_origins - f_origins)
    forward, backward = to_images - f - at_images, from_origins - f_origins - at_y
    terms = float(np.abs(f).max() + np.abs(at_y).max()) + _largest_square(x, y)
    lower = float(f.mean() + at_y.mean()) - _ROUNDING * terms

    paid = 0.5 * float(forward.mean() + backward.mean())
    gaps = _mismatches(cost, (x, f), (y, at_y), (images, at_images), (origins, f_origins))
    mismatch, error = float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
    over_x, over_y, over_gaps = (_resamples(rng, k) for k in (n, n, len(gaps)))
    duals = over_x @ f + over_y @ at_y
    beyond = 0.5 * (over_x @ forward + over_y @ backward) + np.maximum(over_gaps @ gaps, 0.0)

    quadratic = isinstance(cost, Quadratic)
    smoothness = _smoothness(start, x) if quadratic and transport.dim <= _LARGEST_HESSIAN else None
    map_error = None
    if smoothness is not None and smoothness > 0.0:
        unproved = paid + max(mismatch, 0.0) + _TOLD_APART * error
        distance = np.sqrt(max(float(forward.mean()), 0.0)) + np.sqrt(max(unproved, 0.0))
        map_error = 200.0 * smoothness * float(distance) ** 2 / max(total_variance(y), 1e-300)
    return Certificate(
        lower=lower,
        upper=lower + max(paid, 0.0) + (mismatch if mismatch > _TOLD_APART * error else 0.0),
        exact=discrete_optimum(cost, x, y) if n <= exact_up_to else None,
        interval=_interval(duals, duals + beyond, level),
        level=level,
        map_cost=float(to_images.mean()),
        excess=float(forward.mean()),
        mismatch=mismatch,
        mismatch_error=error,
        map_error=map_error,
        smoothness=smoothness,
        crossing=crossing_share(x, images) if quadratic else None,
        points=n,
        sampled=False,
    )


@eqx.filter_jit
def _pairs(cost: Cost, x: Points, y: Points) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return cost.pairwise(x, y)


@eqx.filter_jit
def _values_at(u: Potential, t: Scalar, x: Points) -> jax.Array:
    return jax.vmap(lambda x: u(t, x))(x)


def _values(u: Potential, x: np.ndarray, t: float = 0.0) -> np.ndarray:
    """`u(t, x)` at points (n, d), in float64."""
    padded, rows = _padded(x, _ROWS)
    blocks = [
        _values_at(u, jnp.asarray(t, jnp.float64), jnp.asarray(padded[first : first + _ROWS]))
        for first in range(0, len(padded), _ROWS)
    ]
    return np.concatenate(blocks)[:rows]


def _finite(f: np.ndarray) -> np.ndarray:
    """Any finite values make a bound: the lowest one stands in where a network gave none."""
    known = np.isfinite(f)
    return np.where(known, f, f[known].min() if known.any() else 0.0)


def _conjugate(
    start: Potential, cost: Cost, x: np.ndarray, f: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """`f^c` at points `y`: the minimum over the points `x`, and below it as far as descent leads.

    Feasible for the discrete problem by the first, and near that of the laws by the second.
    """
    # Few shapes are compiled: rows beyond the last are never the cheapest.
    more = max(1 << (len(x) - 1).bit_length(), _ROWS) - len(x)
    level = jnp.asarray(np.pad(-f, (0, more), constant_values=np.inf))
    # Around the middle, for the matrix product of the quadratic cost would lose digits far off.
    center = x.mean(axis=0)
    sources = jnp.asarray(np.pad(x, ((0, more), (0, 0)), mode="edge") - center)
    padded, rows = _padded(y, _ROWS)
    lowest, nearest = (
        np.concatenate(parts)[:rows]
        for parts in zip(
            *(
                _nearest(cost, sources, level, jnp.asarray(padded[k : k + _ROWS] - center))
                for k in range(0, len(padded), _ROWS)
            ),
            strict=True,
        )
    )
    size = min(1 << (len(y) - 1).bit_length(), _DESCENDING)
    targets, rows = _padded(y, size)
    starts, _ = _padded(x[nearest], size)
    feet = np.concatenate(
        [
            _descended(start, cost, *(jnp.asarray(p[k : k + size]) for p in (targets, starts)))
            for k in range(0, len(targets), size)
        ]
    )[:rows]
    return np.fmin(lowest, np.where(np.isfinite(feet), feet, lowest))


@eqx.filter_jit
def _nearest(
    cost: Cost, x: Points, level: jax.Array, y: Points
) -> tuple[jax.Array, Int[Array, "m"]]:
    """`min_i [c(x_i, y_j) + level_i]`, and where it is."""
    with jax.default_matmul_precision("highest"):
        totals = cost.pairwise(x, y) + level[:, None]
    return jnp.min(totals, axis=0), jnp.argmin(totals, axis=0)


@eqx.filter_jit
def _descended(start: Potential, cost: Cost, y: Points, x: Points) -> jax.Array:
    """The least values of `c(·, y) + u(0, ·)` downhill from the points `x`."""
    tolerance = _FOOT_TOLERANCE * jnp.sqrt(jnp.sum(jnp.var(y, axis=0)))
    with jax.default_matmul_precision("highest"):
        feet = solve_feet(start, cost, y, x, tolerance=tolerance, max_iterations=_FOOT_STEPS)
    return feet.values


@eqx.filter_jit
def _paired(cost: Cost, x: Points, y: Points) -> jax.Array:
    return jax.vmap(cost.static)(x, y)


def _padded(x: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """Points in whole blocks of `size`, the last one repeated, and how many there were."""
    return np.pad(x, ((0, -len(x) % size), (0, 0)), mode="edge"), len(x)


_Side = tuple[np.ndarray, np.ndarray]  # points, and the dual function at them


def _mismatches(cost: Cost, x: _Side, y: _Side, images: _Side, origins: _Side) -> np.ndarray:
    """`Δ` block by block; the maps' points are those of the next block, for theirs is known.

    What is left of the bias is of second order in the misfit and has its sign reversed: where the
    sides differ by a scale, the share `OT_e / E e` of the misfit, with `E e` of independent pairs,
    is lost. So it is divided out; a misfit of another kind is then exaggerated.
    """
    size = min(_BLOCK, len(x[0]) // _BLOCKS)
    count = len(x[0]) // size

    def excess(source: _Side, target: _Side, k: int, j: int) -> np.ndarray:
        rows, columns = (slice(i * size, (i + 1) * size) for i in (k, j))
        pairs = _cost_matrix(cost, source[0][rows], target[0][columns])
        matrix = pairs - source[1][rows, None] - target[1][None, columns]
        return np.array([_least_mean(matrix), matrix.mean()])

    across, own = np.zeros((2, count, 2))
    for k in range(count):
        other = (k + 1) % count
        across[k] = excess(x, y, k, k)
        own[k] = 0.5 * (excess(x, images, k, other) + excess(origins, y, other, k))
    optimal, independent = own.mean(axis=0)
    lost = np.clip(optimal / max(independent, 1e-300), 0.0, _MOST_LOST)
    return (across - own)[:, 0] / (1.0 - lost)


def _least_mean(matrix: np.ndarray) -> float:
    rows, columns = linear_sum_assignment(matrix)
    return float(matrix[rows, columns].mean())


def _smoothness(start: Potential, x: np.ndarray) -> float:
    """The largest eigenvalue of `I + ∇²u(0, ·)` at some of the points."""
    with jax.enable_x64(True):
        padded, _ = _padded(x[:_CURVATURES], _CURVATURES)
        return 1.0 + float(_largest_curvature(start, jnp.asarray(padded)))


@eqx.filter_jit
def _largest_curvature(start: Potential, x: Points) -> jax.Array:
    hessians = jax.vmap(jax.hessian(lambda x: start(jnp.zeros((), x.dtype), x)))(x)
    return jnp.max(jnp.linalg.eigvalsh(hessians))


def _largest_square(x: np.ndarray, y: np.ndarray) -> float:
    center = x.mean(axis=0)
    return float(sum(np.max(np.sum((p - center) ** 2, axis=1)) for p in (x, y)))


def _resamples(rng: np.random.Generator, n: int) -> np.ndarray:
    """Weights of bootstrap samples, shape (`_RESAMPLES`, n); rows sum to 1."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=_RESAMPLES) / n


def _interval(lows: np.ndarray, highs: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1.0 - level) / 2.0
    return float(np.quantile(lows, tail)), float(np.quantile(highs, 1.0 - tail))


# Curved paths


def _dynamic(
    transport: Any, x: np.ndarray, y: np.ndarray, state_cost: Any, level: float, rng: Any
) -> Certificate:
    flow = isinstance(transport, FlowTransport)
    problem = TransportProblem(
        x,
        y,
        cost=unframed(transport.cost),
        state_cost=state_cost,
        noise=float(transport.noise * transport.frame.scale) if flow else 0.0,
        drift=transport.base_drift if flow else None,
    )
    u = transport.potential
    key = jax.random.key(int(rng.integers(2**31)))
    with jax.enable_x64(True):
        paths = _simulated(u, problem, jnp.asarray(x), key)
        ends = np.asarray(paths.points[-1])
        _, partners = linear_sum_assignment(_cost_matrix(Quadratic(), ends, y))
        steered = np.asarray(_steered(u, problem, paths, jnp.asarray(y[partners] - ends)))
        worst = np.asarray(
            [
                float(_worst_residual(u, problem, jnp.asarray(t), jnp.asarray(places)))
                for t, places in _places(paths, x, y, rng)
            ]
        )
        at_x, at_y = _finite(-_values(u, x)), _finite(_values(u, y, 1.0))
    times = np.linspace(0.0, 1.0, _TIMES)
    slack = float(np.trapezoid(worst, times))
    upper = float(steered.mean())
    lower = float(at_x.mean() + at_y.mean()) - slack
    over_x, over_y = (_resamples(rng, len(x)) for _ in range(2))
    map_cost = float(np.mean(paths.kinetic + paths.state))
    own = np.asarray(paths.kinetic + paths.state)
    error = float((steered - own).std(ddof=1) / np.sqrt(len(own)))
    return Certificate(
        # A sampled supremum may be too small; the paths are there, so the bound above counts more.
        lower=min(lower, upper),
        upper=upper,
        exact=None,
        interval=_interval(
            np.minimum(over_x @ at_x + over_y @ at_y - slack, upper), over_x @ steered, level
        ),
        level=level,
        map_cost=map_cost,
        excess=None,
        mismatch=upper - map_cost,
        mismatch_error=error,
        map_error=None,
        smoothness=None,
        crossing=None,
        points=len(x),
        sampled=True,
    )


def _simulated(u: Potential, problem: TransportProblem, x: Points, key: Any) -> Paths:
    with jax.default_matmul_precision("highest"):
        return eqx.filter_jit(lambda u, x, key: simulate(u, problem, x, key, _STEPS))(u, x, key)


def _steered(u: Potential, problem: TransportProblem, paths: Paths, missing: Points) -> jax.Array:
    """Costs of the paths, each with a constant velocity added that leads it to its target."""

    def along(total: jax.Array, node: Any) -> tuple[jax.Array, None]:
        t, dt, x = node
        at, there = jnp.broadcast_to(t, len(x)), x + t * missing
        v = velocities(u, problem, at, x) + missing
        v = v + drifts(problem, at, x) - drifts(problem, at, there)  # it is elsewhere now
        price = jax.vmap(problem.cost.lagrangian)(v)
        if problem.state_cost is not None:
            price = price + jax.vmap(problem.state_cost)(there)
        return total + dt * price, None

    nodes = paths.times[:-1], jnp.diff(paths.times), paths.points[:-1]
    first = jnp.zeros(len(missing), missing.dtype)
    return jax.jit(lambda nodes: jax.lax.scan(along, first, nodes)[0])(nodes)


def _places(paths: Paths, x: np.ndarray, y: np.ndarray, rng: Any) -> Any:
    """Times, and where the residual is looked at: on paths, on straight lines, and around both."""
    spread = np.sqrt(0.5 * (x.var() + y.var()))
    for t in np.linspace(0.0, 1.0, _TIMES):
        at = np.asarray(paths.points[round(t * _STEPS)])
        lines = (1.0 - t) * x + t * y[rng.permutation(len(y))]
        both = np.concatenate([at, lines])
        yield t, np.concatenate([both, both + 0.1 * spread * rng.normal(size=both.shape)])


def _worst_residual(u: Potential, problem: TransportProblem, t: jax.Array, x: Points) -> jax.Array:
    return _maximum(u, problem.cost, problem.state_cost, problem.drift, problem.noise, t, x)


@eqx.filter_jit
def _maximum(
    u: Potential,
    cost: Cost,
    state_cost: Any,
    drift: Drift | None,
    noise: float,
    t: jax.Array,
    x: Points,
) -> jax.Array:
    def residual(x: Point) -> Scalar:
        return pde_residual(u, cost, t, x, state_cost=state_cost, noise=noise, drift=drift)

    return jnp.max(jax.lax.map(residual, x, batch_size=1024))
