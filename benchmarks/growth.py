"""How a fit grows: seconds and memory against the number of samples, the batch, the dimension and the devices.

One thing grows at a time. Every measurement has a process of its own, because memory is a fact about a process. The
devices are parts of one processor, so more of them show what splitting costs, not what it gains.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib.figure
import numpy as np

import brenier
from benchmarks.harness import (
    RESULTS,
    ROOT,
    Options,
    Record,
    conditions,
    in_fresh_process,
    keep,
    load,
    markdown,
    number,
    peak_mib,
    select,
)
from brenier.devices import mesh_of
from brenier.run import Run

GROWS: dict[str, Sequence[int]] = {
    "samples": (10_000, 100_000, 1_000_000, 4_000_000),
    "batch": (256, 512, 1024, 2048, 4096),
    "dim": (4, 16, 64, 256, 1024),
    "devices": (1, 2, 4, 8),
}
STILL = {"samples": 100_000, "batch": 1024, "dim": 16, "devices": 1}
SECONDS = 2.0  # of chunks behind a figure, and one chunk at least
WORDS = {
    "samples": "samples n a side",
    "batch": "batch",
    "dim": "dimension d",
    "devices": "devices",
}
FIGURE = ROOT / "docs" / "images" / "growth.png"
PLAN = {"samples": 1e10, "dim": 1000}  # what the paper calculation is about


def run(options: Options) -> None:
    seed = options.seeds[0]
    for grows, sizes in GROWS.items():
        for size in sizes[:2] if options.quick else sizes:
            case = {"grows": grows, "to": size}
            if not options.wants(case):
                continue
            found = in_fresh_process("benchmarks.growth", json.dumps(STILL | {grows: size}), seed)
            seconds = {name: found.pop(name) for name in ("setup", "compile", "step")}
            keep(options, "growth", case, seed, scores=found, seconds=seconds)
    if options.results == RESULTS:
        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        draw(load("growth")).savefig(FIGURE)


def _measure(samples: int, batch: int, dim: int, devices: int, seed: int) -> Record:
    jax.config.update("jax_num_cpu_devices", devices)
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, samples, dim), np.float32)
    y[:, 0] = np.abs(y[:, 0]) * 2.0
    method, key = brenier.NCF(batch_size=batch), jax.random.key(seed)
    before = peak_mib()
    with jax.default_matmul_precision("highest"):
        start = time.perf_counter()
        run = Run(
            *(brenier.TransportProblem(x, y), method, key, 10**6, None, 0.0, False),
            mesh=mesh_of(devices),
        )
        run.begin()
        setup = time.perf_counter() - start
        run.account(*run.chunk())
        start, first = time.perf_counter(), run.plan.step
        while run.plan.step == first or time.perf_counter() - start < SECONDS:
            run.account(*run.chunk())
        seconds = (time.perf_counter() - start) / (run.plan.step - first)
    return {
        "setup": setup,
        "compile": run.plan.compile_seconds,
        "step": seconds,
        "program_mib": run.programs.temporary_bytes() / 2**20,
        "data_mib": (x.nbytes + y.nbytes) / 2**20,
        "peak_mib": peak_mib(),
        "added_mib": peak_mib() - before,
    }


def _column(records: list[Record], grows: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and what was measured at each, in order."""
    chosen = select(records, grows=grows)
    pairs = sorted((r["case"]["to"], (r["scores"] | r["seconds"])[name]) for r in chosen)
    sizes, found = zip(*pairs, strict=True)
    return np.array(sizes, float), np.array(found, float)


def _exponent(sizes: np.ndarray, found: np.ndarray) -> float:
    """Of a power law through the three largest sizes."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(np.maximum(found[-3:], 1e-9)), 1)[0])


def draw(records: list[Record]) -> matplotlib.figure.Figure:
    figure = matplotlib.figure.Figure(figsize=(10, 4.5), layout="constrained", dpi=120)
    axes = figure.subplots(2, len(GROWS), sharex="col", sharey="row")
    for column, grows in enumerate(GROWS):
        for row, name in enumerate(("step", "program_mib")):
            sizes, found = _column(records, grows, name)
            ax = axes[row, column]
            ax.loglog(sizes, found, "o-")
            if sizes[-1] / sizes[0] < 100:
                ax.set_xscale("log", base=2)  # of a few doublings
            ax.set_title(f"exponent {_exponent(sizes, found):.2f}", fontsize="medium")
            ax.grid(alpha=0.3)
        axes[1, column].set_xlabel(WORDS[grows])
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("program, MiB a device")
    return figure


def table(results: Path) -> str | None:
    """The table, and the figure where there is one."""
    records = load("growth", results)
    if not records:
        return None
    header = [
        "what grows",
        *("seconds a step", "exponent", "program, MiB a device", "exponent"),
        *("seconds before the first step", "exponent", "peak of the process, MiB"),
    ]
    rows = []
    for grows in GROWS:
        if len(select(records, grows=grows)) < 3:
            continue
        sizes, _ = _column(records, grows, "step")
        row = [f"{WORDS[grows]}, {sizes[0]:.0f} to {sizes[-1]:.0f}"]
        for name in ("step", "program_mib", "setup"):
            _, found = _column(records, grows, name)
            row += [
                f"{number(found[0], 2)} to {number(found[-1], 2)}",
                f"{_exponent(sizes, found):.2f}",
            ]
        _, peak = _column(records, grows, "peak_mib")
        rows.append([*row, f"{peak[0]:.0f} to {peak[-1]:.0f}"])
    still = ", ".join(f"{WORDS[name]} {value}" for name, value in STILL.items())
    text = f"{markdown(header, rows)}\n\nWhat does not grow: {still}. {conditions(records)}"
    if FIGURE.exists():
        text += f"\n\n![Seconds and memory against what grows, both axes logarithmic](images/{FIGURE.name})"
    return text


def paper_table(results: Path) -> str | None:
    """What `PLAN` would need, from what was measured."""
    records = load("growth", results)
    at_dim = [r for r in select(records, grows="dim") if r["case"]["to"] == max(GROWS["dim"])]
    if not at_dim or len(select(records, grows="samples")) < 3:
        return None
    n, dim, batch = PLAN["samples"], PLAN["dim"], STILL["batch"]
    step = at_dim[0]["seconds"]["step"] * dim / max(GROWS["dim"])
    sizes, added = _column(records, "samples", "added_mib")
    copies = (added[-1] - added[0]) * 2**20 / (sizes[-1] - sizes[0]) / STILL["dim"] * dim
    a_row = 2 * dim * 4 + copies  # of both sides
    _, setup = _column(records, "samples", "setup")
    a_million = (setup[-1] - setup[0]) / (sizes[-1] - sizes[0]) * 1e6
    data, steps = 2 * n * dim * 4, brenier.NCF().steps
    epoch = n / batch
    facts = [
        ("data, both sides, float32", f"{data / 1e12:.0f} TB"),
        ("the same in memory, with the working copies measured", f"{a_row * n / 1e12:.0f} TB"),
        ("samples in 64 GB of memory", number(64e9 / a_row, 2)),
        ("set-up in memory, if there were room", f"{a_million * n / 1e6 / 3600:.1f} h"),
        ("memory of the program, from files", f"{at_dim[0]['scores']['program_mib']:.0f} MiB"),
        ("seconds a step", number(step, 2)),
        (f"the {steps} steps of the default", f"{steps * step / 60:.0f} min"),
        ("samples that these see", f"{steps * batch:.2g} of {n:.0e}"),
        ("steps to see each sample once", f"{epoch:.1e}"),
        ("and their time here", f"{epoch * step / 86400:.0f} days"),
        (
            "devices that would do it in a day, ideally shared",
            f"{max(epoch * step / 86400, 1):.0f} of this kind",
        ),
        ("reading, at that pace", f"{2 * batch * dim * 4 / step / 1e6:.0f} MB/s"),
        ("in rows of one page each", f"{2 * batch / step:.0f} a second"),
    ]
    title = f"n = {n:.0e} a side, d = {dim}, batch {batch}"
    return markdown([title, "needs"], [list(row) for row in facts])


if __name__ == "__main__":
    sizes, seed = json.loads(sys.argv[1]), int(sys.argv[2])
    print(json.dumps(_measure(**sizes, seed=seed)))
