"""Costs: Legendre pairs, oracles that hold for every convex cost, and the way into a fit and a file."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

import brenier
from brenier.cli._costs import read_cost
from brenier.coordinates import Frame, FramedPotential
from brenier.costs import (
    ConvexCost,
    CoordinatewisePower,
    Cosh,
    Cost,
    FramedCost,
    Mahalanobis,
    Power,
    PseudoHuber,
    Quadratic,
    Relativistic,
    SquaredNorm,
    as_cost,
    fingerprint,
    framed,
    price,
)
from brenier.errors import InputError
from brenier.fit import Run
from brenier.hamiltonian import forward_map, implicit_residual, pde_residual, velocity
from brenier.hopf_lax import EndSlices, HopfLaxPotential, solve_feet
from brenier.networks import MLP
from brenier.serialization import load, save
from brenier.transport import CharacteristicTransport

METRIC = [[2.0, 0.3], [0.3, 0.5]]
COSTS = {
    "quadratic": Quadratic(),
    "mahalanobis": Mahalanobis(METRIC),
    "power 1.5": Power(1.5),
    "power 4": Power(4),
    "coordinatewise 1.5": CoordinatewisePower(1.5),
    "coordinatewise 3": CoordinatewisePower(3),
    "squared norm 1.5": SquaredNorm(1.5),
    "squared norm 4": SquaredNorm(4),
    "pseudo-Huber": PseudoHuber(0.7),
    "relativistic": Relativistic(9.0),
    "cosh": Cosh(2.0),
    "framed": FramedCost(Cosh(5.0), 3.0, 9.0),
    "own": ConvexCost(lambda v: jnp.sum(v**4) / 4 + 0.5 * v @ v, 2),
}
VELOCITIES = np.array([[0, 0], [1e-8, 0], [2e-3, -3e-3], [0, 1], [3, -4], [-50, 20]], float)
every_cost = pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)


def close(a, b, scale=1.0, digits=1e-11):
    """To round-off of numbers of this size; the far velocities lose digits where the pair is steep."""
    assert (np.abs(np.asarray(a) - np.asarray(b)) <= digits * (scale + 1e-3)).all()


@every_cost
def test_legendre_pair(cost):
    def identities(v):
        p = cost.grad_lagrangian(v)
        back = cost.grad_hamiltonian(p)
        fenchel = cost.lagrangian(v) + cost.hamiltonian(p)
        curvatures = jax.jacobian(cost.grad_hamiltonian)(p) @ jax.jacobian(cost.grad_lagrangian)(v)
        autodiff = jax.grad(cost.lagrangian)(v), jax.grad(cost.hamiltonian)(p)
        return p, back, fenchel, curvatures, autodiff

    # The steepest two pairs end where double precision does.
    v = VELOCITIES[:-1] if isinstance(cost, Relativistic) else VELOCITIES
    p, back, fenchel, curvatures, (dL, dH) = jax.jit(jax.vmap(identities))(jnp.asarray(v))
    speeds = np.abs(v).max(axis=1, keepdims=True)
    momenta = np.abs(p).max(axis=1, keepdims=True)
    close(back, v, speeds, 1e-7 if isinstance(cost, PseudoHuber | SquaredNorm) else 1e-10)
    close(dH, v, speeds, 1e-7 if isinstance(cost, PseudoHuber | SquaredNorm) else 1e-10)
    close(dL, p, momenta)
    close(fenchel, np.sum(v * p, axis=1), np.abs(v * p).sum(axis=1), 1e-8)
    # A solved cost pays for flat points with a ridge of 1e-8 of its mean curvature.
    digits = 1e-5 if isinstance(cost, ConvexCost) else 1e-9
    np.testing.assert_allclose(
        curvatures, np.broadcast_to(np.eye(2), curvatures.shape), atol=digits
    )


class Dilation(eqx.Module):
    """`u` of the map `T(x) = (1 + a) x`, for every cost the perspective `u(t, x) = (1 + ta)/a L(a x / (1 + ta))`.

    With `a > 0` the slice at t = 0 is convex, and so is what the Hopf–Lax formula minimises: the map is optimal.
    """

    cost: Cost
    a: float = 0.7

    def __call__(self, t, x):
        stretch = 1 + t * self.a
        return stretch / self.a * self.cost.lagrangian(self.a * x / stretch)


@every_cost
def test_dilation_oracle(cost):
    """Also the radial one: Gaussians of two sizes. Every residual vanishes, and the dual is the cost."""
    u = Dilation(cost)

    def everything(t, x):
        z = (1 + t * u.a) * x
        residuals = [implicit_residual(u, cost, t, z, jnp.asarray(end)) for end in (0.0, 1.0)]
        dual = u(jnp.ones(()), (1 + u.a) * x) - u(jnp.zeros(()), x)
        paid = cost.lagrangian(u.a * x)
        return [
            jnp.stack([*residuals, pde_residual(u, cost, t, z), dual - paid]),
            velocity(u, cost, t, z) - u.a * x,
            forward_map(u, cost, x) - (1 + u.a) * x,
        ]

    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)))
    t = jnp.linspace(0.0, 1.0, 20)
    for value in jax.jit(jax.vmap(everything))(t, x):
        np.testing.assert_allclose(value, 0.0, atol=1e-9)


@every_cost
def test_translation_oracle(cost):
    b = jnp.asarray([1.2, -0.4])
    p = cost.grad_lagrangian(b)

    def u(t, x):
        return p @ x - t * cost.hamiltonian(p)

    @jax.jit
    def off(x):
        dual = u(1.0, x + b) - u(0.0, x)
        return forward_map(u, cost, x) - (x + b), dual - cost.lagrangian(b)

    for value in off(jnp.asarray([0.3, 2.0])):
        np.testing.assert_allclose(value, 0.0, atol=1e-10)


@every_cost
def test_quantile_oracle(cost):
    """On a line the monotone map is optimal for every convex cost; here against the linear programme."""
    line = cost
    if isinstance(cost, Mahalanobis):
        line = Mahalanobis([[2.0]])
    elif isinstance(cost, ConvexCost):
        line = ConvexCost(cost.function, 1)
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.normal(size=(40, 1)), 0), np.sort(rng.exponential(size=(40, 1)), 0)
    pairs = np.asarray(jax.jit(lambda x, y: line.pairwise(x, y))(x, y))
    assert np.trace(pairs) / 40 == pytest.approx(ot.emd2([], [], pairs), rel=1e-9)
    one = line.static(jnp.asarray(x[3]), jnp.asarray(y[5]))
    assert pairs[3, 5] == pytest.approx(float(one), rel=1e-9)


@pytest.mark.parametrize("name", ["power 4", "pseudo-Huber", "own"])
def test_feet(name):
    cost = COSTS[name]
    u = Dilation(cost)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(50, 2)))
    feet = solve_feet(u, cost, (1 + u.a) * x, x + 0.3, tolerance=1e-6, max_iterations=500)
    assert feet.misses.max() <= 1e-6
    np.testing.assert_allclose(feet.points, x, atol=1e-5)


class Tilt(eqx.Module):
    momentum: jax.Array

    def __call__(self, t, x):
        return self.momentum @ x


def test_the_pull_on_a_proposal_is_how_far_it_is_off():
    """Not that times the slope of the velocity, here 10 and without a bound at rest."""
    cost = Power(3)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(12, 2)))
    method = brenier.NCF(foot_tolerance=1e-9, foot_iterations=500, hj_weight=0.0)
    problem = brenier.TransportProblem(np.asarray(x), 1.7 * np.asarray(x), cost=cost)
    p = jnp.asarray([0.01, 0.0])

    def loss(p):
        slices = EndSlices(Dilation(cost), Tilt(p), jnp.zeros(()))
        return method._dual_loss(slices, problem, x, 1.7 * x)[0]

    off = cost.grad_hamiltonian(p) - 0.7 * x.mean(0)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(p), 2 * off, atol=1e-7)


@pytest.mark.parametrize(("cost", "degree"), [(Power(3), 3), (SquaredNorm(4), 2), (Cosh(), None)])
def test_units_of_length(cost, degree):
    v = jnp.asarray([0.4, -0.9])
    assert cost.degree == degree
    inner = framed(cost, 5.0, 2)
    ratio = price(inner, 5.0) * inner.lagrangian(v) / cost.lagrangian(5.0 * v)
    assert float(ratio) == pytest.approx(1.0, rel=1e-12)
    if degree is None:
        np.testing.assert_allclose(inner.grad_hamiltonian(inner.grad_lagrangian(v)), v, rtol=1e-12)
        assert 0.01 < inner.lagrangian(v) < 10.0
    else:
        assert inner is cost
    with pytest.raises(InputError, match="rescale the data"):
        framed(Cosh(), 1e6, 2)


@pytest.mark.parametrize("cost", [Power(3), Cosh(2.0)], ids=["homogeneous", "not"])
def test_the_frame_keeps_values_and_duals(cost):
    x = np.random.default_rng(0).normal(size=(60, 2)) * 4.0 + [3.0, 1.0]
    center = x.mean(0)
    y = center + 1.7 * (x - center)
    frame = Frame(center, center, np.asarray(4.0))
    inner = framed(cost, 4.0, 2)
    w = Dilation(inner)
    u = FramedPotential(w, frame, inner)
    point, t = jnp.asarray(x[0]), jnp.asarray(0.4)
    assert float(u(t, point)) == pytest.approx(float(Dilation(cost)(t, point - center)), rel=1e-10)
    zero = jnp.zeros(())
    slices = EndSlices(w, w, zero)
    transport = CharacteristicTransport(HopfLaxPotential(slices, inner), frame, inner)
    paid = np.asarray(transport.paid(y - x))
    np.testing.assert_allclose(paid, jax.vmap(cost.lagrangian)(jnp.asarray(y - x)))
    at_x, at_y = transport.dual_terms(jnp.asarray(x), jnp.asarray(y))
    # The minimum is found to the solver's tolerance, its value to the square of that.
    assert float(at_x.mean() + at_y.mean()) == pytest.approx(paid.mean(), rel=1e-4)


def test_the_reported_cost_is_in_the_users_units():
    """The exact potential of a cost with a length of its own, in the coordinates of a fit that reports on it."""
    cost = Cosh(2.0)
    x = np.random.default_rng(0).normal(size=(60, 2)) * 4.0 + [3.0, 1.0]
    move = 0.7 * (x - x.mean(0))
    problem, method = brenier.TransportProblem(x, x + move, cost), brenier.NCF(widths=(2,))
    run = Run(problem, method, jax.random.key(0), 1, None, 0.0, False)
    inner = run.inner.cost
    w = Dilation(inner)
    slices = EndSlices(w, w, jnp.zeros(()))
    run.kept = CharacteristicTransport(HopfLaxPotential(slices, inner), Frame.identity(2), inner)
    assert run.frame.scale > 3.0
    paid = float(jnp.mean(jax.vmap(cost.lagrangian)(jnp.asarray(move))))
    # The minimum is found to the solver's tolerance, its value to the square of that.
    assert run._cost()["cost"] == pytest.approx(paid, rel=1e-4)


def test_a_metric_has_a_moving_frame():
    cost = Mahalanobis(METRIC)
    frame = Frame(np.array([1.0, 2.0]), np.array([4.0, -1.0]), np.asarray(2.0))
    assert cost.galilean
    L, v, q = cost.lagrangian, jnp.asarray([1.0, 2.0]), jnp.asarray([-3.0, 0.5])
    np.testing.assert_allclose(L(v + q), L(v) + cost.grad_lagrangian(q) @ v + L(q))
    u = FramedPotential(Dilation(cost), frame, cost)
    x, t = jnp.asarray([0.3, 0.2]), jnp.asarray(0.4)
    assert abs(pde_residual(u, cost, t, x)) < 1e-10
    transport = CharacteristicTransport(u.inner, frame, cost)
    moved = frame.decode(1.0, 1.7 * frame.encode(0.0, np.asarray(x)))
    np.testing.assert_allclose(transport.forward(np.asarray(x)[None])[0], moved, atol=1e-10)


def test_a_formula_and_a_solver_give_the_same_map():
    given = ConvexCost(lambda v: (v @ v) ** 2 / 4, 2, reach=20.0)
    u = MLP(2, (8, 8), key=jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)))
    maps = [
        jax.jit(jax.vmap(lambda x, cost=cost: forward_map(u, cost, x)))(x)
        for cost in (Power(4), given)
    ]
    np.testing.assert_allclose(*maps, rtol=1e-9)


def test_solver_beyond_the_domain():
    """`L*` of a cost that grows like a line ends somewhere; the reach makes it finite."""
    cost = ConvexCost(lambda v: jnp.sqrt(1 + v @ v) - 1, 2, reach=30.0)
    p = jnp.asarray([[0.6, 0.0], [1.5, 2.0]])
    v = jax.jit(jax.vmap(cost.grad_hamiltonian))(p)
    np.testing.assert_allclose(v[0], [0.75, 0.0], atol=1e-12)
    assert 30.0 < float(jnp.linalg.norm(v[1])) < 500.0
    np.testing.assert_allclose(jax.vmap(cost.grad_lagrangian)(v), p, rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Power(1), "not strictly convex"),
        (lambda: CoordinatewisePower(0.5), "> 1"),
        (lambda: SquaredNorm(float("inf")), "finite"),
        (lambda: PseudoHuber(0.0), "delta"),
        (lambda: Relativistic(-1), "speed"),
        (lambda: Cosh(float("nan")), "width"),
        (lambda: Mahalanobis([[1, 2], [2, 1]]), "positive definite"),
        (lambda: Mahalanobis([[1, 2], [0, 4]]), "symmetric"),
        (lambda: Mahalanobis([1, 2]), "shape"),
        (lambda: ConvexCost(jnp.linalg.norm, 2), "not finite at the velocity"),
        (lambda: ConvexCost(lambda v: jnp.sqrt(v @ v + 1e-12), 2), "strictly convex"),
        (lambda: ConvexCost(lambda v: v[0] ** 2, 2), "strictly convex"),
        (lambda: ConvexCost(lambda v: v[0] ** 2 - v[1] ** 2, 2), "strictly convex"),
        (lambda: ConvexCost(lambda v: v, 2), "one real number"),
        (lambda: ConvexCost(lambda v: float(v[0]), 2), "can trace"),
        (lambda: ConvexCost(lambda v: 1 - jnp.sqrt(1 - v @ v), 2), "lower reach"),
        (lambda: as_cost(3.0, 2), "ConvexCost"),
        (lambda: as_cost(Mahalanobis(METRIC), 3), "3 coordinates"),
        (lambda: read_cost("manhattan"), "one of quadratic"),
        (lambda: read_cost("power"), "exponent"),
        (lambda: read_cost("power:1"), "strictly convex"),
        (lambda: read_cost("cosh:x"), "a number after --cost cosh:"),
        (lambda: read_cost("quadratic:2"), "without a parameter"),
    ],
)
def test_costs_are_refused_with_a_reason(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_names_of_the_command_line():
    assert read_cost("pseudo-huber:0.5") == PseudoHuber(0.5)
    assert read_cost("cosh") == Cosh()
    assert read_cost("quadratic") == Quadratic()


def test_costs_of_ott():
    costs = pytest.importorskip("ott.geometry.costs")
    assert as_cost(costs.SqEuclidean(), 2) == Quadratic()
    assert as_cost(costs.PNormP(3.0), 2) == CoordinatewisePower(3.0)
    assert as_cost(costs.SqPNorm(1.5), 2) == SquaredNorm(1.5)
    assert as_cost(costs.EuclideanP(1.5), 2) == Power(1.5)
    own = type("Skewed", (costs.TICost,), {"h": lambda self, z: z @ z + jnp.logaddexp(0.0, z[0])})
    own.__module__ = "ott.elsewhere"
    x, y = jnp.asarray([0.1, 0.2]), jnp.asarray([1.0, -1.0])
    assert float(as_cost(own(), 2).static(x, y)) == pytest.approx(float(own()(x, y)))
    with pytest.raises(InputError, match="x - y"):
        as_cost(costs.Cosine(), 2)


def test_fingerprints_differ():
    prints = [fingerprint(cost, 2) for cost in COSTS.values()]
    for i, one in enumerate(prints):
        assert all(not np.allclose(one, other, rtol=1e-3) for other in prints[:i])


def solved(cost):
    u = MLP(2, (3,), key=jax.random.key(0))
    transport = CharacteristicTransport(u, Frame.identity(2), framed(cost, 2.0, 2))
    info = {"cost_at_probes": fingerprint(cost, 2).tolist()}
    message, metadata = "", brenier.solution.Metadata
    return brenier.Solution(transport, {}, "completed", message, metadata(), metadata(info))


def test_a_cost_of_the_users_own_is_asked_for_again(tmp_path):
    cost = COSTS["own"]
    path, points = tmp_path / "map.brenier", VELOCITIES[2:5]
    save(path, solved(cost))
    with pytest.raises(InputError, match="cost="):
        load(path)
    with pytest.raises(InputError, match="another ConvexCost"):
        load(path, cost=ConvexCost(lambda v: v @ v, 2))
    same = load(path, cost=ConvexCost(cost.function, 2))
    np.testing.assert_array_equal(
        same.transport.forward(points), solved(cost).transport.forward(points)
    )


def fitted(problem, **options):
    method = brenier.NCF(widths=(32, 32, 16), **options)
    return brenier.fit(problem, method, steps=700, early_stopping=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::brenier.BrenierWarning")
def test_a_trained_map():
    cost = Power(3)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20_000, 2)), 0.4 * rng.normal(size=(20_000, 2))
    fresh = rng.normal(size=(4000, 2))
    solution = fitted(brenier.TransportProblem(x, y, cost))
    found = solution.transport.forward(fresh)
    error = np.sqrt(np.mean(np.sum((found - 0.4 * fresh) ** 2, axis=1)) / (2 * 0.4**2))
    assert error < 0.03  # the benchmark's fit is three times as long
    paid = float(jnp.mean(jax.vmap(cost.lagrangian)(jnp.asarray(0.4 * x - x))))
    # The map within 3 % of its move, and samples that differ from what they are drawn from.
    assert solution.scores["cost"] == pytest.approx(paid, rel=0.05)
