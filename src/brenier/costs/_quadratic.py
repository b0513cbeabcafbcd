"""Quadratic forms: the cost of the classical theory."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from brenier.costs._base import Cost
from brenier.errors import InputError
from brenier.typing import Point, Scalar

_SYMMETRIC = 1e-6  # relative: a metric is often computed in float32


class Quadratic(Cost):
    """`L(v) = ½|v|²`, hence `c(x, y) = ½|x - y|²`: **with** the ½, so the optimal cost is `W₂²/2`.

    Example:
        >>> import jax.numpy as jnp
        >>> Quadratic().lagrangian(jnp.array([3.0, 4.0])).item()
        12.5
    """

    def lagrangian(self, v: Point) -> Scalar:
        return 0.5 * (v @ v)

    def hamiltonian(self, p: Point) -> Scalar:
        return 0.5 * (p @ p)

    def grad_lagrangian(self, v: Point) -> Point:
        return v

    def grad_hamiltonian(self, p: Point) -> Point:
        return p

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        squares = jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :]
        return 0.5 * squares - x @ y.T  # A matrix product: a second dimension less to go through.

    @property
    def galilean(self) -> bool:
        return True

    @property
    def degree(self) -> float:
        return 2.0


class Mahalanobis(Cost):
    """`L(v) = ½ vᵀQv`: a step costs more along some directions than along others.

    Args:
        metric: `Q`, symmetric positive definite, shape (d, d).

    Raises:
        InputError: another shape, not symmetric, not positive definite.

    Example:
        >>> import jax.numpy as jnp
        >>> cost = Mahalanobis([[4.0, 0.0], [0.0, 1.0]])
        >>> cost.lagrangian(jnp.array([1.0, 1.0])).item()
        2.5
    """

    metric: Float[Array, "d d"]
    inverse: Float[Array, "d d"]

    def __init__(self, metric: Any):
        matrix = np.asarray(metric, np.float64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
            raise InputError(
                f"Expected metric to be a finite matrix of shape (d, d), found shape {matrix.shape}."
            )
        if np.abs(matrix - matrix.T).max() > _SYMMETRIC * np.abs(matrix).max():
            raise InputError("Expected a symmetric metric; pass 0.5 * (Q + Q.T).")
        matrix = 0.5 * (matrix + matrix.T)
        smallest = np.linalg.eigvalsh(matrix)[0]
        if smallest <= 0.0:
            raise InputError(
                f"Expected a positive definite metric, found the eigenvalue {smallest:.3g}: moving along its "
                "direction would be free."
            )
        self.metric = jnp.asarray(matrix)
        self.inverse = jnp.asarray(np.linalg.inv(matrix))

    def lagrangian(self, v: Point) -> Scalar:
        return 0.5 * (v @ self.grad_lagrangian(v))

    def hamiltonian(self, p: Point) -> Scalar:
        return 0.5 * (p @ self.grad_hamiltonian(p))

    def grad_lagrangian(self, v: Point) -> Point:
        return self.metric.astype(v.dtype) @ v

    def grad_hamiltonian(self, p: Point) -> Point:
        return self.inverse.astype(p.dtype) @ p

    def pairwise(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        moved = x @ self.metric.astype(x.dtype), y @ self.metric.astype(y.dtype)
        squares = [jnp.sum(a * b, axis=1) for a, b in zip((x, y), moved, strict=True)]
        return 0.5 * (squares[0][:, None] + squares[1][None, :]) - x @ moved[1].T

    @property
    def galilean(self) -> bool:
        return True

    @property
    def degree(self) -> float:
        return 2.0
