"""Colour transfer: every kind of picture, exact maps, scores with known values, bounded memory."""

import errno
import io
import json
import os
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms
from skimage.color import rgb2lab
from skimage.exposure import match_histograms
from sklearn.datasets import load_sample_images

from brenier import (
    BrenierWarning,
    DivergenceError,
    GaussianPotential,
    InputError,
    NCFTransport,
    OutputError,
)
from brenier.color import (
    ColorImage,
    channel_histograms,
    cloud_distance,
    color_samples,
    color_transfer,
    emd_heights,
    emd_positions,
    histogram_intersection,
    histogram_matching,
    images,
    pipeline,
    read_image,
    reinhard,
    transfer,
    write_color_report,
    write_png,
)

SHAPE = (6, 9)
GRADIENT = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(*SHAPE, 3)
GRAY = GRADIENT[..., 0]
ALPHA = np.where(np.arange(9) < 3, 0, 200).astype(np.uint8) + np.zeros(SHAPE, np.uint8)


def noise(height, width, seed=0, low=0, high=256):
    rng = np.random.default_rng(seed)
    return rng.integers(low, high, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(image, name="picture.png", **options):
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


class LinearTransport:
    """The optimal linear map, with the face of an estimator."""

    def fit(self, Xs, Xt):
        self.map = GaussianPotential.from_samples(Xs, Xt)
        return self

    def transform(self, Xs):
        return np.asarray(self.map.forward(Xs))

    def inverse_transform(self, Xt):
        return np.asarray(self.map.inverse(Xt))


class TestScores:
    def test_equal_pictures(self):
        pixels = noise(20, 30)
        shuffled = pixels.reshape(-1, 3)[np.random.default_rng(1).permutation(600)]
        assert histogram_intersection(pixels, shuffled) == pytest.approx(1, abs=1e-14)
        assert emd_positions(pixels, shuffled) == 0
        assert emd_heights(pixels, shuffled) == 0
        assert cloud_distance(pixels, shuffled) == pytest.approx(0, abs=1e-6)  # float32 sums

    def test_disjoint_histograms(self):
        low, high = noise(20, 30, high=100), noise(20, 30, low=100)
        assert histogram_intersection(low, high) == 0

    @pytest.mark.parametrize("shift", [1, 7, 100])
    def test_a_shift_moves_every_level_and_no_height(self, shift):
        pixels = noise(20, 30, high=156)
        assert emd_positions(pixels + np.uint8(shift), pixels) == pytest.approx(shift / 255)
        assert emd_heights(pixels + np.uint8(shift), pixels) == 0

    def test_histograms_by_hand(self):
        pixels = np.array([[0, 255, 7], [0, 255, 7], [0, 254, 8], [1, 255, 9]], np.uint8)
        h = channel_histograms(pixels)
        assert h.sum(axis=1) == pytest.approx(1)
        assert h[0, :2].tolist() == [0.75, 0.25]
        assert h[1, 254:].tolist() == [0.25, 0.75]
        assert h[2, 7:10].tolist() == [0.5, 0.25, 0.25]
        # Against (0, 254, 8) everywhere.
        other = np.full((2, 3), (0, 254, 8), np.uint8)
        assert histogram_intersection(pixels, other) == pytest.approx((0.75 + 0.25 + 0.25) / 3)
        assert emd_positions(pixels, other) == pytest.approx((0.25 + 0.75 + 0.75) / 3 / 255)
        assert emd_heights(pixels, other) == pytest.approx((0.5 + 0.5 + 1.0) / 3 / 256)

    def test_cloud_distance_between_two_colors(self):
        black, white = np.zeros((5, 3), np.uint8), np.full((7, 3), 255, np.uint8)
        assert cloud_distance(black, white) == pytest.approx(2 * np.sqrt(3), rel=1e-6)

    def test_cloud_distance_sees_what_channels_cannot(self):
        level = np.arange(256, dtype=np.uint8)
        together, apart = (np.stack([level, level, x], axis=1) for x in (level, level[::-1]))
        assert histogram_intersection(together, apart) == pytest.approx(1)
        assert cloud_distance(together, apart) > 0.05

    pictures = st.tuples(st.integers(1, 30), st.integers(1, 256), st.integers(0, 2**32 - 1)).map(
        lambda args: noise(args[0], 1, seed=args[2], high=args[1])
    )

    @given(pictures, pictures)
    def test_inequalities_between_scores(self, a, b):
        lost = 1 - histogram_intersection(a, b)
        assert emd_positions(a, b) >= lost / 256 - 1e-15
        assert emd_heights(a, b) <= 2 * lost / 256 + 1e-15

    @given(arrays(np.uint8, (4, 3)), arrays(np.uint8, (5, 3)))
    def test_symmetry(self, a, b):
        for score in (histogram_intersection, emd_positions, emd_heights):
            assert score(a, b) == score(b, a)

    @pytest.mark.parametrize(
        "pixels",
        [np.zeros((4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 3), np.uint8)],
        ids=["float", "four channels", "empty"],
    )
    def test_not_pixels(self, pixels):
        with pytest.raises(InputError, match="Expected 8-bit pixels"):
            histogram_intersection(pixels, GRADIENT)


class TestRead:
    def test_rgb(self, save):
        image = read_image(save(GRADIENT))
        assert (image.pixels == GRADIENT).all()
        assert image.pixels.dtype == np.uint8
        assert image.alpha is None
        assert image.name == "picture.png"

    @pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
    def test_modes_pillow_converts(self, save, mode, tmp_path):
        picture = Image.fromarray(GRADIENT).convert(mode)
        expected = np.asarray(picture.convert("RGB"))
        if mode == "HSV":  # No file holds this mode, so the decoder is given it.
            image = images._decode(picture, tmp_path / "hsv")
        else:
            image = read_image(save(picture, "picture.tiff"))
        assert (image.pixels == expected).all()
        assert image.alpha is None

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
    def test_sixteen_bit_gray_is_scaled(self, save, mode):
        levels = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
        picture = Image.frombytes(
            mode, (6, 1), levels.astype({"I;16B": ">u2", "I": "i4"}.get(mode, "<u2")).tobytes()
        )
        pixels = read_image(save(picture, "picture.tiff")).pixels
        assert pixels[..., 0].tolist() == [[0, 0, 1, 1, 128, 255]]
        assert (pixels == pixels[..., :1]).all()

    def test_float_gray(self, save):
        picture = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
        pixels = read_image(save(picture, "picture.tiff")).pixels
        assert pixels[0, :, 1].tolist() == [0, 128, 255]

    @pytest.mark.parametrize("values", [[[0, 2]], [[-0.1, 1]], [[np.nan, 0]]])
    def test_float_gray_out_of_range(self, save, values):
        picture = save(Image.fromarray(np.array(values, np.float32)), "picture.tiff")
        with pytest.raises(InputError, match="between 0 and 1"):
            read_image(picture)

    def test_lab(self, save):
        lab = Image.merge("LAB", [Image.new("L", (2, 1), v) for v in (255, 128, 128)])
        pixels = read_image(save(lab, "picture.tiff")).pixels
        assert np.abs(pixels.astype(int) - 255).max() <= 2  # L* = 100 is white

    def test_alpha(self, save):
        image = read_image(save(np.dstack([GRADIENT, ALPHA])))
        assert (image.pixels == GRADIENT).all()
        assert (image.alpha == ALPHA).all()
        assert len(image.visible()) == 6 * 6

    def test_gray_with_alpha(self, save):
        picture = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA)])
        image = read_image(save(picture))
        assert (image.pixels == GRAY[..., None]).all()
        assert (image.alpha == ALPHA).all()

    def test_transparent_palette_entry(self, save):
        picture = Image.new("P", (2, 1))
        picture.putpalette([10, 20, 30, 40, 50, 60])
        picture.putdata([0, 1])
        image = read_image(save(picture, transparency=0))
        assert image.pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]
        assert image.alpha is not None
        assert image.alpha.tolist() == [[0, 255]]

    def test_fully_transparent(self, save):
        with pytest.raises(InputError, match="fully transparent"):
            read_image(save(np.dstack([GRADIENT, 0 * ALPHA])))

    def test_animation_gives_the_first_frame(self, save):
        frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
        image = read_image(save(frames[0], "a.gif", save_all=True, append_images=frames[1:]))
        assert (image.pixels == (255, 0, 0)).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_rotation(self, save, orientation):
        stored = {
            1: GRADIENT,
            2: GRADIENT[:, ::-1],
            3: GRADIENT[::-1, ::-1],
            4: GRADIENT[::-1],
            5: GRADIENT.transpose(1, 0, 2),
            6: np.rot90(GRADIENT),
            7: GRADIENT[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(GRADIENT, -1),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert (read_image(save(np.ascontiguousarray(stored), exif=exif)).pixels == GRADIENT).all()

    def test_color_profile_is_converted(self, save):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        table = 128 + 4 + 12 * int.from_bytes(profile[128:132], "big")
        swapped = profile[:table].replace(b"rXYZ", b"none").replace(b"gXYZ", b"rXYZ")
        swapped = swapped.replace(b"none", b"gXYZ") + profile[table:].replace(b"\0s\0R", b"\0x\0R")
        # The red of this profile is the green of sRGB, and the other way round.
        pixels = read_image(save(GRADIENT, icc_profile=swapped)).pixels.astype(int)
        assert np.abs(pixels - GRADIENT[..., [1, 0, 2]]).max() <= 1

    def test_srgb_profile_changes_nothing(self, save):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        assert (read_image(save(GRADIENT, icc_profile=profile.tobytes())).pixels == GRADIENT).all()

    def test_unusable_profile_warns(self, save):
        path = save(GRADIENT, icc_profile=b"no profile")
        with pytest.warns(BrenierWarning, match="taken as sRGB"):
            assert (read_image(path).pixels == GRADIENT).all()

    def test_damaged_exif_is_ignored(self, save):
        path = save(GRADIENT, exif=b"Exif\0\0damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert (read_image(path).pixels == GRADIENT).all()

    def test_missing(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            read_image(tmp_path / "missing.png")

    def test_folder(self, tmp_path):
        with pytest.raises(InputError, match="not a file"):
            read_image(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
    def test_no_picture(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.png"):
            read_image(tmp_path / "a.png")

    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tiff", "a.webp", "a.bmp"])
    @pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
    def test_truncated(self, save, name, share):
        path = save(noise(40, 50), name)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match=name):
            read_image(path)

    def test_zero_size(self, tmp_path):
        header = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
        info = struct.pack("<IiiHHIIiiII", 40, 0, 0, 1, 24, 0, 0, 0, 0, 0, 0)
        (tmp_path / "a.bmp").write_bytes(header + info)
        with pytest.raises(InputError, match=r"a\.bmp"):
            read_image(tmp_path / "a.bmp")

    def test_too_large_is_refused_before_decoding(self, save, monkeypatch):
        path = save(GRADIENT)
        monkeypatch.setattr(images, "MAX_PIXELS", 53)
        with pytest.raises(InputError, match="at most"):
            read_image(path)

    def test_our_limit_replaces_pillows_only_while_reading(self, save, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        path = save(GRADIENT)
        assert (read_image(path).pixels == GRADIENT).all()
        assert Image.MAX_IMAGE_PIXELS == 10

    @pytest.mark.parametrize("alpha", [None, ALPHA])
    def test_write_and_read(self, tmp_path, alpha):
        write_png(tmp_path / "a.png", GRADIENT, alpha)
        image = read_image(tmp_path / "a.png")
        assert (image.pixels == GRADIENT).all()
        assert (image.alpha is None) if alpha is None else (image.alpha == alpha).all()


class TestSamples:
    def test_noise_stays_within_half_a_step(self):
        image = ColorImage(noise(10, 10))
        plain, noisy = (color_samples(image, 100, 0, dequantize=d) for d in (False, True))
        assert plain.dtype == noisy.dtype == np.float32
        assert (np.abs(noisy - plain) * 255 <= 0.5 + 1e-4).all()
        assert len(np.unique(noisy[:, 0])) == 100
        assert (np.rint(255 * plain) == np.rint(255 * plain).clip(0, 255)).all()

    def test_all_pixels_once_when_as_many_are_asked_for(self):
        image = ColorImage(GRADIENT)
        drawn = np.rint(255 * color_samples(image, 54, 3, dequantize=False)).astype(int)
        assert sorted(map(tuple, drawn)) == sorted(map(tuple, GRADIENT.reshape(-1, 3).astype(int)))

    def test_more_samples_than_pixels(self):
        assert color_samples(ColorImage(GRADIENT), 1_000, 0).shape == (1_000, 3)

    def test_transparent_pixels_are_not_drawn(self):
        pixels = np.where(ALPHA[..., None] > 0, GRADIENT, 255).astype(np.uint8)
        drawn = color_samples(ColorImage(pixels, ALPHA), 500, 0, dequantize=False)
        assert drawn.max() < 1

    def test_seed(self):
        image = ColorImage(noise(10, 10))
        a, b, c = (color_samples(image, 20, seed) for seed in (5, 5, 6))
        assert (a == b).all()
        assert (a != c).any()

    def test_no_samples(self):
        with pytest.raises(InputError, match="n=0"):
            color_samples(ColorImage(GRADIENT), 0, 0)


class TestTransfer:
    def test_identity_gives_the_same_bytes(self):
        every_level = ColorImage(np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3))
        assert (transfer(every_level, lambda colors: colors) == every_level.pixels).all()

    def test_permuted_channels(self):
        image = ColorImage(noise(30, 40))
        permutation = np.eye(3)[[2, 0, 1]]
        assert (transfer(image, lambda c: c @ permutation) == image.pixels[..., [1, 2, 0]]).all()

    def test_clips_and_rounds(self):
        image = ColorImage(np.full((1, 1, 3), 100, np.uint8))
        move = np.array([-1.0, 0.6 / 255, np.inf])
        assert transfer(image, lambda c: c + move, dither=1).tolist() == [[[0, 101, 255]]]

    def test_dither_fills_the_gaps_a_stretch_leaves(self):
        ramp = np.repeat(np.arange(100, 140, dtype=np.uint8), 300).reshape(-1, 20, 1)
        image = ColorImage(np.repeat(ramp, 3, axis=2))

        def stretch(colors):
            return (colors - 100 / 255) * 4

        banded, smooth = (transfer(image, stretch, dither=n) for n in (1, 16))
        assert len(np.unique(banded)) == 40
        assert len(np.unique(smooth)) > 140
        assert np.abs(smooth.astype(int) - banded.astype(int)).max() <= 2
        assert (transfer(image, stretch) == smooth).all()

    def test_every_color_is_mapped_once(self):
        colors = []

        def record(chunk):
            assert len(chunk) <= 7
            colors.extend(map(tuple, chunk))
            return 1 - chunk

        image = ColorImage(np.tile(GRADIENT, (3, 4, 1)))
        assert (transfer(image, record, dither=1, chunk=7) == 255 - image.pixels).all()
        assert len(colors) == len(set(colors)) == 54

    def test_transparent_pixels_are_left_alone(self):
        result = transfer(ColorImage(GRADIENT, ALPHA), lambda colors: 1 - colors)
        assert (result[:, :3] == GRADIENT[:, :3]).all()
        assert (result[:, 3:] == 255 - GRADIENT[:, 3:]).all()

    def test_hidden_colours_need_no_clean_memory(self, monkeypatch):
        used = lambda shape, dtype=float: np.full(shape, 99, dtype)  # noqa: E731
        monkeypatch.setattr(np, "empty", used)
        result = transfer(ColorImage(GRADIENT, ALPHA), lambda colors: 1 - colors)
        assert (result[:, 3:] == 255 - GRADIENT[:, 3:]).all()

    def test_a_picture_that_does_not_show_stays_as_it_is(self):
        hidden = ColorImage(GRADIENT, np.zeros_like(ALPHA))
        assert (transfer(hidden, lambda colors: 1 - colors) == GRADIENT).all()

    def test_input_is_not_changed(self):
        pixels = GRADIENT.copy()
        transfer(ColorImage(pixels), lambda colors: 0 * colors)
        assert (pixels == GRADIENT).all()

    def test_bad_maps(self):
        with pytest.raises(DivergenceError, match="NaN"):
            transfer(ColorImage(GRADIENT), lambda colors: colors * np.nan)
        with pytest.raises(InputError, match="shape"):
            transfer(ColorImage(GRADIENT), lambda colors: colors[:, :2])

    def test_memory_grows_by_the_result_alone(self):
        def peak(height):
            image = ColorImage(np.tile(noise(100, 1000), (height // 100, 1, 1)))
            tracemalloc.start()
            transfer(image, lambda colors: colors)
            try:
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        # From 2 to 6 million pixels; the result has three bytes for each.
        assert peak(6_000) - peak(2_000) < 1.2 * 3 * 4e6


class TestBaselines:
    def test_histogram_matching_is_that_of_scikit_image(self):
        a, b = noise(40, 50, high=90), noise(30, 20, seed=1, low=60)
        expected = match_histograms(a.astype(float), b.astype(float), channel_axis=-1)
        result = histogram_matching(ColorImage(a), ColorImage(b)).reshape(a.shape)
        # Cumulative sums of counts and of shares differ in the last bit, which rounding can show.
        assert np.abs(result - expected).max() <= 0.5 + 1e-9

    def test_reinhard_matches_moments(self):
        a, b = noise(40, 50, low=60, high=200), noise(30, 20, seed=1, low=100, high=150)
        result = reinhard(ColorImage(a), ColorImage(b))
        mapped, target = rgb2lab(result), rgb2lab(b.reshape(-1, 3))
        # Nothing leaves the gamut here; 8-bit rounding is what remains.
        assert mapped.mean(axis=0) == pytest.approx(target.mean(axis=0), abs=0.05)
        assert mapped.std(axis=0) == pytest.approx(target.std(axis=0), abs=0.05)

    def test_only_visible_pixels_count(self):
        a = ColorImage(GRADIENT, ALPHA)
        for baseline in (histogram_matching, reinhard):
            assert baseline(a, a).shape == (36, 3)
            assert np.abs(baseline(a, a).astype(int) - a.visible()).max() <= 1


class Reported:
    """A solution that is asked for a page."""

    status, message, info = "completed", "Fitted.", {"steps": 1, "method": {}}

    def report(self, path, *points, **options):
        self.path, self.points, self.options = path, points, options


@pytest.fixture
def pair(save):
    alpha = np.full((30, 40, 1), 255, np.uint8)
    alpha[:5] = 0
    alpha[5:9] = 90
    return (
        save(np.dstack([noise(30, 40, high=120), alpha]), "a.png"),
        save(noise(25, 20, seed=1, low=100), "b.jpg", quality=95),
    )


class TestColorTransfer:
    def test_everything_is_written(self, pair, tmp_path):
        out = tmp_path / "new" / "folder"
        result = color_transfer(*pair, out=out, transport=LinearTransport())
        assert {path.name for path in out.iterdir()} == {
            "source_in_target_colors.png",
            "target_in_source_colors.png",
            "contact_sheet.png",
            "scores.json",
        }
        a, b = map(read_image, pair)
        forward = read_image(result.files["source_in_target_colors"])
        backward = read_image(result.files["target_in_source_colors"])
        assert (forward.alpha == a.alpha).all()
        assert backward.alpha is None
        assert (forward.pixels == transfer(a, result.transport.transform)).all()
        assert (backward.pixels == transfer(b, result.transport.inverse_transform)).all()
        assert read_image(result.files["contact_sheet"]).pixels.shape[1] == 2400

        stored = json.loads(result.scores_file.read_text())
        assert stored["scores"] == result.scores
        assert json.loads(json.dumps(result.to_dict()))["scores"] == result.scores
        for direction, image, other in (
            ("source_to_target", forward, b),
            ("target_to_source", backward, a),
        ):
            scores = result.scores[direction]
            assert set(scores) == {"unchanged", "histogram_matching", "reinhard", "brenier"}
            assert scores["brenier"]["histogram_intersection"] == histogram_intersection(
                image.visible(), other.visible()
            )
            assert (
                scores["brenier"]["energy_distance"] < 0.1 * scores["unchanged"]["energy_distance"]
            )

    def test_a_report_has_fresh_colours_and_all_pictures(self, pair, tmp_path):
        result = color_transfer(*pair, out=tmp_path / "out", transport=LinearTransport())
        with pytest.raises(InputError, match=r"a solution_ .* found LinearTransport"):
            write_color_report(tmp_path / "r.html", *pair, result)
        result.transport.solution_ = seen = Reported()
        write_color_report(tmp_path / "r.html", *pair, result)
        assert seen.path == tmp_path / "r.html"
        for points, picture in zip(seen.points, pair, strict=True):
            assert points.shape == (2000, 3)
            own = read_image(picture).visible() / 255
            assert points.mean(axis=0) == pytest.approx(own.mean(axis=0), abs=0.02)
        shown = [
            result.files[name] for name in ("source_in_target_colors", "target_in_source_colors")
        ]
        assert list(seen.options["pictures"].values()) == [pair[0], shown[0], pair[1], shown[1]]

    @pytest.mark.slow
    def test_same_seed_same_pictures(self, pair, tmp_path):
        def run(name, seed):
            result = color_transfer(
                *pair,
                out=tmp_path / name,
                transport=LinearTransport(),
                samples=50,
                random_state=seed,
            )
            return [path.read_bytes() for path in result.files.values()]

        first = run("a", 3)
        assert run("b", 3) == first
        assert run("c", 4) != first

    def test_a_gray_picture_warns(self, save, pair, tmp_path):
        with pytest.warns(BrenierWarning, match=r"gray\.png is grey"):
            color_transfer(
                save(GRAY, "gray.png"), pair[1], out=tmp_path, transport=LinearTransport()
            )

    def test_a_single_color_is_refused(self, save, pair, tmp_path):
        one = save(np.full((4, 5, 3), 7, np.uint8), "one.png")
        for pictures in ((one, pair[1]), (pair[1], one)):
            with pytest.raises(InputError, match="single colour"):
                color_transfer(*pictures, out=tmp_path / "out", transport=LinearTransport())
        assert not (tmp_path / "out").exists()

    def test_default_estimator_gets_its_options(self, pair, tmp_path, monkeypatch):
        given = {}

        def estimator(**options):
            given.update(options)
            return LinearTransport()

        def watch(event):
            pass

        monkeypatch.setattr(pipeline, "NCFTransport", estimator)
        options = {"steps": 7, "time_budget": 2.5, "random_state": 3}
        color_transfer(*pair, out=tmp_path, callbacks=[watch], **options)
        assert given == options | {"callbacks": (watch,)}
        color_transfer(*pair, out=tmp_path)
        assert given["steps"] == pipeline.STEPS

    def test_options_of_the_default_estimator_need_it(self, pair, tmp_path):
        with pytest.raises(InputError, match="default estimator"):
            color_transfer(*pair, out=tmp_path, transport=LinearTransport(), steps=10)

    @pytest.mark.parametrize("blocked", ["", "contact_sheet.png"])
    def test_unwritable_place_is_found_before_the_fit(self, pair, tmp_path, blocked):
        class NeverFitted(LinearTransport):
            def fit(self, Xs, Xt):
                raise AssertionError

        out = tmp_path / "out"
        if blocked:
            (out / blocked).mkdir(parents=True)
        else:
            out.write_text("a file where the folder should be")
        with pytest.raises(OutputError, match="out"):
            color_transfer(*pair, out=out, transport=NeverFitted())

    def test_full_disk_leaves_nothing_half_written(self, pair, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            color_transfer(*pair, out=tmp_path / "out", transport=LinearTransport())
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize("shape", [(1, 60), (60, 1), (2, 400)])
    def test_odd_shapes_and_names(self, save, tmp_path, shape):
        source = save(noise(*shape), "a $x^2$ very long name " + "x" * 100 + ".png")
        result = color_transfer(
            source, save(noise(9, 8, seed=1)), out=tmp_path, transport=LinearTransport()
        )
        assert read_image(result.files["source_in_target_colors"]).pixels.shape[:2] == shape


@pytest.mark.slow
def test_two_photographs(tmp_path):
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        write_png(tmp_path / f"{name}.png", pixels[::4, ::4].copy())
    result = color_transfer(
        tmp_path / "china.png",
        tmp_path / "flower.png",
        out=tmp_path,
        transport=NCFTransport(steps=600, batch_size=1_000, random_state=0),
        samples=5_000,
    )
    assert set(result.fit) == {"status", "message", "steps", "method"}
    for scores in result.scores.values():
        best = min(scores[name]["energy_distance"] for name in ("histogram_matching", "reinhard"))
        assert scores["brenier"]["energy_distance"] < 0.5 * best


@pytest.mark.slow
def test_forty_megapixels(tmp_path):
    pixels = np.tile(noise(500, 500), (10, 16, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    (tmp_path / "large.png").write_bytes(buffer.getvalue())
    write_png(tmp_path / "small.png", noise(50, 50, seed=1))
    del pixels, buffer
    tracemalloc.start()
    try:
        result = color_transfer(
            tmp_path / "large.png",
            tmp_path / "small.png",
            out=tmp_path,
            transport=LinearTransport(),
            samples=1_000,
        )
        # The picture and its recoloured version take 240 MB; Pillow's own memory is not counted.
        assert tracemalloc.get_traced_memory()[1] < 1e9
    finally:
        tracemalloc.stop()
    recolored = read_image(result.files["source_in_target_colors"])
    assert recolored.pixels.shape == (5000, 8000, 3)
