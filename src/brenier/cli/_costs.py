"""Costs by name, for `--cost`."""

from __future__ import annotations

from brenier import costs
from brenier.errors import InputError

NAMES = {
    "quadratic": costs.Quadratic,
    "power": costs.Power,
    "coordinatewise-power": costs.CoordinatewisePower,
    "squared-norm": costs.SquaredNorm,
    "pseudo-huber": costs.PseudoHuber,
    "relativistic": costs.Relativistic,
    "cosh": costs.Cosh,
}
"""Each takes one number or, the quadratic cost, none."""


def read_cost(text: str) -> costs.Cost:
    """The cost that `NAME` or `NAME:PARAM` stands for.

    Raises:
        InputError: an unknown name; a parameter that is missing, out of range or too much.

    Example:
        >>> read_cost("power:3")
        Power(exponent=3.0)
    """
    name, given, parameter = text.partition(":")
    if name not in NAMES:
        raise InputError(f"Expected --cost to be one of {', '.join(NAMES)}, found '{name}'.")
    if name == "quadratic" and given:
        raise InputError(f"Expected --cost quadratic without a parameter, found '{text}'.")
    if not given and name in ("power", "coordinatewise-power", "squared-norm"):
        raise InputError(f"Expected --cost {name} with an exponent, as in {name}:1.5.")
    if not given:
        return NAMES[name]()
    try:
        return NAMES[name](float(parameter))
    except InputError as error:
        raise InputError(f"--cost {text}: {error}") from None
    except ValueError:
        raise InputError(f"Expected a number after --cost {name}:, found '{parameter}'.") from None
