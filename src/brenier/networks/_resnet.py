from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.networks._activations import activation
from brenier.networks._normals import normals
from brenier.typing import Key, Point, Scalar


class ResNet(eqx.Module):
    """`z ← z + κ σ(z W + b)` between two linear layers: the published network for latent codes.

    A small κ bounds the composed Lipschitz constant, which keeps `I - t ∇²u` invertible (NCF, appendix on images).

    Example:
        >>> u = ResNet(16, key=jax.random.key(0))
        >>> u(jnp.asarray(0.5), jnp.ones(16)).shape
        ()
    """

    lift: Float[Array, "in width"]
    weights: tuple[Float[Array, "width width"], ...]
    biases: tuple[Float[Array, "width"], ...]
    head: Float[Array, "width"]
    step: float = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        width: int = 256,
        depth: int = 4,
        *,
        step: float = 0.5,
        activation: str = "tanh",
        key: Key,
    ):
        shapes = [(dim + 1, width), (width,), *[(width, width)] * depth]
        drawn = normals(jax.random.split(key, depth + 2), shapes)
        self.lift, self.head, *weights = (w / len(w) ** 0.5 for w in drawn)
        self.weights = tuple(weights)
        self.biases = tuple(jnp.zeros(width) for _ in weights)
        self.step = step
        self.activation = activation

    def __call__(self, t: Scalar, x: Point) -> Scalar:
        act = activation(self.activation)
        z = jnp.concatenate([t[None], x]) @ self.lift
        for weight, bias in zip(self.weights, self.biases, strict=True):
            z = z + self.step * act(z @ weight + bias)
        return z @ self.head
