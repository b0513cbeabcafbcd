"""Bounds on the optimal cost: below and above what is known exactly, whatever the potential is."""

import dataclasses
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brenier
from brenier.certificate import Certificate, discrete_optimum, relative_gap
from brenier.coordinates import Frame
from brenier.costs import Quadratic
from brenier.errors import InputError
from brenier.solution import Metadata, Solution

PAIR = brenier.datasets.gaussian_pair(2, key=3, mean=1.0)
N = 400


def solved(potential, transport=None, **info):
    """A solution in closed form."""
    if transport is None:
        arrays = jax.tree.map(jnp.asarray, potential)
        transport = brenier.CharacteristicTransport(arrays, Frame.identity(2), Quadratic())
    return Solution(transport, {}, "completed", "", Metadata({}), Metadata(info))


def stretched(factor):
    """The exact potential with the map's matrix multiplied: optimal, but for another target."""
    return eqx.tree_at(lambda u: u.stretch, PAIR.potential, PAIR.potential.stretch * factor)


def drawn(seed, n=N, m=N):
    keys = jax.random.split(jax.random.key(seed))
    return np.asarray(PAIR.source(keys[0], n)), np.asarray(PAIR.target(keys[1], m))


@pytest.fixture(scope="module")
def exact():
    return solved(PAIR.potential).certificate(*drawn(0))


def test_the_exact_potential_proves_itself(exact):
    assert exact.lower == pytest.approx(exact.upper, rel=1e-9)
    assert exact.gap == pytest.approx(0.0, abs=1e-9)
    assert exact.lower <= exact.exact
    low, high = exact.interval
    assert low < PAIR.cost < high
    assert exact.crossing == 0.0
    # ∇²ψ is the map's matrix, everywhere
    assert exact.smoothness == pytest.approx(PAIR.potential.stretch.max(), rel=1e-9)


def test_every_row_of_both_sides_counts_when_sizes_differ():
    x, y = drawn(1, n=100, m=60)
    found = solved(PAIR.potential).certificate(x, y)
    assert found.points == 60
    assert found.lower <= found.exact


class Rough(eqx.Module):
    """No solution of anything: kinks, waves and a jump, NaN where `x` is far to the left."""

    size: float

    def __call__(self, t, x):
        wave = jnp.sin(7 * x[0]) + jnp.abs(x[1]) + jnp.floor(x @ x) + 3 * t
        return jnp.where(x[0] < -1.5, jnp.nan, self.size * wave)


class Moved(brenier.CharacteristicTransport):
    """The maps of another potential than the one that bounds."""

    maps: brenier.CharacteristicTransport

    def forward(self, x):
        return self.maps.forward(x)

    def inverse(self, y):
        return self.maps.inverse(y)


def bounding(potential, transport):
    arrays = jax.tree.map(jnp.asarray, potential)
    return Moved(arrays, Frame.identity(2), Quadratic(), transport)


@pytest.mark.parametrize("size", [0.01, 1.0, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_the_lower_bound_holds_whatever_the_potential_is(size, offset):
    x, y = drawn(2)
    transport = bounding(Rough(jnp.asarray(size)), solved(PAIR.potential).transport)
    # the potential of one draw is not that of another place: there it is nonsense, and must still bound
    found = solved(None, transport).certificate(x + offset, y + offset)
    assert found.lower <= found.exact
    assert found.upper >= found.lower


def test_a_map_that_stops_short_is_charged_for_what_is_missing():
    x, y = drawn(3, n=2048, m=2048)
    short = solved(stretched(0.8)).certificate(x, y, exact_up_to=0)
    assert short.exact is None
    assert short.excess == pytest.approx(0.0, abs=1e-9)  # optimal for its own images
    assert short.mismatch > 4 * short.mismatch_error
    assert short.lower < PAIR.cost < short.interval[1]
    assert short.gap > 0.01


def test_the_error_of_the_map_follows_from_the_gap():
    # E|∇ψ - T*|² <= 2β (C - D), exactly: D in closed form from the moments of both Gaussians
    rng = np.random.default_rng(0)
    x = np.asarray(PAIR.source(jax.random.key(5), 1024), np.float64)
    for _ in range(3):
        factor = rng.uniform(0.7, 1.4, size=2)
        wrong = stretched(factor)
        y = PAIR.forward(x)
        found = solved(wrong).certificate(x, y, exact_up_to=0)
        error = np.mean(np.sum((wrong.forward(x) - y) ** 2, axis=1))
        true_gap = 0.5 * np.mean(np.sum((y - x) ** 2, axis=1)) - found.lower
        assert error <= 2 * found.smoothness * true_gap * (1 + 1e-9)
        assert 100 * error / y.var(axis=0).sum() <= found.map_error


def test_swapped_images_cost_more_than_the_bound():
    """All mass arrives where it should, along the wrong paths."""
    x, y = drawn(4)
    rotation = np.array([[0.0, -1.0], [1.0, 0.0]])
    normal = brenier.GaussianPotential(*np.zeros((2, 2)), np.eye(2), np.ones(2))

    class Rotated(brenier.CharacteristicTransport):
        def forward(self, x):
            return x @ rotation

        def inverse(self, y):
            return y @ rotation.T

    arrays = jax.tree.map(jnp.asarray, normal)
    turned = solved(None, Rotated(arrays, Frame.identity(2), Quadratic()))
    z = np.random.default_rng(1).normal(size=(2, N, 2))
    found = turned.certificate(*z)
    assert found.excess == pytest.approx(found.map_cost, rel=1e-6)
    assert found.gap > 0.9
    del x, y


def test_the_discrete_optimum_of_a_translation_is_its_cost():
    x = np.random.default_rng(0).normal(size=(300, 3))
    cost = discrete_optimum(Quadratic(), x, x[::-1] + 2.0)
    assert cost == pytest.approx(6.0, rel=1e-12)


def test_gaps_of_extreme_bounds():
    assert relative_gap(1.0, 1.0) == 0.0
    assert relative_gap(0.0, 2.0) == 1.0
    assert relative_gap(-1.0, 0.0) == np.inf
    assert relative_gap(0.0, 0.0) == 0.0


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_dynamic_bounds_of_a_price_that_is_the_same_everywhere(noise):
    """A constant price adds itself to the cost and changes no path; `u` gains `t U`."""
    price = 2.0
    exact = PAIR.potential

    class Priced(eqx.Module):
        inner: brenier.GaussianPotential

        def __call__(self, t, x):
            return self.inner(t, x) + t * price

    transport = brenier.FlowTransport(
        Priced(jax.tree.map(jnp.asarray, exact)), Frame.identity(2), Quadratic(), noise=noise
    )
    solution = solved(None, transport, state_cost=True)
    x = drawn(6, n=128)[0]
    with pytest.raises(InputError, match="state cost that the map was fitted with"):
        solution.certificate(x, exact.forward(x))
    found = solution.certificate(x, exact.forward(x), state_cost=lambda x: price + 0.0 * x[0])
    assert found.sampled
    assert found.exact is None
    own = price + 0.5 * np.mean(np.sum((exact.forward(x) - x) ** 2, axis=1))
    if noise == 0.0:
        # the residual vanishes, and every path ends on a target point: both bounds are exact
        assert found.lower == pytest.approx(own, rel=1e-6)
        assert found.upper == pytest.approx(own, rel=1e-3)  # of Euler's method
    else:
        # ½σ²Δu is what the potential without noise leaves over
        assert found.lower <= found.upper
        assert found.gap > 0.001


@pytest.mark.slow
def test_the_estimator_and_json(exact):
    facts = exact.to_dict()
    assert facts["gap"] == exact.gap
    assert isinstance(facts["interval"], list)
    assert "gap 0.00%" in str(exact)
    est = brenier.NCFTransport(objective="energy", steps=2, batch_size=32, random_state=0)
    x, y = drawn(7, n=64, m=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", brenier.BrenierWarning)
        est.fit(Xs=x, Xt=y)
    found = est.certificate(Xs=x, Xt=y)
    assert isinstance(found, Certificate)
    assert found.lower <= min(found.exact, found.upper)
    with pytest.raises(InputError, match="Xt is missing"):
        est.certificate(Xs=x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Xs": np.zeros((40, 3))}, "with 2 columns"),
        ({"Xs": np.zeros((3, 2))}, "at least 16 points"),
        ({"level": 1.0}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_certified(change, message):
    x, y = drawn(8, n=20, m=20)
    with pytest.raises(InputError, match=message):
        solved(PAIR.potential).certificate(**({"Xs": x, "Xt": y} | change))


def test_maps_without_finite_images():
    broken = dataclasses.replace(
        solved(PAIR.potential).transport, frame=Frame(np.full(2, np.nan), np.zeros(2), np.ones(()))
    )
    with pytest.raises(InputError, match="finite images"):
        solved(None, broken).certificate(*drawn(9, n=20, m=20))
