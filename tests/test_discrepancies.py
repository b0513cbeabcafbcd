"""The energy distance against closed forms, plain NumPy, finite differences and autodiff."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from brenier.discrepancies import energy_distance, sliced_energy_distance
from brenier.errors import InputError

# relative round-off of sums of some 1e5 terms of like size, with a margin
ROUND_OFF = {np.float32: 2e-6, np.float64: 1e-13}
both_types = pytest.mark.parametrize("dtype", [np.float32, np.float64])
both_statistics = pytest.mark.parametrize("statistic", ["U", "V"])
# one dimension sorts, up to four take differences, above that a matrix product
each_path = pytest.mark.parametrize("d", [1, 3, 7])


# compiled once for each shape, type and setting
SETTINGS = ("statistic", "chunk_size")
value_and_gradients = jax.jit(jax.value_and_grad(energy_distance, (0, 1)), static_argnames=SETTINGS)


def normal(seed, n, d, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)).astype(dtype))


def textbook(x, y, statistic="U"):
    """The definition in NumPy and float64, all differences in memory."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def total(a, b):
        return np.sum(np.sqrt(np.sum((a[:, None] - b[None, :]) ** 2, axis=-1)))

    n, m, left_out = len(x), len(y), int(statistic == "U")
    within = total(x, x) / (n * (n - left_out)) + total(y, y) / (m * (m - left_out))
    return 2 * total(x, y) / (n * m) - within


def textbook_autodiff(x, y):
    """The U-statistic in JAX, for autodiff: the diagonal is moved away from the root."""

    def total(a, b):
        squared = jnp.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=-1)
        return jnp.sum(jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0))

    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * n - n) - total(y, y) / (m * m - m)


textbook_gradients = jax.jit(jax.grad(textbook_autodiff, (0, 1)))


# exact values


def test_between_single_points_it_is_twice_their_distance():
    x, y = jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]])
    assert energy_distance(x, y, statistic="V") == pytest.approx(10.0, rel=1e-15)


@both_types
@both_statistics
@each_path
def test_matches_the_definition(d, statistic, dtype):
    x, y = normal(0, 40, d, dtype), normal(1, 30, d, dtype) + 0.5
    found = energy_distance(x, y, statistic=statistic)
    assert found.dtype == dtype
    # the terms it is a difference of are of the size of the distances
    size = 4 * math.sqrt(d)
    assert found == pytest.approx(textbook(x, y, statistic), abs=size * ROUND_OFF[dtype])


def absolute_mean(m, s):
    """`E|X|` of a one-dimensional N(m, s²)."""
    return s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(
        m / (s * math.sqrt(2))
    )


def test_estimates_the_closed_form_between_gaussians_on_the_line():
    n, shift, spread = 200_000, 0.7, 1.5
    x, y = normal(0, n, 1), shift + spread * normal(1, n, 1)
    exact = (
        2 * absolute_mean(shift, math.hypot(1, spread))
        - absolute_mean(0, math.sqrt(2))
        - absolute_mean(0, spread * math.sqrt(2))
    )
    # the projection of each sample has a standard deviation below 2 |shift| + spread
    assert energy_distance(x, y) == pytest.approx(exact, abs=4 * 3 / math.sqrt(n))


@pytest.mark.parametrize("d", [2, 16])
def test_estimates_the_closed_form_between_isotropic_gaussians(d):
    n, spread = 1500, 2.0
    x, y = normal(0, n, d), spread * normal(1, n, d)
    mean_norm = math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    exact = mean_norm * (2 * math.hypot(1, spread) - math.sqrt(2) * (1 + spread))
    # |X - Y| has a standard deviation below the spread in every dimension
    assert energy_distance(x, y) == pytest.approx(exact, abs=4 * spread / math.sqrt(n))


@pytest.mark.parametrize("d", [1, 2, 6])
def test_u_is_unbiased_and_v_at_least_zero(d):
    draws = normal(0, 200 * 20, d).reshape(200, 20, d)
    x, y = draws[:, :8], draws[:, 8:]
    u, v = (
        np.asarray(jax.vmap(partial(energy_distance, statistic=statistic))(x, y))
        for statistic in ("U", "V")
    )
    error = np.std(u) / math.sqrt(len(u))
    assert abs(np.mean(u)) < 4 * error  # the laws are equal: the expectation is zero
    assert np.mean(v) > 10 * error  # and V is biased by far more than that
    assert np.min(u) < 0
    assert np.min(v) >= 0


@both_types
@each_path
def test_between_a_sample_and_itself_value_and_gradient_vanish(d, dtype):
    x = normal(0, 300, d, dtype) + 2
    value, (gradient, _) = value_and_gradients(x, x[::-1], statistic="V")
    assert value == pytest.approx(0, abs=4 * math.sqrt(d) * ROUND_OFF[dtype])
    # each point feels 300 unit forces from either side, weighted by 2/300²
    np.testing.assert_allclose(gradient, 0, atol=2 / 300 * 1e3 * ROUND_OFF[dtype])


# invariances


@each_path
def test_is_symmetric_and_ignores_order_and_common_motions(d):
    x, y = normal(0, 40, d), normal(1, 30, d) * 2
    rotation = jnp.linalg.qr(normal(2, d, d))[0]
    expected = energy_distance(x, y)
    for a, b in [
        (y, x),
        (x[::-1], y),
        (x + 3, y + 3),
        (x @ rotation, y @ rotation),
    ]:
        assert energy_distance(a, b) == pytest.approx(float(expected), rel=1e-11)
    assert energy_distance(5 * x, 5 * y) == pytest.approx(5 * float(expected), rel=1e-11)


@each_path
def test_survives_large_offsets(d):
    x, y = normal(0, 40, d), normal(1, 30, d) + 1
    value, gradients = value_and_gradients(x, y)
    far_value, far_gradients = value_and_gradients(x + 1e6, y + 1e6)
    # the offset leaves the points 10 digits, and forces are of size 1/40
    assert far_value == pytest.approx(float(value), abs=1e-9)
    np.testing.assert_allclose(far_gradients[0], gradients[0], atol=1e-7 / 40)

    single = x.astype(np.float32) + np.float32(100), y.astype(np.float32) + np.float32(100)
    exact_value, exact = value_and_gradients(*(a.astype(np.float64) for a in single))
    found_value, found = value_and_gradients(*single)
    assert found_value == pytest.approx(float(exact_value), abs=1e-5)
    np.testing.assert_allclose(found[0], exact[0], atol=1e-4 / 40)


@pytest.mark.parametrize(("chunk_size", "d"), [(1, 7), (10, 3), (66, 7)])
def test_does_not_depend_on_the_chunk_size(chunk_size, d):
    x, y = normal(0, 67, d), normal(1, 20, d) + 0.3
    value, gradients = value_and_gradients(x, y)
    chunked_value, chunked_gradients = value_and_gradients(x, y, chunk_size=chunk_size)
    assert chunked_value == pytest.approx(float(value), rel=1e-12)
    for found, expected in zip(chunked_gradients, gradients, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-14)
    # without derivatives the sums go another way
    assert energy_distance(x, y, chunk_size=chunk_size) == pytest.approx(float(value), rel=1e-12)


# derivatives


@pytest.mark.parametrize(("statistic", "d"), [("U", 1), ("U", 3), ("U", 7), ("V", 7)])
def test_gradient_matches_finite_differences(statistic, d):
    x, y = normal(0, 4, d), normal(1, 5, d)
    f = partial(energy_distance, statistic=statistic)
    check_grads(f, (x, y), order=1, modes=["rev"], atol=1e-7, rtol=1e-7, eps=1e-5)


@pytest.mark.parametrize("d", [1, 3, 7, 64])
def test_gradient_matches_autodiff_of_the_definition(d):
    x, y = normal(0, 40, d), normal(1, 30, d) + 0.5
    exact = textbook_gradients(x, y)
    double = value_and_gradients(x, y)[1]
    single = value_and_gradients(x.astype(np.float32), y.astype(np.float32))[1]
    for found, dtype, atol in [(double, np.float64, 1e-12), (single, np.float32, 1e-4)]:
        for a, b in zip(found, exact, strict=True):
            assert a.dtype == dtype
            # forces are of size 1/40; cancellation between close points costs some digits
            np.testing.assert_allclose(a, b, atol=atol / 40)


@pytest.mark.parametrize("d", [3, 7])
def test_gradient_in_one_sample_is_the_same_as_in_both(d):
    x, y = normal(0, 40, d), normal(1, 30, d) + 1
    value, (in_x, in_y) = value_and_gradients(x, y)
    for argument, expected in [(0, in_x), (1, in_y)]:
        found = jax.value_and_grad(energy_distance, argument)(x, y)
        assert found[0] == pytest.approx(float(value), rel=1e-12)
        np.testing.assert_allclose(found[1], expected, atol=1e-14)


def test_a_constant_sample_costs_no_gradient():
    x, y = normal(0, 500, 64), normal(1, 500, 64)

    def products(arguments):
        compiled = jax.jit(jax.grad(energy_distance, arguments)).lower(x, y).compile()
        return compiled.cost_analysis()["flops"]

    # three distance matrices, and one product for each sample a differentiated one meets:
    # 3 + 2 against 3 + 4
    assert products((0,)) < 0.8 * products((0, 1))


def test_second_derivatives_match_autodiff_of_the_definition():
    x, y = normal(0, 4, 2), normal(1, 3, 2)

    def second(f):
        return jax.jit(jax.jacrev(jax.grad(f)))(x, y)

    np.testing.assert_allclose(second(energy_distance), second(textbook_autodiff), atol=1e-12)


@pytest.mark.parametrize(("d", "dtype"), [(1, np.float32), (3, np.float64), (800, np.float32)])
def test_duplicates_pull_with_zero_force(d, dtype):
    repeated = jnp.tile(normal(0, 1, d, dtype) + 1, (6, 1))
    value, gradients = value_and_gradients(repeated, repeated[:4])
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)

    # duplicates within and across, away from the mean
    x = jnp.concatenate([repeated, normal(1, 20, d, dtype)])
    y = jnp.concatenate([normal(2, 15, d, dtype), repeated[:2]])
    exact = textbook_gradients(x.astype(np.float64), y.astype(np.float64))
    for a, b in zip(value_and_gradients(x, y)[1], exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 / len(b))


@pytest.mark.parametrize(
    "f",
    [energy_distance, partial(sliced_energy_distance, key=jax.random.key(0), projections=5)],
    ids=["pairwise", "sliced"],
)
def test_works_under_vmap_scan_and_grad(f):
    x = normal(0, 3 * 20, 5).reshape(3, 20, 5)
    y = normal(1, 3 * 30, 5).reshape(3, 30, 5) + 1
    single = jax.jit(jax.value_and_grad(f, (0, 1)))
    each = [single(a, b) for a, b in zip(x, y, strict=True)]
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(f, (0, 1))))(x, y)
    for i, (value, (in_x, in_y)) in enumerate(each):
        assert values[i] == pytest.approx(float(value), rel=1e-12)
        np.testing.assert_allclose(gradients[0][i], in_x, atol=1e-13)
        np.testing.assert_allclose(gradients[1][i], in_y, atol=1e-13)

    # the reverse of a scan, with a derivative that reaches one sample only
    def moved(shift):
        return jax.lax.scan(lambda s, b: (s + f(x[0] + shift[None, :], b), None), 0.0, y)[0]

    by_hand = sum(single(x[0], b)[1][0].sum(axis=0) for b in y)
    np.testing.assert_allclose(jax.jit(jax.grad(moved))(jnp.zeros(5)), by_hand, atol=1e-12)


def test_gradient_descent_in_a_loop_reaches_the_other_sample():
    x, y = normal(0, 20, 3), normal(1, 20, 3) + 1

    def descend(_, points):
        return points - 2.0 * jax.grad(energy_distance)(points, y)

    moved = jax.jit(lambda points: jax.lax.fori_loop(0, 300, descend, points))(x)
    v = partial(energy_distance, statistic="V")
    assert v(moved, y) < 0.05 * v(x, y)


def test_memory_does_not_grow_with_the_square_of_the_sample_size():
    points = jax.ShapeDtypeStruct((50_000, 64), np.float32)
    gradient = jax.jit(jax.value_and_grad(energy_distance, (0, 1)))
    memory = gradient.lower(points, points).compile().memory_analysis()
    # one matrix of distances would be 10 GB
    assert memory.temp_size_in_bytes < 500e6


# sliced


@both_types
@both_statistics
def test_sliced_is_exact_on_the_line(statistic, dtype):
    x, y = normal(0, 50, 1, dtype), normal(1, 31, 1, dtype) + 1
    x = jnp.concatenate([x, x[:10], y[:5]])  # ties within and across
    found = sliced_energy_distance(x, y, key=jax.random.key(0), statistic=statistic)
    assert found == pytest.approx(textbook(x, y, statistic), abs=4 * ROUND_OFF[dtype])


@pytest.mark.parametrize(("statistic", "d"), [("U", 2), ("V", 10)])
def test_sliced_is_unbiased_for_the_pairwise_estimate(statistic, d):
    x, y = normal(0, 40, d), normal(1, 30, d) * 1.5 + 0.3
    keys = jax.random.split(jax.random.key(0), 200)
    # an odd number of directions leaves the last frame and the last group incomplete
    sliced = jax.jit(
        jax.vmap(
            lambda key: sliced_energy_distance(x, y, key=key, projections=7, statistic=statistic)
        )
    )(keys)
    error = float(jnp.std(sliced)) / math.sqrt(len(keys))
    assert float(jnp.mean(sliced)) == pytest.approx(
        float(energy_distance(x, y, statistic=statistic)), abs=4 * error
    )
    assert error < 0.02 * float(energy_distance(x, y, statistic="V"))


def test_sliced_gradient_matches_finite_differences_and_the_pairwise_gradient():
    x, y = normal(0, 6, 3), normal(1, 5, 3) + 1
    sliced = partial(sliced_energy_distance, key=jax.random.key(0), projections=9)
    check_grads(sliced, (x, y), order=1, modes=["rev"], atol=1e-7, rtol=1e-7, eps=1e-6)
    many = partial(sliced_energy_distance, key=jax.random.key(0), projections=6000)
    found = jax.jit(jax.grad(many, (0, 1)))(x, y)
    for a, b in zip(found, value_and_gradients(x, y)[1], strict=True):
        # a sign along a direction varies by less than 1; it is scaled by 2 and weighted by 2/n
        np.testing.assert_allclose(a, b, atol=4 * 2 * 2 / len(b) / math.sqrt(6000))


# what is accepted


def test_accepts_numpy_integers_half_precision_and_mixed_types():
    x, y = np.array([[0, 0], [1, 0]]), np.array([[2, 0], [4, 0]])
    assert energy_distance(x, y) == pytest.approx(2.0, rel=1e-6)
    half = energy_distance(jnp.asarray(x, jnp.float16), jnp.asarray(y, jnp.bfloat16))
    assert half.dtype == np.float32
    assert energy_distance(x.astype(np.float32), y.astype(np.float64)).dtype == np.float64
    gradient = jax.grad(energy_distance)(jnp.asarray(x, jnp.float16), jnp.asarray(y, jnp.float16))
    assert gradient.dtype == np.float16
    with jax.numpy_dtype_promotion("strict"):
        single = jnp.asarray(x, jnp.float32)
        jax.grad(energy_distance)(single, single + 1.0)
        sliced_energy_distance(single, single + 1.0, key=jax.random.key(0))


@pytest.mark.parametrize(
    "estimator", [energy_distance, partial(sliced_energy_distance, key=jax.random.key(0))]
)
def test_bad_samples_raise_also_while_tracing(estimator):
    points = jnp.zeros((3, 2))
    for x, message in [
        (jnp.zeros((3, 4)), "same dimension"),
        (jnp.zeros(3), "same dimension"),
        (points[:1], "at least 2 points"),
        (points[:0], "at least 2 points"),
    ]:
        for f in (estimator, jax.jit(estimator)):
            with pytest.raises(InputError, match=message):
                f(x, points)
            with pytest.raises(InputError, match=message):
                f(points, x)
    with pytest.raises(InputError, match="at least 1 point"):
        estimator(points[:0], points, statistic="V")
    with pytest.raises(InputError, match="same dimension"):
        estimator(points[:, :0], points[:, :0])


def test_bad_sizes_raise():
    points = jnp.zeros((3, 2))
    with pytest.raises(InputError, match="chunk_size of at least 1, found 0"):
        energy_distance(points, points, chunk_size=0)
    with pytest.raises(InputError, match="at least 1 projection, found 0"):
        sliced_energy_distance(points, points, key=jax.random.key(0), projections=0)
