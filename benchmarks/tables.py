"""Generated tables: no figure in the README or in `docs/` is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
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
    throughput,
    toys,
    w2,
)
from benchmarks.harness import RESULTS, ROOT

TABLES: dict[str, Callable[[Path], str | None]] = {
    "gaussian": gaussian.table,
    "ncf-ablation": ablation.table,
    "few": few.table,
    "toys": toys.table,
    "toys-pairs": toys.pairs_table,
    "costs": costs.table,
    "classes": classes.table,
    "color": color.table,
    "digits": digits.table,
    "cells": cells.table,
    "obstacles": obstacles.table,
    "bridge": bridge.table,
    "sphere": sphere.table,
    "opinion": opinion.table,
    "hota-ablation": hota_ablation.table,
    "loop": loop.table,
    "interpolation": interpolation.table,
    "interpolation-study": interpolation.study_table,
    "certificate": certificate.table,
    "defaults": defaults.table,
    "energy": energy.table,
    "energy-memory": energy.memory_table,
    "fuzz": fuzz.table,
    "w2": w2.table,
    "w2-peers": w2.peers_table,
    "agreement": agreement.table,
    "latency": latency.table,
    "step": step.table,
    "throughput": throughput.table,
    "shards": shards.table,
    "many": many.table,
    "devices": devices.table,
    "growth": growth.table,
    "growth-paper": growth.paper_table,
    "hosts": hosts.table,
    "time": lambda results: "\n\n".join(
        t for t in (step.table(results), throughput.table(results)) if t
    ),
}
"""Each turns the folder of results into Markdown, or into nothing where there are none."""

_MARKED = re.compile(r"(<!-- table:(\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def rewrite(results: Path = RESULTS, root: Path = ROOT) -> None:
    """Fills in every marked table of the README and of `docs/*.md`."""
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        old = page.read_text()
        new = fill(old, results)
        if new != old:
            page.write_text(new)
            print(f"{page.relative_to(root)}: rewritten")


def fill(text: str, results: Path) -> str:
    """`text` with its marked tables replaced; one without results says so."""

    def table(match: re.Match[str]) -> str:
        start, which, end = match.groups()
        content = TABLES[which](results) or "*No results are recorded yet.*"
        return f"{start}{content}\n{end}"

    return _MARKED.sub(table, text)
