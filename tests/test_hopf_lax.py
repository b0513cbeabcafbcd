"""The Hopf–Lax formula and the dual against the Gaussian closed form."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

import brenier
from brenier import costs
from brenier.coordinates import Frame, PairCoordinates
from brenier.costs import Cost, Quadratic
from brenier.errors import BrenierWarning, InputError
from brenier.gaussian import GaussianPotential, gaussian_cost
from brenier.hamiltonian import forward_map, pde_residual, velocity
from brenier.hopf_lax import EndSlices, HopfLaxPotential, solve_feet
from brenier.methods.ncf import _cheapest, _evenly
from brenier.metrics import total_variance, uvp
from brenier.networks import MLP, DenseQuadratic, with_zero_head
from brenier.transport import CharacteristicTransport

RNG = np.random.default_rng(0)
X = RNG.normal(size=(500, 3)) * [1.0, 0.3, 2.0]
Y = RNG.normal(size=(500, 3)) @ [[1.0, 0.4, 0.0], [0.4, 1.2, 0.1], [0.0, 0.1, 0.2]]
X, Y = X - X.mean(0), Y - Y.mean(0)
EXACT = GaussianPotential.from_samples(X, Y)
TIMES = (0.0, 0.25, 0.5, 0.9, 1.0)


def potentials():
    """The closed form, from its ends; and as what pair coordinates are with no network at all."""
    nothing = with_zero_head(DenseQuadratic(3, (4, 4, 4), key=jax.random.key(0)))
    zero = jnp.zeros(())
    return {
        "ends": HopfLaxPotential(EndSlices(EXACT, EXACT, zero), Quadratic()),
        "pair coordinates": HopfLaxPotential(
            EndSlices(nothing, nothing, zero), Quadratic(), PairCoordinates.from_samples(X, Y)
        ),
    }


@jax.jit
def derivatives(u, t, x):
    """Value, gradient and Hessian of `u(t, ·)` at each point."""

    def value(x):
        return u(t, x)

    return tuple(jax.vmap(f)(x) for f in (value, jax.grad(value), jax.hessian(value)))


@jax.jit
def residuals(u, t, x):
    return jax.vmap(lambda x: pde_residual(u, Quadratic(), t, x))(x)


@jax.jit
def exact_velocities(t, x):
    return jax.vmap(lambda x: velocity(EXACT, Quadratic(), t, x))(x)


@pytest.mark.parametrize("u", potentials().values(), ids=potentials())
@pytest.mark.parametrize("t", TIMES)
class TestGaussianOracle:
    def test_value_velocity_and_curvature(self, u, t):
        found, exact = (derivatives(f, jnp.asarray(t), jnp.asarray(X[:20])) for f in (u, EXACT))
        for a, b in zip(found, exact, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)

    def test_maps_between(self, u, t):
        transport = CharacteristicTransport(u, Frame.identity(3), Quadratic())
        half = X + t * (EXACT.forward(X) - X)
        np.testing.assert_allclose(transport.interpolate(X, t), half, atol=1e-9)
        exact = exact_velocities(jnp.asarray(t), jnp.asarray(half))
        np.testing.assert_allclose(transport.velocity(t, half), exact, atol=1e-7)

    def test_solves_the_equation(self, u, t):
        if 0.0 < t < 1.0:
            assert np.abs(residuals(u, jnp.asarray(t), jnp.asarray(X[:20]))).max() < 1e-9


@pytest.mark.parametrize("u", potentials().values(), ids=potentials())
def test_dual_terms_are_the_kantorovich_pair(u):
    at_x, at_y = u.dual_terms(jnp.asarray(X), jnp.asarray(Y))
    np.testing.assert_allclose(
        at_x, -jax.vmap(lambda x: EXACT(jnp.zeros(()), x))(jnp.asarray(X)), atol=1e-9
    )
    # The minimum is found to the solver's tolerance, its value to the square of that.
    np.testing.assert_allclose(
        at_y, jax.vmap(lambda y: EXACT(jnp.ones(()), y))(jnp.asarray(Y)), atol=1e-5
    )
    cost = gaussian_cost(X.mean(0), np.cov(X.T), Y.mean(0), np.cov(Y.T))
    assert abs(float(at_x.mean() + at_y.mean()) - cost) < 0.01 * cost


def test_the_frame_is_part_of_the_dual_value():
    source, target = 3.0 * X + 5.0, 3.0 * Y - 2.0
    frame = Frame.from_samples(source, target, galilean=True)
    inner = (frame.encode(0.0, source), frame.encode(1.0, target))
    exact = GaussianPotential.from_samples(*inner)
    u = HopfLaxPotential(EndSlices(exact, exact, jnp.zeros(())), Quadratic())
    terms = CharacteristicTransport(u, frame, Quadratic()).dual_terms(
        jnp.asarray(source), jnp.asarray(target)
    )
    assert terms is not None
    moments = (source.mean(0), np.cov(source.T), target.mean(0), np.cov(target.T))
    assert sum(float(t.mean()) for t in terms) == pytest.approx(gaussian_cost(*moments), rel=5e-3)


def test_feet_from_far_away():
    y = jnp.asarray(Y)
    feet = solve_feet(EXACT, Quadratic(), y, jnp.zeros_like(y), tolerance=1e-10)
    np.testing.assert_allclose(feet.points, EXACT.inverse(Y), atol=1e-8)
    assert feet.misses.max() <= 1e-10
    images = jax.vmap(lambda x: forward_map(EXACT, Quadratic(), x))(feet.points)
    np.testing.assert_allclose(images, Y, atol=1e-9)


class DoubleWell(eqx.Module):
    """`u(0, x) + |x - y|²/2` has minima near ±1 and a ridge between them, where `T(x) = y` holds too."""

    def __call__(self, t, x):
        return jnp.sum(0.5 * (x**2 - 1) ** 2 - 0.5 * x**2)


def test_feet_are_minima_never_ridges():
    start = jnp.linspace(-2.0, 2.0, 81)[:, None]
    y = jnp.full_like(start, 0.1).at[::2].set(-0.2)
    u, cost = DoubleWell(), Quadratic()
    feet = solve_feet(u, cost, y, start, tolerance=1e-9)

    def value(x, y):
        return u(0.0, x) + cost.static(x, y)

    assert feet.misses.max() <= 1e-9
    np.testing.assert_allclose(feet.values, jax.vmap(value)(feet.points, y), rtol=1e-12)
    assert (feet.values <= jax.vmap(value)(start, y)).all()
    curvature = jax.vmap(jax.hessian(value))(feet.points, y)
    assert (curvature > 0.0).mean() > 0.98  # all, but for a start on the very ridge


def test_the_solver_keeps_its_best_and_its_limits():
    y = jnp.asarray(Y)
    start = jnp.asarray(EXACT.inverse(Y))
    kept = solve_feet(EXACT, Quadratic(), y, start, tolerance=1e-6)
    assert int(kept.iterations) == 0
    np.testing.assert_array_equal(kept.points, start)
    short = solve_feet(EXACT, Quadratic(), y, jnp.zeros_like(y), tolerance=0.0, max_iterations=3)
    assert int(short.iterations) == 3


def test_feet_in_stages_are_those_of_one():
    y = jnp.asarray(Y)
    feet = jnp.asarray(EXACT.inverse(Y))
    some = feet[::10]
    off = jnp.logspace(-6, 0, len(some))[:, None]
    start = feet.at[::10].add(off * jnp.ones_like(some))  # the others are there
    options = {"tolerance": 1e-8, "max_iterations": 40}
    one = solve_feet(EXACT, Quadratic(), y, start, **options)
    more = solve_feet(EXACT, Quadratic(), y, start, enough=(0.5, 0.95, 1.0), **options)
    assert int(one.iterations) > 0
    assert int(more.iterations) == 0
    assert more.misses.max() <= 1e-8
    np.testing.assert_allclose(more.points, one.points, atol=1e-7)
    last = solve_feet(EXACT, Quadratic(), y, start, enough=(0.5, 0.95), **options)
    assert 0.95 <= np.mean(last.misses <= 1e-8) < 1.0


def test_pair_coordinates_keep_the_inner_products():
    pair = PairCoordinates.from_samples(X, Y)
    z, w = pair.encode_source(jnp.asarray(X)), pair.encode_target(jnp.asarray(Y))
    np.testing.assert_allclose(pair.scale**2 * jnp.sum(z * w, 1), np.sum(X * Y, 1), atol=1e-12)
    np.testing.assert_allclose(np.cov(z.T), np.cov(w.T), atol=1e-4)  # up to the ridge
    np.testing.assert_allclose(pair.decode_source(z), X, atol=1e-12)


def test_pair_coordinates_of_degenerate_samples_are_finite():
    flat = X * [1.0, 0.0, 1.0]
    pair = PairCoordinates.from_samples(flat, Y)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(pair))


@pytest.mark.slow
@pytest.mark.parametrize("pair_coordinates", [False, True])
def test_training_finds_both_maps(pair_coordinates):
    exact = brenier.datasets.gaussian_pair(2, 1)
    method = brenier.NCF(
        pair_coordinates=pair_coordinates, widths=(32, 32, 16), batch_size=512, learning_rate=1e-2
    )
    problem = brenier.TransportProblem(exact.source, exact.target)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", BrenierWarning
        )  # on a Gaussian the linear map is hard to beat
        solution = brenier.fit(problem, method, steps=250, early_stopping=False)
    x, y = (np.asarray(side(jax.random.key(9), 4000)) for side in (exact.source, exact.target))
    transport = solution.transport
    assert uvp(transport.forward(x), exact.forward(x), total_variance(y)) < 0.3
    assert uvp(transport.inverse(y), exact.inverse(y), total_variance(x)) < 0.3
    assert solution.history["unsolved"][-1] < 0.05
    assert abs(solution.scores["cost"] - exact.cost) < 4 * solution.scores["cost_standard_error"]


@pytest.mark.slow
def test_far_modes_do_not_make_the_dual_run_away():
    """Where no foot is found the discrete dual of the batch stands in, and bounds the value."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 2))
    y = 0.05 * rng.normal(size=(1000, 2)) + rng.choice([-20.0, 20.0], size=(1000, 1))
    method = brenier.NCF(widths=(16, 16, 8), batch_size=256, foot_iterations=2, learning_rate=5e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrenierWarning)
        solution = brenier.fit(brenier.TransportProblem(x, y), method, steps=100)
    cost = 0.5 * ot.emd2(np.full(1000, 1e-3), np.full(1000, 1e-3), ot.dist(x, y))
    moved = 0.5 * np.mean(np.sum((solution.transport.forward(x) - x) ** 2, axis=1))
    assert moved < 1.5 * cost
    assert np.abs(solution.transport.inverse(y)).max() < 10.0


class Quartic(Cost):
    def lagrangian(self, v):
        return jnp.sum(v**4) / 4

    def hamiltonian(self, p):
        return 0.75 * jnp.sum(jnp.abs(p) ** (4 / 3))

    def grad_lagrangian(self, v):
        return v**3

    def grad_hamiltonian(self, p):
        return jnp.cbrt(p)


def test_pair_coordinates_are_for_the_quadratic_cost():
    for cost in (Quadratic(), Quartic()):
        state = brenier.NCF(widths=(4, 4, 4)).init(
            brenier.TransportProblem(X, Y, cost=cost), jax.random.key(0)
        )
        assert (state.base is not None) == isinstance(cost, Quadratic)
    with pytest.raises(InputError, match="needs objective"):
        brenier.NCF(objective="energy", pair_coordinates=True)
    with pytest.raises(InputError, match="objective to be dual or energy"):
        brenier.NCF(objective="primal")
    pairs = Quartic().pairwise(jnp.asarray(X[:3]), jnp.asarray(Y[:4]))
    np.testing.assert_allclose(pairs, np.sum((Y[None, :4] - X[:3, None]) ** 4, -1) / 4, rtol=1e-10)
    both = Quadratic().pairwise(jnp.asarray(X[:3]), jnp.asarray(Y[:4]))
    np.testing.assert_allclose(both, np.sum((Y[None, :4] - X[:3, None]) ** 2, -1) / 2, rtol=1e-10)


@pytest.mark.parametrize(
    ("dim", "options", "expected"),
    [
        (4, {}, ["celu", "celu"]),
        (5, {}, ["sharp_gelu", "gelu"]),
        (16, {}, ["sharp_gelu", "gelu"]),
        (17, {}, ["celu", "celu"]),
        (8, {"activation": "softplus"}, ["softplus", "softplus"]),
        (8, {"objective": "energy"}, ["celu"]),
        (8, {"preset": "published"}, ["celu"]),
    ],
)
def test_activations_by_dimension_unless_one_is_given(dim, options, expected):
    points = RNG.normal(size=(40, dim))
    method = brenier.NCF(widths=(8, 8, 4), **options)
    state = method.init(brenier.TransportProblem(points, points + 1.0), jax.random.key(0))
    nodes = jax.tree.leaves(state.network, is_leaf=lambda node: isinstance(node, DenseQuadratic))
    assert [u.activation for u in nodes if isinstance(u, DenseQuadratic)] == expected


@pytest.mark.parametrize(
    ("dim", "options", "expected"),
    [
        (4, {}, 1024),
        (5, {}, 2048),
        (16, {}, 2048),
        (17, {}, 1024),
        (8, {"batch_size": 64}, 64),
        (8, {"objective": "energy"}, 1024),
        (8, {"preset": "published"}, 2000),
    ],
)
def test_batches_by_dimension_unless_a_size_is_given(dim, options, expected):
    def without_end(key, n):
        return jax.random.normal(key, (n, dim))

    problem = brenier.TransportProblem(without_end, without_end)
    assert brenier.NCF(**options).batch(problem) == expected


@pytest.mark.parametrize(
    ("samples", "widths", "batch"),
    [
        (100, (16, 16, 16), 1024),  # all of them
        (200, (16, 16, 16), 64),
        (2048, (16, 16, 16), 512),
        (2400, (32, 32, 16), 592),
        (10_000, (32, 32, 16), 1024),
        (30_000, (64, 64, 64, 32), 1024),
    ],
)
def test_small_networks_and_batches_for_few_samples(samples, widths, batch):
    points = RNG.normal(size=(samples, 2))
    problem = brenier.TransportProblem(points, lambda key, n: jax.random.normal(key, (n, 2)))
    method = brenier.NCF()
    assert (method.default_network(problem).widths, method.batch(problem)) == (widths, batch)
    settled = method.settled(problem)
    assert (settled.widths, settled.batch_size) == (widths, batch)
    given = brenier.NCF(widths=(8, 8), batch_size=32)
    assert given.settled(problem) == given
    energy = brenier.NCF(objective="energy")
    assert (energy.default_network(problem).widths, energy.batch(problem)) == ((128, 128, 64), 1024)


@pytest.mark.parametrize(
    ("cost", "options", "expected"),
    [
        (costs.PseudoHuber(0.5), {}, MLP),
        (costs.PseudoHuber(0.5), {"objective": "energy"}, MLP),
        (costs.PseudoHuber(100.0), {}, DenseQuadratic),  # nearly quadratic as far as anything moves
        (costs.ConvexCost(lambda v: jnp.sqrt(0.25 + v @ v) - 0.5, 3), {}, MLP),
        (costs.Power(1.5), {}, DenseQuadratic),
        (costs.PseudoHuber(0.5), {"network": "dense_quadratic"}, DenseQuadratic),
        (costs.PseudoHuber(0.5), {"preset": "published"}, DenseQuadratic),
    ],
)
def test_potentials_of_nearly_linear_costs_grow_no_faster_than_linearly(cost, options, expected):
    problem = brenier.TransportProblem(X[:60], Y[:60], cost)
    state = brenier.NCF(**options).init(problem, jax.random.key(0))
    networks = jax.tree.leaves(state.network, is_leaf=lambda n: isinstance(n, MLP | DenseQuadratic))
    assert isinstance(networks[0], expected)


def test_no_foot_is_left_behind_by_the_many_that_arrive_at_once():
    y = jnp.asarray(Y[:400])
    exact = jnp.asarray(EXACT.inverse(Y[:400]))
    proposed = exact.at[:4].add(0.5)  # one in a hundred
    slices = EndSlices(EXACT, EXACT, jnp.zeros(()))
    x = jnp.asarray(X[:50])
    at_x = jax.vmap(lambda x: EXACT(jnp.zeros(()), x))(x)
    feet, found, _ = brenier.NCF()._feet(
        slices, x, at_x, Quadratic(), y, proposed, jnp.asarray(0.02), 0
    )
    assert jnp.all(found == 1.0)
    misses = jnp.linalg.norm(jnp.asarray(EXACT.forward(feet)) - y, axis=1)
    assert float(misses.max()) <= 0.02


@pytest.mark.parametrize(
    ("count", "blocks", "most", "expected"),
    [
        (5, 1, 1024, [0, 1, 2, 3, 4]),
        (6, 3, 6, [0, 1, 2, 3, 4, 5]),
        (10, 1, 4, [0, 2, 5, 7]),
        (10, 2, 6, [0, 1, 3, 5, 6, 8]),
        (6, 3, 2, [0, 2, 4]),  # never none of a class
    ],
)
def test_candidates_are_spread_evenly_over_batch_and_classes(count, blocks, most, expected):
    assert _evenly(count, blocks, most).tolist() == expected


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_cheapest_sample_is_one_of_the_own_class(blocks):
    x, y, worth = X[:12], Y[:9], np.linspace(-1.0, 1.0, 12)
    values, rows = _cheapest(Quadratic(), *map(jnp.asarray, (x, worth, y)), blocks)
    every = worth[:, None] + 0.5 * np.sum((x[:, None] - y[None]) ** 2, axis=-1)
    other = np.arange(12)[:, None] * blocks // 12 != np.arange(9)[None] * blocks // 9
    every[other] = np.inf
    np.testing.assert_array_equal(rows, np.argmin(every, axis=0))
    np.testing.assert_allclose(values, np.min(every, axis=0), rtol=1e-5)


def test_feet_of_a_batch_that_is_larger_than_its_candidates(monkeypatch):
    monkeypatch.setattr("brenier.methods.ncf._PAIRS", 50 * 500)
    x, y = jnp.asarray(X), jnp.asarray(Y)
    at_x = jax.vmap(lambda x: EXACT(jnp.zeros(()), x))(x)
    given = EndSlices(EXACT, EXACT, jnp.zeros(())), x, at_x, Quadratic(), y, 10.0 + y
    starts, _, _ = brenier.NCF(foot_iterations=0)._feet(*given, jnp.asarray(0.02), 0)
    assert {*map(tuple, starts.tolist())} <= {*map(tuple, x[_evenly(500, 1, 50)].tolist())}
    feet, found, _ = brenier.NCF(foot_iterations=30)._feet(*given, jnp.asarray(0.02), 0)
    assert jnp.all(found == 1.0)
    misses = jnp.linalg.norm(jnp.asarray(EXACT.forward(feet)) - y, axis=1)
    assert float(misses.max()) <= 4 * 0.02  # of the tolerance, as any foot that counts as found


class TwoWells(eqx.Module):
    """A slice whose Brenier potential `¼(x² - 1)²`, in each coordinate, is not convex between -1 and 1."""

    depth: jax.Array

    def __call__(self, t, x):
        return jnp.sum(self.depth * (x**2 - 1.0) ** 2 - 0.5 * x**2) + 0.0 * t


class Wavy(eqx.Module):
    """With a Brenier potential that is not convex in many places; what it says at t = 1 is nothing."""

    height: jax.Array

    def __call__(self, t, x):
        return (1.0 - t) * self.height * jnp.sin(4.0 * x[0])


def refined(u, cost=None, dim=1, **options):
    maps = CharacteristicTransport(u, Frame.identity(dim), cost or Quadratic())
    return maps, maps.refined(**options)


def test_refined_maps_are_those_of_the_convex_envelope():
    # The envelope is flat between the wells: all of [-1, 1] goes to 0, and nothing but its ends is a foot.
    plain, maps = refined(TwoWells(jnp.asarray(0.25)), tolerance=1e-8)
    x = np.linspace(-1.8, 1.8, 91)[:, None]
    expected = np.where(np.abs(x) <= 1.0, 0.0, x**3 - x)
    off = np.abs(x[:, 0]) < 1.0
    np.testing.assert_array_equal(maps.forward(x)[~off], plain.forward(x)[~off])
    np.testing.assert_allclose(maps.forward(x), expected, atol=2e-4)
    np.testing.assert_allclose(maps.forward(jnp.asarray(x)), maps.forward(x), atol=1e-12)

    y = np.linspace(-1.0, 1.0, 50)[:, None]  # without 0, which has two feet
    feet = maps.inverse(y)
    assert np.all(feet * y > np.abs(y))  # the outer root, and on the side of its end
    np.testing.assert_allclose(feet**3 - feet, y, atol=1e-7)
    np.testing.assert_allclose(maps.inverse(jnp.asarray(y)), feet, atol=1e-12)
    slopes = jax.vmap(jax.grad(lambda y: maps.inverse(y[None, None])[0, 0]))(jnp.asarray(y[:, 0]))
    np.testing.assert_allclose(slopes, 1.0 / (3.0 * feet[:, 0] ** 2 - 1.0), rtol=1e-5)


@pytest.mark.parametrize(
    "cost", [Quadratic(), brenier.costs.Power(3.0), brenier.costs.PseudoHuber(0.5)]
)
def test_refined_lines_of_a_wavy_potential_do_not_cross(cost):
    # On the line, optimal lines do not cross for any convex cost.
    plain, maps = refined(Wavy(jnp.asarray(0.1)), cost)
    x = np.random.default_rng(0).uniform(-3.0, 3.0, (400, 1)).astype(np.float32)
    order = np.argsort(x[:, 0])
    rising = {
        name: np.diff(move(x)[order, 0]).min()
        for name, move in {
            "plain": plain.forward,
            "forward": maps.forward,
            "inverse": maps.inverse,
        }.items()
    }
    assert rising.pop("plain") < -0.01
    assert min(rising.values()) > -5e-3, rising


def test_refined_maps_of_the_closed_form_are_its_own():
    for u in potentials().values():
        plain, maps = refined(u, dim=3)
        x, y = X.astype(np.float32), Y.astype(np.float32)
        np.testing.assert_allclose(maps.forward(x), plain.forward(x), atol=1e-5)
        np.testing.assert_allclose(maps.inverse(y), plain.inverse(y), atol=2e-3)
        np.testing.assert_allclose(
            maps.interpolate_back(y, 0.25), plain.interpolate_back(y, 0.25), atol=2e-3
        )


def test_refining_needs_a_positive_tolerance():
    plain, _ = refined(EXACT, dim=3)
    with pytest.raises(InputError, match="tolerance"):
        plain.refined(tolerance=0.0)
