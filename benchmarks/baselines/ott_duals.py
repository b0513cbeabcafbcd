"""The neural duals of OTT-JAX, run from the installed package (`ott-jax[neural]`).

Its class `ExpectileNeuralDual` learns a potential and a conjugate potential at once and ties them by an
expectile penalty, in place of solving for the conjugate; either gives a map. Loop, losses and
networks are OTT's. Tuned like the other solvers: a batch of 256, and for Adam's rate 3e-3 in place of 3e-4, with
cosine decay over the run.

OTT's other dual, `W2NeuralDual`, solves for the conjugate of every point by L-BFGS; with a batch of 1024
one step takes about a second on a core, so that it is no match within minutes.

Reference:
    Buzun, Bobrin and Dylov, *Expectile Regularization for Fast and Accurate Training of Neural
    Optimal Transport*, NeurIPS 2024.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.baselines.minimax import Fitted, HostMap, Watch, in_chunks

BATCH, RATE = 256, 3e-3
PACKAGES = ("ott-jax", "flax", "jaxopt")

_FEW = 2**12


def missing() -> str | None:
    """What to install where this cannot run."""
    needed = ("ott", "flax", "jaxopt")
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    hint = "pip install 'ott-jax[neural]'"
    return f"{', '.join(absent)} not installed, try `{hint}`" if absent else None


def fit(
    x: np.ndarray,
    y: np.ndarray,
    *,
    key: jax.Array,
    seconds: float | None = None,
    steps: int | None = None,
    watch: Watch | None = None,
) -> Fitted:
    """Trains on the pools `x` and `y`, (n, d) each, for `seconds` with everything, or `steps`.

    Args:
        x, y: samples of source and target.
        key: of weights and batches.
        seconds: imports left out, compilation included.
        steps: where there is no time to keep to.
        watch: called after every step.

    Returns:
        The maps; the cost is OTT's `W₂²` halved.
    """
    from ott.neural.methods.expectile_neural_dual import ExpectileNeuralDual

    began = time.perf_counter()
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=RATE, b1=0.9, b2=0.9)
    solver = ExpectileNeuralDual(
        x.shape[1],
        optimizer_f=adam,
        optimizer_g=adam,
        num_train_iters=steps or 10**9,
        valid_freq=10**9,
        rng=key,
    )
    ends: list[float] = []

    def position() -> float:
        return len(ends) / steps if steps else (time.perf_counter() - began) / (seconds or 1.0)

    def batches(pool: np.ndarray, purpose: int) -> Iterator[np.ndarray]:
        seed = np.asarray(jax.random.key_data(key)).tolist()
        generator = np.random.default_rng((*seed, purpose))
        while position() < 1.0:
            yield pool[generator.integers(len(pool), size=BATCH)]

    def after_step(step: int, potentials: Any) -> None:
        jax.block_until_ready((solver.state_f.params, solver.state_g.params))
        now = time.perf_counter()
        ends.append(now)
        rate = jnp.asarray(0.5 * RATE * (1.0 + np.cos(np.pi * min(position(), 1.0))), jnp.float32)
        solver.state_f, solver.state_g = (
            _with_rate(state, rate) for state in (solver.state_f, solver.state_g)
        )
        if watch is not None:
            watch(now - began, lambda: _map(potentials, forward=True))

    loaders = batches(x, 0), batches(y, 1)
    # a loader ends with the time, and its end is how OTT's loop is left
    with contextlib.suppress(StopIteration):
        solver(*loaders, *loaders, callback=after_step)
    potentials = solver.to_dual_potentials()
    # roles swap with every step: the second compiles once more
    compiled = ends[min(1, len(ends) - 1)] - began
    total = ends[-1] - began
    return Fitted(
        forward=_map(potentials, forward=True),
        inverse=_map(potentials, forward=False),
        cost=0.5 * float(potentials.distance(jnp.asarray(x[:_FEW]), jnp.asarray(y[:_FEW]))),
        steps=len(ends),
        seconds={"compile": compiled, "run": total - compiled, "total": total},
        settings={"name": "ExpectileNeuralDual", "batch": BATCH, "learning_rate": RATE},
    )


def _with_rate(state: Any, rate: jax.Array) -> Any:
    memory = state.opt_state
    hyperparameters = {**memory.hyperparams, "learning_rate": rate}
    return state.replace(opt_state=memory._replace(hyperparams=hyperparameters))


def _map(potentials: Any, *, forward: bool) -> HostMap:
    return in_chunks(jax.jit(lambda points: potentials.transport(points, forward=forward)))
