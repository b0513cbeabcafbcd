from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice, pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from brenier.networks._activations import activation
from brenier.networks._normals import normals
from brenier.networks._radial import with_radius
from brenier.typing import Key, Point, Scalar

_NARROW = 16
"""Units of a layer up to which the products with the input are one; of wider ones the parts take long to copy."""


class DenseQuadratic(eqx.Module):
    """The "DenseICNN" of the Wasserstein-2 benchmark without its convexity constraint, with time as an input.

    With `z = (t, x)` and quadratic skips `Q_l(z) = (A_l z)² + B_l z + b_l` (rank one per unit, entrywise square),

        h_1 = Q_1(z),    h_l = σ(W_l h_{l-1} + Q_l(z)),    u(t, x) = w · h_L.

    The first layer has no activation: quadratic potentials, hence affine maps, are represented exactly.

    With `radial` it is a network of `x` and of `(|x|² - d) / (2 √d)`.

    Args:
        widths: three in the papers, `(max(2d, 64), max(2d, 64), max(d, 32))` by default.

    References:
        Korotin et al., *Do Neural Optimal Transport Solvers Work?*, NeurIPS 2021, appendix B; NCF, section 4.

    Example:
        >>> u = DenseQuadratic(8, key=jax.random.key(0))
        >>> u(jnp.asarray(0.5), jnp.ones(8)).shape
        ()
    """

    squared: tuple[Float[Array, "in out"], ...]
    linear: tuple[Float[Array, "in out"], ...]
    biases: tuple[Float[Array, "out"], ...]
    hidden: tuple[Float[Array, "in out"], ...]
    head: Float[Array, "width"]
    direct: tuple[Float[Array, "width"], Float[Array, "width"]] | None
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        widths: Sequence[int] | None = None,
        *,
        activation: str = "celu",
        init_scale: float = 0.1,
        direct: bool = False,
        radial: bool = False,
        key: Key,
    ):
        if widths is None:
            widths = (max(2 * dim, 64), max(2 * dim, 64), max(dim, 32))
        of_input = [(dim + radial + 1, width) for width in widths]
        biases, hidden = [(width,) for width in widths], list(pairwise(widths))
        groups: list[list[tuple[int, ...]]] = [of_input, of_input, biases, hidden, [(widths[-1],)]]
        places = [(i, j) for i, shapes in enumerate(groups) for j in range(len(shapes))]
        keys = jax.vmap(lambda i, j: jax.random.fold_in(jax.random.fold_in(key, i), j))(
            *np.transpose(places)
        )
        drawn = (init_scale * w for w in normals(keys, list(chain(*groups))))
        self.squared, self.linear, self.biases, self.hidden, (self.head,) = (
            tuple(islice(drawn, len(shapes))) for shapes in groups
        )
        self.direct = (jnp.zeros(widths[0]), jnp.zeros(widths[0])) if direct else None
        self.activation = activation

    def __call__(self, t: Scalar, x: Point) -> Scalar:
        act = activation(self.activation)
        if len(self.squared[0]) > len(x) + 1:  # radial
            x = with_radius(x)

        skips = self._skips(t, x)
        h = skips[0]
        for weight, skip in zip(self.hidden, skips[1:], strict=True):
            h = act(h @ weight + skip)
        u = h @ self.head
        if self.direct is not None:
            start, end = self.direct
            u = u + skips[0] @ ((1.0 - t) * start + t * end)
        return u

    def _skips(self, t: Scalar, x: Point) -> list[Float[Array, "out"]]:
        """`Q_l(z)` for every layer."""

        def of_input(weight: Float[Array, "in out"]) -> Float[Array, "out"]:
            # Time apart: where it is the same for all points, as in a slice, its part is computed once.
            return t * weight[0] + x @ weight[1:]

        widths = [len(bias) for bias in self.biases]
        if max(widths) > _NARROW:
            return [
                of_input(squared) ** 2 + of_input(linear) + bias
                for squared, linear, bias in zip(
                    self.squared, self.linear, self.biases, strict=True
                )
            ]
        squared, linear = jnp.split(
            of_input(jnp.concatenate([*self.squared, *self.linear], axis=1)), 2
        )
        skips = squared**2 + linear + jnp.concatenate(self.biases)
        return jnp.split(skips, np.cumsum(widths)[:-1].tolist())
