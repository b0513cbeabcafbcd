"""Neural Characteristic Flow."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.costs import Cost
from brenier.hamiltonian import implicit_residual
from brenier.methods._characteristic import FROM_PRESET, CharacteristicMethod
from brenier.typing import Points, Potential

Anchor = Literal["start", "both"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NCF(CharacteristicMethod):
    """One potential `u(t, x)`, both maps in closed form, tied by the implicit Hamilton–Jacobi residual.

    Minimises, over the potential's parameters,

        matching_weight (E(T♯μ, ν) + E(S♯ν, μ)) + hj_weight E r²,
        r = u(t, z) + t H(p) - t p·∇H(p) - u(0, z - t ∇H(p)),    p = ∇u(t, z),

    with the squared-MMD energy distance `E`, `T(x) = x + ∇H(∇u(0, x))` and `S(y) = y - ∇H(∇u(1, y))`.

    Args:
        preset: "default" for our recipe, "published" for the paper's; `None` below means the preset's value.
        network: "dense_quadratic", "mlp", "resnet", or an equinox module `u(t, x)`.
        widths: of the network's layers, where it has several.
        activation: see `brenier.networks.ACTIVATIONS`.
        optimizer: "muon", "adam", or an optax transformation with its own learning rate.
        learning_rate: peak step size of a named optimiser.
        schedule: "cosine" decay over the whole run, or "constant".
        averaging: decay of the running average of the weights that is delivered; 0 delivers the last iterate.
        batch_size: samples a side and step.
        anchor: time at which the residual meets its characteristic: 0 at the "start", as published in the plane, or
            "both" ends in turn, which ties the backward map as firmly as the forward one.
        collocation: where the residual is enforced: on the current "path"s, in the bounding "box", or "mix".
        collocation_size: residual points a step.
        scale_inputs: centre and scale the data by one common scalar (undone in every output).
        steps: planned optimiser steps.
        hj_weight, matching_weight: of the two terms.
        statistic: "U" (unbiased) or "V" energy distance.
        gaussian_start: start from the closed-form potential between Gaussians with the samples' moments.

    Raises:
        InputError: an option out of range.

    References:
        Park, Liu, Zhou and Osher, *Neural Hamilton–Jacobi Characteristic Flows for Optimal Transport*, ICLR 2026.

    Example:
        >>> NCF(preset="published").optimizer
        'adam'
    """

    anchor: Anchor = FROM_PRESET

    def residuals(
        self, u: Potential, cost: Cost, t: Float[Array, "n"], z: Points
    ) -> Float[Array, "n"]:
        anchors = jnp.zeros_like(t)
        if self.anchor == "both":
            anchors = anchors.at[1::2].set(1.0)
        return jax.vmap(lambda t, z, a: implicit_residual(u, cost, t, z, a))(t, z, anchors)
