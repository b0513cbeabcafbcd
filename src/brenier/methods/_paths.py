"""HOTA's objective "paths": a pool of paths is improved one by one, and the potential learns from them.

The value of a start is the least action of a path from it, `u(t, x) = sup [g(x(1)) - ∫ L + U]` with `g = u(1, ·)`,
and its slope the path's first momentum. So each step

1. starts a few paths anew, by the flow of the present potential: from source samples, and, with noise, from places that
   noisy paths have come to, so that the potential knows the way on from there; some of them from further out, only to
   teach the potential what is beyond the particles;
2. improves a part of the pool: by pieces of other paths where these are cheaper, then by Newton's method;
3. fits `u` to value and momentum along these paths, and to `∂t u` where there are no walls;
4. raises the Kantorovich dual in `g`: higher at samples of the target, lower where the paths end; in the last quarter
   of the run, more and more, lower where the flow ends, for the flow is what is delivered, and not quite the paths.

Where there are walls the last steps are of the flow alone: each rolls it out and lowers the energy distance between its
ends and the target. What little the potential has not learned of the paths is what keeps it from arriving.

At first `g` knows nothing, and a path would rather end before a wall than go around: until half of the run is over its
end is drawn to the target as well.

What goes on one side of a wall stays there. With `search`, shortest ways on a grid are offered to all paths throughout,
as pieces of other paths are; in more dimensions than two, half ellipses between their ends.

Walls are seen through a blur that narrows as the run goes on, so that a way around is found before the walls are hard.
With noise the last blur is as wide as the noise that builds up before the control can answer: a path keeps its
distance. The way on is that of the motion without noise (certainty equivalence), exact for quadratic `g` and no walls;
what an end is worth is averaged over how far noise took the particle that started the path from where it would have
ended without. What noise still adds to the value of a place is `½σ² ∫ Δu dt` along the way on; at walls, where `Δu` is
anything, it goes down linearly in time.

The network of `u` goes along with the pool (`brenier.networks.Comoving`): behind a narrow passage the momenta of
particles that are close together differ much.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from brenier.costs import Quadratic
from brenier.devices import split, whole
from brenier.discrepancies import energy_distance
from brenier.flow import Paths, drifts, simulate, velocities
from brenier.hamiltonian import laplacian
from brenier.methods._base import adam, averaged, built, cast, decay, with_base
from brenier.methods._muon import muon
from brenier.networks import Comoving, DenseQuadratic, with_zero_head
from brenier.networks._comoving import MATRICES, frames
from brenier.paths import (
    FIRST_DAMPING,
    action,
    at_times,
    blurred,
    controlled,
    improve,
    interval,
    running,
)
from brenier.problem import TransportProblem
from brenier.routes import Routes, no_routes, shortest_routes
from brenier.samplers import POOL, spread_order
from brenier.state_costs import evaluate_at
from brenier.typing import Key, Points, Potential

if TYPE_CHECKING:
    from brenier.methods.hota import HOTA

_END_WIDTHS = (64, 64, 64, 32)
# Without noise nothing smooths what ends are worth: at the higher rate it grows rough in the end, and
# paths leave the target.
_END_RATE, _END_RATE_WITHOUT_NOISE = 2e-3, 1e-3
# Muon's steps have one length, however little there is to learn: without decay what ends are worth grows for as long
# as it runs, most of all where few paths end, and the momenta there with it. Only with walls: elsewhere it would cost
# the certificate more than it gains.
_END_DECAY = 0.3
_LEAST_SPREAD = 1e-3  # of a target, in the frame's coordinates
_LEAST_WIDTH = 1e-2  # of the cloud that the network goes along with
# The rate at which it goes along at first, and the share of the run at which that is zero.
_FOLLOWING, _FOLLOWED_UNTIL = 0.02, 0.75
_FINAL_RATE = 1e-2
_AVERAGING = 0.998  # of the potential that moves new paths and is delivered
_FIRST_BLUR, _BLUR_OF_NOISE = 0.3, 0.7
_FIRST_BLUR_ON_ROUTES = 0.1  # less, for it need not show the way around
# Of a path's end towards the target: strong while the potential does not know the way. With walls some of it stays,
# for outside of the target any worth is right that keeps ends away.
_FIRST_PULL, _LAST_PULL = 100.0, 10.0
# In units of what noise does in the whole time; a jump to elsewhere is not noise.
_LONGEST_STRAY = 3.0
_PROBES, _FEW_PROBES = 16, 8  # of the blur, for Newton's steps and for comparing paths
_RESTARTS = 0.5  # share of new paths that start on noisy ones
_STARTED = 2**23  # coordinates of the samples that paths start from in turn, at most
_WIDE = 0.25  # share of new paths that start further out, at up to twice their distance
_FRESH_SHARE = 4  # one in so many of the improved paths is among the newest
_NEWTON_STEPS = 2
# Powers of the share of time by which a piece of another path is bent to this one's ends.
_SPLICES = (1, 4)
# By which another path has to be cheaper; what gains less is left to Newton's steps.
_LEAST_GAIN = 1e-2
_VALUE_WEIGHT = 0.1
_RATE_WEIGHT = 0.1
_PATHS_A_MOMENT = 8  # at least, for weights that are never far from 1
# How far the dual goes over from the ends of paths to those of the flow, in which last share of the run. The flow
# answers late: earlier, or as a whole, the two swing.
_TRUST, _LAST = 0.5, 0.25
# Of these last steps: as large as brings the flow to the target in a hundred of them, and small beside all that it
# knows of walls.
_ARRIVAL_RATE, _ARRIVAL_BETAS = 3e-5, (0.9, 0.99)
_FITS, _PLACES = 4, 1024  # fits of the potential in a step, and places on paths in each
_STRIDE = 8  # nodes from one look at `Δu` to the next


class PathState(eqx.Module):
    """What is carried from step to step; the pool of paths is part of it."""

    network: Any
    average: Any
    base: Any
    end: Any
    optimizers: tuple[optax.OptState, optax.OptState, optax.OptState]
    paths: Float[Array, "nodes pool d"]
    routes: Routes
    source: Float[Array, "n d"]  # where paths start in turn; empty where they start at random
    started: Int[Array, ""]  # the next of these
    starts: Float[Array, "pool"]
    damping: Float[Array, "pool"]
    strays: Float[Array, "pool d"]  # how far noise takes a particle from the end of the path
    arrivals: Float[Array, "pool d"]  # where the flow took the particle, noise included
    counted: Float[Array, "pool"]  # 0 of paths that start beyond the particles
    moments: Float[Array, "k"]  # of the source, see `_weights`
    step: Int[Array, ""]


def init(method: HOTA, problem: TransportProblem, network: Any, base: Any, key: Key) -> PathState:
    x, y = problem.source.pool(POOL, 0), problem.target.pool(POOL, 0)
    source = _source(method, problem, x)
    if len(source):
        x = source
    x = jnp.asarray(x[np.arange(method.pool) % len(x)], problem.dtype)
    options = {"direct": True, "radial": problem.dim > MATRICES, "key": key}
    end = built(DenseQuadratic, problem.dim, _END_WIDTHS, **options)
    # On straight ways two frames are enough, and nothing is jagged in time that would show in `∂t u`.
    nodes = method.rollout_steps + 1
    paths, of_target, cloud = _straight(x, y, nodes, 2 if problem.state_cost is None else nodes)
    end = cast(Comoving(with_zero_head(end), *of_target), problem.dtype)
    network = Comoving(network, *cloud)
    optimizers = _optimizers(method, problem)
    return PathState(
        network=network,
        average=network,
        base=base,
        end=end,
        optimizers=(
            jax.jit(optimizers[0].init)(network),
            jax.jit(optimizers[1].init)(end.potential),
            jax.jit(optimizers[2].init)(network),
        ),
        paths=paths,
        routes=_routes(method, problem),
        source=jnp.asarray(source, problem.dtype),
        started=jnp.asarray(len(x) % max(len(source), 1), jnp.int32),
        starts=jnp.zeros(len(x), problem.dtype),
        damping=jnp.full(len(x), FIRST_DAMPING, problem.dtype),
        strays=jnp.zeros_like(x),
        arrivals=paths[-1],
        counted=jnp.ones_like(x[:, 0]),
        moments=_means(method, problem),
        step=jnp.zeros((), jnp.int32),
    )


@partial(jax.jit, static_argnums=(2, 3))
def _straight(x: Points, y: Points, nodes: int, moments: int) -> tuple[Any, Any, Any]:
    """Straight paths to the mean of the target, its frames, and the particles' at so many moments."""
    shift = jnp.mean(y, axis=0) - jnp.mean(x, axis=0)
    times = jnp.linspace(0.0, 1.0, nodes, dtype=x.dtype)
    paths = x[None] + times[:, None, None] * shift[None, None]
    cloud = _cloud(paths, jnp.zeros_like(x[:, 0]), jnp.ones_like(x[:, 0]), moments)
    # At the scale of the target, small as it may be beside the way to it.
    return paths, frames(jnp.stack([y, y]), jnp.ones((2, len(y))), _LEAST_SPREAD), cloud


def _cloud(
    paths: Float[Array, "nodes n d"],
    starts: Float[Array, "n"],
    counted: Float[Array, "n"],
    moments: int,
) -> tuple[Array, Array, Array]:
    """The frames of the particles at so many moments, from 0 to 1."""
    n = paths.shape[1]
    times = jnp.linspace(0.0, 1.0, moments, dtype=paths.dtype)[:, None]
    at = at_times(paths, starts, jnp.arange(n), jnp.broadcast_to(times, (moments, n)))
    return frames(at, jnp.where(starts[None] <= times, counted[None], 0.0), _LEAST_WIDTH)


def _source(method: HOTA, problem: TransportProblem, x: np.ndarray) -> np.ndarray:
    """Samples (n, d) in the order in which paths start from them, where they take turns."""
    spread = problem.state_cost is not None if method.starts is None else method.starts == "spread"
    if not spread:
        return x[:0]
    x = x[: max(_STARTED // x.shape[1], 1)]
    return x[spread_order(x)]


def _routes(method: HOTA, problem: TransportProblem) -> Routes:
    cost, nodes = problem.state_cost, method.rollout_steps + 1
    if not method.search or cost is None or problem.dim != 2:
        return no_routes(nodes, problem.dtype)
    x, y = problem.source.pool(POOL, 0), problem.target.pool(POOL, 0)

    def inside(points: np.ndarray) -> np.ndarray:
        return np.asarray(evaluate_at(cost.inside, points))

    return shortest_routes(inside, x, y, nodes)


def _optimizers(
    method: HOTA, problem: TransportProblem
) -> tuple[optax.GradientTransformation, ...]:
    """Of the potential while it learns, of what ends are worth, and of the potential on its arrival."""
    rate = _END_RATE if problem.noise else _END_RATE_WITHOUT_NOISE
    of_ends = muon(rate, weight_decay=0.0 if problem.state_cost is None else _END_DECAY)
    return adam(method.learning_rate, *method.betas), of_ends, adam(_ARRIVAL_RATE, *_ARRIVAL_BETAS)


def step(
    method: HOTA,
    problem: TransportProblem,
    state: PathState,
    batch: tuple[jax.Array, jax.Array],
    key: Key,
    progress: jax.Array,
) -> tuple[PathState, dict[str, jax.Array]]:
    """A step of the paths and all that learns from them; in the last part of the run, of the flow alone."""
    if problem.state_cost is None or not method.arrival:
        return _learned(method, problem, state, batch, key, progress)
    turn = 1.0 - method.arrival
    return jax.lax.cond(
        progress < turn,
        lambda: _learned(method, problem, state, batch, key, progress / turn),
        lambda: _arrived(method, problem, state, batch, key, (progress - turn) / method.arrival),
    )


def _arrived(
    method: HOTA,
    problem: TransportProblem,
    state: PathState,
    batch: tuple[jax.Array, jax.Array],
    key: Key,
    progress: jax.Array,
) -> tuple[PathState, dict[str, jax.Array]]:
    """The potential that is delivered, moved down the energy distance between the ends of its flow and the target."""
    noise_key, start_key = jax.random.split(key)
    x, y = map(whole, batch)
    n, started = min(method.improved, len(x)), state.started
    if size := len(state.source):
        x = state.source[(started + jnp.arange(n)) % size]
        started = ((started + n) % size).astype(jnp.int32)
    else:
        x = _some(x, n, start_key)

    def distance(network: Any) -> tuple[jax.Array, Paths]:
        u = with_base(state.base, network)
        # By cheaper steps it would learn to make up for their error.
        paths = simulate(u, problem, split(x), noise_key, method.rollout_steps)
        return energy_distance(paths.points[-1], split(y)), paths

    (apart, paths), slope = jax.value_and_grad(distance, has_aux=True)(state.average)
    *others, own = state.optimizers
    optimizer = _optimizers(method, problem)[-1]
    average, own = _moved(optimizer, slope, own, state.average, decay("cosine", progress, 0.0))
    g = jax.vmap(partial(with_base(state.base, state.end), jnp.ones((), x.dtype)))
    state = dataclasses.replace(
        state,
        average=average,
        started=started,
        optimizers=(*others, own),
        step=state.step + 1,
    )
    return state, {
        "loss": apart,
        "mismatch": jnp.mean(g(paths.points[-1])) - jnp.mean(g(split(y))),
        "kinetic": jnp.mean(paths.kinetic),
        "state": jnp.mean(paths.state),
        "accepted": jnp.ones((), x.dtype),
    }


def _some(x: Points, n: int, key: Key) -> Points:
    """Of a batch in the order of its cells every so-many-th sample: still one of each region."""
    x = jnp.roll(x, jax.random.randint(key, (), 0, len(x)), axis=0)
    return x[:: len(x) // n][:n]


def _learned(
    method: HOTA,
    problem: TransportProblem,
    state: PathState,
    batch: tuple[jax.Array, jax.Array],
    key: Key,
    progress: jax.Array,
) -> tuple[PathState, dict[str, jax.Array]]:
    """The pool improved, the potential fitted to it, and the dual raised in what ends are worth."""
    keys = jax.random.split(key, 6)
    x, y = map(whole, batch)
    seen = jnp.mean(_features(x, len(state.moments)), axis=0)
    weight = 1.0 / (POOL / len(x) + 1.0 + state.step)  # a function's pool is one more sample of it
    moments = state.moments + (weight * (seen - state.moments)).astype(x.dtype)
    x = _some(x, min(method.refreshed, len(x)), keys[5])
    x = split(jax.random.permutation(jax.random.fold_in(keys[5], 1), x))
    first = _FIRST_BLUR_ON_ROUTES if state.routes.ways.size else _FIRST_BLUR
    blur = _Blur(problem, _width(method, problem, first, progress))
    state, newest = _renewed(method, problem, state, x, keys[0])
    chosen = _chosen(method, state, newest, keys[1])
    # On several devices the pool is on each of them, and each improves a share of the paths.
    paths, starts = split(state.paths[:, chosen], axis=1), split(state.starts[chosen])
    damping, strays = split(state.damping[chosen]), split(state.strays[chosen])
    astray = lambda worth, x: worth(x)  # noqa: E731
    if problem.noise:
        # Without walls noise has no side, and a mean of the pool's strays would be noise itself.
        aside = jnp.zeros_like(x[0])
        if problem.state_cost is not None:
            aside = _aside(state.starts, state.strays, state.counted)
        astray = partial(_astray, strays=strays, aside=(1.0 - starts)[:, None] * aside[None])
    outside = _outside(y)
    last_pull = 0.0 if problem.state_cost is None else _LAST_PULL
    pull = last_pull + (_FIRST_PULL - last_pull) * _left(method, progress)
    at_end = jax.vmap(partial(with_base(state.base, state.end), jnp.ones((), x.dtype)))

    def worth(x: Points) -> Float[Array, "n"]:
        return astray(at_end, x) - 0.5 * pull * outside(x) ** 2

    nodes = paths[1:].shape
    compare = blur.prices(keys[2], _FEW_PROBES, nodes)

    def total(paths: jax.Array) -> jax.Array:
        return action(paths, starts, compare(paths)[0], problem.drift) - worth(paths[-1])

    # Beyond the plane there is no grid to search.
    curved = method.search and problem.state_cost is not None and problem.dim > 2
    paths, damping = _spliced(
        state, paths, starts, damping, y, at_end(y), total, curved=curved, key=keys[3]
    )

    def newton(k: jax.Array, now: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        prices = blur.prices(jax.random.fold_in(keys[2], k), _PROBES, nodes)
        paths, damping, taken = improve(*now[:2], starts, prices, worth, drift=problem.drift)
        return paths, damping, now[2] + jnp.mean(taken, dtype=x.dtype) / _NEWTON_STEPS

    start = (paths, damping, jnp.zeros((), x.dtype))
    paths, damping, accepted = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, start)
    state = dataclasses.replace(
        state,
        paths=state.paths.at[:, chosen].set(whole(paths)),
        damping=state.damping.at[chosen].set(whole(damping)),
        moments=moments,
        step=state.step + 1,
    )

    kinetic, price = running(paths, starts, compare(paths)[0], problem.drift)
    steps = controlled(paths, starts, problem.drift)
    risk = astray(at_end, paths[-1]) - at_end(paths[-1])
    calm = worth(paths[-1]) - risk
    if problem.noise and problem.state_cost is None:
        probes, _ = method._probes(jax.random.fold_in(keys[4], _FITS), problem.dim, x.dtype)
        u = with_base(state.base, state.average)
        noise = _noise_to_come(u, problem.noise, probes, paths, starts)
    else:
        noise = jnp.linspace(1.0, 0.0, len(paths), dtype=x.dtype)[:, None] * risk[None]

    # Squares of values grow as d², those of slopes as d.
    share = min(1.0, MATRICES / problem.dim)

    def regression(network: Any, lessons: _Lessons) -> jax.Array:
        u = jax.vmap(jax.value_and_grad(with_base(state.base, network), argnums=(0, 1)))
        values, (rates, slopes) = u(lessons.times, lessons.places)
        off = jnp.sum((slopes - lessons.momenta) ** 2, axis=1)
        off += share * _VALUE_WEIGHT * (values - lessons.values) ** 2
        if problem.state_cost is None:
            off += share * _RATE_WEIGHT * (rates - lessons.rates) ** 2
        return jnp.mean(off)

    def fitted(k: jax.Array, now: tuple[Any, optax.OptState, jax.Array]) -> Any:
        network, own, _ = now
        fit_key = jax.random.fold_in(keys[4], k)
        lessons = _lessons(paths, starts, steps, kinetic + price, calm, noise, fit_key)
        loss, fit = jax.value_and_grad(regression)(network, lessons)
        return *_moved(of_paths, fit, own, network, rate), loss

    weights = _weights(paths[0], split(state.counted[chosen]), moments)
    arriving = _weights(split(state.paths[0]), split(state.counted), moments)
    trust = _TRUST * jnp.maximum(0.0, 1.0 - (1.0 - progress) / _LAST)

    def mismatch(potential: Any) -> jax.Array:
        end = dataclasses.replace(state.end, potential=potential)
        g = jax.vmap(partial(with_base(state.base, end), jnp.ones((), x.dtype)))
        by_paths = jnp.mean(weights * astray(g, paths[-1]))
        by_flow = jnp.mean(arriving * g(split(state.arrivals)))
        return (1.0 - trust) * by_paths + trust * by_flow - jnp.mean(g(split(y)))

    rate = decay("cosine", progress, _FINAL_RATE, hold=method.hold)
    of_paths, of_ends, _ = _optimizers(method, problem)
    own, own_of_end, own_of_arrival = state.optimizers
    unknown = jnp.zeros((), x.dtype)
    network, own, loss = jax.lax.fori_loop(0, _FITS, fitted, (state.network, own, unknown))
    worth_of_ends = state.end.potential
    m, rise = jax.value_and_grad(mismatch)(worth_of_ends)
    worth_of_ends, own_of_end = _moved(of_ends, rise, own_of_end, worth_of_ends, rate)

    cloud = _cloud(state.paths, state.starts, state.counted, len(network.scales))
    following = _FOLLOWING * jnp.maximum(0.0, 1.0 - progress / _FOLLOWED_UNTIL)
    own_frame = network.centers, network.scales, network.whitening
    centers, scales, whitening = (
        was + (following * (now - was)).astype(was.dtype)
        for was, now in zip(own_frame, cloud, strict=True)
    )
    network = Comoving(network.potential, centers, scales, whitening)
    state = dataclasses.replace(
        state,
        network=network,
        average=averaged(state.average, network, state.step, _AVERAGING),
        end=dataclasses.replace(state.end, potential=worth_of_ends),
        optimizers=(own, own_of_end, own_of_arrival),
    )
    return state, {
        "loss": loss,
        "mismatch": m,
        "kinetic": jnp.mean(weights * jnp.sum(kinetic, axis=0)),
        "state": jnp.mean(weights * jnp.sum(price, axis=0)),
        "accepted": accepted,
    }


def _moved(
    optimizer: optax.GradientTransformation, gradient: Any, own: Any, module: Any, rate: jax.Array
) -> tuple[Any, Any]:
    updates, own = optimizer.update(gradient, own, module)
    return jax.tree.map(lambda p, g: p + (rate * g).astype(p.dtype), module, updates), own


def _width(method: HOTA, problem: TransportProblem, first: float, progress: jax.Array) -> jax.Array:
    last = max(method.margin, _BLUR_OF_NOISE * problem.noise)
    return last + max(first - last, 0.0) * _left(method, progress)


def _aside(
    starts: Float[Array, "n"], strays: Float[Array, "n d"], counted: Float[Array, "n"]
) -> Float[Array, "d"]:
    """How far noise takes particles in the mean, in the whole time: along walls, to one side."""
    left = (1.0 - starts) * counted
    return left @ strays / (jnp.sum(left**2) + 1e-12)


def _astray(
    worth: Any, x: Float[Array, "n d"], strays: Float[Array, "n d"], aside: Float[Array, "n d"]
) -> Float[Array, "n"]:
    """The mean worth of where noise may take particles: both ways from the mean, for the path must not know which."""
    return 0.5 * (worth(x + strays) + worth(x + 2.0 * aside - strays))


def _features(x: Float[Array, "n d"], count: int) -> Float[Array, "n k"]:
    """Coordinates, and products of two, of points (n, d): as many columns as asked for."""
    if count <= x.shape[1]:
        return x[:, :count]
    i, j = np.triu_indices(x.shape[1])
    return jnp.concatenate([x, x[:, i] * x[:, j]], axis=1)


def _means(method: HOTA, problem: TransportProblem) -> Float[Array, "k"]:
    """Means of the source's features, where the improved paths are enough to follow them.

    With noise some paths start on others, and none are.
    """
    d, most = problem.dim, min(method.improved, method.pool) // _PATHS_A_MOMENT
    count = next((k for k in (d * (d + 3) // 2, d) if k <= most), 0)
    if problem.noise or not count:
        return jnp.zeros(0, problem.dtype)
    x = jnp.asarray(problem.source.pool(POOL, 0), problem.dtype)
    return jax.jit(lambda x: jnp.mean(_features(x, count), axis=0))(x)


def _weights(
    x: Points, counted: Float[Array, "n"], moments: Float[Array, "k"]
) -> Float[Array, "n"]:
    """Weights of mean 1 by which the `counted` starts (n, d) have the moments of the source (linear calibration).

    The pool's own are off by the noise of its size, and stay so for as long as paths live: the dual would learn it.
    """
    features = _features(x, len(moments))
    shares = counted / jnp.maximum(jnp.sum(counted), 1.0)
    mean = shares @ features
    centred = features - mean[None]
    gram = (shares[:, None] * centred).T @ centred
    # A column without spread must not ask for weights.
    gram += (1e-6 * jnp.trace(gram) + 1e-12) * jnp.eye(len(gram), dtype=gram.dtype)
    weights = jnp.clip(1.0 + centred @ jnp.linalg.solve(gram, moments - mean), 0.0, 2.0)
    return len(x) * shares * weights


def _outside(y: Points) -> Any:
    """How far points are from the samples of the target, beyond what these are from each other."""
    own = jnp.diag(jnp.full(len(y), jnp.inf, y.dtype))
    near = 2.0 * jnp.mean(_distance(jnp.min(Quadratic().pairwise(y, y) + own, axis=1)))
    return lambda x: jnp.maximum(_distance(jnp.min(Quadratic().pairwise(x, y), axis=1)) - near, 0.0)


def _distance(cost: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(2.0 * cost, 1e-12))


def _left(method: HOTA, progress: jax.Array) -> jax.Array:
    """How much is left of what helps at first."""
    return jnp.maximum(0.0, 1.0 - progress / max(method.annealing, 1e-6)) ** 2


@dataclasses.dataclass(frozen=True)
class _Blur:
    """The state cost as paths see it at this step."""

    problem: TransportProblem
    width: jax.Array

    def prices(self, key: Key, count: int, shape: tuple[int, ...]) -> Any:
        """Of paths, at their nodes after the first, of a `shape` (k, n, d), by `count` probes of each.

        They stay the same from call to call.
        """
        state_cost = self.problem.state_cost
        if state_cost is None:
            return lambda paths: (jnp.zeros(shape[:-1], paths.dtype), jnp.zeros(shape, paths.dtype))
        dtype, pairs = self.problem.dtype, count // 2
        half = jax.random.normal(key, (pairs, self.problem.dim), dtype)
        where = jax.random.uniform(jax.random.fold_in(key, 1), (pairs,), dtype)
        where = (jnp.arange(pairs) + where) / pairs - 0.5
        probes, shares = jnp.concatenate([half, -half]), jnp.concatenate([where, where])
        mirrors = jax.random.normal(jax.random.fold_in(key, 2), shape, dtype)
        mirrors /= jnp.linalg.norm(mirrors, axis=-1, keepdims=True) + 1e-12
        return lambda paths: blurred(
            jax.vmap(state_cost), paths, probes, self.width, shares, mirrors
        )


def _renewed(
    method: HOTA, problem: TransportProblem, state: PathState, x: Points, key: Key
) -> tuple[PathState, Int[Array, "fresh"]]:
    """The pool with some of its paths started anew by the present flow, the oldest first; and which."""
    noise_key, time_key, wide_key = jax.random.split(key, 3)
    fresh, steps = len(x), method.rollout_steps
    u = with_base(state.base, state.average)
    wide = split(jax.random.uniform(wide_key, (fresh, 2), x.dtype))
    stretch = jnp.where(wide[:, 0] < _WIDE, 1.0 + wide[:, 1], 1.0)
    started = state.started
    if size := len(state.source):
        # Those that start further out must not leave a gap.
        own = stretch == 1.0
        turn = (started + jnp.cumsum(own) - 1) % size
        x = jnp.where(own[:, None], split(state.source[turn]), x)
        started = ((started + jnp.sum(own)) % size).astype(jnp.int32)
    if problem.noise:
        noisy = simulate(u, problem, x, noise_key, steps)
        node = jax.random.randint(time_key, (fresh,), 1, steps)
        node = jnp.where(jnp.arange(fresh) < (1.0 - _RESTARTS) * fresh, 0, node)
        starts, x = noisy.times[node], noisy.points[node, jnp.arange(fresh)]
        # The way on without noise, and the new path, in one go: as many small steps take as long for twice the points.
        both = jnp.concatenate([_stretched(problem, state, x, starts, stretch), x])
        both = _followed(u, problem, both, jnp.concatenate([starts, starts]), steps)
        paths, arrivals = both[:, :fresh], noisy.points[-1]
        strays = arrivals - both[-1, fresh:]
        longest = _LONGEST_STRAY * problem.noise * np.sqrt(problem.dim)
        strays *= jnp.minimum(1.0, longest / (jnp.linalg.norm(strays, axis=1) + 1e-12))[:, None]
    else:
        starts, strays = jnp.zeros(fresh, x.dtype), jnp.zeros_like(x)
        paths = _followed(u, problem, _stretched(problem, state, x, starts, stretch), starts, steps)
        arrivals = paths[-1]
    at = (state.step * fresh) % method.pool
    newest = (at + jnp.arange(fresh)) % method.pool
    return dataclasses.replace(
        state,
        paths=state.paths.at[:, newest].set(paths),
        starts=state.starts.at[newest].set(starts),
        damping=state.damping.at[newest].set(FIRST_DAMPING),
        strays=state.strays.at[newest].set(strays),
        arrivals=state.arrivals.at[newest].set(arrivals),
        started=started,
        counted=state.counted.at[newest].set((stretch == 1.0).astype(x.dtype)),
    ), newest


def _stretched(
    problem: TransportProblem,
    state: PathState,
    x: Points,
    starts: Float[Array, "n"],
    stretch: Float[Array, "n"],
) -> Points:
    """Points (n, d) that much further from the middle of the particles, but for those that would come into a wall."""
    middle = jax.vmap(state.network.center)(starts)
    further = middle + stretch[:, None] * (x - middle)
    if problem.state_cost is None:
        return further
    price = jax.vmap(problem.state_cost)
    return jnp.where((price(further) > price(x))[:, None], x, further)


def _followed(
    u: Potential, problem: TransportProblem, x: Points, starts: Float[Array, "n"], steps: int
) -> Float[Array, "nodes n d"]:
    """Paths along the flow of `u`, without noise, from points (n, d) at times of their own, by Heun's scheme."""
    tau = (1.0 - starts) / steps

    def rate(t: jax.Array, x: Points) -> Points:
        return velocities(u, problem, t, x) + drifts(problem, t, x)

    def advance(x: Points, k: jax.Array) -> tuple[Points, Points]:
        t = starts + k * tau
        here = rate(t, x)
        there = rate(t + tau, x + tau[:, None] * here)
        x = x + 0.5 * tau[:, None] * (here + there)
        return x, x

    return jnp.concatenate([x[None], jax.lax.scan(advance, x, jnp.arange(steps))[1]])


def _chosen(
    method: HOTA, state: PathState, newest: Int[Array, "fresh"], key: Key
) -> Int[Array, "n"]:
    """Which paths to improve: the newest ones and some of all; of a path chosen twice one result stays."""
    count = min(method.improved, method.pool)
    recent = count // _FRESH_SHARE
    last = newest[-1] - jnp.arange(recent)
    if not len(state.source):
        others = jax.random.choice(key, method.pool, (count - recent,), replace=False)
    else:  # next to each other in the pool, for these are spread evenly
        others = (state.step % method.pool) * (count - recent) + jnp.arange(count - recent)
    return jnp.concatenate([last, others]) % method.pool


def _spliced(
    state: PathState,
    paths: Float[Array, "nodes n d"],
    starts: Float[Array, "n"],
    damping: Float[Array, "n"],
    y: Points,
    at_y: Float[Array, "m"],
    total: Any,
    *,
    curved: bool,
    key: Key,
) -> tuple[Float[Array, "nodes n d"], Float[Array, "n"]]:
    """Of paths, pieces of others bent to their ends and the own ones bent to other targets, those of least `total`."""
    n = paths.shape[1]
    share = jnp.linspace(0.0, 1.0, len(paths), dtype=paths.dtype)[:, None, None]
    times = starts[None] + share[..., 0] * (1.0 - starts[None])

    candidates = [paths]
    pieces = []
    for k, power in enumerate(_SPLICES):
        other = jax.random.randint(jax.random.fold_in(key, k), (n,), 0, state.paths.shape[1])
        pieces.append((power, at_times(state.paths, state.starts, other, times)))
    if state.routes.ways.size:
        pieces += [(power, state.routes.at(paths[0])) for power in _SPLICES]
    for power, piece in pieces:
        piece = split(piece, axis=1)
        bent = piece + (1.0 - share) ** power * (paths[:1] - piece[:1])
        if power > 1:  # the own end, otherwise the other's
            bent = bent + share**power * (paths[-1:] - piece[-1:])
        candidates.append(bent)
    if curved:
        candidates.append(_arcs(paths, share, jax.random.fold_in(key, len(candidates))))
    # The target that would be best on a straight way.
    apart = Quadratic().pairwise(paths[0], y) / (1.0 - starts)[:, None]
    nearest = y[jnp.argmin(apart - at_y[None], axis=1)]
    candidates += [paths + share**power * (nearest - paths[-1])[None] for power in _SPLICES]

    stack = jnp.stack(candidates)
    costs = jax.lax.map(total, stack)
    best = jnp.argmin(costs.at[0].add(-_LEAST_GAIN), axis=0)
    paths = jnp.take_along_axis(stack, best[None, None, :, None], axis=0)[0]
    return paths, jnp.where(best > 0, FIRST_DAMPING, damping)


def _arcs(
    paths: Float[Array, "nodes n d"], share: Float[Array, "nodes 1 1"], key: Key
) -> Float[Array, "nodes n d"]:
    """Half ellipses from end to end, of random height, at random but rather away from the middle of the data."""
    way_key, turn_key, height_key = jax.random.split(key, 3)
    middle, half = 0.5 * (paths[0] + paths[-1]), 0.5 * (paths[0] - paths[-1])
    way = jax.random.normal(way_key, middle.shape, middle.dtype)
    turn, height = (
        2.0 * jax.random.uniform(k, (len(middle), 1), middle.dtype) for k in (turn_key, height_key)
    )
    axis = _unit(half)
    way = _unit(middle) + turn * _unit(way)
    way = way - axis * jnp.sum(way * axis, axis=1, keepdims=True)
    up = height * jnp.linalg.norm(half, axis=1, keepdims=True) * _unit(way)
    return middle + jnp.cos(jnp.pi * share) * half + jnp.sin(jnp.pi * share) * up


def _unit(x: Points) -> Points:
    return x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-12)


def _noise_to_come(
    u: Potential,
    noise: float,
    probes: Float[Array, "k d"] | None,
    paths: Float[Array, "nodes n d"],
    starts: Float[Array, "n"],
) -> Float[Array, "nodes n"]:
    """What noise still adds to the value at each node, `½σ² ∫ Δu dt` along the path from there."""
    last = len(paths) - 1
    looks = np.append(np.arange(0, last, _STRIDE), last)
    tau = interval(paths, starts)
    times = starts[None] + jnp.asarray(looks, paths.dtype)[:, None] * tau[None]
    rate = jax.vmap(jax.vmap(lambda t, x: laplacian(u, t, x, probes)))(times, paths[looks])
    widths = jnp.asarray(np.diff(looks), paths.dtype)[:, None] * tau[None]
    added = 0.25 * noise**2 * (rate[1:] + rate[:-1]) * widths
    to_come = jnp.concatenate([jnp.cumsum(added[::-1], axis=0)[::-1], jnp.zeros_like(rate[:1])])
    nodes = jnp.arange(last + 1)
    return jax.vmap(lambda course: jnp.interp(nodes, jnp.asarray(looks), course), 1, 1)(to_come)


class _Lessons(NamedTuple):
    """What the potential should be at places on paths."""

    times: Float[Array, "k"]
    places: Float[Array, "k d"]
    values: Float[Array, "k"]
    momenta: Float[Array, "k d"]
    rates: Float[Array, "k"]  # ∂t u


def _lessons(
    paths: Float[Array, "nodes n d"],
    starts: Float[Array, "n"],
    steps: Float[Array, "k n d"],
    costs: Float[Array, "k n"],
    worth: Float[Array, "n"],
    noise: Float[Array, "nodes n"],
    key: Key,
) -> _Lessons:
    """Lessons at random times of random paths.

    `steps` are the intervals without what the drift does, `costs` what they cost, `noise` is what noise still adds.

    Along a path `du/dt = L + U - ½σ² Δu`, so that `∂t u` is known without a Laplacian. Without that lesson it is off
    at both ends of time, where there are no others beyond. At the edge of a wall it jumps, and would mislead.
    """
    path_key, node_key, share_key = jax.random.split(key, 3)
    path = jax.random.randint(path_key, (_PLACES,), 0, paths.shape[1])
    node = jax.random.randint(node_key, (_PLACES,), 0, len(costs))
    share = jax.random.uniform(share_key, (_PLACES,), paths.dtype)
    to_go = jnp.cumsum(costs[::-1], axis=0)[::-1]
    tau = interval(paths, starts)[path]
    t = starts[path] + (node + share) * tau
    way, own = paths[node + 1, path] - paths[node, path], steps[node, path]
    z = paths[node, path] + share[:, None] * way
    to_come = (1.0 - share) * noise[node, path] + share * noise[node + 1, path]
    value = worth[path] + to_come - to_go[node, path] + share * costs[node, path]
    # Each interval's mean is the momentum in its middle; from middle to middle it goes straight.
    other = jnp.clip(jnp.where(share < 0.5, node - 1, node + 1), 0, len(costs) - 1)
    toward = jnp.abs(share - 0.5)[:, None]
    momentum = ((1.0 - toward) * own + toward * steps[other, path]) / tau[:, None]
    added = noise[node, path] - noise[node + 1, path]
    rate = (costs[node, path] - added) / tau - jnp.sum(own * way, axis=1) / tau**2
    found = _Lessons(t, z, value, momentum, rate)
    return _Lessons(*map(split, jax.lax.stop_gradient(found)))
