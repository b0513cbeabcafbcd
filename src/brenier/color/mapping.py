"""Between pictures and the RGB cube: colours to fit a map on, and a map applied to every pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, UInt8

from brenier.color.images import ColorImage
from brenier.errors import DivergenceError, InputError

ColorMap = Callable[[np.ndarray], np.ndarray]
"""Colours in [0, 1], (n, 3), to colours, (n, 3), which may leave the cube."""

_BLOCK = 1 << 20  # pixels
_TABLE = 1 << 24  # entries


def color_samples(
    image: ColorImage, n: int, rng: np.random.Generator | int, *, dequantize: bool = True
) -> Float[np.ndarray, "n 3"]:
    """Colours of random visible pixels, as float32 points of the RGB cube.

    Eight-bit colours are a lattice full of ties, which no continuous map can split. Uniform noise
    of one 8-bit step fills the cells of that lattice; it keeps the mean and rounds back to the
    same colour.

    Args:
        image: fully transparent pixels are not drawn.
        n: number of colours, without repetition up to the number of visible pixels.
        rng: generator or seed.
        dequantize: add the noise.

    Example:
        >>> gradient = ColorImage(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
        >>> color_samples(gradient, 10, 0).shape
        (10, 3)
    """
    if n < 1:
        raise InputError(f"Expected at least one colour sample, found n={n}.")
    rng = np.random.default_rng(rng)
    pixels = image.visible()
    rows = rng.choice(len(pixels), n, replace=n > len(pixels), shuffle=False)
    colors = pixels[rows].astype(np.float32)
    if dequantize:
        colors += rng.random((n, 3), np.float32) - np.float32(0.5)
    return colors / 255


def transfer(
    image: ColorImage, color_map: ColorMap, *, dither: int = 16, chunk: int = 1 << 18, seed: int = 0
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture at full resolution with every visible colour sent through a map.

    A picture has at most 2^24 colours, usually far fewer than pixels. Each is mapped in a few
    variants within its 8-bit cell, clipped to the cube and rounded; every pixel of the colour then
    takes one of them at random. Without variants a map that stretches leaves gaps between the
    levels, seen as bands in a smooth sky and as a comb in the histogram. Memory beside the two
    pictures is some 200 MB, whatever their size.

    Args:
        image: fully transparent pixels keep the colour nobody sees.
        color_map: colours in [0, 1], float32 (m, 3), to colours, (m, 3).
        dither: variants of each colour, fewer for a picture of very many colours; 1 for none.
        chunk: largest m.
        seed: of the variants.

    Raises:
        InputError: the map returns another shape.
        DivergenceError: the map returns NaN.

    Example:
        >>> image = ColorImage(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
        >>> negative = transfer(image, lambda colors: 1 - colors)
        >>> bool((negative == 255 - image.pixels).all())
        True
    """
    present = np.zeros(1 << 24, bool)
    for rows in _row_blocks(image):
        codes = _codes(image.pixels[rows])
        present[codes if image.shown is None else codes[image.shown[rows]]] = True
    codes = np.flatnonzero(present)
    if not len(codes):
        return image.pixels.copy()
    ranks = np.zeros(len(present), np.int32)  # 0 also for colours that only hidden pixels have
    ranks[codes] = np.arange(len(codes), dtype=np.int32)
    variants = max(1, min(dither, _TABLE // len(codes)))

    rng = np.random.default_rng(seed)
    table = np.empty((variants, len(codes), 3), np.uint8)
    for variant in range(variants):
        for start in range(0, len(codes), chunk):
            block = codes[start : start + chunk]
            colors = np.stack([block >> 16, block >> 8 & 255, block & 255], axis=1)
            colors = colors.astype(np.float32)
            if variants > 1:
                # Not quite to the edge of the cell, so that the identity rounds back exactly.
                colors += rng.uniform(-0.49, 0.49, colors.shape).astype(np.float32)
            mapped = _eight_bit(color_map(colors / 255), len(block))
            table[variant, start : start + chunk] = mapped

    result = image.pixels.copy()
    for rows in _row_blocks(image):
        codes = _codes(image.pixels[rows])
        mapped = table[rng.integers(variants, size=codes.shape, dtype=np.uint8), ranks[codes]]
        if image.shown is None:
            result[rows] = mapped
        else:
            np.copyto(result[rows], mapped, where=image.shown[rows, :, None])
    return result


def _eight_bit(colors: np.ndarray, n: int) -> np.ndarray:
    colors = np.asarray(colors)
    if colors.shape != (n, 3):
        raise InputError(f"Expected the map to return shape ({n}, 3), found {colors.shape}.")
    if np.isnan(colors).any():
        raise DivergenceError("The colour map returned NaN; fit it again with another seed.")
    return np.rint(np.clip(colors, 0, 1) * 255).astype(np.uint8)


def _row_blocks(image: ColorImage) -> Iterator[slice]:
    height, width = image.pixels.shape[:2]
    step = max(1, _BLOCK // width)
    return (slice(start, start + step) for start in range(0, height, step))


def _codes(pixels: np.ndarray) -> np.ndarray:
    """Each colour as one number below 2^24."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return red << 16 | green << 8 | blue
