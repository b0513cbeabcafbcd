"""One of several processes killed at a random moment, and all of them started again: is anything lost?

The processes are those of `brenier fit --coordinator`, on this machine. A run that is disturbed and continued
has to end with the bits of one that was not.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import brenier
from benchmarks.harness import (
    Options,
    conditions,
    keep,
    load,
    markdown,
    median_and_worst,
    number,
    select,
    values,
)

STEPS = {2: 500, 4: 150}  # of a fit; the more processes share two cores, the longer a step takes
KILLS = 10
POINTS = 320  # a side: all of them in every batch
LOST = 3  # the exit status of the others


def run(options: Options) -> None:
    seed = options.seeds[0]
    for count in list(STEPS)[:1] if options.quick else STEPS:
        case = {"processes": count}
        if options.wants(case):
            kills, steps = (1, 50) if options.quick else (KILLS, STEPS[count])
            with tempfile.TemporaryDirectory() as folder:
                scores, seconds = _measure(Path(folder), count, kills, steps, seed)
            keep(
                options,
                "hosts",
                case,
                seed,
                scores=scores,
                seconds=seconds,
                kills=kills,
                steps=steps,
            )


def _measure(
    folder: Path, count: int, kills: int, steps: int, seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(POINTS, 2)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", 2.0 * rng.normal(size=(POINTS, 2)).astype(np.float32) + 1.0)
    calm = 0.0
    for name in ("first", "calm"):  # the second time is that of a fit whose programs are compiled
        began = time.perf_counter()
        assert _ended(_started(folder, name, count, steps))[0] == [0] * count
        calm = time.perf_counter() - began
    exact = brenier.load(folder / "calm.brenier").transport.forward(x)
    done, same, stopped, told = 0, 0.0, [], 0.0
    while done < kills:
        name = f"kill-{done}"
        processes = _started(folder, name, count, steps)
        # From their start to the last steps: whatever they are at.
        time.sleep(rng.uniform(0.0, 1.0) * calm)
        victim = int(rng.integers(count))
        processes[victim].send_signal(signal.SIGKILL)
        began = time.perf_counter()
        statuses, said = _ended(processes)
        if statuses.pop(victim) == -signal.SIGKILL:
            said.pop(victim)
            done += 1
            stopped.append(time.perf_counter() - began)
            told += all(
                # 0: the fit had ended before
                status == 0 or (status == LOST and words.count("error: ") == 1)
                for status, words in zip(statuses, said, strict=True)
            )
            assert _ended(_started(folder, name, count, steps))[0] == [0] * count
            found = brenier.load(folder / f"{name}.brenier").transport.forward(x)
            same += bool((found == exact).all())
        for path in folder.glob(f"{name}.*"):
            path.unlink()
    scores = {"kills": float(done), "same_bits": same, "right_status": told}
    return scores, {"undisturbed": calm, "until_stopped": max(stopped)}


def _started(folder: Path, name: str, count: int, steps: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", "from brenier.cli import main; main()"),
                *("fit", "x.npy", "y.npy", "--out", f"{name}.brenier", "--steps", str(steps)),
                *("--checkpoint", f"{name}.ckpt", "--checkpoint-every", "0.5s", "--quiet"),
                *("--coordinator", f"127.0.0.1:{port}"),
                *("--processes", str(count), "--process-id", str(rank)),
            ],
            cwd=folder,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "BRENIER_CACHE_DIR": str(folder / "cache")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def _ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit statuses, and what was said."""
    said = [process.communicate(timeout=600)[1] for process in processes]
    return [process.returncode for process in processes], said


def table(results: Path) -> str | None:
    records = load("hosts", results)
    if not records:
        return None
    header = [
        *("processes", "steps of a fit", "seconds of one left alone"),
        *("killed at random", "same bits after going on", "others ended with status and message"),
        "seconds until they had, at most",
    ]
    rows = [
        [
            str(count),
            *(str(chosen[0]["steps"]), number(values(chosen, "undisturbed", "seconds")[0])),
            *(f"{chosen[0]['scores'][k]:.0f}" for k in ("kills", "same_bits", "right_status")),
            median_and_worst(values(chosen, "until_stopped", "seconds")),
        ]
        for count in STEPS
        if (chosen := select(records, processes=count))
    ]
    return f"{markdown(header, rows)}\n\n{conditions(records)}"
