r"""How close the colours of one picture are to those of another, pixel positions ignored.

The three histogram scores compare the channels one by one, as the literature on colour transfer
does: `h`, `h'` are the 256-bin histograms of one channel, each summing to one, and a score is the
mean over R, G and B. They cannot see how the channels go together; the energy distance of the
colour clouds can.

Of the two earth mover's distances only `emd_positions` is the textbook one. Since
`emd_positions >= (1 - HI) / 256` always, and entries of published tables break this while obeying
`emd_heights <= 2 (1 - HI) / 256`, published values are probably `emd_heights`: compare those.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from brenier.discrepancies import energy_distance
from brenier.errors import InputError

_BLOCK = 1 << 22
_energy = jax.jit(partial(energy_distance, statistic="V"))


def channel_histograms(pixels: np.ndarray) -> Float[np.ndarray, "3 256"]:
    """Share of the pixels at each of the 256 levels, for each channel.

    Args:
        pixels: 8-bit colours, (..., 3), at least one.

    Raises:
        InputError: not 8-bit, not three channels, or no pixels.
    """
    if pixels.dtype != np.uint8 or pixels.shape[-1:] != (3,) or pixels.size == 0:
        raise InputError(
            "Expected 8-bit pixels of shape (..., 3), at least one, "
            f"found {pixels.dtype} of shape {pixels.shape}."
        )
    pixels = pixels.reshape(-1, 3)
    counts = np.zeros((3, 256), np.int64)
    # `bincount` widens its input to 8 bytes: blocks keep that small.
    for start in range(0, len(pixels), _BLOCK):
        for channel in range(3):
            block = pixels[start : start + _BLOCK, channel]
            counts[channel] += np.bincount(block, minlength=256)
    return counts / len(pixels)


def histogram_intersection(result: np.ndarray, target: np.ndarray) -> float:
    r"""Histogram intersection `HI = Σ_b min(h_b, h'_b)`, mean over channels.

    One for equal histograms, zero for disjoint ones; `1 - HI` is their total variation distance.

    Example:
        >>> black, white = np.zeros((4, 3), np.uint8), np.full((4, 3), 255, np.uint8)
        >>> histogram_intersection(black, black), histogram_intersection(black, white)
        (1.0, 0.0)
    """
    h, k = channel_histograms(result), channel_histograms(target)
    return float(np.minimum(h, k).sum(axis=1).mean())


def emd_positions(result: np.ndarray, target: np.ndarray) -> float:
    r"""Earth mover's distance along the levels, `(1/255) Σ_b |F_b - F'_b|`, mean over channels.

    `F` are the cumulative sums of `h`: the 1-Wasserstein distance with levels scaled to [0, 1].

    Example:
        >>> black, white = np.zeros((4, 3), np.uint8), np.full((4, 3), 255, np.uint8)
        >>> emd_positions(black, white)
        1.0
    """
    difference = channel_histograms(result) - channel_histograms(target)
    return float(np.abs(np.cumsum(difference, axis=1)).sum(axis=1).mean() / 255)


def emd_heights(result: np.ndarray, target: np.ndarray) -> float:
    r"""Earth mover's distance of bin heights, `(1/256) Σ_b |sort(h)_b - sort(h')_b|`, channel mean.

    Blind to *which* level has which height, so a shifted histogram scores zero. For comparison
    with published tables only.
    """
    h, k = (np.sort(channel_histograms(p), axis=1) for p in (result, target))
    return float(np.abs(h - k).mean())


def cloud_distance(
    result: np.ndarray, target: np.ndarray, *, samples: int = 5_000, random_state: int = 0
) -> float:
    r"""Energy distance `2 E|X-Y| - E|X-X'| - E|Y-Y'|` of two colour clouds in the unit RGB cube.

    The V-statistic of random pixels: never negative, and for two draws from one picture about
    `2 E|X-X'| / samples` instead of zero.

    Args:
        result: 8-bit colours, (..., 3).
        target: 8-bit colours, (..., 3).
        samples: pixels drawn from each, all of them where there are fewer.
        random_state: seed of the draw.
    """

    def draw(pixels: np.ndarray):
        pixels = pixels.reshape(-1, 3)
        rng = np.random.default_rng(random_state)
        if len(pixels) > samples:
            pixels = pixels[rng.choice(len(pixels), samples, replace=False, shuffle=False)]
        return jnp.asarray(pixels, jnp.float32) / 255

    return float(_energy(draw(result), draw(target)))


def color_scores(result: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """All four scores of a recoloured picture against the picture whose colours it should have."""
    return {
        "histogram_intersection": histogram_intersection(result, target),
        "emd_positions": emd_positions(result, target),
        "emd_heights": emd_heights(result, target),
        "energy_distance": cloud_distance(result, target),
    }
