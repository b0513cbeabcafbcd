"""One training step of NCF against the same step in eager PyTorch, in turns on the same batch.

Network, widths, activation, batch and collocation are equal, and so is the loss, which is checked.
PyTorch takes Adam, which is what the paper uses and cheaper than our default, Muon. It gets as many
threads as JAX has cores.
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import brenier
from benchmarks.harness import (
    Options,
    alternate,
    conditions,
    keep,
    load,
    machine,
    markdown,
    median_and_worst,
    select,
    values,
)

DIMS = (2, 64)
PRESETS = ("published", "default")


def run(options: Options) -> None:
    cases = itertools.product(options.seeds, PRESETS, DIMS)
    for seed, preset, dim in cases:
        if options.wants({"preset": preset, "dim": dim}):
            _compare(options, preset, dim, seed)


def _compare(options: Options, preset: str, dim: int, seed: int) -> None:
    # an extra: the other experiments run without PyTorch
    import torch

    from benchmarks.baselines import torch_ncf

    torch.set_num_threads(machine()["cores"])
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"batch_size": 200, "collocation_size": 100} if options.quick else {}
    method: Any = brenier.NCF(preset=preset, objective="energy", **sizes)  # type: ignore[arg-type]
    exact = brenier.datasets.gaussian_pair(dim, seed)
    keys = jax.random.split(jax.random.key(seed), 4)
    size = method.batch(brenier.TransportProblem(exact.source, exact.target))
    x, y = exact.source(keys[0], size), exact.target(keys[1], size)
    problem = brenier.TransportProblem(np.asarray(x), np.asarray(y))
    state = method.init(problem, keys[2])

    widths = [len(bias) for bias in state.network.biases]
    theirs = torch_ncf.DenseQuadratic(dim, widths, method.activation)
    _copy_weights(state.network, theirs)
    xt, yt = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y))
    distances = torch_ncf.faster_distances(size, dim)
    place = {"box": torch_ncf.in_box, "path": torch_ncf.on_paths}[method.collocation]
    collocation = place(xt, yt, method.collocation_size)
    difference = _loss_difference(method, state.network, theirs, x, y, distances)
    their_step = torch_ncf.stepper(theirs, xt, yt, collocation, distances)

    our_step, compile_seconds = _our_step(method, problem, state, (x, y), keys[3])
    medians = alternate(
        {"brenier": our_step, "torch": their_step}, rounds=3 if options.quick else 25, repeats=2
    )
    keep(
        options,
        "step",
        {"preset": preset, "dim": dim},
        seed,
        scores={
            "ratio": medians["torch"] / medians["brenier"],
            "brenier_ms": 1e3 * medians["brenier"],
            "torch_ms": 1e3 * medians["torch"],
            "loss_difference": difference,
        },
        seconds={"compile": compile_seconds},
        packages=["torch"],
        torch_distances=distances.__name__,
        settings=method.describe(),
    )


def _our_step(method, problem, state, batch, key):
    """Steps one after another from `state`, each waited for, and the seconds to compile one."""
    counter = itertools.count()
    progress = jnp.zeros(())
    start = time.perf_counter()
    step = jax.jit(partial(method.step, problem), donate_argnums=0)
    step = step.lower(state, batch, key, progress).compile()
    compile_seconds = time.perf_counter() - start
    state = [state]

    def call() -> float:
        step_key = jax.random.fold_in(key, next(counter))
        state[0], metrics = step(state[0], batch, step_key, progress)
        return float(metrics["loss"])

    return call, compile_seconds


def _copy_weights(ours: Any, theirs: Any) -> None:
    import torch

    with torch.no_grad():
        theirs.head.copy_(torch.tensor(np.asarray(ours.head)))
        for name in ("squared", "linear", "biases", "hidden"):
            for parameter, weight in zip(getattr(theirs, name), getattr(ours, name), strict=True):
                parameter.copy_(torch.tensor(np.asarray(weight)))


def _loss_difference(method, network, theirs, x, y, distances) -> float:
    """Relative difference of the two losses with the same weights, batch and collocation points."""
    import torch

    from benchmarks.baselines import torch_ncf
    from brenier.methods._characteristic import matching_loss

    n = min(500, len(x))
    t, z = jnp.linspace(0, 1, n), x[:n]
    cost = brenier.costs.Quadratic()
    forward, backward, _, _ = matching_loss(network, cost, x, y)
    ours = forward + backward + jnp.mean(method.residuals(network, cost, t, z) ** 2)
    tt, zt, xt, yt = (torch.tensor(np.asarray(a)) for a in (t, z, x, y))
    value = torch_ncf.loss(theirs, xt, yt, lambda *images: (tt, zt), distances).item()
    return abs(value - float(ours)) / abs(float(ours))


def table(results: Path) -> str | None:
    records = load("step", results)
    if not records:
        return None
    header = ["one NCF step", "brenier, ms", "eager PyTorch, ms", "ratio", "compilation, s"]
    rows = []
    for preset, dim in itertools.product(PRESETS, DIMS):
        if chosen := select(records, preset=preset, dim=dim):
            rows.append(
                [
                    f"{preset}, d = {dim}",
                    median_and_worst(values(chosen, "brenier_ms")),
                    median_and_worst(values(chosen, "torch_ms")),
                    median_and_worst(values(chosen, "ratio"), better=max),
                    median_and_worst(values(chosen, "compile", "seconds"), digits=2),
                ]
            )
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
