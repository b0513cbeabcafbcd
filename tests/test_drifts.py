"""Base drifts: against linear-quadratic control, whose value is known through its Gram matrix."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import brenier
from brenier.coordinates import Frame
from brenier.costs import Quadratic
from brenier.drifts import DriftFunction, FramedDrift, as_drift, check_drift
from brenier.errors import InputError, UnsupportedProblemError
from brenier.flow import FlowTransport, simulate
from brenier.gaussian import GaussianPotential
from brenier.hamiltonian import pde_residual, turning
from brenier.methods.hota import HOTA
from brenier.paths import action, controlled, improve
from brenier.provenance import drift_at_probes
from brenier.solution import Metadata, Solution

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
GROWTH, TURN = 0.4, 1.5
A = np.array([[GROWTH, -TURN], [TURN, GROWTH]])
X = RNG.normal(size=(300, 2)) * [1.0, 0.5]
Y = RNG.normal(size=(300, 2)) * [0.6, 0.9] + [1.0, -1.0]


def linear(t, x):
    return jnp.asarray(A, x.dtype) @ x


def transition(time):
    """`e^{At}`, and the number that its Gram matrix `∫ e^{As} e^{Aᵀs} ds` is times `I`."""
    c, s = jnp.cos(TURN * time), jnp.sin(TURN * time)
    flow = jnp.exp(GROWTH * time) * jnp.stack([jnp.stack([c, -s]), jnp.stack([s, c])])
    return flow, jnp.expm1(2.0 * GROWTH * time) / (2.0 * GROWTH)


class Steered(eqx.Module):
    """`u = -½ |goal - e^{Aτ} x|² / G(τ)`, with `τ` the time left until `1 + rest`."""

    goal: jax.Array
    rest: float = 0.25

    def __call__(self, t, x):
        flow, gram = transition(1.0 + self.rest - t)
        return -0.5 * jnp.sum((self.goal - flow @ x) ** 2) / gram


class Seen(eqx.Module):
    """A potential from a frame at rest."""

    outer: Steered
    frame: Frame

    def __call__(self, t, z):
        return self.outer(t, self.frame.decode(0.0, z)) / self.frame.scale**2


U = Steered(jnp.array([1.0, -0.5]))


def residuals(**options):
    t = jnp.linspace(0.05, 0.95, 20)
    found = jax.jit(jax.vmap(lambda t, x: pde_residual(U, Quadratic(), t, x, **options)))
    return np.abs(found(t, jnp.asarray(X[:20])))


def test_the_equation_of_linear_quadratic_control():
    assert residuals(drift=linear).max() < 1e-10
    assert residuals().max() > 0.1


def test_both_residuals_of_training_vanish_on_it():
    problem = brenier.TransportProblem(X, Y, drift=linear)
    method = HOTA(objective="residual", network=U, mean_shift=False, residual="squared")
    state = method.init(problem, KEY)
    t, z = jnp.linspace(0.0, 1.0, 20), jnp.asarray(X[:20])

    def loss(problem):
        free = jnp.zeros(20)
        return float(method._residual_loss(problem, state, U, t, z, free, KEY))

    assert loss(problem) < 1e-18
    assert loss(problem.replace(drift=lambda t, x: -linear(t, x))) > 0.1


def test_paths_and_costs_of_the_optimal_control():
    """Bellman: along an optimal path the control costs `u(1, x₁) - u(0, x₀)`."""
    problem = brenier.TransportProblem(X, Y, drift=linear)
    x = jnp.asarray(X[:5])
    paths = jax.jit(lambda x: simulate(U, problem, x, KEY, steps=400))(x)
    rise = jax.vmap(lambda a, b: U(jnp.ones(()), b) - U(jnp.zeros(()), a))(x, paths.points[-1])
    np.testing.assert_allclose(paths.kinetic, rise, rtol=5e-3)

    flow = FlowTransport(U, Frame.identity(2), Quadratic(), drift=DriftFunction(linear))
    np.testing.assert_allclose(flow.forward(X[:5]), paths.points[-1], atol=1e-3)
    control = jax.vmap(jax.grad(U, argnums=1), (None, 0))(jnp.asarray(0.5), x)
    drift = jax.vmap(linear, (None, 0))(jnp.asarray(0.5), x)
    np.testing.assert_allclose(flow.velocity(0.5, X[:5]), control + drift, atol=1e-12)

    # Seen from a frame the same paths; and its drift comes back in the units of the data.
    frame = Frame(np.array([0.5, 1.0]), np.array([0.5, 1.0]), np.asarray(2.0))
    seen = FlowTransport(
        Seen(U, frame), frame, Quadratic(), drift=FramedDrift(DriftFunction(linear), frame)
    )
    t = jnp.full(5, 0.5)
    np.testing.assert_allclose(seen.base_drift.at(t, x), drift, atol=1e-12)
    np.testing.assert_allclose(seen.velocity(0.5, X[:5]), flow.velocity(0.5, X[:5]), atol=1e-12)


def test_turning_follows_the_drift():
    """The direction of `v` turns by what it meets on the way, and the drift is part of the way."""
    u = lambda t, x: 0.5 * jnp.sin(x[0]) * x[1]  # noqa: E731
    wind = lambda t, x: jnp.array([2.0, 0.0])  # noqa: E731
    x, t = jnp.array([0.3, 0.8]), jnp.asarray(0.4)

    @jax.jit
    def both(x):
        def direction(x):
            v = jax.grad(u, argnums=1)(t, x)
            return v / jnp.linalg.norm(v)

        ahead = 1e-6 * (wind(t, x) + jax.grad(u, argnums=1)(t, x))
        quotient = (direction(x + ahead) - direction(x - ahead)) / 2e-6
        return turning(u, Quadratic(), t, x, wind), quotient

    np.testing.assert_allclose(*both(x), atol=1e-5)


@pytest.mark.parametrize("dim", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_improved_paths_solve_the_linear_system(dim):
    """Their action is a quadratic form in the nodes, so its minimiser is that of least squares."""
    k, pull, starts = 6, jnp.linspace(0.5, 1.5, dim), jnp.array([0.0, 0.5])
    matrix = RNG.normal(size=(dim, dim)) / dim
    drift = lambda t, x: jnp.asarray(matrix) @ x + t  # noqa: E731
    worth = lambda x: x @ pull - 0.4 * jnp.sum(x**2, -1)  # noqa: E731
    free = lambda paths: (jnp.zeros(paths[1:].shape[:-1]), jnp.zeros_like(paths[1:]))  # noqa: E731
    first = jax.random.normal(KEY, (2, dim))

    def step(_, now):
        found = improve(*now, starts, free, worth, 1e-14, drift)
        return found.paths, found.damping

    rounds = 40 if dim == 2 else 400  # of many dimensions the slope of the drift is left out
    lines = (jnp.tile(first, (k + 1, 1, 1)), jnp.full(2, 0.1))
    found = jax.jit(lambda lines: jax.lax.fori_loop(0, rounds, step, lines)[0])(lines)

    def total(rest):  # of the nodes after the first
        paths = jnp.concatenate([first[None], rest])
        return jnp.sum(action(paths, starts, jnp.zeros((k, 2)), drift) - worth(paths[-1]))

    zero = jnp.zeros((k, 2, dim))
    slope = jax.grad(total)(found[1:])
    np.testing.assert_allclose(slope, 0.0, atol=1e-6)
    assert np.abs(jax.grad(total)(zero)).max() > 0.1
    # and the drift alone costs nothing
    tau = 1e-3
    short = jnp.stack([first[:1], first[:1] + tau * jax.vmap(drift, (None, 0))(1.0, first[:1])])
    moves = controlled(short, jnp.array([1.0 - tau]), drift)
    assert np.abs(moves).max() < 10.0 * tau**2


def solved():
    frame = Frame(np.array([0.5, 1.0]), np.array([0.5, 1.0]), np.asarray(2.0))
    network = GaussianPotential.from_samples(X, Y)
    transport = FlowTransport(
        jax.tree.map(jnp.asarray, network),
        frame,
        Quadratic(),
        drift=FramedDrift(DriftFunction(linear), frame),
    )
    probes = brenier.TransportProblem(X, Y, drift=linear)
    info = Metadata(drift_at_probes=drift_at_probes(probes))
    return Solution(transport, {}, "completed", "done", Metadata(), info)


def test_a_file_leaves_the_drift_to_the_caller(tmp_path):
    solution, file = solved(), tmp_path / "map.brenier"
    brenier.save(file, solution)
    with pytest.raises(InputError, match=r"brenier.load\(path, drift=...\)"):
        brenier.load(file)
    with pytest.raises(InputError, match="found another one"):
        brenier.load(file, drift=lambda t, x: 1.1 * linear(t, x))
    with pytest.raises(InputError, match="function of a time and a point"):
        brenier.load(file, drift=A)
    again = brenier.load(file, drift=linear).transport
    t, x = jnp.full(5, 0.5), jnp.asarray(X[:5])
    np.testing.assert_array_equal(again.drift.at(t, x), solution.transport.drift.at(t, x))


@pytest.mark.parametrize(
    ("drift", "message"),
    [
        (3.0, "of a matrix A make lambda"),
        (lambda x: x, "raises TypeError"),
        (lambda t, x: t, r"shape \(2,\) at a point of that shape, found \(\)"),
        (lambda t, x: np.asarray(x) * 2, "one that raises TracerArrayConversionError"),
    ],
)
def test_refuses_what_is_no_drift(drift, message):
    with pytest.raises(InputError, match=message):
        brenier.TransportProblem(X, Y, drift=drift)


def test_a_drift_must_be_finite():
    drift = as_drift(lambda t, x: x / t, 2)
    with pytest.raises(InputError, match=r"finite drift, found .* at time 0 .* out of 300"):
        check_drift(drift, X)
    check_drift(as_drift(linear, 2), X)


@pytest.mark.parametrize("method", [brenier.NCF(), brenier.DIOTM()])
def test_methods_of_straight_lines_refuse_it(method):
    problem = brenier.TransportProblem(X, Y, drift=linear)
    with pytest.raises(UnsupportedProblemError, match="cannot take a drift"):
        brenier.fit(problem, method)
    with pytest.raises(UnsupportedProblemError, match="drift"):
        brenier.fit_many([problem], HOTA())


@pytest.mark.slow
def test_the_map_between_gaussians_with_a_linear_drift():
    """With the source moved on by the drift, the cost of control is `G⁻¹` times that of straight lines."""
    x, y = RNG.normal(size=(2, 4000, 2)) * [1.0, 0.5]
    y = y @ np.array([[0.6, 0.0], [0.3, 1.2]]) + [1.0, -1.0]
    flow, gram = (np.asarray(part) for part in transition(1.0))
    there = x @ flow.T
    ends = GaussianPotential.from_samples(there, y).forward(there)
    cost = 0.5 * np.mean(np.sum((ends - there) ** 2, 1)) / gram

    est = brenier.HOTATransport(drift=linear, steps=800, validation=0.0, random_state=0).fit(
        Xs=x, Xt=y
    )
    assert brenier.metrics.uvp(est.transform(Xs=x), ends) < 2.0
    problem = brenier.TransportProblem(x, y, drift=linear)
    found = simulate(est.solution_.potential, problem, jnp.asarray(x), KEY, 100)
    np.testing.assert_allclose(np.mean(found.kinetic), cost, rtol=0.03)
    bounds = est.certificate(Xs=x[:500], Xt=y[:500])
    assert bounds.lower < 1.02 * cost
    assert bounds.upper > 0.95 * cost
