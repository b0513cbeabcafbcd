from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.networks._activations import activation
from brenier.networks._normals import normals
from brenier.networks._radial import with_radius
from brenier.typing import Key, Point, Scalar


class FiLM(eqx.Module):
    """A network of `x` whose first layer is scaled and shifted by features of `t`: the published network of HOTA.

    The features are `sin(k t)/k, cos(k t)/k` for k = 1 … `frequencies`. With `a, b` linear in them, the first
    layer is `a * (x W + c) + b`; the others are plain. The published one has widths (512, 512, 512), 100 features and a
    leaky ReLU: piecewise linear in `x`, so its Laplacian is zero everywhere it exists. High frequencies follow walls;
    without any they make `∂t u` oscillate, most of all at t = 0 and 1.

    With `radial` it is a network of `x` and of `(|x|² - d) / (2 √d)`.

    Example:
        >>> u = FiLM(2, key=jax.random.key(0))
        >>> u(jnp.asarray(0.5), jnp.ones(2)).shape
        ()
    """

    lift: Float[Array, "d_in features"]
    shift: Float[Array, "features"]
    time_scale: Float[Array, "twice_frequencies features"]
    time_shift: Float[Array, "twice_frequencies features"]
    scale_bias: Float[Array, "features"]
    weights: tuple[Float[Array, "in out"], ...]
    biases: tuple[Float[Array, "out"], ...]
    head: Float[Array, "width"]
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        widths: Sequence[int] = (64, 64, 64),
        *,
        features: int = 64,
        frequencies: int = 19,
        radial: bool = False,
        activation: str = "silu",
        key: Key,
    ):
        sizes, of_time = [features, *widths], (2 * frequencies, features)
        shapes = [(dim + radial, features), of_time, of_time, (sizes[-1],), *pairwise(sizes)]
        drawn = normals(jax.random.split(key, len(shapes)), shapes)
        scaled = (w / len(w) ** 0.5 for w in drawn)
        self.lift, self.time_scale, self.time_shift, self.head, *weights = scaled
        self.weights = tuple(weights)
        self.shift = jnp.zeros(features)
        self.scale_bias = jnp.ones(features)
        self.biases = tuple(jnp.zeros(m) for m in widths)
        self.activation = activation

    def __call__(self, t: Scalar, x: Point) -> Scalar:
        act = activation(self.activation)
        if len(self.lift) > len(x):  # radial
            x = with_radius(x)
        k = jnp.arange(1, len(self.time_scale) // 2 + 1, dtype=x.dtype)
        features = jnp.concatenate([jnp.sin(k * t), jnp.cos(k * t)]) / jnp.tile(k, 2)
        scale = features @ self.time_scale + self.scale_bias
        h = scale * (x @ self.lift + self.shift) + features @ self.time_shift
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = act(h @ weight + bias)
        return h @ self.head
