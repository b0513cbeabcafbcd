"""Datasets: toys have the size they promise; exact problems prove their own map."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brenier import datasets, metrics
from brenier.costs import Quadratic
from brenier.discrepancies import energy_distance
from brenier.errors import BrenierError, FileFormatError, InputError
from brenier.gaussian import GaussianPotential
from brenier.hamiltonian import forward_map, pde_residual

BENCHMARK = Path(__file__).parents[2] / "shared" / "data" / "w2_benchmark"
"""The real files, where a checkout has them beside it."""


def benchmark_arrays(dim=3, hidden=(6, 5, 4)):
    """A small pair in the layout of the Wasserstein-2 benchmark."""
    rng = np.random.default_rng(0)
    arrays = {
        "hidden_sizes": np.array(hidden),
        "component_means": rng.normal(size=(3, dim)),
        "component_maps": rng.normal(size=(3, dim, dim)),
        "component_std": np.float32(0.4),
        "strong_convexity": np.float32(0.01),
        "map_scale": np.float32(0.5),
        "map_shift": rng.normal(size=dim),
        "target_mean": np.zeros(dim),
        "target_cov": np.eye(dim),
    }
    for v in ("v1", "v2"):
        for i, width in enumerate(hidden):
            arrays[f"{v}.quad.{i}"] = rng.normal(size=(dim, width)) / 5
            arrays[f"{v}.lin.{i}"] = rng.normal(size=(width, dim))
            arrays[f"{v}.bias.{i}"] = rng.normal(size=width)
        for i in (1, 2):
            arrays[f"{v}.convex.{i}"] = rng.uniform(0, 0.5, size=(hidden[i], hidden[i - 1]))
        arrays[f"{v}.final"] = rng.uniform(0, 0.5, size=hidden[-1])
    return {
        name: np.asarray(a, np.int64 if "sizes" in name else np.float32)
        for name, a in arrays.items()
    }


def small_benchmark():
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "mix3tomix10_d3.npz", **benchmark_arrays())
        return datasets.w2_benchmark(folder, 3)


EXACT = {
    "gaussian 1": lambda: datasets.gaussian_pair(1, 3),
    "gaussian 5": lambda: datasets.gaussian_pair(5, jax.random.key(1), mean=2.0),
    "translation": lambda: datasets.translation(datasets.moons, np.array([3.0, -1.0])),
    "cube 1": lambda: datasets.gaussian_to_cube(1),
    "cube 3": lambda: datasets.gaussian_to_cube(3),
    "ball 2": datasets.gaussian_to_ball,
    "ball 3": lambda: datasets.gaussian_to_ball(3),
    "quantile": datasets.quantile_1d,
    "convex 5": lambda: datasets.convex_gradient(5, jax.random.key(1)),
    "w2 benchmark": small_benchmark,
}
toys = pytest.mark.parametrize("toy", datasets.TOYS.values(), ids=datasets.TOYS)


@functools.cache
def exact_problem(name):
    return EXACT[name]()


@pytest.fixture(params=EXACT, scope="module")
def exact(request):
    return exact_problem(request.param)


def draw(sampler, n, seed=0):
    return np.asarray(sampler(jax.random.key(seed), n), np.float64)


@toys
def test_toys_are_centred_with_total_variance_two(toy):
    n = 100_000
    x = draw(toy, n)
    assert x.shape == (n, 2)
    # five standard errors
    assert np.all(np.abs(x.mean(0)) < 5 * x.std(0) / np.sqrt(n))
    squares = np.sum(x**2, axis=1)
    assert abs(squares.mean() - 2) < 5 * squares.std() / np.sqrt(n)


@toys
def test_toys_can_be_traced_and_follow_their_key(toy):
    traced = jax.jit(toy, static_argnums=1)
    points = traced(jax.random.key(0), 10)
    # fusion may round differently
    np.testing.assert_allclose(points, toy(jax.random.key(0), 10), rtol=1e-10, atol=1e-12)
    assert not np.allclose(points, traced(jax.random.key(1), 10))
    assert points.dtype == jnp.result_type(float)


def test_checkerboard_covers_the_black_fields_and_only_them():
    x = draw(datasets.checkerboard, 4000) / (np.sqrt(3) / 2) + 2
    fields, counts = np.unique(np.floor(x), axis=0, return_counts=True)
    assert {tuple(f) for f in fields} == {
        (i, j) for i in range(4) for j in range(4) if (i - j) % 2 == 0
    }
    assert counts.min() > 400  # 500 each, deviation 21


def test_eight_gaussians_has_eight_equal_modes():
    x = draw(datasets.eight_gaussians, 4000)
    angle = np.arctan2(x[:, 1], x[:, 0])
    modes = np.round(angle / (np.pi / 4)) % 8
    assert np.bincount(modes.astype(int), minlength=8).min() > 400
    radius = np.sqrt(2 / 1.02)
    centre = radius * np.stack([np.cos(modes * np.pi / 4), np.sin(modes * np.pi / 4)], axis=1)
    assert np.abs(x - centre).max() < 0.55 * radius  # 5.5 of its deviations


def test_two_rings_lie_at_one_radius_and_half_of_it():
    radii = np.linalg.norm(draw(datasets.two_rings, 2000), axis=1) / np.sqrt(2 / 0.63)
    inner, outer = radii[radii < 0.75], radii[radii >= 0.75]
    assert abs(np.median(inner) - 0.5) < 0.02
    assert abs(np.median(outer) - 1.0) < 0.02
    assert 850 < len(inner) < 1150


def test_exact_inverse_undoes_the_map(exact):
    x = draw(exact.source, 500)
    np.testing.assert_allclose(exact.inverse(exact.forward(x)), x, rtol=1e-7, atol=1e-8)


def test_exact_map_is_the_gradient_of_a_convex_function(exact):
    """By Brenier's theorem this and the push-forward below make the map optimal."""
    x, h = draw(exact.source, 50), 1e-5
    jacobian = np.stack(
        [
            (exact.forward(x + h * e) - exact.forward(x - h * e)) / (2 * h)
            for e in np.eye(exact.dim)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=1e-8)  # h²
    assert np.linalg.eigvalsh(jacobian).min() > 0


def test_exact_map_sends_the_source_to_the_target(exact):
    n = 1000
    mapped, y = exact.forward(draw(exact.source, n, 1)), draw(exact.target, n, 2)
    band = metrics.noise_band(y, n, n, key=jax.random.key(3), quantile=0.999)
    assert energy_distance(jnp.asarray(mapped), jnp.asarray(y)) < band
    assert energy_distance(jnp.asarray(mapped + 0.3), jnp.asarray(y)) > band


def test_exact_cost_is_the_mean_cost_of_the_map(exact):
    x = draw(exact.source, 100_000)
    costs = 0.5 * np.sum((exact.forward(x) - x) ** 2, axis=1)
    standard_error = costs.std() / np.sqrt(len(x))
    # an estimated cost has an error of its own
    assert abs(costs.mean() - exact.cost) < 5 * np.hypot(standard_error, 1e-3 * exact.cost) + 1e-12


@pytest.mark.parametrize("name", ["gaussian 5", "translation"])
def test_exact_potential_solves_the_equation_and_gives_the_map_and_the_cost(name):
    exact = exact_problem(name)
    u, cost = exact.potential, Quadratic()
    x, y = draw(exact.source, 20_000, 1), draw(exact.target, 20_000, 2)

    @jax.vmap
    def check(p):
        return forward_map(u, cost, p), pde_residual(u, cost, jnp.asarray(0.3), p)

    mapped, residual = check(jnp.asarray(x[:50]))
    np.testing.assert_allclose(mapped, exact.forward(x[:50]), atol=1e-12)
    np.testing.assert_allclose(residual, 0, atol=1e-12)
    final = jax.vmap(lambda p: u(jnp.asarray(1.0), p))(jnp.asarray(y))
    initial = jax.vmap(lambda p: u(jnp.asarray(0.0), p))(jnp.asarray(x))
    standard_error = np.hypot(final.std(), initial.std()) / np.sqrt(len(x))
    assert abs(final.mean() - initial.mean() - exact.cost) < 5 * standard_error


def test_exact_inverse_is_finite_at_the_edge_of_a_bounded_target():
    corner = np.full((1, 2), np.sqrt(3), np.float32)
    assert np.isfinite(datasets.gaussian_to_cube(2).inverse(corner)).all()
    rim = np.array([[2.0, 0.0], [0.0, 0.0]])
    assert np.isfinite(datasets.gaussian_to_ball(2).inverse(rim)).all()
    np.testing.assert_array_equal(datasets.gaussian_to_ball(2).forward(np.zeros((1, 2))), 0)


def test_gaussian_pair_draws_the_eigenvalues_it_promises():
    stretched = datasets.gaussian_pair(6, 0, log_eigenvalues=(1.0, 1.5))
    x = draw(stretched.source, 50_000)
    logs = np.log(np.linalg.eigvalsh(np.cov(x.T)))
    assert logs.min() > 1.0 - 0.05  # sampling error of an eigenvalue is below 2 %
    assert logs.max() < 1.5 + 0.05


def test_gaussian_pair_follows_its_key_alone():
    pair = datasets.gaussian_pair(4, 7, mean=1.0)
    with jax.enable_x64(False):
        single = datasets.gaussian_pair(4, jax.random.key(7), mean=1.0)
    np.testing.assert_array_equal(pair.potential.stretch, single.potential.stretch)
    assert pair.cost != datasets.gaussian_pair(4, 8, mean=1.0).cost


def test_gaussian_to_ball_agrees_with_its_special_cases():
    x = np.linspace(-4, 4, 9)[:, None]
    line, cube = datasets.gaussian_to_ball(1), datasets.gaussian_to_cube(1)
    np.testing.assert_allclose(line.forward(x), cube.forward(x), rtol=1e-13)
    assert line.cost == pytest.approx(cube.cost, rel=1e-8)  # of the quadrature
    plane = datasets.gaussian_to_ball(2).forward(np.array([[1.0, 0.0]]))
    assert plane[0, 0] == pytest.approx(2 * np.sqrt(1 - np.exp(-0.5)), rel=1e-14)


def test_gaussian_to_ball_is_exact_in_many_dimensions():
    exact = datasets.gaussian_to_ball(64)
    x = np.random.default_rng(0).normal(size=(20_000, 64))
    y = exact.forward(x)
    np.testing.assert_allclose(exact.inverse(y), x, rtol=1e-8, atol=1e-8)
    share = (np.linalg.norm(y, axis=1) / np.sqrt(66)) ** 64  # uniform on [0, 1]
    assert abs(share.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(x))
    costs = 0.5 * np.sum((y - x) ** 2, axis=1)
    assert abs(costs.mean() - exact.cost) < 5 * costs.std() / np.sqrt(len(x))


def test_quantile_1d_is_affine_between_two_gaussians():
    exact = datasets.quantile_1d([(2, 1.0, 0.5)], [(1, -3.0, 2.0)])
    x = np.linspace(-15, 17, 33)[:, None]  # 32 deviations on either side
    np.testing.assert_allclose(exact.forward(x), -3 + 4 * (x - 1), rtol=1e-12)
    np.testing.assert_allclose(exact.inverse(exact.forward(x)), x, rtol=1e-12, atol=1e-13)
    assert exact.cost == pytest.approx(0.5 * (4**2 + 1.5**2), rel=1e-10)


def test_quantile_1d_costs_the_same_in_both_directions():
    modes = [(0.7, -4.0, 0.5), (0.3, 5.0, 0.7)]  # a gap that makes the map jump
    there = datasets.quantile_1d([(1, 0, 1)], modes)
    assert there.cost == pytest.approx(datasets.quantile_1d(modes, [(1, 0, 1)]).cost, rel=1e-10)


@pytest.mark.parametrize("modes", [[], [(1.0, 0.0, 0.0)], [(-1.0, 0.0, 1.0)], [(1.0, np.inf, 1.0)]])
def test_quantile_1d_refuses_what_is_no_mixture(modes):
    with pytest.raises(InputError, match=r"Expected target as \(weight, mean, deviation\)"):
        datasets.quantile_1d(target=modes)


@pytest.mark.parametrize("dim", [2, 20])
def test_convex_gradient_is_standardised_and_far_from_linear(dim):
    exact = datasets.convex_gradient(dim, 3)
    x = draw(exact.source, 20_000)
    images = exact.forward(x)
    for points in (x, images):
        assert np.abs(points.mean(0)).max() < 0.05  # six deviations, as most variances are near 1
        assert metrics.total_variance(points) == pytest.approx(dim, rel=0.03)
    linear = GaussianPotential.from_samples(x, images)
    assert 10 < metrics.uvp(linear.forward(x), images) < 60


def test_convex_gradient_grows_with_its_strength_from_the_identity():
    x = np.random.default_rng(1).normal(size=(1000, 4))
    distances = [
        metrics.uvp(x, datasets.convex_gradient(4, strength=s).forward(x))
        for s in (0.0, 0.3, 0.6, 0.9)
    ]
    assert distances[0] < 1e-3  # the error of the constants
    assert np.all(np.diff(distances) > 1)


def test_convex_gradient_follows_its_key_alone():
    x = np.ones((1, 5))
    image = datasets.convex_gradient(5, 7).forward(x)
    with jax.enable_x64(False):
        single = datasets.convex_gradient(5, jax.random.key(7))
        assert single.target(jax.random.key(0), 3).dtype == jnp.float32
    np.testing.assert_array_equal(single.forward(x), image)
    assert not np.allclose(datasets.convex_gradient(5, 8).forward(x), image)


@pytest.mark.parametrize(("dim", "strength"), [(0, 0.5), (2, 1.0), (2, -0.1), (2, np.nan)])
def test_convex_gradient_refuses_what_has_no_inverse(dim, strength):
    with pytest.raises(InputError, match=r"strength in \[0, 1\)"):
        datasets.convex_gradient(dim, strength=strength)


@pytest.mark.parametrize("name", ["convex 5", "w2 benchmark"])
def test_gradient_map_is_the_same_in_jax_and_keeps_its_samples_apart(name):
    exact = exact_problem(name)
    key = jax.random.key(0)
    behind = exact.source(jax.random.fold_in(key, 1), 1000)
    sample = exact.target(key, 1000)
    np.testing.assert_allclose(exact.forward(behind), sample, rtol=1e-12, atol=1e-12)
    assert jax.eval_shape(lambda k: exact.target(k, 7), key).shape == (7, exact.dim)
    assert not np.allclose(exact.source(key, 1000), behind)


@pytest.mark.parametrize("name", ["convex 5", "w2 benchmark"])
def test_gradient_map_is_inverted_to_round_off_wherever_it_is_asked(name):
    exact = exact_problem(name)
    # far outside the target, where the linear start is poor
    y = 10 * np.random.default_rng(1).normal(size=(200, exact.dim))
    np.testing.assert_allclose(exact.forward(exact.inverse(y)), y, rtol=1e-11, atol=1e-11)
    assert exact.inverse(np.zeros((0, exact.dim))).shape == (0, exact.dim)
    with pytest.raises(InputError, match="finite points"):
        exact.inverse(np.full((1, exact.dim), np.nan))


def test_gradient_map_says_where_it_found_no_inverse(monkeypatch):
    monkeypatch.setattr("brenier.datasets._gradients._STEPS", 1)
    with pytest.raises(BrenierError, match="not found at 1 of 1 points"):
        exact_problem("convex 5").inverse(np.full((1, 5), 3.0))


def test_w2_benchmark_is_the_gradient_of_the_documented_potential():
    arrays = benchmark_arrays()

    def network(v, x):
        Q, L, b = (
            [arrays[f"{v}.{kind}.{i}"] for i in range(3)] for kind in ("quad", "lin", "bias")
        )
        q = [(x @ Q[i]) ** 2 + L[i] @ x + b[i] for i in range(3)]
        h = jax.nn.celu(arrays[f"{v}.convex.1"] @ q[0] + q[1])
        h = jax.nn.celu(arrays[f"{v}.convex.2"] @ h + q[2])
        return arrays[f"{v}.final"] @ h + arrays["strong_convexity"] / 2 * x @ x

    def psi(x):
        return arrays["map_scale"] * (network("v1", x) + network("v2", x) + arrays["map_shift"] @ x)

    x = np.random.default_rng(1).normal(size=(200, 3))
    gradient = jax.jit(jax.vmap(jax.grad(psi)))(jnp.asarray(x))
    image = exact_problem("w2 benchmark").forward(x)
    np.testing.assert_allclose(image, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [2, 4, 8, 32, 64])
def test_w2_benchmark_reproduces_the_images_that_come_with_it(dim):
    if not BENCHMARK.is_dir():
        pytest.skip("the benchmark's files are not beside this checkout")
    exact = datasets.w2_benchmark(BENCHMARK, dim)
    check = np.load(BENCHMARK / f"check_d{dim}.npz")
    np.testing.assert_allclose(exact.forward(check["x"]), check["y"], atol=1e-8)
    np.testing.assert_allclose(exact.inverse(check["y"][:5]), check["x"][:5], atol=1e-7)
    if dim != 8:  # samplers take long to compile, and nothing in them depends on the dimension
        return
    x = draw(exact.source, 4000)
    pair = np.load(BENCHMARK / "mix3tomix10_d8.npz")
    error = np.sqrt(np.diag(pair["source_cov"]) / len(x))
    assert np.all(np.abs(x.mean(0) - pair["source_mean"]) < 5 * error)
    assert metrics.total_variance(x) == pytest.approx(dim, rel=0.1)  # three modes far apart


def test_w2_benchmark_says_where_the_files_should_be(tmp_path):
    with pytest.raises(
        InputError, match="not a folder; expected the one that holds mix3tomix10_d8"
    ):
        datasets.w2_benchmark(tmp_path / "nowhere", 8)
    with pytest.raises(InputError, match=r"Expected dimension 8 in .* no file of the benchmark"):
        datasets.w2_benchmark(tmp_path, 8)
    for dim in (16, 2):
        (tmp_path / f"mix3tomix10_d{dim}.npz").touch()
    with pytest.raises(InputError, match=r"Expected dimension 8 in .*, found dimensions 2, 16"):
        datasets.w2_benchmark(str(tmp_path), 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v1.quad.0": None}, r"no array 'v1\.quad\.0"),
        ({"hidden_sizes": None}, "no array 'hidden_sizes"),
        ({"hidden_sizes": np.array([6, 5])}, "Cannot read"),
        ({"v2.convex.1": np.ones((5, 5))}, r"Expected 'v2\.convex\.1' of shape \(5, 6\)"),
        ({"map_shift": np.full(3, np.nan)}, r"Expected 'map_shift' of shape \(3,\) and finite"),
        ({"v2.final": -np.ones(4)}, r"wrong sign in v2\.final"),
        ({"v1.bias.0": np.array([{}] * 6)}, "Cannot read"),
    ],
)
def test_w2_benchmark_refuses_a_damaged_file(tmp_path, change, message):
    arrays = {k: v for k, v in (benchmark_arrays() | change).items() if v is not None}
    np.savez(tmp_path / "mix3tomix10_d3.npz", **arrays)
    with pytest.raises(FileFormatError, match=message):
        datasets.w2_benchmark(tmp_path, 3)


@pytest.mark.parametrize("cut", [0, 10, 2000])
def test_w2_benchmark_refuses_a_file_that_is_cut_off(tmp_path, cut):
    path = tmp_path / "mix3tomix10_d3.npz"
    np.savez(path, **benchmark_arrays())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FileFormatError, match="Cannot read"):
        datasets.w2_benchmark(tmp_path, 3)
