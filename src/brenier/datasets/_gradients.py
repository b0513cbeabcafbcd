"""Transport from a Gaussian mixture by the gradient of a strongly convex function.

By Brenier's theorem such a gradient is the optimal map to whatever it makes of the mixture. Its
inverse and its cost have no closed form and are computed here.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from brenier.datasets.exact import ExactProblem
from brenier.errors import BrenierError, InputError
from brenier.gaussian import GaussianPotential
from brenier.typing import Key, Points

AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)

COST_ERROR = 1e-3
"""Relative standard error of an estimated cost."""

_ROUND, _FEWEST, _MOST = 2**11, 16, 128
"""Points of a component in one round of an estimate, and the rounds: their spread is its error."""
_CHUNK_ENTRIES = 2**17
"""Numbers in one intermediate array of a map on the host: 1 MB, which the caches hold."""
_STEPS, _HALVINGS = 200, 40
_ROUND_OFF, _NOISE, _CONVERGED = 1e-14, 1e-12, 1e-9
"""Residuals in units of the point: nothing left to gain, perhaps nothing, and the largest allowed."""


class ConvexPotential(abc.ABC):
    """A strongly convex function that knows its first two derivatives in closed form."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Numbers that its largest intermediate array holds for one point."""

    @abc.abstractmethod
    def gradient(self, x: AnyArray) -> AnyArray:
        """At points (n, d), with the array library and the dtype of `x`."""

    @abc.abstractmethod
    def hessian(self, x: np.ndarray) -> np.ndarray:
        """At points (n, d), shape (n, d, d)."""


@dataclass(frozen=True)
class Mixture:
    """Equal mixture of the Gaussians `N(m_k, A_k A_kᵀ)`.

    Attributes:
        means: `m_k`, shape (k, d).
        roots: `A_k`, shape (k, d, d).
    """

    means: np.ndarray
    roots: np.ndarray

    def sample(self, key: Key, n: int) -> Points:
        which, noise = jax.random.split(key)
        components, dim = self.means.shape
        z = jax.random.normal(noise, (n, dim))
        full = jax.lax.Precision.HIGHEST  # covariances that are exact on every device
        spread = jnp.einsum("nj,kij->nki", z, self.roots.astype(z.dtype), precision=full)
        points = spread + self.means.astype(z.dtype)[None]
        component = jax.random.randint(which, (n, 1, 1), 0, components)
        return jnp.take_along_axis(points, component, axis=1)[:, 0]

    def strata(self, n: int, rounds: int) -> Iterator[list[np.ndarray]]:
        """For each of the rounds n points (n, d) of every component, always the same, in float64.

        A round is a Latin hypercube: it samples each normal coordinate evenly, which takes the
        noise of everything additive out of its means.
        """
        generator = np.random.default_rng(0)
        shape = self.means.shape[1], n
        for _ in range(rounds):
            points = []
            for mean, root in zip(self.means, self.roots, strict=True):
                ranks = generator.permuted(np.broadcast_to(np.arange(n), shape), axis=1)
                z = ndtri((ranks + generator.random(shape)) / n)
                points.append(mean + (root @ z).T)
            yield points

    @property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and covariance (d, d)."""
        mean = self.means.mean(0)
        within = np.mean(self.roots @ np.swapaxes(self.roots, 1, 2), axis=0)
        return mean, within + (self.means - mean).T @ (self.means - mean) / len(self.means)


def gradient_problem(
    name: str,
    source: Mixture,
    potential: ConvexPotential,
    target_moments: tuple[np.ndarray, np.ndarray],
) -> ExactProblem:
    """The problem whose optimal map is the gradient of `potential`.

    Args:
        name: of the problem.
        source: the mixture.
        potential: its gradient makes the target.
        target_moments: mean (d,) and covariance (d, d) of the target, roughly: the linear map
            between the moments is where the search for an inverse starts.
    """
    linear = GaussianPotential.from_moments(*source.moments, *target_moments, ridge=1e-9)

    def target(key: Key, n: int) -> Points:
        # another stream than the source's, or one key given to both would pair their points
        with jax.default_matmul_precision("highest"):
            return potential.gradient(source.sample(jax.random.fold_in(key, 1), n))

    return ExactProblem(
        name=name,
        dim=source.means.shape[1],
        # compiled, because step by step the arrays of a network would fill the memory
        source=jax.jit(source.sample, static_argnums=1),
        target=jax.jit(target, static_argnums=1),
        forward=lambda x: gradient(potential, np.asarray(x, np.float64)),
        inverse=lambda y: inverse(potential, np.asarray(y, np.float64), linear),
        expected_cost=lambda: mean_cost(source, potential),
    )


def gradient(potential: ConvexPotential, x: np.ndarray) -> np.ndarray:
    """The gradient at points (n, d), in bounded memory."""
    size = max(1, _CHUNK_ENTRIES // potential.width)
    return np.concatenate([potential.gradient(part) for part in _chunks(x, size)])


def inverse(potential: ConvexPotential, y: np.ndarray, start: GaussianPotential) -> np.ndarray:
    """The points (n, d) where the gradient is `y`, in bounded memory.

    Raises:
        InputError: a value of `y` is not finite.
        BrenierError: the search ended before it found a point.
    """
    if not np.isfinite(y).all():
        raise InputError("Expected finite points to invert the map at, found NaN or infinite ones.")
    size = max(1, _CHUNK_ENTRIES // (potential.width * y.shape[1]))
    return np.concatenate(
        [_newton(potential, part, start.inverse(part)) for part in _chunks(y, size)]
    )


def mean_cost(source: Mixture, potential: ConvexPotential) -> float:
    """`½ E|x - T(x)|²` from fixed samples, equally many of every component.

    Rounds are added until the standard error is `COST_ERROR` of the mean, or there are `_MOST`.
    """
    means: list[float] = []
    for points in source.strata(_ROUND, _MOST):
        costs = [0.5 * np.mean(np.sum((gradient(potential, x) - x) ** 2, axis=1)) for x in points]
        means.append(float(np.mean(costs)))
        error = np.std(means) / np.sqrt(len(means))
        if len(means) >= _FEWEST and error <= COST_ERROR * np.mean(means):
            break
    return float(np.mean(means))


def _newton(potential: ConvexPotential, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Newton's method for `∇ψ(x) = y` with as much of each step as shrinks the residual.

    The Newton direction is one of descent for `|∇ψ(x) - y|` because the Hessian is regular, so a
    short enough step always helps, up to round-off.
    """
    residual = potential.gradient(x) - y
    size = np.linalg.norm(residual, axis=1)
    scale = 1 + np.linalg.norm(y, axis=1)
    active = np.flatnonzero(size > _ROUND_OFF * scale)
    for _ in range(_STEPS):
        if not len(active):
            break
        step = np.linalg.solve(potential.hessian(x[active]), residual[active, :, None])[..., 0]
        improved, share = np.zeros(len(active), bool), 1.0
        for _ in range(_HALVINGS):
            rest = np.flatnonzero(~improved)
            rows = active[rest]
            trial = x[rows] - share * step[rest]
            left = potential.gradient(trial) - y[rows]
            trial_size = np.linalg.norm(left, axis=1)
            better = trial_size < (1 - 0.25 * share) * size[rows]
            kept = rows[better]
            x[kept], residual[kept], size[kept] = trial[better], left[better], trial_size[better]
            improved[rest[better]] = True
            share *= 0.5
            rest = active[~improved]
            # so close, the noise of round-off hides whether a shorter step would help
            if np.all(size[rest] < _NOISE * scale[rest]):
                break
        active = active[improved & (size[active] > _ROUND_OFF * scale[active])]
    failed = np.flatnonzero(size > _CONVERGED * scale)
    if len(failed):
        raise BrenierError(
            f"The inverse map was not found at {len(failed)} of {len(y)} points; the worst image "
            f"is {np.max(size[failed]):.3g} from its target. Are they points of the target?"
        )
    return x


def _chunks(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[i : i + size] for i in range(0, max(len(x), 1), size)]


def namespace(x: AnyArray) -> Any:
    """The functions for `x`: those of NumPy or of JAX."""
    return jnp if isinstance(x, jax.Array) else np
