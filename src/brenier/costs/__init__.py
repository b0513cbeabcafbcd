"""Costs of a velocity: the Lagrangian `L`, its Legendre transform `L*` and both gradients.

All functions take one vector of shape (d,); use `jax.vmap` for a batch. With time horizon 1 the static cost
of moving `x` to `y` is `c(x, y) = L(y - x)`.

Every pair `(L, L*)` here is an exact one, finite everywhere and with finite second derivatives: where a formula has
a kink (`L*` of `|v|³`) or ends (`L*` of the pseudo-Huber cost), it is continued, and its partner with it.
"""

from brenier.costs._base import Cost as Cost
from brenier.costs._bounded import Cosh as Cosh
from brenier.costs._bounded import PseudoHuber as PseudoHuber
from brenier.costs._bounded import Relativistic as Relativistic
from brenier.costs._convex import ConvexCost as ConvexCost
from brenier.costs._framed import FramedCost as FramedCost
from brenier.costs._framed import framed as framed
from brenier.costs._framed import price as price
from brenier.costs._framed import unframed as unframed
from brenier.costs._given import as_cost as as_cost
from brenier.costs._given import fingerprint as fingerprint
from brenier.costs._powers import CoordinatewisePower as CoordinatewisePower
from brenier.costs._powers import Power as Power
from brenier.costs._powers import SquaredNorm as SquaredNorm
from brenier.costs._quadratic import Mahalanobis as Mahalanobis
from brenier.costs._quadratic import Quadratic as Quadratic
