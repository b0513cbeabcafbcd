import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brenier.coordinates import ClassCoordinates, Frame, FramedPotential, PairCoordinates
from brenier.costs import Quadratic
from brenier.gaussian import GaussianPotential
from brenier.hamiltonian import implicit_residual, pde_residual
from brenier.transport import CharacteristicTransport

RNG = np.random.default_rng(0)
ROOTS = RNG.normal(size=(2, 3, 3))
MOMENTS = (
    np.array([5.0, -3.0, 0.0]),
    ROOTS[0] @ ROOTS[0].T + 0.3 * np.eye(3),
    np.array([-2.0, 4.0, 8.0]),
    ROOTS[1] @ ROOTS[1].T + 0.3 * np.eye(3),
)


@pytest.fixture(params=[True, False], ids=["own centres", "common centre"])
def framed(request):
    """The Gaussian oracle expressed in a frame, and the oracle itself."""
    m0, S0, m1, S1 = MOMENTS
    x = RNG.normal(size=(500, 3)) @ np.linalg.cholesky(S0).T + m0
    y = RNG.normal(size=(400, 3)) @ np.linalg.cholesky(S1).T + m1
    frame = Frame.from_samples(x, y, galilean=request.param)
    s2 = float(frame.scale) ** 2
    inner = GaussianPotential.from_moments(
        frame.encode(0.0, m0), S0 / s2, frame.encode(1.0, m1), S1 / s2
    )
    return frame, inner, GaussianPotential.from_moments(*MOMENTS), x


def test_samples_are_centred_with_unit_size(framed):
    frame, _, _, x = framed
    if np.any(frame.drift != 0.0):
        np.testing.assert_allclose(frame.encode(0.0, x).mean(0), 0.0, atol=1e-12)
    assert 0.3 < np.std(frame.encode(0.0, x)) < 3.0


def test_encode_and_decode_invert_each_other(framed):
    frame, _, _, x = framed
    for t in (0.0, 0.25, 1.0):
        np.testing.assert_allclose(frame.decode(t, frame.encode(t, x)), x, rtol=1e-12)
        np.testing.assert_allclose(frame.encode(t, jnp.asarray(x)), frame.encode(t, x), rtol=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_potential_and_velocity_are_those_of_the_original_problem(framed, t):
    frame, inner, oracle, x = framed
    u = FramedPotential(inner, frame)
    points, time = jnp.asarray(x[:50]), jnp.asarray(t)
    # Equal up to one constant for all t and x.
    difference = jax.vmap(lambda x: u(time, x) - oracle(time, x))(points)
    constant = u(jnp.zeros(()), points[0]) - oracle(jnp.zeros(()), points[0])
    np.testing.assert_allclose(difference, constant, atol=1e-9)
    transport = CharacteristicTransport(inner, frame, Quadratic())
    v = jax.vmap(lambda x: jax.grad(oracle, argnums=1)(time, x))(points)
    np.testing.assert_allclose(transport.velocity(t, points), v, atol=1e-10)
    np.testing.assert_allclose(transport.velocity(t, x[:50]), v, atol=1e-10)


def test_framed_potential_solves_the_equation(framed):
    frame, inner, _, x = framed
    u = FramedPotential(inner, frame)
    point, t = jnp.asarray(x[0]), jnp.asarray(0.4)
    assert abs(pde_residual(u, Quadratic(), t, point)) < 1e-9
    assert abs(implicit_residual(u, Quadratic(), t, point, jnp.zeros(()))) < 1e-9
    assert abs(implicit_residual(u, Quadratic(), t, point, jnp.ones(()))) < 1e-9


def test_transport_equals_the_oracle(framed):
    frame, inner, oracle, x = framed
    transport = CharacteristicTransport(inner, frame, Quadratic())
    images = transport.forward(x)
    np.testing.assert_allclose(images, oracle.forward(x), atol=1e-10)
    np.testing.assert_allclose(transport.inverse(images), x, atol=1e-10)
    np.testing.assert_allclose(transport.interpolate(x, 0.25), 0.75 * x + 0.25 * images)
    np.testing.assert_allclose(
        transport.interpolate_back(images, 0.25), 0.75 * x + 0.25 * images, atol=1e-10
    )
    path = transport.trajectory(x, [0.0, 0.5, 1.0])
    assert path.shape == (3, *x.shape)
    np.testing.assert_allclose(path[0], x)
    np.testing.assert_allclose(path[2], images)


def test_a_large_offset_keeps_its_digits_in_float64():
    x = RNG.normal(size=(200, 2)) + 1e6
    frame = Frame.from_samples(x, x + 3.0, galilean=True)
    zero = GaussianPotential.from_moments(np.zeros(2), np.eye(2), np.zeros(2), np.eye(2))
    transport = CharacteristicTransport(
        jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), zero), frame, Quadratic()
    )
    np.testing.assert_allclose(transport.forward(x) - x, 3.0, atol=1e-7)


def test_points_without_spread_get_a_usable_scale():
    x = np.full((10, 2), 7.0)
    assert Frame.from_samples(x, x, galilean=True).scale == 1.0


def test_pair_coordinates_of_fewer_samples_than_dimensions_stretch_little():
    x, y = np.random.default_rng(0).normal(size=(2, 30, 40))
    stretch = np.linalg.eigvalsh(PairCoordinates.from_samples(x - x.mean(0), y - y.mean(0)).root)
    assert stretch.max() / stretch.min() < 2.0  # 33 without shrinking


def classes(width, target_width):
    """Samples of two classes that change places, (2 · 40, 2) a side."""
    places = np.array([[-1.0, 0.0], [1.0, 0.5]])
    sides = []
    for centers, w in ((places, width), (places[::-1] * (3.0, 1.0), target_width)):
        noise = w * np.random.default_rng(0).uniform(-1.0, 1.0, (40, 2))
        sides.append(np.concatenate([c + noise for c in centers]))
    return sides


@pytest.mark.parametrize(
    ("widths", "still"),
    [
        ((0.3, 0.3), "source"),
        ((0.3, 2.0), "target"),  # too wide for the places of the source
        ((1.5, 0.3), None),  # classes that overlap stay
    ],
)
def test_classes_move_where_they_lie_apart(widths, still):
    x, y = classes(*widths)
    coordinates = ClassCoordinates.from_samples(x, y, 2)
    stay = {
        name: not np.any(getattr(coordinates, f"{name}_moves")) for name in ("source", "target")
    }
    assert stay == {name: still in (name, None) for name in ("source", "target")}
    z, w = coordinates.encode_batch(jnp.asarray(x), jnp.asarray(y))
    # Where the label is not known, the nearest sample tells it.
    np.testing.assert_allclose(coordinates.encode_source(x), z, atol=1e-12)
    np.testing.assert_allclose(coordinates.encode_target(y), w, atol=1e-12)
    np.testing.assert_allclose(coordinates.decode_source(z), x, atol=1e-12)
    np.testing.assert_allclose(coordinates.decode_target(w), y, atol=1e-12)
    if still:
        means = [np.mean(np.reshape(side, (2, 40, 2)), axis=1) for side in (z, w)]
        apart = np.linalg.norm(means[0] - means[1], axis=1) / np.linalg.norm(
            means[0][0] - means[0][1]
        )
        assert np.all(apart < 0.5)


@pytest.mark.parametrize("widths", [(0.3, 0.3), (0.3, 2.0)])
def test_slices_by_class_are_those_of_the_problem(widths):
    """From `u' = 0`, whose map is the identity: `u(1, T(x)) = u(0, x) + ½|x - T(x)|²` for `T` with the class."""
    x, y = map(jnp.asarray, classes(*widths))
    coordinates = ClassCoordinates.from_samples(np.asarray(x), np.asarray(y), 2)

    def nothing(t, x):
        return 0.0 * jnp.sum(x)

    images = coordinates.decode_target(coordinates.encode_source(x))
    start = jax.vmap(jax.value_and_grad(lambda x: coordinates.start_slice(nothing, x)))
    end = jax.vmap(jax.value_and_grad(lambda y: coordinates.end_slice(nothing, y)))
    (before, velocity), (after, arriving) = start(x), end(images)
    np.testing.assert_allclose(x + velocity, images, atol=1e-12)
    np.testing.assert_allclose(arriving, velocity, atol=1e-12)
    np.testing.assert_allclose(after, before + 0.5 * jnp.sum(velocity**2, axis=1), atol=1e-12)
