"""Sets of images as samples: read as they are needed, flattened to points in [-1, 1]."""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from brenier.color.images import ColorImage, read_image
from brenier.errors import BrenierWarning, InputError
from brenier.samplers import EVERY, Encode, Sampler
from brenier.typing import Key

POOLED = 2048
"""Images that are in memory at once, at most, besides batches: for moments and validation."""

_GREY = np.array([0.299, 0.587, 0.114])


class ImageFolder(Sampler):
    """The images below a folder, drawn uniformly, with replacement, from disk.

    Batches are read by a few threads, while the steps before are computed. A point is an image of `size`, channels
    last, flattened: d = height · width · channels, values from -1 (black) to 1. What is transparent counts as white.

    Args:
        folder: searched with everything below; files whose names end as images do are taken.
        size: (height, width); images of other sizes are cut to the middle and resampled. When left out, all
            must have one size already.
        channels: 3 for sRGB, 1 for grey.
        flip: whether half of the images, at random, are mirrored left to right.
        damaged: "raise" names the first file that cannot be read; "skip" warns of each and takes the next one.
        threads: that read.

    Raises:
        InputError: no folder, no images in it, images of different sizes without `size`, a damaged file.

    Example:
        >>> cats = ImageFolder("cats", size=(32, 32))                               # doctest: +SKIP
        >>> problem = brenier.TransportProblem(cats, ImageFolder("dogs", size=(32, 32)))  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        size: Sequence[int] | None = None,
        *,
        channels: int = 3,
        flip: bool = False,
        damaged: Literal["raise", "skip"] = "raise",
        threads: int = 4,
    ):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"Expected a folder of images, but {self.folder} is none.")
        if channels not in (1, 3):
            raise InputError(f"Expected 1 channel (grey) or 3 (colour), found {channels!r}.")
        if damaged not in ("raise", "skip"):
            raise InputError(f'Expected damaged to be "raise" or "skip", found {damaged!r}.')
        if not (isinstance(threads, int) and threads >= 1):
            raise InputError(f"Expected a whole number of threads >= 1, found {threads!r}.")
        endings = Image.registered_extensions()
        self._files = sorted(
            path
            for path in self.folder.rglob("*")
            if path.suffix.lower() in endings and path.is_file()
        )
        self._flip, self._damaged = flip, damaged
        if size is None:
            self._files, size = self._common_size()
        if len(self._files) < 2:
            raise InputError(
                f"Expected at least 2 images in {self.folder}, found {len(self._files)}."
            )
        if len(size) != 2 or min(size) < 1:
            raise InputError(f"Expected size as (height, width), both >= 1, found {size!r}.")
        self.shape = (int(size[0]), int(size[1]), channels)
        self.dim, self.dtype = int(np.prod(self.shape)), np.dtype(np.float32)
        self._encode: Encode | None = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")

    @property
    def size(self) -> int:  # type: ignore[override]  # computed, not set
        return len(self._files)

    def _common_size(self) -> tuple[list[Path], tuple[int, int]]:
        """The files that are images, and the one (height, width) they have."""
        sizes: dict[Path, tuple[int, int]] = {}
        for path in self._files:
            try:
                with Image.open(path) as file:
                    turned = file.getexif().get(0x0112, 1) >= 5  # lies on its side
                    sizes[path] = (file.width, file.height) if turned else (file.height, file.width)
            except Exception as error:
                self._complain(path, error)
        different = {size: path for path, size in reversed(sizes.items())}
        if len(different) > 1:
            one, other, *_ = different.items()
            raise InputError(
                f"Expected images of one size in {self.folder}, found "
                + " and ".join(f"{h} x {w} ({path.name})" for (h, w), path in (one, other))
                + " (height x width); give size=(height, width) to resample them."
            )
        return list(sizes), next(iter(different), (0, 0))

    def _complain(self, path: Path, error: Exception) -> None:
        if self._damaged == "raise":
            if isinstance(error, InputError):
                raise error
            raise InputError(
                f'Expected an image in {path}, found something else ({error}); remove it, or pass damaged="skip".'
            ) from error
        warnings.warn(
            f"Skipped {path}, which cannot be read: {error}", BrenierWarning, stacklevel=2
        )

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(self, index: int, mirrored: bool) -> np.ndarray:
        """An image as a point; the next one that can be read where this one cannot."""
        for step in range(self.size):
            path = self._files[(index + step) % self.size]
            try:
                image = read_image(path, large=False)
            except Exception as error:
                self._complain(path, error)
                continue
            point = self._as_point(image)
            return point[:, ::-1].reshape(-1) if mirrored else point.reshape(-1)
        raise InputError(f"Expected images in {self.folder}, found none that can be read.")

    def _as_point(self, image: ColorImage) -> np.ndarray:
        height, width, channels = self.shape
        pixels = image.pixels.astype(np.float32)
        if image.alpha is not None:
            cover = image.alpha[..., None].astype(np.float32) / 255
            pixels = cover * pixels + 255 * (1 - cover)
        if pixels.shape[:2] != (height, width):
            picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
            pixels = np.asarray(picture, np.float32)
        if channels == 1:
            pixels = (pixels @ _GREY)[..., None]
        return (pixels / 127.5 - 1.0).astype(np.float32)

    def _start(
        self, key: Key, start: int, count: int, n: int, rows: slice
    ) -> list[list[Future[Any]]]:
        """Begins to read these rows of the batches of some steps."""
        seed = np.asarray(jax.random.key_data(key)).tolist()
        batches = []
        for step in range(start, start + count):
            rng = np.random.default_rng((*seed, step))
            chosen = np.arange(n) if n == self.size else rng.integers(self.size, size=n)
            mirrored = rng.random(n) < 0.5 if self._flip else np.zeros(n, bool)
            batches.append(
                [
                    self._pool.submit(self._read, int(i), bool(m))
                    for i, m in zip(chosen[rows], mirrored[rows], strict=True)
                ]
            )
        return batches

    def _points(self, images: list[np.ndarray]) -> np.ndarray:
        points = np.stack(images)
        return np.asarray(points if self._encode is None else self._encode(points), self.dtype)

    # -- the face of a sampler -------------------------------------------------------------------------------------

    def draw(
        self,
        key: Key,
        start: int,
        count: int,
        n: int,
        *,
        stratified: bool = False,
        rows: slice = EVERY,
    ) -> jax.Array:
        del stratified  # reading everything would defeat the purpose
        n = self.batch(n)
        batches = self._start(key, start, count, n, rows)
        return jnp.asarray(np.stack([self._points([f.result() for f in b]) for b in batches]))

    def pool(self, n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        rows = rng.choice(self.size, min(n, self.size, POOLED), replace=False)
        return self._points(list(self._pool.map(lambda i: self._read(int(i), False), rows)))

    def split(self, n: int, seed: int) -> tuple[ImageFolder, np.ndarray]:
        order = np.random.default_rng(seed).permutation(self.size)
        held, rest = copy.copy(self), copy.copy(self)
        held._files = [self._files[i] for i in np.sort(order[:n])]
        rest._files = [self._files[i] for i in np.sort(order[n:])]
        return rest, held.pool(n, seed)

    def encoded(self, encode: Encode, dtype: Any) -> ImageFolder:
        other = copy.copy(self)
        other._encode, other.dtype = encode, np.dtype(dtype)
        return other

    def digest(self) -> str:
        names = "\n".join(
            f"{path.relative_to(self.folder)} {path.stat().st_size}" for path in self._files
        )
        return hashlib.sha256(f"{self.shape}{self._flip}\n{names}".encode()).hexdigest()[:16]
