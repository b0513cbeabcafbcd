"""Distributions to try a method on: toys, scenes with obstacles, and problems with a known map."""

from brenier.datasets import obstacles as obstacles
from brenier.datasets.convex import convex_gradient as convex_gradient
from brenier.datasets.exact import ExactProblem as ExactProblem
from brenier.datasets.exact import gaussian_pair as gaussian_pair
from brenier.datasets.exact import gaussian_to_ball as gaussian_to_ball
from brenier.datasets.exact import gaussian_to_cube as gaussian_to_cube
from brenier.datasets.exact import quantile_1d as quantile_1d
from brenier.datasets.exact import translation as translation
from brenier.datasets.obstacles import SCENES as SCENES
from brenier.datasets.obstacles import Scene as Scene
from brenier.datasets.toys import TOYS as TOYS
from brenier.datasets.toys import Sampler as Sampler
from brenier.datasets.toys import checkerboard as checkerboard
from brenier.datasets.toys import eight_gaussians as eight_gaussians
from brenier.datasets.toys import gaussian as gaussian
from brenier.datasets.toys import moons as moons
from brenier.datasets.toys import spirals as spirals
from brenier.datasets.toys import swiss_roll as swiss_roll
from brenier.datasets.toys import two_rings as two_rings
from brenier.datasets.w2_benchmark import w2_benchmark as w2_benchmark
