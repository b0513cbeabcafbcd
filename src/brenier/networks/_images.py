"""Networks of images, flattened channels-last to points: d = height · width · channels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from brenier.errors import InputError
from brenier.networks._activations import activation
from brenier.typing import Key, Point, Scalar

_GROUPS = 8
_FREQUENCIES = 4
_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Convolution(eqx.Module):
    """A convolution of one image (height, width, in), the same size out."""

    kernel: Float[Array, "k k in out"]
    bias: Float[Array, "out"]

    def __init__(self, size: int, into: int, out: int, *, key: Key | None):
        shape = (size, size, into, out)
        fan = size * size * into
        # Without a key, zeros: the block starts as nothing.
        self.kernel = jnp.zeros(shape) if key is None else jax.random.normal(key, shape) / fan**0.5
        self.bias = jnp.zeros(out)

    def __call__(self, x: Float[Array, "height width in"]) -> Float[Array, "height width out"]:
        kernel, bias = self.kernel.astype(x.dtype), self.bias.astype(x.dtype)
        # XLA differentiates convolutions into ones for which it has slow loops alone on a CPU.
        y = jax.lax.platform_dependent(x, kernel, cpu=_by_products, default=_by_convolution)
        return y + bias[None, None]


def _by_convolution(
    x: Float[Array, "h w in"], kernel: Float[Array, "k k in out"]
) -> Float[Array, "h w out"]:
    y = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)
    return y[0]


def _by_products(
    x: Float[Array, "h w in"], kernel: Float[Array, "k k in out"]
) -> Float[Array, "h w out"]:
    """One product of matrices, with the neighbours of a pixel as more of its channels."""
    height, width, channels = x.shape
    size = len(kernel)
    before, after = (size - 1) // 2, size // 2
    padded = jnp.pad(x, ((before, after), (before, after), (0, 0)))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    beside = [padded[i : i + height, j : j + width] for i, j in shifts]
    flat = kernel.reshape(size * size * channels, -1)
    return jnp.concatenate(beside, axis=-1) @ flat


class Block(eqx.Module):
    """Two convolutions beside a skip, `(skip + f) / √2`; the second one starts at zero."""

    first: Convolution
    second: Convolution
    skip: Convolution
    scales: tuple[Float[Array, "..."], ...]
    activation: str = eqx.field(static=True)

    def __init__(self, into: int, out: int, *, normalize: bool, activation: str, key: Key):
        one, two = jax.random.split(key)
        self.first = Convolution(3, into, out, key=one)
        self.second = Convolution(3, out, out, key=None)
        self.skip = Convolution(1, into, out, key=two)
        self.scales = (jnp.ones(into), jnp.ones(out)) if normalize else ()
        self.activation = activation

    def __call__(
        self,
        x: Float[Array, "height width in"],
        shift: Float[Array, "out"] | None = None,
    ) -> Float[Array, "height width out"]:
        act = activation(self.activation)
        h = self.first(act(self._normalized(x, 0)))
        if shift is not None:
            h = h + shift.astype(h.dtype)[None, None]
        h = self.second(act(self._normalized(h, 1)))
        return (self.skip(x) + h) / 2**0.5

    def _normalized(self, x: Float[Array, "h w c"], which: int) -> Float[Array, "h w c"]:
        """By groups of channels, over each of them and the picture; in float32 whatever `x` is."""
        if not self.scales:
            return x
        height, width, channels = x.shape
        groups = _GROUPS if channels % _GROUPS == 0 else 1
        parts = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(
            height, width, groups, channels // groups
        )
        mean = jnp.mean(parts, axis=(0, 1, 3), keepdims=True)
        variance = jnp.var(parts, axis=(0, 1, 3), keepdims=True)
        parts = (parts - mean) * jax.lax.rsqrt(variance + 1e-5)
        scale = self.scales[which].astype(parts.dtype)
        return (parts.reshape(x.shape) * scale[None, None]).astype(x.dtype)


class UNet(eqx.Module):
    """A map of images, `x + f(x)`, with `f` a compact U-Net whose last layer starts at zero: the identity.

    Args:
        shape: (height, width, channels), both sides divisible by 2 to the power of the number of widths less one.
        widths: channels at full size, half of it, and so on.
        precision: "float32", or "bfloat16" for the convolutions, with float32 weights.

    Raises:
        InputError: a shape that cannot be halved so often.

    References:
        Ronneberger, Fischer and Brox, *U-Net*, MICCAI 2015.

    Example:
        >>> T = UNet((8, 8, 1), (4, 8), key=jax.random.key(0))
        >>> T(jnp.ones(64)).tolist() == [1.0] * 64
        True
    """

    stem: Convolution
    down: tuple[Block, ...]
    up: tuple[Block, ...]
    head: Convolution
    shape: tuple[int, int, int] = eqx.field(static=True)
    precision: str = eqx.field(static=True)

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int] = (32, 64, 128),
        *,
        activation: str = "silu",
        precision: str = "float32",
        key: Key,
    ):
        self.shape = _checked_shape(shape, widths)
        self.precision = _checked_precision(precision)
        channels = self.shape[2]
        stem, *keys = jax.random.split(key, 2 * len(widths))
        options = {"normalize": True, "activation": activation}
        self.stem = Convolution(3, channels, widths[0], key=stem)
        steps = [(widths[0], widths[0]), *pairwise(widths)]
        self.down = tuple(
            Block(n, m, key=k, **options) for (n, m), k in zip(steps, keys, strict=False)
        )
        # On the way up a block sees what comes from below beside what was there on the way down.
        back = list(pairwise(reversed(widths)))
        self.up = tuple(
            Block(n + m, m, key=k, **options)
            for (n, m), k in zip(back, keys[len(widths) :], strict=False)
        )
        self.head = Convolution(3, widths[0], channels, key=None)

    def __call__(self, x: Point) -> Point:
        h = self.stem(x.reshape(self.shape).astype(_computed(self.precision, x)))
        passed = []
        for level, block in enumerate(self.down):
            h = block(_halved(h) if level else h)
            passed.append(h)
        for block, beside in zip(self.up, reversed(passed[:-1]), strict=True):
            h = block(jnp.concatenate([_doubled(h), beside], axis=-1))
        return x + self.head(h).astype(x.dtype).reshape(-1)


class ConvPotential(eqx.Module):
    """`u(t, x)` of images: blocks of convolutions, halved in between, whose channels are shifted by features of `t`.

    Without normalisation, which would hide the size of the gradient from the Hamilton–Jacobi equation. The features are
    `sin(π k t)/k, cos(π k t)/k`, few and slow, for `∂t u` has to be learned as well.

    Args:
        shape, widths, precision: as of `UNet`.

    Example:
        >>> u = ConvPotential((8, 8, 1), (4, 8), key=jax.random.key(0))
        >>> u(jnp.asarray(0.5), jnp.ones(64)).shape
        ()
    """

    stem: Convolution
    blocks: tuple[Block, ...]
    times: tuple[Float[Array, "features out"], ...]
    head: Float[Array, "width"]
    shape: tuple[int, int, int] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    precision: str = eqx.field(static=True)

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int] = (32, 64, 128, 128),
        *,
        activation: str = "silu",
        precision: str = "float32",
        key: Key,
    ):
        self.shape = _checked_shape(shape, widths)
        self.precision = _checked_precision(precision)
        self.activation = activation
        stem, head, *keys = jax.random.split(key, 2 + 2 * len(widths))
        self.stem = Convolution(3, self.shape[2], widths[0], key=stem)
        steps = [(widths[0], widths[0]), *pairwise(widths)]
        self.blocks = tuple(
            Block(n, m, normalize=False, activation=activation, key=k)
            for (n, m), k in zip(steps, keys[: len(widths)], strict=True)
        )
        features = 2 * _FREQUENCIES
        self.times = tuple(
            jax.random.normal(k, (features, m)) / features**0.5
            for m, k in zip(widths, keys[len(widths) :], strict=True)
        )
        self.head = jax.random.normal(head, (widths[-1],)) / widths[-1] ** 0.5

    def __call__(self, t: Scalar, x: Point) -> Scalar:
        k = jnp.arange(1, _FREQUENCIES + 1, dtype=x.dtype)
        features = jnp.concatenate([jnp.sin(jnp.pi * k * t), jnp.cos(jnp.pi * k * t)])
        features = features / jnp.tile(k, 2)
        h = self.stem(x.reshape(self.shape).astype(_computed(self.precision, x)))
        for level, (block, time) in enumerate(zip(self.blocks, self.times, strict=True)):
            h = block(_halved(h) if level else h, features @ time)
        summed = jnp.sum(activation(self.activation)(h).astype(x.dtype), axis=(0, 1))
        return summed @ self.head


def _halved(x: Float[Array, "h w c"]) -> Float[Array, "half_h half_w c"]:
    height, width, channels = x.shape
    return x.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3))


def _doubled(x: Float[Array, "h w c"]) -> Float[Array, "two_h two_w c"]:
    return jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)


def _computed(precision: str, x: Point) -> jnp.dtype:
    return jnp.dtype(jnp.bfloat16) if precision == "bfloat16" else x.dtype


def _checked_shape(shape: Sequence[int], widths: Sequence[int]) -> tuple[int, int, int]:
    factor = 2 ** (len(widths) - 1)
    if len(shape) != 3 or min(shape) < 1 or shape[0] % factor or shape[1] % factor:
        raise InputError(
            f"Expected the shape (height, width, channels) of images with sides divisible by {factor}, "
            f"which {len(widths)} widths halve {len(widths) - 1} times; found {tuple(shape)}."
        )
    return int(shape[0]), int(shape[1]), int(shape[2])


def _checked_precision(precision: str) -> str:
    if precision not in ("float32", "bfloat16"):
        raise InputError(f"Expected precision to be float32 or bfloat16, found {precision!r}.")
    return precision
