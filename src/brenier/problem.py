"""What to solve: two distributions and the cost of moving between them."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from brenier.classes import with_classes
from brenier.costs import Cost, as_cost
from brenier.drifts import Drift, as_drift
from brenier.errors import InputError
from brenier.samplers import Sampler, as_sampler
from brenier.state_costs import StateCost, as_state_cost


class TransportProblem:
    """Dynamic optimal transport: minimise `E ∫ L(v) + U(x) dt` over `dx = (f + v) dt + σ dW`, `x₀ ~ μ`, `x₁ ~ ν`.

    Args:
        source, target: samples of `μ` and `ν`: an array (n, d); what stays on disk: a memory-mapped `.npy`, or the
            path to a `.npy` or `.parquet` file or to a folder of them; or a function `(key, n) -> (n, d)`. The two
            sides may differ in size, not in dimension.
        cost: `L`, one of `brenier.costs` or a cost of OTT-JAX; quadratic with the ½ by default.
        state_cost: `U(x) >= 0`, the price of being at `x` per unit time: a `brenier.state_costs.StateCost`, shapes,
            or a function of one point (or of a batch, with an attribute `batched = True`), in JAX or not.
        noise: `σ >= 0`.
        drift: `f(t, x)`, where particles go by themselves: a function of a time and one point (d,) that JAX can trace,
            or a `brenier.drifts.Drift`; none by default.
        source_labels, target_labels: the class of each row of the arrays, whole numbers or strings; then each class is
            to be moved onto the class of the same label. Points labelled -1 are left out.

    Raises:
        InputError: data or labels that cannot be used, different dimensions, negative noise; a price or a drift
            of the wrong shape.

    Example:
        >>> problem = TransportProblem(np.eye(3), np.eye(3) + 1.0)
        >>> problem.dim
        3
    """

    def __init__(
        self,
        source: Any,
        target: Any,
        cost: Any = None,
        state_cost: Any = None,
        noise: float = 0.0,
        *,
        drift: Any = None,
        source_labels: Any = None,
        target_labels: Any = None,
    ):
        self.source: Sampler
        self.target: Sampler
        if source_labels is None and target_labels is None:
            self.source, self.target = as_sampler(source, "source"), as_sampler(target, "target")
        else:
            self.source, self.target = with_classes(source, source_labels, target, target_labels)
        if self.source.dim != self.target.dim:
            raise InputError(
                "Source and target must have the same dimension; "
                f"found {self.source.dim} and {self.target.dim} columns."
            )
        if self.source.classes != self.target.classes:
            raise InputError("Expected class labels for both sides or for none; give them again.")
        if not 0.0 <= noise < float("inf"):
            raise InputError(f"Expected noise to be a finite number >= 0, found {noise}.")
        self.cost: Cost = as_cost(cost, self.dim)
        self.state_cost: StateCost | None = None
        if state_cost is not None:
            points = self.source.pool(16, 0)
            self.state_cost = as_state_cost(state_cost, self.dim, self.dtype, points=points)
        self.noise = float(noise)
        self.drift: Drift | None = None
        if drift is not None:
            self.drift = as_drift(drift, self.dim, self.dtype)

    @property
    def dim(self) -> int:
        """d, the dimension of the points."""
        return self.source.dim

    @property
    def dtype(self) -> np.dtype:
        """The precision samples are given in, the wider of both sides."""
        return np.promote_types(self.source.dtype, self.target.dtype)

    @property
    def classes(self) -> tuple[Any, ...]:
        """The labels of the classes, empty without labels."""
        return self.source.classes

    def replace(self, **changes: Any) -> TransportProblem:
        """A copy with some of the constructor's arguments changed."""
        arguments = {
            "source": self.source,
            "target": self.target,
            "cost": self.cost,
            "state_cost": self.state_cost,
            "noise": self.noise,
            "drift": self.drift,
        }
        return TransportProblem(**(arguments | changes))

    @property
    def samples(self) -> float:
        """The number of points of the side that has fewer; without end where both are functions."""
        sides = self.source.size, self.target.size
        return min(math.inf if size is None else size for size in sides)

    def without_samples(self) -> TransportProblem:
        """The kind of problem alone: a copy for compiled code, which must not hold on to data."""
        bare = copy.copy(self)
        bare.source, bare.target = (  # type: ignore[assignment]
            SimpleNamespace(dim=side.dim, dtype=side.dtype, classes=side.classes)
            for side in (self.source, self.target)
        )
        return bare
