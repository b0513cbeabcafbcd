from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from brenier.typing import Potential, Scalar


class SumPotential(eqx.Module):
    """`base(t, x) + correction(t, x)`: a closed form and the network that corrects it."""

    base: Potential
    correction: Potential

    def __call__(self, t, x) -> Scalar:
        return self.base(t, x) + self.correction(t, x)


def with_zero_head(network: Any) -> Any:
    """The same network with its last layer zero, hence `u = 0` and the identity map.

    A network without a `head` is left as it is.
    """
    if not hasattr(network, "head"):
        return network
    return eqx.tree_at(lambda n: n.head, network, jnp.zeros_like(network.head))
