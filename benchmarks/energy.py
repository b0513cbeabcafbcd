"""Energy distance: value and gradient against automatic differentiation, and peak memory.

Two peers: the formula as a textbook writes it, with differences, and its form with a matrix
product; both leave the gradient to JAX. All three are compiled and measured in turns.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.harness import (
    Options,
    Record,
    alternate,
    compiled,
    conditions,
    in_fresh_process,
    keep,
    load,
    markdown,
    median_and_worst,
    peak_mib,
    select,
    values,
)
from brenier.discrepancies import energy_distance

POINTS, MANY = 2000, 50_000
DIMS = (2, 64)
TITLES = {
    "brenier": "brenier",
    "differences": "textbook, differences",
    "product": "textbook, matrix product",
}


def textbook(distances):
    """`2 E|X-Y| - E|X-X'| - E|Y-Y'|` without the diagonals, from a function for all distances."""

    def without_diagonal(x: jax.Array) -> jax.Array:
        n = len(x)
        return jnp.sum(jnp.where(jnp.eye(n, dtype=bool), 0, distances(x, x))) / (n * (n - 1))

    def energy(x: jax.Array, y: jax.Array) -> jax.Array:
        return 2 * jnp.mean(distances(x, y)) - without_diagonal(x) - without_diagonal(y)

    return energy


def differences(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum((x[:, None, :] - y[None, :, :]) ** 2, axis=-1) + 1e-12)


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :]
    return jnp.sqrt(jnp.maximum(squares - 2 * x @ y.T, 0) + 1e-12)


PEERS = {
    "brenier": energy_distance,
    "differences": textbook(differences),
    "product": textbook(product),
}


def run(options: Options) -> None:
    n, rounds = (200, 3) if options.quick else (POINTS, 30)
    many = 2000 if options.quick else MANY
    # First, and once: a child inherits the peak of the process that starts it, and memory has no seed.
    for dim in DIMS:
        case = {"what": "memory", "dim": dim}
        if options.wants(case):
            found = in_fresh_process("benchmarks.energy", many, dim)
            seconds = {"run": found.pop("seconds")}
            keep(
                options,
                "energy",
                case,
                options.seeds[0],
                scores=found,
                seconds=seconds,
                points=many,
            )
    for seed in options.seeds:
        for dim in DIMS:
            if options.wants({"what": "time", "dim": dim}):
                _time(options, dim, seed, n, rounds)


def _time(options: Options, dim: int, seed: int, n: int, rounds: int) -> None:
    x, y = _two_samples(seed, n, dim)
    built = {name: compiled(jax.value_and_grad(f), x, y) for name, f in PEERS.items()}
    calls = {name: call for name, (call, _) in built.items()}
    # The n x m x d array of the differences takes gigabytes at d = 64 and slows down whatever runs in turn with it:
    # there it has turns of its own, after the others'.
    alone = {"differences": calls.pop("differences")} if dim > 8 else {}
    medians = alternate(calls, rounds=rounds) | alternate(alone, rounds=3)
    reference = built["differences"][0]()[1]
    for name, (call, compile_seconds) in built.items():
        error = jnp.linalg.norm(call()[1] - reference) / jnp.linalg.norm(reference)
        keep(
            options,
            "energy",
            {"what": "time", "method": name, "dim": dim},
            seed,
            scores={"milliseconds": 1e3 * medians[name], "gradient_difference": error},
            seconds={"compile": compile_seconds, "run": medians[name]},
            points=n,
        )


def _two_samples(seed: int, n: int, dim: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(seed))
    return jax.random.normal(keys[0], (n, dim)), jax.random.normal(keys[1], (n, dim)) + 0.1


def _peak(n: int, dim: int) -> Record:
    """Memory of one value and gradient of `n` points a side, in a process of its own."""
    x, y = _two_samples(0, n, dim)
    call, _ = compiled(jax.value_and_grad(energy_distance), x, y)
    before = peak_mib()
    start = time.perf_counter()
    call()
    return {
        "peak_mib": peak_mib(),
        "added_mib": peak_mib() - before,
        "data_mib": (x.nbytes + y.nbytes) / 2**20,
        "seconds": time.perf_counter() - start,
    }


def table(results: Path) -> str | None:
    records = select(load("energy", results), what="time")
    if not records:
        return None
    header = [f"value and gradient, n = {POINTS}, milliseconds", *(f"d = {d}" for d in DIMS)]
    rows = [
        [
            title,
            *(
                median_and_worst(values(select(records, method=name, dim=d), "milliseconds"))
                for d in DIMS
            ),
        ]
        for name, title in TITLES.items()
    ]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"


def memory_table(results: Path) -> str | None:
    records = select(load("energy", results), what="memory")
    if not records:
        return None
    header = [f"value and gradient, n = {MANY} a side"]
    header += ["seconds", "peak memory of the process, MiB", "of it added by the call", "data, MiB"]
    rows = []
    for dim in DIMS:
        chosen = select(records, dim=dim)
        cells = [values(chosen, "run", "seconds")]
        cells += [values(chosen, name) for name in ("peak_mib", "added_mib", "data_mib")]
        rows.append([f"d = {dim}", *(median_and_worst(cell) for cell in cells)])
    return f"{markdown(header, rows)}\n\n{conditions(records)}"


if __name__ == "__main__":
    print(json.dumps(_peak(*map(int, sys.argv[1:]))))
