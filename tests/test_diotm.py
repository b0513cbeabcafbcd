"""DIOTM at its saddle, known in closed form between Gaussians, and the signs that a flip must not survive."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brenier
from brenier import DIOTM
from brenier.coordinates import Frame
from brenier.costs import Quadratic
from brenier.errors import BrenierWarning, InputError, UnsupportedProblemError
from brenier.gaussian import GaussianPotential, gaussian_cost
from brenier.methods.diotm import backward_loss, forward_loss, interpolant
from brenier.networks import DenseQuadratic, ResidualMap, SumPotential

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
N, DIM = 400, 3


def with_moments(points, mean, covariance):
    """Points with exactly these moments, so that expectations of quadratics are exact."""
    centred = points - points.mean(0)
    white = centred @ np.linalg.inv(np.linalg.cholesky(centred.T @ centred / len(points))).T
    return jnp.asarray(white @ np.linalg.cholesky(covariance).T + mean)


def covariance():
    root = RNG.normal(size=(DIM, DIM))
    return root @ root.T + 0.5 * np.eye(DIM)


MOMENTS = (np.zeros(DIM), covariance(), np.array([1.0, -2.0, 0.5]), covariance())
EXACT = GaussianPotential.from_moments(*MOMENTS)
COST = gaussian_cost(*MOMENTS)
X = with_moments(RNG.normal(size=(N, DIM)), *MOMENTS[:2])
Y = jnp.asarray(EXACT.forward(X))
TIMES = jnp.asarray(RNG.uniform(size=N))
QUADRATIC = Quadratic()


def forward(x):
    return jnp.asarray(MOMENTS[2]) + jnp.asarray(EXACT.matrix) @ (x - jnp.asarray(MOMENTS[0]))


def backward(y):
    inverse = jnp.asarray(np.linalg.inv(EXACT.matrix))
    return jnp.asarray(MOMENTS[0]) + inverse @ (y - jnp.asarray(MOMENTS[2]))


def potential_loss(u, x=X, y=Y, t=TIMES, maps=(forward, backward), **options):
    x_t = interpolant(x, jax.vmap(maps[0])(x), t)
    y_t = interpolant(jax.vmap(maps[1])(y), y, t)
    return DIOTM(**options).potential_loss(u, QUADRATIC, (t, x_t), (t, y_t), y)


class TestSaddle:
    @pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
    def test_value_is_the_optimal_cost_at_every_time(self, t):
        t = jnp.full(N, t)
        one, _ = forward_loss(EXACT, QUADRATIC, forward, X, t)
        two, _ = backward_loss(EXACT, QUADRATIC, backward, Y, t)
        np.testing.assert_allclose(one + two, COST, rtol=1e-10)

    def test_maps_are_stationary(self):
        def losses(shift, stretch):
            def moved(own):
                return lambda x: own(x) + shift + stretch * x

            one, _ = forward_loss(EXACT, QUADRATIC, moved(forward), X, TIMES)
            two, _ = backward_loss(EXACT, QUADRATIC, moved(backward), Y, TIMES)
            return jnp.stack([one, two])

        slopes = jax.jacobian(losses, argnums=(0, 1))(jnp.zeros(DIM), jnp.zeros(DIM))
        for slope in slopes:
            np.testing.assert_allclose(slope, 0.0, atol=1e-9)
        # and minimal: the inner problems are convex
        at = losses(jnp.zeros(DIM), jnp.zeros(DIM))
        assert (losses(jnp.full(DIM, 0.1), jnp.zeros(DIM)) > at + 1e-4).all()
        assert (losses(jnp.zeros(DIM), jnp.full(DIM, -0.1)) > at + 1e-4).all()

    def test_potential_is_stationary_and_solves_the_equation(self):
        bump = DenseQuadratic(DIM, (8, 4), key=KEY)

        def loss(size):
            u = SumPotential(EXACT, lambda t, x: size * bump(t, x))
            return potential_loss(u)[0]

        value, metrics = potential_loss(EXACT)
        assert abs(value) < 1e-9
        assert metrics["penalty"] < 1e-9
        # The samples are paired exactly, so x_t and y_t are the same points.
        assert (
            abs(jax.grad(lambda s: loss(s) - DIOTM().hj_weight * penalty_of(bump, s))(0.0)) < 1e-9
        )
        flipped = potential_loss(lambda t, x: -EXACT(t, x))[1]
        assert flipped["penalty"] > 1.0

    def test_only_the_regulariser_sees_a_function_of_time(self):
        shifted = potential_loss(lambda t, x: EXACT(t, x) + 3.0 * t)[1]
        np.testing.assert_allclose(shifted["mismatch"], 0.0, atol=1e-9)
        np.testing.assert_allclose(shifted["penalty"], 6.0, rtol=1e-6)
        constant = potential_loss(lambda t, x: EXACT(t, x) + 3.0)[1]
        np.testing.assert_allclose(constant["penalty"], 0.0, atol=1e-9)

    def test_swapped_in_time_it_is_the_same_game(self):
        u = DenseQuadratic(DIM, (8, 4), key=KEY)
        turned = lambda t, x: -u(1.0 - t, x)  # noqa: E731
        T, S = (ResidualMap(DIM, (8,), matrix=m, key=KEY) for m in RNG.normal(size=(2, DIM, DIM)))
        here = [
            forward_loss(u, QUADRATIC, T, X, TIMES)[0],
            backward_loss(u, QUADRATIC, S, Y, TIMES)[0],
            potential_loss(u, maps=(T, S))[0],
        ]
        there = [
            backward_loss(turned, QUADRATIC, T, X, 1.0 - TIMES)[0],
            forward_loss(turned, QUADRATIC, S, Y, 1.0 - TIMES)[0],
            potential_loss(turned, Y, X, 1.0 - TIMES, (S, T))[0],
        ]
        np.testing.assert_allclose(here, there, rtol=1e-10)


def penalty_of(bump, size):
    """The regulariser is not smooth at its minimum, so its slope is taken out."""
    u = SumPotential(EXACT, lambda t, x: size * bump(t, x))
    return potential_loss(u)[1]["penalty"]


def test_players_move_themselves_alone():
    options = {"widths": (8, 4), "map_widths": (8,), "batch_size": 32, "pair_coordinates": False}
    problem = brenier.TransportProblem(np.asarray(X), np.asarray(Y))
    state = DIOTM(**options).init(problem, KEY)
    network = DenseQuadratic(DIM, (8, 4), direct=True, key=KEY)
    state = dataclasses.replace(state, players=state.players._replace(potential=network))

    def moved(**rates):
        method = DIOTM(**options, **rates)
        step = jax.jit(lambda state: method.step(problem, state, batch, KEY, jnp.asarray(0.0))[0])
        for before, after in zip(state.players, step(state).players, strict=True):
            pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
            yield max(float(jnp.abs(a - b).max()) for a, b in pairs)

    batch = (X[:32], Y[:32])
    potential, *maps = moved(learning_rate=1e-3, map_learning_rate=1e-30)
    assert potential > 1e-4
    assert max(maps) < 1e-20
    potential, *maps = moved(learning_rate=1e-30, map_learning_rate=1e-3)
    assert potential < 1e-20
    assert min(maps) > 1e-4


@pytest.mark.parametrize("times", ["uniform", "stratified", "ends"])
def test_times(times):
    t = np.asarray(DIOTM(times=times)._draw_times(KEY, 64, jnp.float32))
    assert t.min() >= 0.0
    assert t.max() <= 1.0
    if times == "stratified":
        np.testing.assert_array_equal(np.sort((t * 64).astype(int)), np.arange(64))
        assert not (np.diff(t) > 0).all()
    if times == "ends":
        assert set(t) == {0.0, 1.0}


def fit(method, steps, x=X, y=Y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrenierWarning)
        problem = brenier.TransportProblem(np.asarray(x), np.asarray(y))
        return brenier.fit(problem, method, key=KEY, steps=steps)


@pytest.mark.slow
def test_training_finds_both_maps():
    """From the identity, and so that the potential agrees with the maps."""
    method = DIOTM(widths=(32, 16), map_widths=(32,), batch_size=128, pair_coordinates=False)
    solution = fit(method, 500)
    transport, x, y = solution.transport, np.asarray(X), np.asarray(Y)
    variance = brenier.metrics.total_variance
    assert brenier.metrics.uvp(transport.forward(x), EXACT.forward(x), variance(y)) < 2.0
    assert brenier.metrics.uvp(transport.inverse(y), EXACT.inverse(y), variance(x)) < 2.0
    halfway = transport.interpolate(x, 0.5)
    np.testing.assert_allclose(halfway, 0.5 * (x + transport.forward(x)), atol=1e-6)
    own = transport.velocity(0.5, halfway)
    np.testing.assert_allclose(own, transport.forward(x) - x, atol=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "published"},
        {"preset": "otm"},
        {"regularizer": "r1", "map_steps": 2},
        {"residual": "squared", "gaussian_start": True},
    ],
    ids=lambda options: next(iter(options.values())),
)
@pytest.mark.slow
def test_every_option_runs(options):
    small = {"widths": (8, 8), "map_widths": (8,), "batch_size": 32}
    solution = fit(DIOTM(**(small | options)), 10)
    assert np.isfinite(solution.history["loss"]).all()


@pytest.mark.parametrize("start", ["pair_coordinates", "gaussian_start"])
def test_it_starts_at_the_linear_map(start):
    method = DIOTM(widths=(8, 8), map_widths=(8,), batch_size=32, **{start: True})
    problem = brenier.TransportProblem(
        np.asarray(X) - MOMENTS[0], np.asarray(Y) - np.asarray(MOMENTS[2])
    )
    transport = method.extract(problem, method.init(problem, KEY), Frame.identity(DIM))
    x = np.asarray(X)
    expected = EXACT.forward(x) - MOMENTS[2]
    np.testing.assert_allclose(transport.forward(x), expected, atol=1e-4)
    np.testing.assert_allclose(transport.inverse(transport.forward(x)), x, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0, "penalty": 1.0}, "alpha"),
        ({"alpha": 1.0, "penalty": -1.0}, "penalty"),
        ({"alpha": 1.0}, "together"),
        ({"alpha": 1.0, "penalty": 1.0, "hj_weight": 1.0}, "all of them"),
        ({"hj_weight": -1.0}, "hj_weight"),
        ({"times": "never"}, "times"),
        ({"regularizer": "r2"}, "regularizer"),
        ({"map_steps": 0}, "map_steps"),
        ({"map_learning_rate": -1.0}, "map_learning_rate"),
        ({"preset": "best"}, "preset"),
    ],
)
def test_absurd_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        DIOTM(**options)


def test_unsupported_problems_name_the_method_that_can():
    problem = brenier.TransportProblem(np.asarray(X), np.asarray(Y))
    for change in ({"noise": 0.1}, {"state_cost": lambda x: 0.0 * x[0]}):
        with pytest.raises(UnsupportedProblemError, match="HOTA"):
            brenier.fit(problem.replace(**change), DIOTM())
