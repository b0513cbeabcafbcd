"""Activations by name. The losses differentiate a potential twice in `x`, so all are at least C¹, but for one.

The leaky ReLU is that of HOTA as published; a potential made of it has no second derivatives, whatever the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from brenier.errors import InputError


@jax.custom_jvp
def softplus(a: jax.Array) -> jax.Array:
    """`log(1 + exp(a))`, stable; `jax.nn.softplus` spends half its time on infinities."""
    return jnp.maximum(a, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(a)))


@softplus.defjvp
def _softplus_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    return softplus(a), jax.nn.sigmoid(a) * da


@jax.custom_jvp
def celu(a: jax.Array) -> jax.Array:
    """`a` above zero and `exp(a) - 1` below; that of JAX takes half as long again, for digits that a sum loses."""
    return jnp.maximum(a, 0.0) + (jnp.exp(jnp.minimum(a, 0.0)) - 1.0)


@celu.defjvp
def _celu_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    return celu(a), jnp.exp(jnp.minimum(a, 0.0)) * da


def sharp_gelu(a: jax.Array) -> jax.Array:
    """`a P(Z ≤ a)` with `Z` normal of deviation ½, where that of "gelu" is 1 (Hendrycks and Gimpel 2016)."""
    return 0.5 * jax.nn.gelu(2.0 * a)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "softplus": softplus,
    "celu": celu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "sharp_gelu": sharp_gelu,
    "tanh": jnp.tanh,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.2),
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    try:
        return ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(sorted(ACTIVATIONS))
        raise InputError(f"Unknown activation {name!r}; expected one of {known}.") from None
