"""Scenes with obstacles: the benchmarks of generalised Schrödinger bridges.

Each scene has two distributions, the published price of being in the obstacle with its weight
included, and the hard obstacle behind it, for counting violations. Costs are `E ∫ ½|v|² + U dt`.

References:
    Buzun, Shlenskii, Bobrin and Dylov, *HOTA: Hamiltonian framework for Optimal Transport
    Advection*, ICLR 2026 (arXiv 2507.17513): prices, settings and published figures.
    Liu, Lipman, Nickel, Karrer, Theodorou and Chen, *Generalized Schrödinger Bridge Matching*,
    ICLR 2024: Stunnel, Vneck and GMM, there with the deviations below as variances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri as normal_quantile
from jaxtyping import Array, Float
from scipy.optimize import linear_sum_assignment
from scipy.special import gammaincinv, ndtri

from brenier.datasets.toys import Sampler
from brenier.errors import InputError
from brenier.state_costs import Box, Disc, Ellipse, JaxFunction, Shape, StateCost, Union, Wall
from brenier.typing import Key, Point, Points, Scalar


@dataclass(frozen=True)
class Settings:
    """What HOTA was trained with on a scene.

    Attributes:
        control_weight: weight of the Hamilton–Jacobi loss against that of the potential.
        acceleration_weight: of the turning rate of the velocity, an extra running cost.
        potential_weight: factor of the price; `Scene.state_cost` has it inside.
        noise: `σ`.
        pretrain_steps: steps with collocation points on straight lines.
        learning_rate: at the start and, along a cosine, at the end.
        steps, batch_size, rollout_steps: the same on every scene.
    """

    control_weight: float
    acceleration_weight: float
    potential_weight: float
    noise: float
    pretrain_steps: int = 5000
    learning_rate: tuple[float, float] = (4e-5, 4e-7)
    steps: int = 70_001
    batch_size: int = 1024
    rollout_steps: int = 30


@dataclass(frozen=True)
class Scene:
    """Two distributions with an obstacle between them.

    Attributes:
        name: a short name for tables.
        dim: dimension d of the points.
        source, target: `(key, n) -> points (n, d)`, traceable by JAX.
        state_cost: `U(x) >= 0`, the published formula times its weight.
        obstacle: the region a path should not enter.
        window: `(x_min, x_max, y_min, y_max)` of a picture.
        published: the settings of HOTA.
        reference: numbers to compare with, those that are known. `static`: the optimal cost without
            obstacle and noise, `W₂²/2`. `hard`: the same with an obstacle that nothing can cross.
            `published_cost`, `published_w2`: HOTA's tables; `notebook_cost`, `notebook_w2`: what
            its notebooks print, where the price counts without weight and with the wrong sign.
            Their W2 is a Sinkhorn divergence, in units of `W₂²`; that of GMM had not converged.
        axes: the two coordinates a picture shows.

    Example:
        >>> scene = slit()
        >>> scene.source(jax.random.key(0), 3).shape
        (3, 2)
        >>> scene.state_cost(jnp.array([0.0, 0.5])).item()
        30.0
    """

    name: str
    dim: int
    source: Sampler
    target: Sampler
    state_cost: StateCost
    obstacle: Shape
    window: tuple[float, float, float, float]
    published: Settings
    reference: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    axes: tuple[int, int] = (0, 1)

    @property
    def noise(self) -> float:
        """The published `σ`."""
        return self.published.noise


def stunnel() -> Scene:
    """Gaussians of deviation 0.5 and two tall ellipses that leave an S-shaped way between them."""
    # 20 (x₁ ∓ 5)² + (x₂ ∓ 6)² < 90, where the published price sets in
    half_axes = (float(np.sqrt(90 / 20)), float(np.sqrt(90)))
    return _scene(
        "stunnel",
        source=_gaussian((-11.0, -1.0), 0.5),
        target=_gaussian((11.0, 1.0), 0.5),
        price=_stunnel_price,
        obstacle=Union(Ellipse((5.0, 6.0), half_axes), Ellipse((-5.0, -6.0), half_axes)),
        window=(-15.0, 15.0, -12.0, 12.0),
        published=Settings(1.0, 1e-4, 25.0, 0.3),
        reference={
            "static": 244.0,
            "hard": 371.5,  # from mean to mean
            "published_cost": 383.25,
            "published_w2": 0.006,
            "notebook_cost": 328.50,
            "notebook_w2": 0.0399,
        },
    )


def vneck() -> Scene:
    """Gaussians of deviation 0.2 and a funnel 0.085 wide at its neck, half-way."""
    return _scene(
        "vneck",
        source=_gaussian((-7.0, 0.0), 0.2),
        target=_gaussian((7.0, 0.0), 0.2),
        price=_vneck_price,
        obstacle=Funnel(5.0, _NECK),
        window=(-9.0, 9.0, -6.0, 6.0),
        published=Settings(2.0, 1e-3, 1000.0, 0.2),
        reference={
            "static": 98.0,
            "hard": 98.1,
            "published_cost": 115.09,
            "published_w2": 0.002,
            "notebook_cost": 99.36,
            "notebook_w2": 0.0011,
        },
    )


def gmm(*, stratified: bool = False) -> Scene:
    """Four unit Gaussians to eight around them, past three discs.

    Args:
        stratified: whether every component gets the same number of points, as nearly as n allows, and those of the
            source are spread evenly within it. With independent ones, the imbalance between two samples of the
            target dominates `W₂`; and what a component of the source sends to each of three targets is off by its
            noise, so that of 2000 ends of the exact map `W₂²` to the target were 1–2.4, ten times the floor.
    """
    diagonal = 11.31
    outer = [(16.0, 0.0), (-16.0, 0.0), (0.0, 16.0), (0.0, -16.0)]
    outer += [(a, b) for a in (diagonal, -diagonal) for b in (diagonal, -diagonal)]
    inner = [(4.0, 0.0), (0.0, 4.0), (-4.0, 0.0), (0.0, -4.0)]
    return _scene(
        "gmm",
        source=_mixture(inner, stratified=stratified, even=stratified),
        target=_mixture(outer, stratified=stratified),
        price=_gmm_price,
        obstacle=Union(*(Disc(center, _GMM_RADIUS) for center in _GMM_CENTERS)),
        window=(-20.0, 20.0, -20.0, 20.0),
        published=Settings(0.7, 0.2, 25.0, 0.1),
        reference={
            "static": 73.5,
            "published_cost": 80.44,
            "published_w2": 0.19,
        },
    )


def baby_maze() -> Scene:
    """Two walls, the first open below and the second above."""
    return _line(
        "baby_maze",
        _baby_maze_price,
        Union(
            Wall(0, -0.5, -0.3, gaps=[(-1.99, -0.15)]),
            Wall(0, 0.3, 0.5, gaps=[(0.15, 1.99)]),
        ),
        Settings(0.5, 5e-2, 10.0, 0.03),
        reference={
            "hard": 3.73,
            "published_cost": 4.87,
            "published_w2": 0.004,
            "notebook_cost": 4.753,
            "notebook_w2": 0.0062,
        },
    )


def slit() -> Scene:
    """A wall with one opening, a quarter of the height of the distributions."""
    return _line(
        "slit",
        _slit_price,
        Wall(0, -0.1, 0.1, gaps=[(-0.25, 0.25)]),
        Settings(2.0, 1e-3, 30.0, 0.05),
        reference={
            "hard": 2.84,
            "published_cost": 3.06,
            "published_w2": 0.0004,
            "notebook_cost": 2.933,
            "notebook_w2": 0.0013,
        },
    )


def box() -> Scene:
    """A square block in the middle, to be passed above or below."""
    return _line(
        "box",
        _box_price,
        Box((-0.5, -0.5), (0.5, 0.5)),
        Settings(0.3, 1e-2, 700.0, 0.03, pretrain_steps=2000),
        reference={
            "hard": 2.67,
            "published_cost": 2.84,
            "published_w2": 0.002,
            "notebook_cost": 2.865,
            "notebook_w2": 0.0011,
        },
    )


def sphere(dim: int = 3, spread: float = 0.3, radius: float = 0.98) -> Scene:
    """From pole to pole of the unit sphere, around a ball inside it.

    Points are `e₃ + spread ξ` and `-e₃ + spread ξ`, ξ standard normal, scaled to length 1. The
    published spread and radius are known for dimension 3 only.

    Both reference costs are those of the best pairing of polar angles, which is the optimum: at
    angles θ and φ from their poles, two points are at least `|π - θ - φ|` apart on the sphere, and
    just that on one meridian. The angles are represented by 400 quantiles, which is right to
    about 1e-3.

    Args:
        dim: dimension d >= 3.
        spread: deviation of the noise, > 0.
        radius: of the ball, in (0, 1).

    Raises:
        InputError: arguments out of these ranges.
    """
    if not (dim >= 3 and 0 < spread < np.inf and 0 < radius < 1):
        raise InputError(
            "Expected dim >= 3, a finite spread > 0 and a radius between 0 and 1, "
            f"found dim={dim}, spread={spread}, radius={radius}."
        )
    published = {
        3: {"notebook_cost": 3.6986, "notebook_w2": 0.0602},
        10: {"published_cost": 3.37, "published_w2": 0.001},
        1000: {"published_cost": 3.17, "published_w2": 0.051},
    }

    def price(x: Point) -> Scalar:
        return jnp.where(x @ x < radius**2, 1.0, 0.0).astype(x.dtype)

    def pole(sign: float) -> Sampler:
        def sampler(key: Key, n: int) -> Points:
            points = spread * jax.random.normal(key, (n, dim))
            points = points.at[:, 2].add(sign)
            return points / jnp.linalg.norm(points, axis=1, keepdims=True)

        return sampler

    return _scene(
        "sphere" if dim == 3 else f"sphere_{dim}",
        source=pole(1.0),
        target=pole(-1.0),
        price=price,
        obstacle=Disc(np.zeros(dim), radius),
        window=(-1.5, 1.5, -1.5, 1.5),
        published=Settings(0.4, 0.0, 5.0, 0.01, pretrain_steps=1000, learning_rate=(1e-4, 1e-4)),
        dim=dim,
        axes=(0, 2),
        reference={
            "static": _pole_to_pole(dim, spread, 0.0),
            "hard": _pole_to_pole(dim, spread, radius),
            **published.get(dim, {}),
        },
    )


SCENES: Mapping[str, Callable[[], Scene]] = MappingProxyType(
    {scene.__name__: scene for scene in (stunnel, vneck, gmm, baby_maze, slit, box, sphere)}
)
"""The scenes by name."""


def way_around_ball(angle: Any, radius: float) -> np.ndarray:
    """The shortest way between two points of the unit sphere that does not enter a ball around 0.

    Two tangents and an arc between them, `2 √(1 - r²) + r (a - 2 arccos r)`, where the straight
    line would enter; the chord `2 sin(a/2)` otherwise. To move along it in unit time costs half
    its square.

    Args:
        angle: `a` in [0, π] between the points.
        radius: `r` in [0, 1].

    Example:
        >>> [round(float(way_around_ball(np.pi, r)), 12) for r in (0.0, 1.0)]
        [2.0, 3.14159265359]
    """
    angle = np.asarray(angle, np.float64)
    touches = np.arccos(radius)
    around = 2 * np.sqrt(1 - radius**2) + radius * (angle - 2 * touches)
    return np.where(angle > 2 * touches, around, 2 * np.sin(angle / 2))


class Funnel(Shape):
    """Above and below a hyperbola, `x₂² > slope x₁² + neck`, in the plane.

    The distance is a lower bound: the vertical one, which changes at most `√(1 + slope)` times as
    fast as the distance.

    Args:
        slope: > 0.
        neck: > 0, the square of half the width where the funnel is narrowest.
    """

    slope: float
    neck: float

    def distance(self, x: Point) -> Scalar:
        border = jnp.sqrt(self.slope * x[0] ** 2 + self.neck)
        return (border - jnp.abs(x[1])) / (1 + self.slope) ** 0.5


_VNECK_CUT, _VNECK_CAP = 0.53, 5.0
_NECK = float(0.36 + np.log(np.expm1(_VNECK_CUT)))
"""`x₂² - 5 x₁²` where the published price sets in: where softplus reaches its cut, about 0.0018."""

_GMM_CENTERS = ((6.0, 6.0), (6.0, -6.0), (-6.0, -6.0))
_GMM_RADIUS = 1.5


def _stunnel_price(x: Point) -> Scalar:
    lower = 20 * (x[0] - 5) ** 2 + (x[1] - 6) ** 2
    upper = 20 * (x[0] + 5) ** 2 + (x[1] + 6) ** 2
    return jax.nn.softplus(90 - lower) + jax.nn.softplus(90 - upper)


def _vneck_price(x: Point) -> Scalar:
    price = jax.nn.softplus(-0.36 - (5 * x[0] ** 2 - x[1] ** 2))
    return jnp.where(price > _VNECK_CUT, jnp.minimum(price, _VNECK_CAP), 0.0)


def _gmm_price(x: Point) -> Scalar:
    def disc(center: tuple[float, float]) -> Scalar:
        # term by term: ten times as fast on a CPU as a norm over an axis of two
        r = jnp.sqrt((x[0] - center[0]) ** 2 + (x[1] - center[1]) ** 2)
        return jnp.where(r < _GMM_RADIUS, jax.nn.softplus(100 * (_GMM_RADIUS - r)), 0.0)

    return sum((disc(center) for center in _GMM_CENTERS), start=jnp.zeros((), x.dtype))


def _within(u: Scalar, low: float, high: float, temperature: float) -> Scalar:
    """1 between `low` and `high` and 0 elsewhere, with ends as wide as the temperature."""
    return jax.nn.sigmoid((u - low) / temperature) - jax.nn.sigmoid((u - high) / temperature)


def _slit_price(x: Point) -> Scalar:
    return _within(x[0], -0.1, 0.1, 2e-3) * (1 - _within(x[1], -0.25, 0.25, 2e-3))


def _box_price(x: Point) -> Scalar:
    return 0.01 * _within(x[0], -0.5, 0.5, 2e-3) * _within(x[1], -0.5, 0.5, 2e-3)


def _baby_maze_price(x: Point) -> Scalar:
    first = _within(x[0], -0.5, -0.3, 1e-2) * (1 - _within(x[1], -1.99, -0.15, 1e-2))
    second = _within(x[0], 0.3, 0.5, 1e-2) * (1 - _within(x[1], 0.15, 1.99, 1e-2))
    return 10 * (first + second)


def _scene(
    name: str,
    *,
    source: Sampler,
    target: Sampler,
    price: Callable[[Point], Scalar],
    obstacle: Shape,
    window: tuple[float, float, float, float],
    published: Settings,
    dim: int = 2,
    axes: tuple[int, int] = (0, 1),
    reference: Mapping[str, float],
) -> Scene:
    return Scene(
        name=name,
        dim=dim,
        source=source,
        target=target,
        state_cost=JaxFunction(price, weight=published.potential_weight, shape=obstacle),
        obstacle=obstacle,
        window=window,
        published=published,
        reference=MappingProxyType(dict(reference)),
        axes=axes,
    )


def _line(
    name: str,
    price: Callable[[Point], Scalar],
    obstacle: Shape,
    published: Settings,
    reference: Mapping[str, float],
) -> Scene:
    """Two upright strips, one 2.25 to the right of the other."""
    return _scene(
        name,
        source=_strip(-1.25, -1.0),
        target=_strip(1.0, 1.25),
        price=price,
        obstacle=obstacle,
        window=(-1.5, 1.5, -1.25, 1.25),
        published=published,
        reference={
            "static": 0.5 * 2.25**2,
            **reference,
        },
    )


def _gaussian(mean: tuple[float, float], deviation: float) -> Sampler:
    def sampler(key: Key, n: int) -> Float[Array, "n 2"]:
        z = jax.random.normal(key, (n, 2))
        return jnp.asarray([mean], z.dtype) + deviation * z

    return sampler


def _strip(left: float, right: float) -> Sampler:
    def sampler(key: Key, n: int) -> Float[Array, "n 2"]:
        u = jax.random.uniform(key, (n, 2))
        low, high = jnp.asarray([[[left, -1.0]], [[right, 1.0]]], u.dtype)
        return low + (high - low) * u

    return sampler


_EVEN = np.array([0.7548776662466927, 0.5698402909980532])
"""Steps of the lattice with the least gaps in the plane: 1/ρ and 1/ρ², with ρ³ = ρ + 1."""


def _mixture(
    centers: list[tuple[float, float]], *, stratified: bool, even: bool = False
) -> Sampler:
    """Unit Gaussians of equal weight; in random order even if their numbers, or places, are not random.

    `even` points of a component are a lattice of random offset, brought to the Gaussian coordinate by coordinate.
    """
    k = len(centers)

    def sampler(key: Key, n: int) -> Float[Array, "n 2"]:
        which, order, noise = jax.random.split(key, 3)
        if stratified:
            # whoever gets one more than the others is drawn
            component = jax.random.permutation(which, k)[jnp.arange(n) % k]
        else:
            component = jax.random.randint(which, (n,), 0, k)
        if even:
            offset = jax.random.uniform(noise, (k, 2))
            lattice = (jnp.arange(n) // k)[:, None] * jnp.asarray(_EVEN, offset.dtype)[None]
            z = normal_quantile(jnp.clip((offset[component] + lattice) % 1.0, 1e-6, 1 - 1e-6))
        else:
            z = jax.random.normal(noise, (n, 2))
        x = jnp.asarray(centers, z.dtype)[component] + z
        return jax.random.permutation(order, x) if stratified else x

    return sampler


def _pole_to_pole(dim: int, spread: float, radius: float) -> float:
    """Optimal cost between both ends of the sphere around a ball, by the pairing of polar angles."""
    # cos θ and sin θ are as ξ₃ and the length χ of the other coordinates; a product rule for both
    middles = (np.arange(400) + 0.5) / 400
    along = 1 + spread * ndtri(middles)
    beside = spread * np.sqrt(2 * gammaincinv((dim - 1) / 2, middles))
    theta = np.sort(np.arctan2(beside[:, None], along[None, :]), axis=None)[200::400]
    apart = np.abs(np.pi - theta[:, None] - theta[None, :])
    costs = 0.5 * way_around_ball(apart, radius) ** 2
    return float(costs[linear_sum_assignment(costs)].mean())
