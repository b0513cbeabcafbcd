"""What every experiment shares: options, one JSON file per result, fair clocks."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from brenier.files import atomic_write

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("brenier", "jax", "jaxlib", "equinox", "optax", "numpy")

Record = dict[str, Any]
HostMap = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Options:
    """How an experiment is to be run.

    Attributes:
        quick: small sizes and few steps: does it run at all?
        seeds: one repetition each; a seed fixes the data and the fit.
        only: run the cases whose name contains this text.
        pairs: the toys' large variant.
        data: folder of the data sets that are not generated.
        results: where the JSON files go; None keeps nothing.
        cases: damaged files of each kind.
    """

    quick: bool = False
    seeds: tuple[int, ...] = (0, 1, 2)
    only: str = ""
    pairs: bool = False
    data: Path | None = None
    results: Path | None = None
    cases: int | None = None

    def wants(self, case: Mapping[str, Any]) -> bool:
        # Whole words: dim10 is not dim100.
        return not self.only or f"-{self.only}-" in f"-{slug(case)}-"


def slug(case: Mapping[str, Any]) -> str:
    """A file name for a case: words as they are, numbers after what they count."""
    return "-".join(v if isinstance(v, str) else f"{k}{v}" for k, v in case.items())


def keep(
    options: Options,
    benchmark: str,
    case: Mapping[str, Any],
    seed: int,
    *,
    scores: Mapping[str, float],
    seconds: Mapping[str, float],
    packages: Sequence[str] = (),
    **facts: Any,
) -> None:
    """Prints a result and writes it to `RESULTS/benchmark/case-seedN.json`.

    Args:
        options: decide where to.
        benchmark: name of the experiment.
        case: what was measured; tables select by it.
        seed: of data and fit.
        scores: the numbers.
        seconds: times, compilation apart.
        packages: whose versions matter beyond our own.
        facts: settings worth knowing later, such as steps and hyper-parameters.
    """
    record = {
        "benchmark": benchmark,
        "case": dict(case),
        "seed": seed,
        "scores": {name: float(value) for name, value in scores.items()},
        "seconds": {name: round(float(value), 6) for name, value in seconds.items()},
        **facts,
        "machine": machine(),
        "versions": {p: _version(p) for p in (*PACKAGES, *packages)},
    }
    shown = {**record["scores"], **{f"{k} s": v for k, v in record["seconds"].items()}}
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
    print(f"{benchmark}/{slug(case)} seed {seed}:  {numbers}", flush=True)
    if options.results is not None:
        folder = options.results / benchmark
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        atomic_write(folder / f"{slug(case)}-seed{seed}.json", text.encode())


def load(benchmark: str, results: Path = RESULTS) -> list[Record]:
    """All results of an experiment, in a fixed order."""
    return [json.loads(p.read_text()) for p in sorted((results / benchmark).glob("*.json"))]


def machine() -> dict[str, Any]:
    """The hardware, without anything that names the machine or its owner."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
    }


def alternate(
    functions: Mapping[str, Callable[[], Any]], *, rounds: int, repeats: int = 1
) -> dict[str, float]:
    """Median seconds per call of each function, measured in turns.

    Turns make whatever else the machine does hit all of them alike. Each is called once before.

    Args:
        functions: by name; a call must not return before its work is done.
        rounds: turns each.
        repeats: calls in a row per turn.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(repeats):
                function()
            seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[[], Any], float]:
    """A blocking call of a jitted function on fixed arguments, and the seconds to compile it."""
    start = time.perf_counter()
    executable = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(executable(*arguments)), seconds


def on_host(function: Callable[[Any], Any]) -> HostMap:
    """A map that certainly gives NumPy arrays."""
    return lambda points: np.asarray(function(points))


def in_fresh_process(module: str, *arguments: Any) -> Record:
    """Runs `python -m module arguments` and reads the JSON object on the last line of its output.

    Peak memory is a fact about a process: only a fresh one can tell what one call needed.
    """
    command = [sys.executable, "-m", module, *(str(a) for a in arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    if sys.platform == "linux":  # where the figure below begins at that of the parent process
        status = Path("/proc/self/status").read_text()
        return float(status.partition("VmHWM:")[2].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def median_and_worst(values: Sequence[float], *, better: Callable = min, digits: int = 3) -> str:
    """`median (worst)` to some significant digits; a single value stands alone."""
    if not len(values):
        return "–"
    worst = (max if better is min else min)(values)
    median = number(float(np.median(values)), digits)
    return median if len(values) == 1 else f"{median} ({number(worst, digits)})"


def number(value: float, digits: int = 3) -> str:
    """A number for a table: significant digits, no exponent for ordinary sizes, no leading zero."""
    if not np.isfinite(value):
        return "–"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(digits - 1 - int(np.floor(np.log10(abs(value)))), 0) if value else 0
    text = f"{value:.{decimals}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def markdown(header: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def select(records: Sequence[Record], **case: Any) -> list[Record]:
    """The records whose case has these values."""
    return [r for r in records if all(r["case"].get(k) == v for k, v in case.items())]


def values(records: Sequence[Record], name: str, group: str = "scores") -> list[float]:
    """One number of every record that has it."""
    return [r[group][name] for r in records if name in r[group]]


def conditions(records: Sequence[Record], *, sums: bool = False) -> str:
    """One line below a table, of medians or of `sums` over the seeds: on what, with what, how often."""
    counts = ((r["machine"]["cpu"], r["machine"]["cores"]) for r in records)
    machines = {f"{cpu}, {cores} core{'s' * (cores > 1)}" for cpu, cores in counts}
    jaxes = {r["versions"]["jax"] for r in records}
    seeds = len({r["seed"] for r in records})
    many = (
        "Sums over {} seeds at most" if sums else "Median (worst) of {} seeds; no bracket: one seed"
    )
    often = many.format(seeds) if seeds > 1 else "One seed"
    return f"{often}; {' and '.join(sorted(machines))}; JAX {', '.join(sorted(jaxes))}."


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
