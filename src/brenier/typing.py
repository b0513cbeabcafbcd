"""Array and callable aliases used in public signatures."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

ArrayLike = jax.Array | np.ndarray

Scalar = Float[Array, ""]
Point = Float[Array, "d"]
Points = Float[Array, "n d"]
Key = PRNGKeyArray

Potential = Callable[[Scalar, Point], Scalar]
"""`u(t, x)`: a time in [0, 1] and one point to one number."""
