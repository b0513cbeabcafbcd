"""The two classical ways to give a picture the colours of another, for comparison."""

from __future__ import annotations

import warnings

import numpy as np
from skimage.color import lab2rgb, rgb2lab

from brenier.color.images import ColorImage
from brenier.color.mapping import color_samples, transfer
from brenier.color.scores import channel_histograms

_MOMENT_PIXELS = 1_000_000


def histogram_matching(source: ColorImage, target: ColorImage) -> np.ndarray:
    """The visible pixels of `source`, (n, 3), each channel matched on its own to `target`.

    The map of `skimage.exposure.match_histograms`, as a table of the 256 levels so that memory
    stays small, and rounded where that function truncates 8-bit pictures.
    """
    pixels = source.visible()
    matched = np.empty_like(pixels)
    histograms = channel_histograms(pixels), channel_histograms(target.visible())
    for channel, (h, k) in enumerate(zip(*histograms, strict=True)):
        levels = np.flatnonzero(k)
        table = np.interp(np.cumsum(h), np.cumsum(k)[levels], levels)
        matched[:, channel] = np.rint(table).astype(np.uint8)[pixels[:, channel]]
    return matched


def reinhard(source: ColorImage, target: ColorImage) -> np.ndarray:
    """The visible pixels of `source`, (n, 3), with the CIELAB means and deviations of `target`.

    Reference:
        Reinhard et al. 2001, "Color Transfer between Images", equations 10 and 11, with CIELAB
        in place of lαβ.
    """

    def moments(image: ColorImage) -> tuple[np.ndarray, np.ndarray]:
        n = min(_MOMENT_PIXELS, len(image.visible()))
        lab = rgb2lab(color_samples(image, n, 0, dequantize=False))
        return lab.mean(axis=0), lab.std(axis=0)

    (mean, std), (new_mean, new_std) = moments(source), moments(target)
    scale = new_std / np.maximum(std, 1e-6)

    def color_map(colors: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            # Lab values outside the gamut of sRGB are clipped; that is the method, not an accident.
            warnings.filterwarnings("ignore", message="Conversion from CIE-LAB")
            return lab2rgb((rgb2lab(colors) - mean) * scale + new_mean)

    return source.visible(transfer(source, color_map))
