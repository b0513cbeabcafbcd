"""Activations by name. The losses differentiate a potential twice in `x`, so all are at least C¹."""

from __future__ import annotations

from collections.abc import Callable

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


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "softplus": softplus,
    "celu": jax.nn.celu,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    try:
        return ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(sorted(ACTIVATIONS))
        raise InputError(f"Unknown activation {name!r}; expected one of {known}.") from None
