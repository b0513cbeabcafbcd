"""What to solve: two distributions and the cost of moving between them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np

from brenier.costs import Cost, Quadratic
from brenier.errors import InputError
from brenier.samplers import Sampler, as_sampler
from brenier.state_costs import StateCost, as_state_cost


class TransportProblem:
    """Dynamic optimal transport: minimise `E ∫ L(v) + U(x) dt` over `dx = v dt + σ dW`, `x₀ ~ μ`, `x₁ ~ ν`.

    Args:
        source, target: samples of `μ` and `ν`: an array (n, d); what stays on disk: a memory-mapped `.npy`, or the
            path to a `.npy` or `.parquet` file or to a folder of them; or a function `(key, n) -> (n, d)`. The two
            sides may differ in size, not in dimension.
        cost: `L`, quadratic with the ½ by default.
        state_cost: `U(x) >= 0`, the price of being at `x` per unit time: a `brenier.state_costs.StateCost`, shapes,
            or a function of one point (or of a batch, with an attribute `batched = True`), in JAX or not.
        noise: `σ >= 0`.

    Raises:
        InputError: data that cannot be used, different dimensions, negative noise.

    Example:
        >>> problem = TransportProblem(np.eye(3), np.eye(3) + 1.0)
        >>> problem.dim
        3
    """

    def __init__(
        self,
        source: Any,
        target: Any,
        cost: Cost | None = None,
        state_cost: Any = None,
        noise: float = 0.0,
    ):
        self.source: Sampler = as_sampler(source, "source")
        self.target: Sampler = as_sampler(target, "target")
        if self.source.dim != self.target.dim:
            raise InputError(
                "Source and target must have the same dimension; "
                f"found {self.source.dim} and {self.target.dim} columns."
            )
        if not 0.0 <= noise < float("inf"):
            raise InputError(f"Expected noise to be a finite number >= 0, found {noise}.")
        self.cost = Quadratic() if cost is None else cost
        if not isinstance(self.cost, Cost):
            raise InputError(
                f"Expected cost to be a brenier.costs.Cost, found {type(cost).__name__}."
            )
        self.state_cost: StateCost | None = None
        if state_cost is not None:
            points = self.source.pool(16, 0)
            self.state_cost = as_state_cost(state_cost, self.dim, self.dtype, points=points)
        self.noise = float(noise)

    @property
    def dim(self) -> int:
        """d, the dimension of the points."""
        return self.source.dim

    @property
    def dtype(self) -> np.dtype:
        """The precision samples are given in, the wider of both sides."""
        return np.promote_types(self.source.dtype, self.target.dtype)

    def replace(self, **changes: Any) -> TransportProblem:
        """A copy with some of the constructor's arguments changed."""
        arguments = {
            "source": self.source,
            "target": self.target,
            "cost": self.cost,
            "state_cost": self.state_cost,
            "noise": self.noise,
        }
        return TransportProblem(**(arguments | changes))

    def without_samples(self) -> TransportProblem:
        """The kind of problem alone: a copy for compiled code, which must not hold on to data."""
        bare = copy.copy(self)
        bare.source = SimpleNamespace(dim=self.dim, dtype=self.source.dtype)  # type: ignore[assignment]
        bare.target = SimpleNamespace(dim=self.dim, dtype=self.target.dtype)  # type: ignore[assignment]
        return bare
