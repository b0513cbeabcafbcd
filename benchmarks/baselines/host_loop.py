"""HOTA's residual training in the shape of the published loop, which goes to the host and back at every step.

Batches are drawn and the replay buffer is kept in NumPy; every second step simulates paths, takes all of them to the
host and keeps one; every step sends its points to the device and waits for the loss. Network, losses and optimiser are
those of the `brenier.HOTA` it is given, compiled, so that the difference is the loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import brenier
from brenier.flow import simulate

_CAPACITY = 100_000
_FULL_EVERY = 2


def stepper(
    method: brenier.HOTA,
    problem: brenier.TransportProblem,
    network: Any,
    x: np.ndarray,
    y: np.ndarray,
    seed: int = 0,
) -> Callable[[], float]:
    """A call does one step and gives its loss.

    Args:
        method: of the residual; its preset, sizes and weights.
        problem: in the coordinates it is trained in.
        network: of the potential, to begin with.
        x, y: pools of samples, (n, d) each.
        seed: of batches and of the simulation.
    """
    rng = np.random.default_rng(seed)
    optimizer = optax.adam(method.learning_rate, *method.betas)
    n, nodes, count = method.batch_size, method.rollout_steps + 1, method.trajectories
    times, points = np.empty(_CAPACITY, x.dtype), np.empty((_CAPACITY, x.shape[1]), x.dtype)
    filled = 0

    def hamilton_jacobi(network: Any, target: Any, t: Any, z: Any, key: Any) -> Any:
        known: Any = SimpleNamespace(base=None, network=network, target=target)
        price = method._prices(problem, known, t, z, key, jnp.ones((), z.dtype))
        return jax.value_and_grad(
            lambda network: method._residual_loss(problem, known, network, t, z, price, key)
        )(network)

    def moved(network: Any, target: Any, own: Any, gradient: Any) -> Any:
        updates, own = optimizer.update(gradient, own, network)
        network = optax.apply_updates(network, updates)
        decay = method.target_decay
        return network, jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, target, network), own

    @jax.jit
    def half(network: Any, target: Any, own: Any, scale: Any, t: Any, z: Any, key: Any) -> Any:
        loss, slope = hamilton_jacobi(network, target, t, z, key)
        gradient = jax.tree.map(lambda g: method.control_weight * scale * g, slope)
        return *moved(network, target, own, gradient), loss

    @jax.jit
    def full(
        network: Any, target: Any, own: Any, scale: Any, t: Any, z: Any, x: Any, y: Any, key: Any
    ) -> Any:
        paths = simulate(network, problem, x[:count], key, method.rollout_steps, scheme="euler")

        def end(network: Any) -> jax.Array:
            at = jax.vmap(lambda x: network(jnp.ones((), x.dtype), x))
            m = jnp.mean(at(paths.points[-1])) - jnp.mean(at(y))
            return m * jnp.abs(m)

        matched, slope_end = jax.value_and_grad(end)(network)
        loss, slope = hamilton_jacobi(network, target, t, z, key)
        ratio = optax.tree.norm(slope_end) / (optax.tree.norm(slope) + 1e-8)
        scale = 0.9 * scale + 0.1 * jnp.clip(ratio, 1e-2, 10.0)
        weight = method.control_weight * scale
        gradient = jax.tree.map(lambda e, h: e + weight * h, slope_end, slope)
        result = moved(network, target, own, gradient)
        return *result, scale, matched + loss, paths.times, paths.points

    state = [network, network, optimizer.init(network), jnp.asarray(0.1, x.dtype)]
    counter = itertools.count()

    def call() -> float:
        nonlocal filled
        k = next(counter)
        key = jax.random.fold_in(jax.random.key(seed), k)
        x0, x1 = (side[rng.integers(len(side), size=n)] for side in (x, y))
        if filled:
            rows = rng.integers(min(filled, _CAPACITY), size=n)
            t, z = times[rows], points[rows]
        else:
            t = rng.uniform(size=n).astype(x.dtype)
            z = x0 + t[:, None] * (x1 - x0)
        if k % _FULL_EVERY:
            *state[:3], loss = half(*state, t, z, key)
            return float(loss)
        *state[:], loss, own_times, own_points = full(*state, t, z, x0, x1, key)
        kept = np.asarray(own_points)[:, rng.integers(count)]
        at = (filled + np.arange(nodes)) % _CAPACITY
        times[at], points[at] = np.asarray(own_times), kept
        filled += nodes
        return float(loss)

    return call
