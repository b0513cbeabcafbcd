"""Sets of images from disk, and the networks that take them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import brenier
from brenier.errors import BrenierWarning, InputError
from brenier.images import ImageFolder
from brenier.networks import ConvPotential, UNet
from brenier.networks._images import _by_convolution, _by_products
from brenier.samplers import FunctionSampler

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures of 8 x 6, one value each, in two folders; and a file that is none."""
    for i in range(12):
        place = tmp_path / "set" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 6, 3), 20 * i, np.uint8)
        pixels[:, 0] = 255  # so that left and right differ
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    (tmp_path / "set" / "notes.txt").write_text("not an image")
    return tmp_path / "set"


class TestImageFolder:
    def test_points(self, folder):
        images = ImageFolder(folder)
        assert (images.size, images.shape, images.dim) == (12, (8, 6, 3), 144)
        everything = images.pool(100, 0).reshape(-1, 8, 6, 3)
        assert everything.dtype == np.float32
        np.testing.assert_array_equal(everything[:, :, 0], 1.0)
        expected = np.sort(20 * np.arange(12)) / 127.5 - 1
        np.testing.assert_allclose(np.sort(everything[:, 0, 1, 0]), expected, atol=1e-6)

    def test_a_batch_depends_on_its_step_alone(self, folder):
        one, two = ImageFolder(folder, flip=True), ImageFolder(folder, flip=True)
        together = one.draw(KEY, 0, 4, 5)
        assert together.shape == (4, 5, 144)
        apart = jnp.concatenate([two.draw(KEY, s, 1, 5) for s in (2, 3, 0, 1)])
        np.testing.assert_array_equal(together, apart[jnp.array([2, 3, 0, 1])])
        assert not np.array_equal(together[0], together[1])

    def test_more_than_there_are_is_all(self, folder):
        assert ImageFolder(folder).draw(KEY, 0, 1, 50).shape == (1, 12, 144)

    def test_mirrors_half(self, folder):
        drawn = np.asarray(ImageFolder(folder, flip=True).draw(KEY, 0, 40, 5))
        left = drawn.reshape(-1, 8, 6, 3)[:, 0, 0, 0] == 1.0
        assert 0.3 < left.mean() < 0.7

    def test_split_is_disjoint(self, folder):
        rest, held = ImageFolder(folder).split(4, 0)
        assert (rest.size, len(held)) == (8, 4)
        values = {round(float(v), 3) for v in held.reshape(-1, 8, 6, 3)[:, 0, 1, 0]}
        others = {round(float(v), 3) for v in rest.pool(9, 0).reshape(-1, 8, 6, 3)[:, 0, 1, 0]}
        assert len(values | others) == 12

    def test_resampled_grey_transparent(self, folder):
        image = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
        image.save(folder / "clear.png")
        with pytest.raises(InputError, match=r"8 x 6.*30 x 30|30 x 30.*8 x 6"):
            ImageFolder(folder)
        grey = ImageFolder(folder, (4, 4), channels=1, damaged="skip")
        assert grey.dim == 16
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BrenierWarning)  # every pixel is transparent
            assert np.abs(grey.pool(20, 0)).max() <= 1.0

    def test_half_transparent_is_half_white(self, tmp_path):
        for i in range(2):
            Image.new("RGBA", (2, 2), (0, 0, 0, 51)).save(tmp_path / f"{i}.png")
        np.testing.assert_allclose(ImageFolder(tmp_path).pool(2, 0), 0.6, atol=0.01)

    @pytest.mark.parametrize("content", [b"", b"not a picture"])
    def test_damaged_files_are_named_or_skipped(self, folder, content):
        (folder / "a" / "bad.png").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.png"):
            ImageFolder(folder)
        with pytest.warns(BrenierWarning, match=r"bad\.png"):
            assert ImageFolder(folder, damaged="skip").size == 12
        with pytest.raises(InputError, match=r"bad\.png"):
            ImageFolder(folder, (8, 6)).pool(100, 0)
        with pytest.warns(BrenierWarning, match=r"bad\.png"):
            assert len(ImageFolder(folder, (8, 6), damaged="skip").pool(100, 0)) == 13

    def test_wrong_arguments(self, folder, tmp_path):
        (tmp_path / "empty").mkdir()
        for path, options, message in (
            (tmp_path / "nowhere", {}, "folder"),
            (tmp_path / "empty", {}, "at least 2"),
            (folder, {"channels": 4}, "1 channel"),
            (folder, {"size": (0, 4)}, "size"),
            (folder, {"damaged": "ignore"}, "damaged"),
            (folder, {"threads": 0}, "threads"),
        ):
            with pytest.raises(InputError, match=message):
                ImageFolder(path, **options)

    def test_sets_of_different_sizes_do_not_fit(self, folder):
        with pytest.raises(InputError, match="same dimension"):
            brenier.TransportProblem(ImageFolder(folder), ImageFolder(folder, (4, 4)))

    def test_digest_sees_the_data(self, folder):
        before = ImageFolder(folder).digest()
        assert ImageFolder(folder).digest() == before
        (folder / "a" / "00.png").unlink()
        assert ImageFolder(folder).digest() != before


class TestNetworks:
    shape = (16, 8, 3)

    @pytest.mark.parametrize("size", [2, 3])
    def test_products_are_a_convolution(self, size):
        x, kernel = jax.random.normal(KEY, (5, 7, 2)), jax.random.normal(KEY, (size, size, 2, 3))
        np.testing.assert_allclose(
            _by_products(x, kernel), _by_convolution(x, kernel), rtol=1e-12, atol=1e-12
        )

    def test_unet_starts_at_the_identity_and_uses_all_of_itself(self):
        x = jnp.asarray(RNG.normal(size=384))
        net = UNet(self.shape, (4, 8), key=KEY)
        run = jax.jit(lambda net: net(x))
        np.testing.assert_array_equal(run(net), x)
        # From the second step on: at the first the zero layers hide what is before them.
        moved = jax.tree.map(lambda a: a + 0.01, net)
        slopes = jax.jit(jax.grad(lambda net: jnp.sum(net(x) ** 2)))(moved)
        assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))
        assert not np.allclose(run(moved), x)

    def test_potential_depends_on_time_and_place(self):
        u = ConvPotential(self.shape, (4, 8, 8), key=KEY)
        u = jax.tree.map(lambda a: a + 0.01, u)
        x = jnp.asarray(RNG.normal(size=384))
        dt, dx = jax.jit(jax.grad(u, argnums=(0, 1)))(jnp.asarray(0.3), x)
        assert abs(dt) > 0.0
        assert (jnp.abs(dx) > 0.0).all()

    @pytest.mark.slow
    def test_bfloat16_is_close_and_keeps_types(self):
        x = jnp.asarray(RNG.normal(size=384), jnp.float32)
        for precision, tolerance in (("float32", 0.0), ("bfloat16", 0.05)):
            net = jax.tree.map(
                lambda a: jnp.asarray(a + 0.01, jnp.float32),
                UNet(self.shape, (4, 8), precision=precision, key=KEY),
            )
            if precision == "float32":
                exact = net(x)
            assert net(x).dtype == jnp.float32
            np.testing.assert_allclose(net(x), exact, atol=tolerance)

    @pytest.mark.parametrize("network", [UNet, ConvPotential])
    def test_wrong_shapes(self, network):
        for shape in ((10, 8, 3), (8, 8), (8, 8, 0)):
            with pytest.raises(InputError, match="height"):
                network(shape, (4, 8, 8), key=KEY)
        with pytest.raises(InputError, match="precision"):
            network((8, 8, 1), (4, 8), precision="int8", key=KEY)


@pytest.mark.slow
def test_diotm_learns_a_brightness():
    """Dark squares to bright ones: a smooth map of images, by convolutions alone."""

    def squares(level):
        def sampler(key, n):
            values = level + 0.1 * jax.random.normal(key, (n, 1))
            return jnp.broadcast_to(values, (n, 16))

        return FunctionSampler(sampler)

    problem = brenier.TransportProblem(squares(-0.5), squares(0.5))
    method = brenier.DIOTM(
        network=ConvPotential((4, 4, 1), (4,), key=KEY),
        map_network=UNet((4, 4, 1), (4,), key=KEY),
        pair_coordinates=False,
        scale_inputs=False,
        batch_size=16,
        learning_rate=1e-2,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrenierWarning)
        solution = brenier.fit(problem, method, steps=75)
    dark = np.asarray(squares(-0.5).pool(50, 1))
    bright = solution.transport.forward(dark)
    assert abs(bright.mean() - 0.5) < 0.25
