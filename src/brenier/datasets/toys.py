"""Toy distributions in the plane, all of one size.

Every toy is centred and has total variance 2, that of the standard Gaussian: mean zero and
`E|x|² = 2`, exactly, by the constants in the code. So no pair of them differs by a shift or a
scale, and scores on different pairs are comparable.

A toy is a function `(key, n) -> points (n, 2)` that JAX can trace (`n` is static); give it to
`brenier.TransportProblem` as it is, for fresh samples at every step, or call it for an array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.typing import Key, Points

Sampler = Callable[[Key, int], Points]
"""`(key, n) -> points`: n independent points of a distribution, shape (n, d)."""


def gaussian(key: Key, n: int) -> Float[Array, "n 2"]:
    """The standard Gaussian."""
    return jax.random.normal(key, (n, 2))


def eight_gaussians(key: Key, n: int) -> Float[Array, "n 2"]:
    """Eight equal Gaussians around a circle, each a tenth of its radius wide."""
    which, noise = jax.random.split(key)
    angle = jax.random.randint(which, (n,), 0, 8) * (jnp.pi / 4)
    points = _polar(1.0, angle) + 0.1 * jax.random.normal(noise, (n, 2))
    return _standardise(points, 1 + 2 * 0.1**2)


def moons(key: Key, n: int) -> Float[Array, "n 2"]:
    """Two interleaved half circles of radius 1 with noise 0.05, before scaling."""
    side, along, noise = jax.random.split(key, 3)
    upper = _polar(1.0, jnp.pi * jax.random.uniform(along, (n,))) - jnp.array([[0.5, 0.25]])
    # the lower moon is the upper one reflected in the point (1/2, 1/4), the common mean
    points = _signs(side, n)[:, None] * upper + 0.05 * jax.random.normal(noise, (n, 2))
    return _standardise(points, 1 + 5 / 16 - 1 / jnp.pi + 2 * 0.05**2)


def checkerboard(key: Key, n: int) -> Float[Array, "n 2"]:
    """Uniform on the black fields of a board of four by four."""
    column, row, inside = jax.random.split(key, 3)
    i = jax.random.randint(column, (n,), 0, 4)
    j = 2 * jax.random.randint(row, (n,), 0, 2) + i % 2
    points = jnp.stack([i, j], axis=1) - 2 + jax.random.uniform(inside, (n, 2))
    return _standardise(points, 8 / 3)  # both marginals are uniform on [-2, 2]


def two_rings(key: Key, n: int) -> Float[Array, "n 2"]:
    """Two concentric circles, radii 1 and 1/2 and noise 0.05 before scaling, equally likely."""
    which, around, noise = jax.random.split(key, 3)
    radius = jnp.where(jax.random.bernoulli(which, shape=(n,)), 1.0, 0.5)
    angle = 2 * jnp.pi * jax.random.uniform(around, (n,))
    points = _polar(radius, angle) + 0.05 * jax.random.normal(noise, (n, 2))
    return _standardise(points, 5 / 8 + 2 * 0.05**2)


def spirals(key: Key, n: int) -> Float[Array, "n 2"]:
    """Two Archimedean arms of one and a half turns, opposite each other, with noise."""
    side, along, noise = jax.random.split(key, 3)
    # the root spreads the points evenly along the arm, whose length grows like the angle squared
    turned = jnp.sqrt(jax.random.uniform(along, (n,)))
    arm = _polar(turned, 3 * jnp.pi * turned)
    points = _signs(side, n)[:, None] * arm + 0.03 * jax.random.normal(noise, (n, 2))
    return _standardise(points, 1 / 2 + 2 * 0.03**2)


def swiss_roll(key: Key, n: int) -> Float[Array, "n 2"]:
    """One spiral, `s (cos s, sin s)` for s uniform on [3π/2, 9π/2], with noise 0.3 before scaling.

    The classical data set's cross-section.
    """
    along, noise = jax.random.split(key)
    angle = jax.random.uniform(along, (n,), minval=1.5 * jnp.pi, maxval=4.5 * jnp.pi)
    mean = jnp.array([[2.0, 2 / (3 * jnp.pi)]])
    points = _polar(angle, angle) - mean + 0.3 * jax.random.normal(noise, (n, 2))
    return _standardise(points, 9.75 * jnp.pi**2 - jnp.sum(mean**2) + 2 * 0.3**2)


TOYS: Mapping[str, Sampler] = MappingProxyType(
    {
        toy.__name__: toy
        for toy in (
            gaussian,
            eight_gaussians,
            moons,
            checkerboard,
            two_rings,
            spirals,
            swiss_roll,
        )
    }
)
"""The toys by name."""


def _polar(radius: Array | float, angle: Array) -> Float[Array, "n 2"]:
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=1)


def _signs(key: Key, n: int) -> Float[Array, " n"]:
    return jnp.where(jax.random.bernoulli(key, shape=(n,)), 1.0, -1.0)


def _standardise(points: Float[Array, "n 2"], second_moment: Array | float) -> Float[Array, "n 2"]:
    """Centred points whose `E|x|²` is `second_moment`, scaled to a total variance of 2."""
    return points * jnp.sqrt(2 / second_moment)
