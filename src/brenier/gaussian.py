"""The closed-form potential between two Gaussians: oracle, baseline and warm start.

For `N(m0, S0) → N(m1, S1)` and the quadratic cost the optimal map is affine, `T(x) = m1 + A (x - m0)` with
`A = S0^{-1/2} (S0^{1/2} S1 S0^{1/2})^{1/2} S0^{-1/2}`, and the Hamilton–Jacobi potential is a quadratic whose
curvature `M_t` solves the Riccati equation `M' = -M²`. With `A = V diag(λ) Vᵀ`,

    M_t = V diag((λ - 1) / (1 + t (λ - 1))) Vᵀ,      m_t = (1 - t) m0 + t m1,      q = m1 - m0,
    u(t, x) = ½ (x - m_t)ᵀ M_t (x - m_t) + q·(x - m_t) + ½ t |q|².

With noise `σ` the potential of the Schrödinger bridge is of the same form: `M' = -M²` still, for the Laplacian of a
quadratic changes only its constant, by `-½ σ² log det(I + t (A - I))`. Noise on the way widens the end, and

    A S0 A + σ² A = S1,      A = S0^{-1/2} ((S0^{1/2} S1 S0^{1/2} + ¼ σ⁴ I)^{1/2} - ½ σ² I) S0^{-1/2}.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.covariance import ledoit_wolf

from brenier.errors import InputError
from brenier.typing import ArrayLike, Point, Scalar

_MANY = 10  # samples a dimension from which a covariance is as good as it can be made


class GaussianPotential(eqx.Module):
    """`u(t, x)` of optimal transport between two Gaussians, for the cost ½|x - y|²; with noise, of their bridge.

    Build one with `from_moments` or `from_samples`. The dual value is the optimal cost:
    `E u(1, y) - E u(0, x) = W₂²/2`, or that of the Schrödinger bridge (`gaussian_cost`).

    Attributes:
        source_mean, target_mean: `m0`, `m1`, shape (d,).
        eigenvectors: `V`, shape (d, d), orthogonal.
        stretch: `λ > 0`, shape (d,): the eigenvalues of the map's matrix `A`.
        noise: `σ` of the bridge. Its map is that of the motion without noise.

    Example:
        >>> u = GaussianPotential.from_moments(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2))
        >>> u.forward(np.array([[1.0, 0.0]])).tolist()
        [[3.0, 1.0]]
    """

    source_mean: Float[Array, "d"] | Float[np.ndarray, "d"]
    target_mean: Float[Array, "d"] | Float[np.ndarray, "d"]
    eigenvectors: Float[Array, "d d"] | Float[np.ndarray, "d d"]
    stretch: Float[Array, "d"] | Float[np.ndarray, "d"]
    noise: float = eqx.field(default=0.0, static=True)

    @classmethod
    def from_moments(
        cls,
        m0: ArrayLike,
        S0: ArrayLike,
        m1: ArrayLike,
        S1: ArrayLike,
        *,
        noise: float = 0.0,
        ridge: float = 0.0,
    ) -> GaussianPotential:
        """From means (d,) and covariances (d, d), computed in float64 on the host.

        Args:
            noise: `σ` of the Schrödinger bridge.
            ridge: added to both diagonals, relative to the mean variance of both sides; makes degenerate
                covariances usable.

        Raises:
            InputError: a covariance is not positive definite (after the ridge).
        """
        m0, m1 = np.asarray(m0, np.float64), np.asarray(m1, np.float64)
        S0, S1 = np.asarray(S0, np.float64), np.asarray(S1, np.float64)
        eye = np.eye(len(m0))
        shift = ridge * 0.5 * (np.trace(S0) + np.trace(S1)) / len(m0) * eye
        S0, S1 = S0 + shift, S1 + shift
        root, inverse_root = _square_roots(np.asarray(S0))
        half = 0.5 * noise**2
        middle, _ = _square_roots(np.asarray(root @ S1 @ root) + half**2 * eye)
        A = inverse_root @ (middle - half * eye) @ inverse_root
        stretch, eigenvectors = np.linalg.eigh(0.5 * (A + A.T))
        return cls(m0, m1, eigenvectors, stretch, float(noise))

    @classmethod
    def from_samples(
        cls, x: ArrayLike, y: ArrayLike, *, noise: float = 0.0, ridge: float = 1e-6
    ) -> GaussianPotential:
        """From samples (n, d) and (m, d): the linear optimal map between their moments, or the bridge.

        Covariances of few samples are shrunk towards multiples of the identity: they would stretch directions that
        the samples hardly know. The ridge keeps the map finite where they are still singular.

        References:
            Ledoit and Wolf, *A well-conditioned estimator for large-dimensional covariance matrices*, J. Multivariate
            Anal. 88 (2004).
        """
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        m0, m1 = x.mean(0), y.mean(0)
        return cls.from_moments(m0, _covariance(x), m1, _covariance(y), noise=noise, ridge=ridge)

    def __call__(self, t: Scalar, x: Point) -> Scalar:
        m0, m1, V, stretch = (
            jnp.asarray(a, x.dtype)
            for a in (self.source_mean, self.target_mean, self.eigenvectors, self.stretch)
        )
        q = m1 - m0
        centred = x - (m0 + t * q)
        growth = stretch - 1.0
        curvature = growth / (1.0 + t * growth)
        u = 0.5 * (curvature @ (centred @ V) ** 2) + q @ centred + 0.5 * t * (q @ q)
        if self.noise:
            u = u - 0.5 * self.noise**2 * jnp.sum(jnp.log1p(t * growth))
        return u

    @property
    def matrix(self) -> np.ndarray:
        """`A` of the affine map `T(x) = m1 + A (x - m0)`, shape (d, d)."""
        V = np.asarray(self.eigenvectors)
        return (V * np.asarray(self.stretch)) @ V.T

    def forward(self, x: ArrayLike) -> np.ndarray:
        """`T(x)` for points of shape (n, d), in float64 on the host."""
        V, stretch = np.asarray(self.eigenvectors), np.asarray(self.stretch)
        m0, m1 = np.asarray(self.source_mean), np.asarray(self.target_mean)
        return m1 + ((np.asarray(x) - m0) @ V * stretch) @ V.T

    def inverse(self, y: ArrayLike) -> np.ndarray:
        """`S(y) = T⁻¹(y)` for points of shape (n, d), in float64 on the host."""
        V, stretch = np.asarray(self.eigenvectors), np.asarray(self.stretch)
        m0, m1 = np.asarray(self.source_mean), np.asarray(self.target_mean)
        return m0 + ((np.asarray(y) - m1) @ V / stretch) @ V.T


def gaussian_cost(
    m0: ArrayLike, S0: ArrayLike, m1: ArrayLike, S1: ArrayLike, *, noise: float = 0.0
) -> float:
    """The optimal cost between two Gaussians, in float64: `W₂²/2`, or that of the Schrödinger bridge.

    With noise `σ` it is `σ²` times the relative entropy of the bridge to Brownian motion from the source. With the
    eigenvalues `λ` of `S0^{1/2} S1 S0^{1/2}` and `c = ½ (√(4λ + σ⁴) - σ²)`, those of the cross-covariance, it is

        ½ |m1 - m0|² + ½ tr(S0 + S1) - Σ c + ½ σ² (log det S0 - Σ log c - d).

    Example:
        >>> gaussian_cost(np.zeros(1), np.eye(1), np.zeros(1), 1.25 * np.eye(1), noise=0.5)  # noise does all of it
        0.0

    References:
        Janati, Muzellec, Peyré and Cuturi, *Entropic Optimal Transport between Unbalanced Gaussian Measures has a
        Closed Form*, NeurIPS 2020, theorem 1.
    """
    m0, m1 = np.asarray(m0, np.float64), np.asarray(m1, np.float64)
    S0, S1 = np.asarray(S0, np.float64), np.asarray(S1, np.float64)
    root, _ = _square_roots(S0)
    eigenvalues = np.linalg.eigvalsh(root @ S1 @ root)
    overlap = 0.5 * (np.sqrt(4.0 * np.clip(eigenvalues, 0.0, None) + noise**4) - noise**2)
    cost = 0.5 * (((m0 - m1) ** 2).sum() + np.trace(S0) + np.trace(S1)) - overlap.sum()
    if noise:
        entropy = np.linalg.slogdet(S0)[1] - np.log(overlap).sum() - len(m0)
        cost = cost + 0.5 * noise**2 * entropy
    return float(cost)


def _covariance(x: np.ndarray) -> np.ndarray:
    if 1 < len(x) < _MANY * x.shape[1]:
        return ledoit_wolf(x)[0]
    centred = x - x.mean(0)
    return centred.T @ centred / max(len(x) - 1, 1)


def _square_roots(S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(0.5 * (S + S.T))
    if not values[0] > 0.0:
        raise InputError(
            f"A covariance must be positive definite; its smallest eigenvalue is {values[0]:.3g}. "
            "Remove constant columns, add samples or pass a ridge."
        )
    roots = np.sqrt(values)
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
