from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.typing import Point


def with_radius(x: Point) -> Float[Array, "d_and_one"]:
    """`x`, and `(|x|² - d) / (2 √d)`: about standard normal where `x` is, with a gradient of length about one.

    In more dimensions than it has features a network is constant along some directions. What is the same in all of
    them, a cloud that widens or narrows, it can follow by this number.
    """
    return jnp.append(x, (x @ x / len(x) - 1.0) * len(x) ** 0.5 / 2.0)
