"""What `brenier evaluate` prints."""

from __future__ import annotations

from typing import Any

from brenier.verdict import BASELINES, SCORES

_NAMES = {"map": "map", "noise_band": "sampling noise"} | {
    name: name.replace("_", " ") for name in BASELINES
}


def scores_in_words(scores: dict[str, Any]) -> str:
    """The result of `brenier.evaluate` as a table, the bounds, and the verdict."""
    header = ["energy distance", "forward", "backward", "/ noise", *SCORES.values()]
    rows = [_row(header)]
    for key in ("map", *BASELINES, "noise_band"):
        found = {"ratio": 1.0} | scores[key]
        numbers = [found[name] for name in ("forward", "backward", "ratio", *SCORES)]
        rows.append(_row([_NAMES[key], *map(_number, numbers)]))
    rows.append("")
    if scores["round_trip"] is not None:
        rows.append(f"round trip  {scores['round_trip']:.3g} of the variance")
    rows.append(f"dual value  {scores['dual_value']:.6g}")
    if scores["map_cost"] is not None:
        rows.append(f"map cost    {scores['map_cost']:.6g} (the dual value, if optimal)")
    if (found := scores["certificate"]) is not None:
        kind = "sampled lower bound" if found["sampled"] else "lower bound"
        low, high = found["interval"]
        rows += [
            "",
            f"optimal cost: {kind} {found['lower']:.6g}, upper bound {found['upper']:.6g}, "
            f"gap {found['gap']:.3g}",
            f"              {found['level']:.0%} interval {low:.6g} to {high:.6g}",
        ]
        if found["exact"] is not None:
            rows.append(f"              between these points alone {found['exact']:.6g}")
        if found["map_error"] is not None:
            rows.append(f"map error     at most {found['map_error']:.3g} % of the variance (UVP)")
        if found["crossing"] is not None:
            rows.append(f"crossing      {found['crossing']:.2%} of the pairs of paths")
    return "\n".join([*rows, "", scores["verdict"]])


def _row(cells: list[str]) -> str:
    first, *others = cells
    return f"{first:18}" + "".join(f"{cell:>12}" for cell in others)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
