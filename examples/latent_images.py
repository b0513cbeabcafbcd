"""Clothes to digits, and digits to other digits: class-conditional maps in the latent space of an autoencoder.

`python examples/latent_images.py --data FOLDER` reads `FOLDER/mnist` and `FOLDER/fashion_mnist` (`.npz` with `images`
and `labels`), and does everything in turn:

1. a beta-VAE for each data set, on its own, whose prior has a middle for each class, the vertices of a regular simplex:
   a map of codes can keep apart only what is apart there (with the same prior for all: `--plain`). They are far from
   each other, for between two classes that go to different places a map has to tear;
2. a classifier for each, which never sees a decoded image: it judges;
3. NCF maps between the standardised latents, both ways, with class labels: class k of the clothes to the digit k, digit
   k to 9 - k, digit k to k + 1; and k to 9 - k without the Hamilton-Jacobi term and by the dual. Classes that change
   places have to pass each other, so that term has a small part of its usual weight;
4. scores on test images, a table, `scores.json`, and pictures. `seen` are images the map was trained on, `unmoved` are
   codes that the target's decoder gets as they are: both priors have the same middles, so clothes lie about
   where they are to go and their map has little left to do. So it is fitted once more to codes that were turned first,
   each class to the place of another, and has all of it to do, as those of digits have.

The Frechet distance is taken between Gaussians fitted to the last hidden layer of that classifier: it is *not* the
Inception FID of the literature, and comparable within one table only. Style is the thickness and the slant of a digit:
`style` is their correlation before and after, within classes, 1 where a map leaves them alone.

Every result is kept in `--out`, so a second run continues where the first one stopped: remove a file to make it
again. Forty minutes on one core. `--quick` takes a minute or two and is a smoke run; without `--data` it uses
the small digits that scikit-learn brings, and their outlines in place of the clothes.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.typing import ArrayLike

import brenier
from brenier.files import atomic_write, open_atomic
from brenier.gaussian import gaussian_cost

SIDE, BATCH, CLASSES = 28, 128, 10
SHIFT = 1  # of training images, in pixels at most
MOMENTS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Size:
    """How much is done, and with which random numbers.

    Attributes:
        seed: of initial weights, batches, variants and maps.
        channels: of the seven convolutions.
        latent: dimension of the codes.
        updates: of each autoencoder and each classifier.
        rate: of their Adam, at its highest.
        radius: from the middle of the codes to the middle of each class.
        entropy: weight of the cross entropy of the classes beside the squared error of the pixels.
        mixing: of pictures, for the cross entropy; see `VAELoss`.
        variants: of each image, shifted and mirrored as for the autoencoder, whose codes a map learns from, too.
        steps: of each map.
        images: for training, at most.
        method: options of `brenier.NCF`.
    """

    seed: int = 0
    channels: tuple[int, ...] = (16, 16, 32, 32, 64, 64, 128)
    latent: int = 16
    updates: dict[str, int] = field(default_factory=lambda: {"digits": 6000, "clothes": 4000})
    rate: dict[str, float] = field(default_factory=lambda: {"digits": 1e-3, "clothes": 2e-3})
    radius: float = 11.0
    entropy: float = 15.0
    mixing: dict[str, float] = field(default_factory=lambda: {"digits": 0.0, "clothes": 0.4})
    variants: int = 4
    steps: int = 3000
    images: int | None = None
    method: dict[str, Any] = field(default_factory=dict)


FULL = Size()
QUICK = Size(
    channels=(4, 4, 4, 4, 8, 8, 8),
    updates={"digits": 300, "clothes": 300},
    rate={"digits": 3e-3, "clothes": 3e-3},
    steps=300,
    images=1000,
    method={"batch_size": 100, "widths": (16, 16)},
)


class Images(NamedTuple):
    """Pictures (n, 28, 28) from 0 (background) to 1, and their classes."""

    pixels: np.ndarray
    labels: np.ndarray


# -- data ------------------------------------------------------------------------------------------------------


def read(folder: Path | None, name: str, size: Size) -> tuple[Images, Images]:
    """Images for training and for the scores."""
    if folder is None:
        train, test = stand_in(name)
    else:
        file = {"digits": "mnist", "clothes": "fashion_mnist"}[name]
        train, test = (_load(folder / file / f"{file}_{part}.npz") for part in ("train", "test_a"))
    return Images(*(column[: size.images] for column in train)), test


def _load(path: Path) -> Images:
    with np.load(path) as arrays:
        return Images(arrays["images"].astype(np.float32) / 255.0, arrays["labels"].astype(int))


def stand_in(name: str) -> tuple[Images, Images]:
    """Digits of eight by eight pixels, enlarged; as "clothes" their outlines."""
    from sklearn.datasets import load_digits

    small, labels = map(np.asarray, load_digits(return_X_y=True))
    pixels = np.kron(small.reshape(-1, 8, 8), np.ones((3, 3))).astype(np.float32) / 16.0
    pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
    if name == "clothes":
        down, across = np.gradient(pixels, axis=(1, 2))
        pixels = np.clip(np.hypot(down, across), 0.0, 1.0)
    return Images(pixels[:1200], labels[:1200]), Images(pixels[1200:], labels[1200:])


# -- the autoencoder -------------------------------------------------------------------------------------------


def convolutions(channels: tuple[int, ...], key: jax.Array) -> list[eqx.nn.Conv2d]:
    """Seven, to four by four pixels."""
    strides = (2, 1, 2, 1, 2, 1, 1)
    pairs = zip((1, *channels[:-1]), channels, strides, jax.random.split(key, 7), strict=True)
    return [eqx.nn.Conv2d(first, last, 3, stride, 1, key=key) for first, last, stride, key in pairs]


FINER = (2, 4, 7)  # layers of the decoder: 4 -> 7 -> 14 -> 28 pixels


class VAE(eqx.Module):
    """Seven convolutions to a Gaussian over codes, and eight back.

    Three of those back give four times the channels, which are spread over two by two pixels: on a CPU transposed ones
    take twice the time. Units of the decoder leak, for those that do not may all die at a high rate. The pixels'
    variance is fixed, and small, so that the picture comes first and the prior second (beta-VAE).
    """

    encoder: list[eqx.nn.Conv2d]
    dense: eqx.nn.Linear
    mean: eqx.nn.Linear
    log_variance: eqx.nn.Linear
    start: eqx.nn.Linear
    decoder: list[eqx.nn.Conv2d]

    def __init__(self, channels: tuple[int, ...], latent: int, key: jax.Array):
        keys = iter(jax.random.split(key, 32))
        top = 16 * channels[-1]  # four by four pixels
        self.encoder = convolutions(channels, next(keys))
        self.dense = eqx.nn.Linear(top, 128, key=next(keys))
        self.mean = eqx.nn.Linear(128, latent, key=next(keys))
        self.log_variance = eqx.nn.Linear(128, latent, key=next(keys))
        self.start = eqx.nn.Linear(latent, top, key=next(keys))
        outs = (*channels[-2::-1], channels[0], 1)
        pairs = zip((channels[-1], *outs[:-1]), outs, strict=True)
        self.decoder = [
            eqx.nn.Conv2d(last, 4 * out if i in FINER else out, 3, padding=1, key=next(keys))
            for i, (last, out) in enumerate(pairs)
        ]

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the code of one picture (28, 28)."""
        h = x[None]
        for layer in self.encoder:
            h = jax.nn.relu(layer(h))
        h = jax.nn.relu(self.dense(h.ravel()))
        return self.mean(h), self.log_variance(h)

    def decode(self, z: jax.Array) -> jax.Array:
        """The picture (28, 28) of one code."""
        h = self.start(z).reshape(-1, 4, 4)
        for i, layer in enumerate(self.decoder):
            h = layer(jax.nn.leaky_relu(h, 0.1))
            if i in FINER:
                h = finer(h)
        return jax.nn.sigmoid(h)[0]


def finer(h: jax.Array) -> jax.Array:
    """Shape (4c, n, n) to (c, 2n, 2n), and to seven in place of eight pixels."""
    n = h.shape[1]
    h = h.reshape(-1, 2, 2, n, n).transpose(0, 3, 1, 4, 2).reshape(-1, 2 * n, 2 * n)
    return h[:, :7, :7] if n == 4 else h


def untrained(build: Callable[[jax.Array], eqx.Module], seed: int) -> Any:
    """With the initial weights of He et al. 2015: equinox's own would let the signal die out over sixteen layers."""
    shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if max(leaf.shape) == leaf.size:  # a bias
            return jnp.zeros(leaf.shape)
        fan = leaf.size // leaf.shape[0]
        return jnp.asarray(rng.normal(size=leaf.shape) * (2.0 / fan) ** 0.5, jnp.float32)

    return jax.tree.map(draw, shapes)


def middles(size: Size) -> np.ndarray:
    """Of the classes, shape (10, latent): the vertices of a regular simplex, turned so that no coordinate is special.

    All are equally far from each other: no way to pair the classes is easier than another.
    """
    vertices = np.eye(CLASSES) - 1.0 / CLASSES
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size.latent, CLASSES)))
    return size.radius * (vertices / np.linalg.norm(vertices[0]) @ axes.T).astype(np.float32)


VARIANCE = 0.2  # of a pixel around its mean
SHARPNESS = 10.0  # how far the scores of classes are apart at their middles
ADAM = optax.scale_by_adam()


class VAELoss(NamedTuple):
    """The negative evidence bound, times twice the pixels' variance, and the cross entropy of the classes.

    The prior of a code is Gaussian around the middle of its class. With `mixing`, the cross entropy is that of pairs of
    pictures, mixed in random shares (mixup, Zhang et al. 2018): few pictures would be known by heart.
    """

    middles: np.ndarray
    entropy: float
    mixing: float

    def __call__(self, vae: VAE, x: jax.Array, labels: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        mean, log_variance = jax.vmap(lambda x: vae.encode(x))(x)
        codes = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(keys[0], mean.shape)
        found = jax.vmap(lambda z: vae.decode(z))(codes)
        squares = jnp.sum((found - x) ** 2, axis=(1, 2))
        off = (mean - jnp.asarray(self.middles)[labels]) ** 2
        divergence = 0.5 * jnp.sum(off + jnp.exp(log_variance) - 1.0 - log_variance, axis=1)
        targets = jax.nn.one_hot(labels, CLASSES)
        if self.mixing:
            share = jax.random.beta(keys[1], self.mixing, self.mixing, (len(x), 1))
            targets = share * targets + (1.0 - share) * targets[::-1]
            mixed = share[..., None] * x + (1.0 - share[..., None]) * x[::-1]
            codes = jax.vmap(lambda x: vae.encode(x)[0])(mixed)
        square = jnp.maximum(jnp.sum(self.middles[0] ** 2), 1.0)
        scores = SHARPNESS * codes @ self.middles.T / square
        missed = optax.softmax_cross_entropy(scores, targets)
        return jnp.mean(squares + 2.0 * VARIANCE * divergence + self.entropy * missed)


@eqx.filter_jit
def update(
    loss: Callable[..., jax.Array],
    state: Any,
    x: ArrayLike,
    labels: ArrayLike,
    rate: jax.Array,
    key: jax.Array,
) -> tuple[Any, jax.Array]:
    """One step of Adam: the network, the moments and the count of steps, and the loss."""
    network, moments, done = state
    value, gradient = eqx.filter_value_and_grad(loss)(network, x, labels, key)
    changes, moments = ADAM.update(gradient, moments)
    changes = jax.tree.map(lambda change: -rate * change, changes)
    return (eqx.apply_updates(network, changes), moments, done + 1), value


def train(
    network: Any,
    loss: Callable[..., jax.Array],
    images: Images,
    name: str,
    size: Size,
    path: Path,
) -> Any:
    """The trained network, from its file as far as it goes."""
    updates, peak = size.updates[name], size.rate[name]
    # At full rate from the start, all units of a layer may die at once.
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, updates // 10, updates, 0.05 * peak)
    state = (network, ADAM.init(eqx.filter(network, eqx.is_array)), jnp.zeros((), int))
    if path.exists():
        state = eqx.tree_deserialise_leaves(path, state)
    for done in range(int(state[2]), updates):
        rng = np.random.default_rng((size.seed, done))
        rows = rng.integers(len(images.labels), size=BATCH)
        x = varied(images.pixels[rows], name, rng)
        key = jax.random.fold_in(jax.random.key(size.seed), done)
        state, value = update(loss, state, x, images.labels[rows], jnp.asarray(rate(done)), key)
        if (done + 1) % 100 == 0 or done + 1 == updates:
            with open_atomic(path) as file:
                eqx.tree_serialise_leaves(file, state)
            print(f"{path.stem}: update {done + 1} of {updates}, loss {value:.2f}", flush=True)
    return state[0]


def varied(pixels: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """Shifted a little, and of clothes every other one mirrored: a digit would no longer be one."""
    padded = np.pad(pixels, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE), axis=(1, 2))
    places = rng.integers(2 * SHIFT + 1, size=(2, len(pixels)))
    moved = windows[np.arange(len(pixels)), *places].copy()
    if name == "clothes":
        moved[::2] = moved[::2, :, ::-1]
    return moved


@eqx.filter_jit
def _encode(vae: VAE, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: vae.encode(x)[0])(x)


@eqx.filter_jit
def _decode(vae: VAE, z: jax.Array) -> jax.Array:
    return jax.vmap(lambda z: vae.decode(z))(z)


class Codec:
    """Pictures to codes, turned and standardised, and back, some at a time."""

    def __init__(self, vae: VAE, images: np.ndarray, turn: np.ndarray):
        self.vae, self.turn = vae, turn
        self.mean, self.scale = np.float32(0.0), np.float32(1.0)
        codes = self.encode(images)
        self.mean, self.scale = codes.mean(0), codes.std(0)

    def standard(self, raw: np.ndarray) -> np.ndarray:
        """Of the autoencoder's own codes."""
        return (raw @ self.turn - self.mean) / self.scale

    def raw(self, codes: np.ndarray) -> np.ndarray:
        return (codes * self.scale + self.mean) @ self.turn.T

    def encode(self, images: np.ndarray) -> np.ndarray:
        return self.standard(in_batches(_encode, self.vae, images))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return in_batches(_decode, self.vae, self.raw(codes))


def in_batches(function: Callable[[Any, Any], Any], network: Any, x: np.ndarray) -> np.ndarray:
    """`function(network, x)`, some rows at a time, as many for every call: another number would compile again."""
    n, parts = 512, []
    for part in np.split(x, range(n, len(x), n)):
        padded = np.pad(part, ((0, n - len(part)), *((0, 0),) * (x.ndim - 1)))
        parts.append(np.asarray(function(network, padded))[: len(part)])
    return np.concatenate(parts)


# -- the judge -------------------------------------------------------------------------------------------------


class Classifier(eqx.Module):
    """The convolutions of an encoder, a layer of features and one of scores."""

    encoder: list[eqx.nn.Conv2d]
    dense: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, channels: tuple[int, ...], key: jax.Array):
        keys = jax.random.split(key, 3)
        self.encoder = convolutions(channels, keys[0])
        self.dense = eqx.nn.Linear(16 * channels[-1], 64, key=keys[1])
        self.last = eqx.nn.Linear(64, CLASSES, key=keys[2])

    def features(self, x: jax.Array) -> jax.Array:
        """Of one picture (28, 28)."""
        h = x[None]
        for layer in self.encoder:
            h = jax.nn.relu(layer(h))
        return jax.nn.relu(self.dense(h.ravel()))


def classifier_loss(
    classifier: Classifier, x: jax.Array, labels: jax.Array, key: jax.Array
) -> jax.Array:
    """Cross entropy; half of the features are left out in turn."""
    h = jax.vmap(lambda x: classifier.features(x))(x)
    h = 2.0 * h * jax.random.bernoulli(key, 0.5, h.shape)
    scores = jax.vmap(lambda h: classifier.last(h))(h)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))


@eqx.filter_jit
def _features(classifier: Classifier, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: classifier.features(x))(x)


class Judge:
    """A classifier of real images; Frechet distances are between the features of its last hidden layer."""

    def __init__(self, classifier: Classifier):
        self.classifier = classifier

    def features(self, pixels: np.ndarray) -> np.ndarray:
        return in_batches(_features, self.classifier, pixels)

    def classes(self, pixels: np.ndarray) -> np.ndarray:
        last = self.classifier.last
        return np.argmax(self.features(pixels) @ np.asarray(last.weight).T + last.bias, axis=1)

    def frechet(self, a: np.ndarray, b: np.ndarray) -> float:
        """Squared, between Gaussians fitted to the features of two sets of pictures."""
        moments: list[np.ndarray] = []
        for h in map(self.features, (a, b)):
            # Units that never fire have no variance.
            moments += [h.mean(0), np.cov(h.T) + 1e-6 * np.eye(h.shape[1])]
        return 2.0 * gaussian_cost(*moments)


def style(pixels: np.ndarray) -> np.ndarray:
    """Thickness and slant of drawings, shape (n, 2): their ink, and how far a row leans for each row up."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    ink = pixels.sum(axis=(1, 2)) + 1e-6
    share = pixels / ink[:, None, None]
    y = rows - np.sum(share * rows, axis=(1, 2))[:, None, None]
    x = columns - np.sum(share * columns, axis=(1, 2))[:, None, None]
    slant = np.sum(share * x * y, axis=(1, 2)) / (np.sum(share * y * y, axis=(1, 2)) + 1e-6)
    return np.stack([ink, slant], axis=1)


def style_kept(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> float:
    """Correlation of the styles before and after, within classes, the mean of thickness and slant."""
    one, two = style(before), style(after)
    for k in np.unique(labels):
        one[labels == k] -= one[labels == k].mean(0)
        two[labels == k] -= two[labels == k].mean(0)
    norms = np.sqrt(np.sum(one**2, axis=0) * np.sum(two**2, axis=0)) + 1e-12
    return float(np.mean(np.sum(one * two, axis=0) / norms))


# -- the maps --------------------------------------------------------------------------------------------------


METHOD = brenier.NCF(objective="energy", hj_weight=0.3)


@dataclass(frozen=True)
class Task:
    """What goes where, and by which method: class k of the source to `(factor k + shift) mod 10` of the target."""

    title: str
    source: str
    factor: int = 1
    shift: int = 0
    method: brenier.NCF = METHOD

    def goal(self, labels: np.ndarray) -> np.ndarray:
        return (self.factor * labels + self.shift) % CLASSES


TASKS = {
    "clothes": Task("class k of the clothes to digit k", "clothes"),
    "turned": Task("the same, codes turned before", "turned"),
    "mirror": Task("digit k to 9 - k", "digits", -1, 9),
    "next": Task("digit k to k + 1", "digits", 1, 1),
    "free": Task("k to 9 - k without the HJ term", "digits", -1, 9, replace(METHOD, hj_weight=0.0)),
    "dual": Task("k to 9 - k by the dual", "digits", -1, 9, brenier.NCF()),
}


class Domain(NamedTuple):
    """A data set with what was trained on it, the codes of its images, and those for the scores decoded again.

    The codes to learn from are those of the images, and after them those of their variants, with the labels of all.
    """

    train: Images
    test: Images
    codec: Codec
    judge: Judge
    codes: tuple[np.ndarray, np.ndarray]
    labels: np.ndarray
    decoded: np.ndarray


def prepare(name: str, data: Path | None, size: Size, out: Path) -> Domain:
    images, test = read(data, name, size)

    def trained(title: str, network: Any, loss: Callable[..., jax.Array]) -> Any:
        path = out / f"{title}-{name}.eqx"
        return train(network, loss, images, name, size, path)

    vae = untrained(lambda key: VAE(size.channels, size.latent, key), size.seed)
    # Dark, as the pictures are: to make it so would take the first updates, and units of the layer before.
    vae = eqx.tree_at(lambda vae: vae.decoder[-1].bias, vae, replace_fn=lambda bias: bias - 2.0)
    vae = trained("vae", vae, VAELoss(middles(size), size.entropy, size.mixing[name]))
    classifier = untrained(lambda key: Classifier(size.channels, key), size.seed)
    judge = Judge(trained("judge", classifier, classifier_loss))
    codec = Codec(vae, images.pixels, np.eye(size.latent, dtype=np.float32))
    rng = np.random.default_rng(size.seed)
    variants = [varied(images.pixels, name, rng) for _ in range(size.variants)]
    codes = np.concatenate([codec.encode(pixels) for pixels in (images.pixels, *variants)])
    labels = np.tile(images.labels, 1 + size.variants)
    seen = codec.encode(test.pixels)
    return Domain(images, test, codec, judge, (codes, seen), labels, codec.decode(seen))


def turned(domain: Domain, size: Size) -> Domain:
    """The same with codes turned so that class k lies where class k + 3 did."""
    places = middles(size)
    left, _, right = np.linalg.svd(places.T @ np.roll(places, -3, axis=0))
    codec = Codec(domain.codec.vae, domain.train.pixels, left @ right)
    train, test = (codec.standard(domain.codec.raw(codes)) for codes in domain.codes)
    return domain._replace(codec=codec, codes=(train, test))


def fit(task: Task, source: Domain, target: Domain, size: Size, path: Path) -> brenier.Solution:
    """The map, from its file if there is one."""
    if path.exists():
        return brenier.load(path)
    problem = brenier.TransportProblem(
        source.codes[0],
        target.codes[0],
        source_labels=task.goal(source.labels),
        target_labels=target.labels,
    )
    checkpoint = path.with_suffix(".ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", brenier.BrenierWarning)  # the table says how good it is
        method = replace(task.method, **size.method)
        solution = brenier.fit(
            problem,
            method,
            steps=size.steps,
            key=jax.random.key(size.seed),
            checkpoint=checkpoint,
        )
    brenier.save(path, solution)
    checkpoint.unlink(missing_ok=True)
    return solution


def judged(
    task: Task, solution: brenier.Solution, source: Domain, target: Domain
) -> dict[str, float]:
    """Scores on the test images of both sides."""
    moved = solution.transport
    images = target.codec.decode(np.asarray(moved.forward(source.codes[1])))
    preimages = source.codec.decode(np.asarray(moved.inverse(target.codes[1])))
    ways = {
        "forward": (images, task.goal(source.test.labels), target),
        "backward": (preimages, target.test.labels, source),
    }
    scores = {}
    for way, (pixels, wanted, there) in ways.items():
        found = there.judge.classes(pixels)
        found = found if way == "forward" else task.goal(found)
        scores[f"accuracy_{way}"] = 100.0 * float(np.mean(found == wanted))
        scores[f"frechet_{way}"] = there.judge.frechet(pixels, there.test.pixels)
        scores[f"frechet_decoded_{way}"] = there.judge.frechet(pixels, there.decoded)
    first = slice(min(len(source.train.labels), len(source.test.labels)))
    seen = np.asarray(moved.forward(source.codes[0][first]))
    others = {
        "seen": (seen, source.train.labels[first]),
        "unmoved": (source.codes[1], source.test.labels),
    }
    for what, (codes, labels) in others.items():
        found = target.judge.classes(target.codec.decode(codes))
        scores[f"accuracy_{what}"] = 100.0 * float(np.mean(found == task.goal(labels)))
    if source is target:
        scores["style"] = style_kept(source.test.pixels, images, source.test.labels)
    return scores


# -- pictures --------------------------------------------------------------------------------------------------


def one_of_each(images: Images) -> np.ndarray:
    """A row of every class."""
    return np.array([np.flatnonzero(images.labels == k)[0] for k in range(CLASSES)])


def sheet(rows: dict[str, np.ndarray], path: Path) -> None:
    """Rows of ten pictures with a title each."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(9.0, 0.85 * len(rows)), dpi=130)
    for axis, (title, pictures) in zip(np.atleast_1d(axes), rows.items(), strict=True):
        axis.imshow(np.hstack(list(pictures)), cmap="gray_r", vmin=0.0, vmax=1.0)
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout(pad=0.3)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def draw(solution: brenier.Solution, source: Domain, target: Domain, path: Path) -> None:
    """From inputs above to their images below, by way of the codes between; both decoded by the target's decoder."""
    chosen = one_of_each(source.test)
    codes = source.codes[1][chosen]
    rows = {"input": source.test.pixels[chosen], "decoded": source.decoded[chosen]}
    for t in MOMENTS:
        between = np.asarray(solution.transport.interpolate(codes, t))
        rows[f"t = {t:g}"] = target.codec.decode(between)
    sheet(rows, path)


def compare(solutions: dict[str, brenier.Solution], digits: Domain, path: Path) -> None:
    """The same thin and thick, upright and slanted digits under three maps."""
    threes = np.flatnonzero(digits.test.labels == 3)
    order = threes[np.argsort(style(digits.test.pixels[threes])[:, 1])]
    chosen = order[np.linspace(0, len(order) - 1, CLASSES).astype(int)]
    rows = {"input": digits.test.pixels[chosen]}
    titles = {"mirror": "with HJ", "free": "without HJ", "dual": "dual"}
    for name, title in titles.items():
        moved = np.asarray(solutions[name].transport.forward(digits.codes[1][chosen]))
        rows[title] = digits.codec.decode(moved)
    sheet(rows, path)


# -- all of it -------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("latent-images-output"), metavar="FOLDER")
    parser.add_argument("--plain", action="store_true", help="autoencoders that never see a label")
    parser.add_argument("--seed", type=int, default=0, help="one folder in --out for each")
    parser.add_argument("--quick", action="store_true", help="does it run? small, few steps")
    given = parser.parse_args()
    if given.data is None and not given.quick:
        parser.error("expected --data, the folder that holds mnist/ and fashion_mnist/, or --quick")
    size = replace(QUICK if given.quick else FULL, seed=given.seed)
    if given.plain:
        size = replace(size, radius=0.0)
    out = given.out / ("quick" if given.quick else "full") / ("plain" if given.plain else "")
    out /= f"seed-{size.seed}" if size.seed else ""
    out.mkdir(parents=True, exist_ok=True)

    domains = {name: prepare(name, given.data, size, out) for name in ("digits", "clothes")}
    facts: dict[str, Any] = {"maps": {}}
    domains["turned"] = turned(domains["clothes"], size)
    for name in ("digits", "clothes"):
        domain = domains[name]
        found = domain.judge.classes(domain.test.pixels)
        decoded = domain.judge.classes(domain.decoded)
        facts[f"judge_{name}"] = {
            "accuracy": 100.0 * float(np.mean(found == domain.test.labels)),
            "accuracy_decoded": 100.0 * float(np.mean(decoded == domain.test.labels)),
        }
    solutions = {}
    for name, task in TASKS.items():
        source, target = domains[task.source], domains["digits"]
        start = time.perf_counter()
        solutions[name] = fit(task, source, target, size, out / f"map-{name}.brenier")
        print(f"{task.title}: {time.perf_counter() - start:.0f} s", flush=True)
        facts["maps"][name] = judged(task, solutions[name], source, target)
        draw(solutions[name], source, target, out / f"{name}.png")
    compare(solutions, domains["digits"], out / "style.png")
    atomic_write(out / "scores.json", (json.dumps(facts, indent=1) + "\n").encode())
    print(table(facts))
    print(f"Pictures and scores are in {out}.")


def table(facts: dict[str, Any]) -> str:
    columns = {
        "accuracy_forward": "right % ->",
        "accuracy_backward": "<-",
        "accuracy_seen": "seen ->",
        "accuracy_unmoved": "unmoved ->",
        "frechet_forward": "Frechet ->",
        "frechet_backward": "<-",
        "frechet_decoded_forward": "decoded ->",
        "frechet_decoded_backward": "<-",
        "style": "style",
    }
    lines = []
    for name in ("digits", "clothes"):
        shares = facts[f"judge_{name}"]
        lines.append(
            f"The judge of {name} is right on {shares['accuracy']:.1f} % of the test images, and on "
            f"{shares['accuracy_decoded']:.1f} % after the autoencoder."
        )
    lines.append(f"{'':36}" + "".join(f"{title:>12}" for title in columns.values()))
    for name, scores in facts["maps"].items():
        cells = (f"{scores[c]:12.2f}" if c in scores else f"{'-':>12}" for c in columns)
        lines.append(f"{TASKS[name].title:36}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
