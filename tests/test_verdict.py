"""Maps that are wrong on purpose must be told so; the right one must pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brenier
from brenier.coordinates import Frame
from brenier.costs import Quadratic
from brenier.errors import InputError
from brenier.solution import Metadata, Solution
from brenier.verdict import BASELINES

PAIR = brenier.datasets.gaussian_pair(2, key=3, mean=1.0)
N = 1000  # a map shrunk by 0.8 is then many noise bands away


def drawn(seed):
    keys = jax.random.split(jax.random.key(seed))
    return tuple(
        np.asarray(side(k, N)) for side, k in zip((PAIR.source, PAIR.target), keys, strict=True)
    )


def solved(potential, kind=brenier.CharacteristicTransport):
    arrays = jax.tree.map(jnp.asarray, potential)
    transport = kind(arrays, Frame.identity(2), Quadratic())
    return Solution(transport, {}, "completed", "", Metadata({}), Metadata({}))


class Shrunk(brenier.CharacteristicTransport):
    """Images at four fifths of where they should be."""

    def forward(self, x):
        return 0.8 * super().forward(x)

    def inverse(self, y):
        return super().inverse(y / 0.8)


class Shuffled(brenier.CharacteristicTransport):
    """The right images, given to the wrong points: a half turn within the source."""

    def forward(self, x):
        return super().forward(2 * self.middle - x)

    def inverse(self, y):
        return 2 * self.middle - super().inverse(y)

    @property
    def middle(self):
        return np.asarray(self.network.source_mean)


def identity():
    return brenier.GaussianPotential(np.zeros(2), np.zeros(2), np.eye(2), np.ones(2))


def swapped():
    """Fitted from the target to the source."""
    u = PAIR.potential
    return brenier.GaussianPotential(u.target_mean, u.source_mean, u.eigenvectors, 1 / u.stretch)


WRONG = {
    "identity": lambda: solved(identity()),
    "shrunk": lambda: solved(PAIR.potential, Shrunk),
    "shuffled": lambda: solved(PAIR.potential, Shuffled),
    "swapped": lambda: solved(swapped()),
}


@pytest.fixture(scope="module")
def good():
    return solved(PAIR.potential).evaluate(*drawn(0))


def test_the_optimal_map_passes(good):
    assert good["passed"]
    assert good["verdict"].startswith(
        "The map turns each side into the other within sampling noise"
    )
    assert "above the lower bound" in good["verdict"]
    for score in ("sliced_w2", "exact_w2", "kolmogorov_smirnov"):
        # within noise, with the room that a 95 % band of another draw needs
        assert good["map"][score] <= 1.5 * good["noise_band"][score]
        assert good["identity"][score] > 2 * good["noise_band"][score]


def test_every_simple_map_is_scored_the_same_way(good):
    assert all(good[name].keys() == good["map"].keys() for name in BASELINES)
    assert good["linear"]["ratio"] < 1.5 < good["mean_shift"]["ratio"] < good["identity"]["ratio"]
    # it knows half of the points, and their noise
    assert good["discrete"]["ratio"] < good["mean_shift"]["ratio"]


@pytest.mark.parametrize("name", WRONG)
def test_wrong_maps_fail(name):
    found = WRONG[name]().evaluate(*drawn(1))
    assert not found["passed"]
    if name == "shuffled":  # samples alone cannot tell
        assert found["map"]["ratio"] <= 1.5
        assert "wasted: it is not optimal" in found["verdict"]
        assert found["certificate"]["crossing"] == 1.0
    else:
        assert "The map misses by" in found["verdict"]


def test_paths_through_walls_fail():
    wall = brenier.state_costs.Disc((0.0, 0.0), 1.0)
    transport = brenier.FlowTransport(
        jax.tree.map(jnp.asarray, PAIR.potential), Frame.identity(2), Quadratic(), steps=10
    )
    info = Metadata({"state_cost": True})
    solution = Solution(transport, {}, "completed", "", Metadata({}), info)
    x, y = (p[:200] for p in drawn(2))
    found = solution.evaluate(x, y, state_cost=wall)
    assert found["violations"]["time_inside"] > 0.1
    assert "inside walls" in found["verdict"]
    assert not found["passed"]
    assert found["certificate"]["sampled"]


def test_points_that_cannot_be_scored():
    with pytest.raises(InputError, match="source points with 2 columns"):
        solved(PAIR.potential).evaluate(np.zeros((9, 3)), np.zeros((9, 2)))
