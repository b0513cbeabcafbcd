"""Costs from elsewhere, and how to tell one cost from another."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import numpy as np

from brenier.costs._base import Cost
from brenier.costs._convex import ConvexCost
from brenier.costs._powers import CoordinatewisePower, Power, SquaredNorm
from brenier.costs._quadratic import Mahalanobis, Quadratic
from brenier.errors import InputError
from brenier.typing import Points


def as_cost(cost: Any, dim: int) -> Cost:
    """A `Cost` from what a user has.

    Args:
        cost: a `Cost`; `None` for the quadratic one; or a translation-invariant cost `h(x - y)` of OTT-JAX. Of those,
            `SqEuclidean` and `EuclideanP(p)` lack our factor ½ and 1/p: the map is the same, our cost that much less.
            Those without a counterpart here become a `ConvexCost`; make one yourself for another `reach`.
        dim: d.

    Raises:
        InputError: something else; a cost for another dimension; a cost of OTT-JAX that is no function of `x - y` or
            is not strictly convex.

    Example:
        >>> type(as_cost(None, 2)).__name__
        'Quadratic'
    """
    if cost is None:
        return Quadratic()
    if type(cost).__module__.startswith("ott."):
        return _from_ott(cost, dim)
    if not isinstance(cost, Cost):
        raise InputError(
            f"Expected cost to be a brenier.costs.Cost, found {type(cost).__name__}; "
            "of a function L(v) make brenier.costs.ConvexCost(L, dim)."
        )
    own = dim
    if isinstance(cost, Mahalanobis):
        own = len(cost.metric)
    elif isinstance(cost, ConvexCost):
        own = cost.dim
    if own != dim:
        raise InputError(
            f"Expected a cost of velocities with {dim} coordinates, as the points have; "
            f"found {type(cost).__name__} for {own}."
        )
    return cost


def fingerprint(cost: Cost, dim: int) -> np.ndarray:
    """`L` at sixteen fixed velocities (d,) of lengths around 1: tells one cost from another, whatever its class."""
    rng = np.random.default_rng(0)
    v = rng.normal(size=(16, dim)) / np.sqrt(dim) * np.geomspace(0.1, 3.0, 16)[:, None]
    return np.asarray(_lagrangians(cost, v))


@eqx.filter_jit
def _lagrangians(cost: Cost, v: Points) -> jax.Array:
    return jax.vmap(cost.lagrangian)(v)


def _from_ott(cost: Any, dim: int) -> Cost:
    # Whoever has such an object has the package.
    from ott.geometry import costs  # pyright: ignore[reportMissingImports]

    match cost:
        case costs.SqEuclidean():
            return Quadratic()
        case costs.SqPNorm():
            return SquaredNorm(cost.p)
        case costs.PNormP():
            return CoordinatewisePower(cost.p)
        case costs.EuclideanP():
            return Power(cost.p)
        case costs.TICost():
            # Theirs is a function of source minus target.
            return ConvexCost(lambda v: cost.h(-v), dim)
    raise InputError(
        f"Expected a cost that depends on x - y alone (ott.geometry.costs.TICost), found {type(cost).__name__}."
    )
