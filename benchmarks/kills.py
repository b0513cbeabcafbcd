"""Fits that are killed at random moments: `python -m benchmarks.kills KILLS SEED`.

A fit with a checkpoint is killed one to three times, each time after a random share of its
duration, and then left to end; its map must have the bits of a fit that was left alone.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from benchmarks.harness import Record


def kill(count: int, seed: int) -> Record:
    """Kill fits `count` times, and compare where they end with one that was left alone."""
    import jax

    moments, duration = random.Random(seed), 0.0
    kills = early = fits = identical = 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # Set before the forks, computed with only after them: JAX starts its threads at the first use.
        jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        whole, parts, state = (Path(folder, name) for name in ("whole", "parts", "state"))
        for _ in range(2):  # the second time is that of a fit whose programs are compiled
            started = time.perf_counter()
            _finish(_child(seed, whole, None))
            duration = time.perf_counter() - started
        while kills < count:
            state.unlink(missing_ok=True)
            for _ in range(min(moments.randint(1, 3), count - kills)):
                child = _child(seed, parts, state)
                time.sleep(moments.uniform(0.0, duration))
                os.kill(child, signal.SIGKILL)
                killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
                kills += killed
                early += killed and not state.exists()
                if not killed:
                    break
            _finish(_child(seed, parts, state))
            fits += 1
            identical += _bits(parts) == _bits(whole)
            parts.unlink()
    return {
        "scores": {
            "kills": kills,
            "before a checkpoint": early,
            "fits": fits,
            "identical": identical,
        },
        "seconds": {"total": time.perf_counter() - began, "fit": duration},
    }


def _child(seed: int, out: Path, checkpoint: Path | None) -> int:
    """The process of a fit of twenty chunks that writes a checkpoint after each."""
    child = os.fork()
    if child:
        return child
    import jax

    import brenier

    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        source, target = np.random.default_rng(seed).normal(size=(2, 400, 2)) + 1.0
        method = brenier.NCF(
            objective="energy", network="mlp", widths=(8,), optimizer="adam",
            batch_size=32, collocation_size=16, steps=500,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = brenier.fit(
                brenier.TransportProblem(source, 2.0 * target),
                method,
                key=jax.random.key(seed),
                validation=0.25,
                early_stopping=False,
                checkpoint=checkpoint,
                checkpoint_every=0.0,
            )
        brenier.save(out, solution)
    finally:
        os._exit(0 if sys.exc_info()[0] is None else 1)


def _finish(child: int) -> None:
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("A fit that nobody killed failed.")


def _bits(path: Path) -> tuple[str, dict[str, bytes]]:
    """All of a saved solution but how long it took and when."""
    from brenier.files import read_container

    content, tensors = read_container(path, "solution")
    del content["fields"]["info"]
    return json.dumps(content), {name: array.tobytes() for name, array in tensors.items()}


if __name__ == "__main__":
    print(json.dumps(kill(*map(int, sys.argv[1:]))))
