"""Potentials `u(t, x)` as equinox modules, one time and one point (d,) to one number; and maps of points.

A method accepts any callable pytree with that signature; these are the ones that can be saved by name.
Weights have shape (in, out). Every network ends in a linear `head`, so `with_zero_head` makes any of them start
at `u = 0`, the identity map.
"""

from brenier.networks._activations import ACTIVATIONS as ACTIVATIONS
from brenier.networks._comoving import Comoving as Comoving
from brenier.networks._dense_quadratic import DenseQuadratic as DenseQuadratic
from brenier.networks._film import FiLM as FiLM
from brenier.networks._images import ConvPotential as ConvPotential
from brenier.networks._images import UNet as UNet
from brenier.networks._mlp import MLP as MLP
from brenier.networks._residual_map import ResidualMap as ResidualMap
from brenier.networks._resnet import ResNet as ResNet
from brenier.networks._sum import SumPotential as SumPotential
from brenier.networks._sum import with_zero_head as with_zero_head
