"""Two neural solvers of the Wasserstein-2 dual, written from their papers, in JAX and compiled.

Both minimise over a potential `φ` on one side, with cost ½|x - y|² and up to a constant,

    E φ(y) + E φ*(x),    φ*(x) = max_z <x, z> - φ(z),

and differ in who solves the inner problem. `MaxMinReversed` has a second network for the maximiser
`z = H(x)`, trained in turns with the first; the potential belongs to the target, so `H` is the
forward map and `∇φ` the inverse. `ConvexConjugate` has an input-convex potential on the source and
solves the inner problem of every batch numerically; `∇φ` is the forward map, the maximiser the
inverse. Either way the gradient in `φ` needs the maximiser only, not its derivative.

Network and optimiser are those of the benchmark paper, and so is the start close to the identity.
Tuned for minutes in place of hours: batches of 256 in place of 1024 points, cosine decay of the rate,
which starts at 1e-2 for MM-v1 and 3e-3 for MM:R in place of 1e-3, and 5 inner steps of MM:R in place of
15. At d = 32 and 64 MM:R diverges with these and keeps the paper's rate and inner steps. A whole
outer step is one compiled call.

References:
    Korotin, Li, Genevay, Solomon, Filippov and Burnaev, *Do Neural Optimal Transport Solvers
    Work? A Continuous Wasserstein-2 Benchmark*, NeurIPS 2021 (MM:R, MM-v1, the network).
    Taghvaei and Jalali, *2-Wasserstein Approximation via Restricted Convex Potentials*, 2019
    (MM-v1).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

HostMap = Callable[[np.ndarray], np.ndarray]
Watch = Callable[[float, Callable[[], HostMap]], None]
"""Told the seconds so far, and how to get the forward map so far."""

_CHUNK = 2**12  # points a call of a delivered map
_ENOUGH = 2**12  # points of the pools behind the cost and as starting points of a conjugate


@dataclass(frozen=True)
class Fitted:
    """Maps between NumPy arrays (n, d), an estimate of `W₂²/2`, and what they took."""

    forward: HostMap
    inverse: HostMap
    cost: float | None
    steps: int
    seconds: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)


class Network(NamedTuple):
    """Weights of a potential with quadratic skips from its input to three layers, side by side."""

    squared: Array
    linear: Array
    biases: Array
    hidden: tuple[Array, ...]
    head: Array

    @classmethod
    def create(cls, dim: int, key: Array) -> Network:
        first, second, third = widths = max(2 * dim, 64), max(2 * dim, 64), max(dim, 32)
        shapes = cls(
            (dim, sum(widths)),  # type: ignore[arg-type]
            (dim, sum(widths)),  # type: ignore[arg-type]
            (sum(widths),),  # type: ignore[arg-type]
            ((first, second), (second, third)),  # type: ignore[arg-type]
            (third,),  # type: ignore[arg-type]
        )
        leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s[0], int))
        keys = jax.random.split(key, len(leaves))
        weights = [0.1 * jax.random.normal(k, s) for k, s in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(structure, weights)

    def convex(self) -> Network:
        """The nearest weights that make the potential convex in its input."""
        hidden = tuple(jnp.maximum(weight, 0) for weight in self.hidden)
        return self._replace(hidden=hidden, head=jnp.maximum(self.head, 0))


def potential(net: Network, x: Array, strong_convexity: float = 1e-4) -> Array:
    """Values (n,) at points (n, d)."""
    skips = (x @ net.squared) ** 2 + x @ net.linear + net.biases
    first, second = net.hidden[0].shape[0], net.hidden[1].shape[0]
    h, *rest = jnp.split(skips, [first, first + second], axis=1)
    for weight, skip in zip(net.hidden, rest, strict=True):
        h = jax.nn.celu(h @ weight + skip)
    return h @ net.head + 0.5 * strong_convexity * jnp.sum(x * x, axis=1)


def gradient(net: Network, x: Array) -> Array:
    """`∇φ`, points (n, d) to points (n, d)."""
    return jax.grad(lambda x: jnp.sum(potential(net, x)))(x)


class Solver(Protocol):
    """A frozen dataclass of settings: state, one outer step, and what is delivered; `rate` scales the learning rate."""

    def init(self, x: Array, y: Array, key: Array) -> Any: ...

    def step(self, state: Any, x: Array, y: Array, key: Array, rate: Array) -> Any: ...

    def forward(self, state: Any) -> HostMap: ...

    def inverse(self, state: Any) -> HostMap: ...

    def cost(self, state: Any, x: Array, y: Array) -> Array: ...


class State(NamedTuple):
    networks: tuple[Network, ...]
    optimizers: tuple[Any, ...]
    starts: Array


@dataclass(frozen=True)
class MaxMinReversed:
    """MM:R: `φ` on the target and the gradient of a second network, both without constraints."""

    inner_steps: int = 15
    batch: int = 256
    learning_rate: float = 1e-3

    @classmethod
    def tuned(cls, dim: int) -> MaxMinReversed:
        """With the fast settings where they are stable; from d = 32 on they are not."""
        return cls(inner_steps=5, learning_rate=3e-3) if dim < 32 else cls()

    def init(self, x: Array, y: Array, key: Array) -> State:
        # one search for both: each is close to the identity where either will be evaluated
        both = jnp.concatenate([x[:_ENOUGH], y[:_ENOUGH]])
        nets = (_identity(Network.create(x.shape[1], key), both, key),) * 2
        adam = optax.adam(self.learning_rate)
        return State(nets, tuple(adam.init(net) for net in nets), x[:0])

    def step(self, state: State, x: Array, y: Array, key: Array, rate: Array) -> State:
        adam = optax.adam(self.learning_rate)
        (phi, mover), (phi_memory, mover_memory), starts = state
        inner_key, x_key, y_key = jax.random.split(key, 3)

        def inner_loss(mover: Network, batch: Array) -> Array:
            images = gradient(mover, batch)
            return jnp.mean(potential(phi, images) - jnp.sum(batch * images, axis=1))

        def inner(carry: Any, key: Array) -> tuple[Any, None]:
            mover, memory = carry
            slope = jax.grad(inner_loss)(mover, _draw(x, self.batch, key))
            return _update(adam, mover, slope, memory, rate), None

        keys = jax.random.split(inner_key, self.inner_steps)
        (mover, mover_memory), _ = jax.lax.scan(inner, (mover, mover_memory), keys)
        images = gradient(mover, _draw(x, self.batch, x_key))
        targets = _draw(y, self.batch, y_key)
        slope = jax.grad(_difference)(phi, targets, images)
        phi, phi_memory = _update(adam, phi, slope, phi_memory, rate)
        return State((phi, mover), (phi_memory, mover_memory), starts)

    def forward(self, state: State) -> HostMap:
        return _hosted(gradient, state.networks[1])

    def inverse(self, state: State) -> HostMap:
        return _hosted(gradient, state.networks[0])

    def cost(self, state: State, x: Array, y: Array) -> Array:
        phi, mover = state.networks
        return _cost(x, y, potential(phi, y), _legendre(phi, x, gradient(mover, x)))


@dataclass(frozen=True)
class ConvexConjugate:
    """MM-v1: an input-convex `φ` on the source; its conjugate by L-BFGS at every batch.

    A point's iterations end once `|∇φ(z) - y|` is below `tolerance`, a batch's with its slowest
    point or after `iterations` evaluations. The start is the best point of the batch itself.
    """

    iterations: int = 50
    tolerance: float = 1e-2
    stragglers: float = 0.02
    batch: int = 256
    learning_rate: float = 1e-2

    @classmethod
    def tuned(cls, dim: int) -> ConvexConjugate:
        """The same in every dimension."""
        del dim
        return cls()

    def init(self, x: Array, y: Array, key: Array) -> State:
        net = _identity(Network.create(x.shape[1], key).convex(), x, key, convex=True)
        # an own copy: what a step gives up must not be the pool itself
        return State((net,), (optax.adam(self.learning_rate).init(net),), x[:_ENOUGH] + 0.0)

    def step(self, state: State, x: Array, y: Array, key: Array, rate: Array) -> State:
        (net,), (memory,), starts = state
        x_key, y_key = jax.random.split(key)
        sources, targets = _draw(x, self.batch, x_key), _draw(y, self.batch, y_key)
        preimages = self._preimages(net, targets, sources)
        slope = jax.grad(_difference)(net, sources, preimages)
        adam = optax.adam(self.learning_rate)
        net, memory = _update(adam, net, slope, memory, rate)
        return State((net.convex(),), (memory,), starts)

    def forward(self, state: State) -> HostMap:
        return _hosted(gradient, state.networks[0])

    def inverse(self, state: State) -> HostMap:
        exact = ConvexConjugate(iterations=200, tolerance=1e-4, stragglers=0.0)

        def preimages(state: State, y: Array) -> Array:
            return exact._preimages(state.networks[0], y, state.starts)

        return _hosted(preimages, state)

    def cost(self, state: State, x: Array, y: Array) -> Array:
        net = state.networks[0]
        preimages = self._preimages(net, y, state.starts)
        return _cost(y, x, potential(net, x), _legendre(net, y, preimages))

    def _preimages(self, net: Network, y: Array, candidates: Array) -> Array:
        """`argmax_z <y, z> - φ(z)` for every `y`."""
        values = y @ candidates.T - potential(net, candidates)
        starts = candidates[jnp.argmax(values, axis=1)]
        objective = partial(_negative_legendre, net)
        return lbfgs(objective, y, starts, self.iterations, self.tolerance, self.stragglers)


def lbfgs(
    objective: Callable[[Array, Array], Array],
    parameters: Array,
    starts: Array,
    iterations: int,
    tolerance: float,
    stragglers: float = 0.0,
) -> Array:
    """Minimises many small functions side by side, each with a memory and a step of its own.

    An iteration is one evaluation for all: a point whose trial decreases its function enough takes
    it and turns to a new direction, another halves its step.

    Args:
        objective: parameters (n, k) and points (n, d) to values (n,).
        parameters: what tells one function from another.
        starts: first points (n, d).
        iterations: most evaluations.
        tolerance: gradient norm at which a point is done.
        stragglers: share of the points that need not be waited for.
    """
    direction_of = optax.scale_by_lbfgs(memory_size=8)

    def evaluate(z: Array) -> tuple[Array, Array]:
        total, pull = jax.vjp(lambda z: objective(parameters, z), z)
        return total, pull(jnp.ones_like(total))[0]

    turn = jax.vmap(direction_of.update)
    value, slope = evaluate(starts)
    direction, memory = turn(slope, jax.vmap(direction_of.init)(starts), starts)
    carry = (starts, value, slope, direction, memory, jnp.ones(len(starts)), jnp.zeros((), int))

    def unfinished(carry: Any) -> Array:
        _, _, slope, *_, count = carry
        share = jnp.mean(jnp.sum(slope**2, axis=1) > tolerance**2)
        return (count < iterations) & (share > stragglers)

    def body(carry: Any) -> Any:
        z, value, slope, direction, memory, size, count = carry
        trial = z - size[:, None] * direction
        trial_value, trial_slope = evaluate(trial)
        enough = 1e-4 * size * jnp.sum(slope * direction, axis=1)
        # near the end decreases drown in rounding, and the slope speaks instead
        smaller = jnp.sum(trial_slope**2, axis=1) < jnp.sum(slope**2, axis=1)
        close = trial_value <= value + 1e-6 * jnp.abs(value)
        done = jnp.sum(slope**2, axis=1) <= tolerance**2
        taken = ((trial_value <= value - enough) | (close & smaller)) & ~done

        def choose(new: Array, old: Array) -> Array:
            return jnp.where(taken.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        z, value, slope = (
            choose(*pair) for pair in ((trial, z), (trial_value, value), (trial_slope, slope))
        )
        turned = turn(slope, memory, z)
        direction, memory = jax.tree.map(choose, turned, (direction, memory))
        size = jnp.where(taken, 1.0, 0.5 * size)
        return z, value, slope, direction, memory, size, count + 1

    return jax.lax.while_loop(unfinished, body, carry)[0]


def fit(
    make: Callable[[int], Solver],
    x: np.ndarray,
    y: np.ndarray,
    *,
    key: Array,
    seconds: float | None = None,
    steps: int | None = None,
    watch: Watch | None = None,
) -> Fitted:
    """Trains on the pools `x` and `y`, (n, d) each, for `seconds` with everything, or `steps`.

    Args:
        make: the solver for a dimension, `MaxMinReversed.tuned` or `ConvexConjugate.tuned`.
        x, y: samples of source and target.
        key: of weights and batches.
        seconds: compilation included.
        steps: outer steps, where there is no time to keep to.
        watch: called after every step.
    """
    began = time.perf_counter()
    solver = make(x.shape[1])
    init_key, step_key = jax.random.split(key)
    pools = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    compiling = time.perf_counter()
    start = jax.jit(solver.init).lower(*pools, init_key).compile()
    compile_seconds = time.perf_counter() - compiling
    state = jax.block_until_ready(start(*pools, init_key))
    compiling = time.perf_counter()
    arguments = (state, *pools, step_key, jnp.ones(()))
    step = jax.jit(solver.step, donate_argnums=0).lower(*arguments).compile()
    compile_seconds += time.perf_counter() - compiling

    done, running = 0, time.perf_counter()
    while True:
        now = time.perf_counter()
        each = (now - running) / max(done, 1)
        if steps is not None and done >= steps:
            break
        if seconds is not None and now - began + each > seconds:
            break
        position = done / steps if steps else (now - began) / (seconds or 1.0)
        rate = jnp.asarray(0.5 * (1.0 + np.cos(np.pi * position)), jnp.float32)
        state = step(state, *pools, jax.random.fold_in(step_key, done), rate)
        jax.block_until_ready(state)
        done += 1
        if watch is not None:
            now = time.perf_counter() - began
            watch(now, lambda: solver.forward(jax.tree.map(jnp.copy, state)))  # noqa: B023
    ended = time.perf_counter()
    cost = jax.jit(solver.cost)(state, *(pool[:_ENOUGH] for pool in pools))
    return Fitted(
        forward=solver.forward(state),
        inverse=solver.inverse(state),
        cost=float(cost),
        steps=done,
        seconds={
            "compile": compile_seconds,
            "run": ended - running,
            "total": ended - began,
        },
        settings=asdict(solver) if is_dataclass(solver) and not isinstance(solver, type) else {},
    )


def in_chunks(function: Callable[[Any], Array]) -> HostMap:
    """A map on NumPy arrays, a few thousand points at a time."""

    def mapped(points: np.ndarray) -> np.ndarray:
        points = np.asarray(points, np.float32)
        chunks = (points[i : i + _CHUNK] for i in range(0, len(points), _CHUNK))
        return np.concatenate([np.asarray(function(chunk)) for chunk in chunks])

    return mapped


def _identity(net: Network, x: Array, key: Array, *, convex: bool = False) -> Network:
    """Weights from which `∇φ` is close to the identity, where every solver here starts."""
    adam = optax.adam(5e-3)

    def loss(net: Network, batch: Array) -> Array:
        return jnp.mean(jnp.sum((gradient(net, batch) - batch) ** 2, axis=1))

    def body(i: Array, carry: Any) -> Any:
        net, memory = carry
        slope = jax.grad(loss)(net, _draw(x, 512, jax.random.fold_in(key, i)))
        rate = 0.5 * (1 + jnp.cos(jnp.pi * i / 300))
        net, memory = _update(adam, net, slope, memory, rate)
        return net.convex() if convex else net, memory

    return jax.lax.fori_loop(0, 300, body, (net, adam.init(net)))[0]


def _draw(pool: Array, n: int, key: Array) -> Array:
    return pool[jax.random.randint(key, (n,), 0, len(pool))]


def _update(optimizer: Any, net: Network, slope: Network, memory: Any, rate: Array) -> Any:
    updates, memory = optimizer.update(slope, memory)
    return optax.apply_updates(net, jax.tree.map(lambda u: rate * u, updates)), memory


def _difference(net: Network, up: Array, down: Array) -> Array:
    """`E φ` at the first points minus that at the second."""
    return jnp.mean(potential(net, up)) - jnp.mean(potential(net, down))


def _legendre(net: Network, x: Array, z: Array) -> Array:
    return jnp.sum(x * z, axis=1) - potential(net, z)


def _negative_legendre(net: Network, x: Array, z: Array) -> Array:
    return -_legendre(net, x, z)


def _cost(x: Array, y: Array, potentials: Array, conjugates: Array) -> Array:
    """`½ E|x|² + ½ E|y|² - E φ(y) - E φ*(x)`."""
    squares = jnp.mean(jnp.sum(x * x, axis=1)) + jnp.mean(jnp.sum(y * y, axis=1))
    return 0.5 * squares - jnp.mean(potentials) - jnp.mean(conjugates)


def _hosted(function: Callable[[Any, Array], Array], weights: Any) -> HostMap:
    return in_chunks(partial(jax.jit(function), weights))
