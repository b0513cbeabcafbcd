"""The published ablation of NCF: the plain residual of the partial differential equation."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Float

from brenier.costs import Cost
from brenier.hamiltonian import pde_residual
from brenier.methods._characteristic import CharacteristicMethod
from brenier.typing import Points, Potential


@dataclasses.dataclass(frozen=True, kw_only=True)
class HJPINN(CharacteristicMethod):
    """`NCF` with `r = ∂t u + H(∇u)` in place of the implicit residual; everything else is identical.

    For comparison: the paper reports it worse than NCF in every dimension. Arguments as for `NCF`.

    Example:
        >>> HJPINN(steps=10).collocation
        'path'
    """

    def residuals(
        self, u: Potential, cost: Cost, t: Float[Array, "n"], z: Points
    ) -> Float[Array, "n"]:
        return jax.vmap(lambda t, z: pde_residual(u, cost, t, z))(t, z)
