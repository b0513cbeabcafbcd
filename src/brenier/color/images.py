"""Pictures in and out: whatever Pillow reads becomes 8-bit sRGB, with alpha where there is any."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from brenier.errors import BrenierWarning, InputError
from brenier.files import PathLike, atomic_write

MAX_PIXELS = 400_000_000
"""Largest picture that is read, in pixels (about 3 GB while decoding)."""

_PILLOW_LIMIT = threading.Lock()


@dataclass(frozen=True, eq=False)
class ColorImage:
    """A picture as 8-bit sRGB.

    Attributes:
        pixels: (height, width, 3), upright.
        alpha: (height, width), or None for an opaque picture.
        name: what to call it in figures; the file name without its folder.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    alpha: UInt8[np.ndarray, "height width"] | None = None
    name: str = "image"

    @cached_property
    def shown(self) -> np.ndarray | None:
        """Boolean (height, width), false where fully transparent; None when every pixel shows."""
        return None if self.alpha is None or self.alpha.all() else self.alpha > 0

    def visible(self, pixels: np.ndarray | None = None) -> np.ndarray:
        """The pixels that show, (n, 3), of this picture or of a recoloured version of it."""
        pixels = self.pixels if pixels is None else pixels
        return pixels.reshape(-1, 3) if self.shown is None else pixels[self.shown]


def read_image(path: PathLike, *, large: bool = True) -> ColorImage:
    """Reads a picture as upright 8-bit sRGB.

    Every mode has one decided reading. An animation gives its first frame. The EXIF rotation is
    applied. An embedded colour profile is converted to sRGB, because a transport between two
    colour spaces would be meaningless. Grey, 1-bit, palette, CMYK, YCbCr, HSV and LAB become
    RGB; 16-bit grey is divided by 257; floating-point grey must lie in [0, 1]. Transparency of
    any kind becomes an alpha channel.

    Args:
        path: a file in any format Pillow reads.
        large: whether to read up to `MAX_PIXELS`, one picture at a time. Otherwise Pillow's own limit
            holds, and threads may read at once.

    Raises:
        InputError: the file is missing, empty, no picture, damaged, fully transparent, or larger
            than `MAX_PIXELS`.

    Example:
        >>> image = read_image("photo.jpg")              # doctest: +SKIP
        >>> image.pixels.shape                           # doctest: +SKIP
        (1080, 1920, 3)
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"Expected an image file, but {path} does not exist; check the path.")
    if not path.is_file():
        raise InputError(f"Expected an image file, but {path} is not a file; give one picture.")
    try:
        with _without_pillow_limit() if large else nullcontext(), Image.open(path) as file:
            image = _decode(file, path)
    except (InputError, MemoryError, Warning):
        raise
    except UnidentifiedImageError as error:
        found = "an empty file" if path.stat().st_size == 0 else "no image format Pillow knows"
        raise InputError(f"Expected an image, found {found} in {path}; try PNG or JPEG.") from error
    except PermissionError as error:
        raise InputError(f"Cannot read {path}: permission denied.") from error
    except Exception as error:  # a decoder fed damaged bytes may raise almost anything
        raise InputError(f"The image {path} is damaged and cannot be decoded: {error}.") from error
    if image.shown is not None and not image.shown.any():
        raise InputError(f"Every pixel of {path} is fully transparent; give a picture that shows.")
    return image


def write_png(path: PathLike, pixels: np.ndarray, alpha: np.ndarray | None = None) -> None:
    """Writes 8-bit sRGB pixels, with alpha where given, as a PNG that replaces `path` atomically.

    Raises:
        OutputError: the file cannot be written; a former file at `path` is then untouched.
    """
    atomic_write(path, encode_png(pixels, alpha))


def encode_png(pixels: np.ndarray, alpha: np.ndarray | None = None) -> bytes:
    """The bytes of a PNG marked as sRGB: lossless, with alpha, and read by everything."""
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"sRGB", b"\0")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Pillow's own limit warns at 90 megapixels and its setting is global: ours replaces it."""
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(file: Image.Image, path: Path) -> ColorImage:
    width, height = file.size
    if width * height == 0:
        raise InputError(
            f"Expected a picture with pixels, found size {width} x {height} in {path}."
        )
    if width * height > MAX_PIXELS:
        raise InputError(
            f"Expected at most {MAX_PIXELS / 1e6:.0f} megapixels, found {width} x {height} "
            f"({width * height / 1e6:.0f} megapixels) in {path}; make the picture smaller."
        )
    file.load()
    with suppress(Exception):  # damaged metadata should not cost a picture its pixels
        ImageOps.exif_transpose(file, in_place=True)
    image = _eight_bit(file, path)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode == "La" else "RGBA")
        alpha = np.asarray(image.getchannel("A"))
    return ColorImage(np.asarray(_srgb(image, path)), alpha, path.name)


def _eight_bit(image: Image.Image, path: Path) -> Image.Image:
    """Scales the grey modes with more than 8 bits, which Pillow would clip to 255."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    top = 1.0 if image.mode == "F" else 65535
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):
        raise InputError(
            f"Expected grey values between 0 and {top}, found {low} to {high} in {path}; "
            "scale them and save the picture again."
        )
    scaled = Image.fromarray(np.rint(values * np.float32(255 / top)).astype(np.uint8))
    scaled.info = {key: image.info[key] for key in ("icc_profile",) if key in image.info}
    return scaled


def _srgb(image: Image.Image, path: Path) -> Image.Image:
    """Colours as sRGB, without alpha, through the embedded profile where there is a usable one."""
    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return _converted(image, lab, srgb)
    embedded = image.info.get("icc_profile")
    if embedded:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
            if "srgb" not in ImageCms.getProfileDescription(profile).lower():
                # Bytes 16 to 19 of a profile name the colour space of its device (ICC.1, 7.2.6).
                mode = {b"GRAY": "L", b"CMYK": "CMYK"}.get(embedded[16:20], "RGB")
                return _converted(image.convert(mode), profile, srgb)
        except (ImageCms.PyCMSError, OSError) as error:
            warnings.warn(
                f"The colour profile in {path} cannot be used ({error}); "
                "its colours are taken as sRGB.",
                BrenierWarning,
                stacklevel=4,
            )
    return image.convert("RGB")


def _converted(image: Image.Image, profile, srgb) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    assert converted is not None  # None is the answer of the in-place form
    return converted
