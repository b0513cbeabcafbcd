"""Flow matching: a velocity network fitted to straight lines between random pairs, followed by an ODE solver.

The usual alternative to a map: easy to train, and as many network passes to use as the solver takes steps. A
plain multilayer perceptron of `(t, x)`, Adam with cosine decay, diffrax's `Tsit5` with its own step size.

Reference:
    Lipman, Chen, Ben-Hamu, Nickel and Le, *Flow Matching for Generative Modeling*, ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

BATCH, RATE, TOLERANCE = 512, 1e-3, 1e-4
CHUNK = 2**12  # points a call


def fit(
    x: np.ndarray, y: np.ndarray, *, key: jax.Array, steps: int, width: int = 128, depth: int = 3
) -> eqx.nn.MLP:
    """The velocity `v(t, x)` after training on samples (n, d) of either side; a network of `[t, x]`."""
    dim = x.shape[1]
    net_key, key = jax.random.split(key)
    network = eqx.nn.MLP(dim + 1, dim, width, depth, jax.nn.silu, key=net_key)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    def loss(network: eqx.nn.MLP, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        start = x[jax.random.randint(keys[0], (BATCH,), 0, len(x))]
        end = y[jax.random.randint(keys[1], (BATCH,), 0, len(y))]
        t = jax.random.uniform(keys[2], (BATCH, 1))
        at = jnp.concatenate([t, start + t * (end - start)], axis=1)
        return jnp.mean(jnp.sum((jax.vmap(network)(at) - (end - start)) ** 2, axis=1))

    @eqx.filter_jit
    def train(network: eqx.nn.MLP) -> eqx.nn.MLP:
        leaves, rest = eqx.partition(network, eqx.is_array)

        def step(carry, key):
            leaves, state = carry
            gradient = jax.grad(lambda leaves: loss(eqx.combine(leaves, rest), key))(leaves)
            updates, state = optimizer.update(gradient, state)
            return (eqx.apply_updates(leaves, updates), state), None

        start = (leaves, optimizer.init(leaves))
        (leaves, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
        return eqx.combine(leaves, rest)

    return train(network)


def transform(network: eqx.nn.MLP, until: float = 1.0) -> Callable[[np.ndarray], np.ndarray]:
    """The map of points (n, d) by the flow from 0 to `until`, a chunk at a time, every point with steps of its own."""

    def velocity(t, x, _):
        return network(jnp.concatenate([jnp.asarray(t, x.dtype)[None], x]))

    def flow(x):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            t0=0.0,
            t1=until,
            dt0=0.05,
            y0=x,
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
        )
        assert solution.ys is not None
        return solution.ys[0]

    flows = eqx.filter_jit(jax.vmap(flow))

    def mapped(points: np.ndarray) -> np.ndarray:
        out = np.empty_like(points)
        for first in range(0, len(points), CHUNK):
            part = points[first : first + CHUNK]
            padded = np.pad(part, ((0, CHUNK - len(part)), (0, 0)))
            out[first : first + CHUNK] = np.asarray(flows(padded))[: len(part)]
        return out

    return mapped
