"""`python -m benchmarks [NAME ...]`: run experiments, or `tables` to rewrite their tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import (
    ablation,
    agreement,
    bridge,
    cells,
    certificate,
    classes,
    color,
    costs,
    defaults,
    devices,
    digits,
    energy,
    few,
    fuzz,
    gaussian,
    growth,
    hosts,
    hota_ablation,
    interpolation,
    latency,
    loop,
    many,
    obstacles,
    opinion,
    shards,
    sphere,
    step,
    tables,
    throughput,
    toys,
    w2,
)
from benchmarks.harness import RESULTS, Options

EXPERIMENTS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        *(gaussian, ablation, w2, few, toys, costs, classes, interpolation, agreement, certificate),
        *(defaults, obstacles, bridge, sphere, opinion, hota_ablation, loop),
        *(color, digits, cells, energy, step, throughput, latency, shards, many),
        *(devices, growth, hosts, fuzz),
    )
}

NEEDS_DATA = {
    "cells": "single_cell/",
    "color": "color_transfer/pairs.csv",
    "defaults": "color_transfer/, single_cell/ and w2_benchmark/",
    "digits": "mnist/ and fashion_mnist/",
    "w2": "w2_benchmark/",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{', '.join(EXPERIMENTS)}; tables; everything when left out",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, nothing is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", default="", metavar="WORDS", help="cases whose name has them, as in dual-dim2"
    )
    parser.add_argument("--pairs", action="store_true", help="toys: also every toy to every other")
    parser.add_argument("--cases", type=int, help="fuzz: damaged files of each kind, 10 000")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder that holds color_transfer/, mnist/, fashion_mnist/, single_cell/, w2_benchmark/",
    )
    parser.add_argument("--results", type=Path, help="where to write (default benchmarks/results)")
    given = parser.parse_args(arguments)

    names = given.names or [*EXPERIMENTS, "tables"]
    if unknown := [name for name in names if name not in (*EXPERIMENTS, "tables")]:
        parser.error(f"expected {', '.join(EXPERIMENTS)} or tables, found {' '.join(unknown)}")
    for name in given.names:
        if name in NEEDS_DATA and given.data is None:
            parser.error(f"{name} needs --data, the folder that holds {NEEDS_DATA[name]}")
    options = Options(
        quick=given.quick,
        seeds=tuple(given.seeds[:1] if given.quick else given.seeds),
        only=given.only,
        pairs=given.pairs,
        data=given.data,
        cases=given.cases,
        results=given.results or (None if given.quick else RESULTS),
    )
    for name in names:
        if name in NEEDS_DATA and given.data is None:
            print(f"{name}: skipped, it needs --data", file=sys.stderr)
        elif name == "tables":
            tables.rewrite(given.results or RESULTS)
        else:
            EXPERIMENTS[name].run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
