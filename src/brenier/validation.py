"""Held-out samples and what they say about a map while it is being fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import KDTree

from brenier.discrepancies import classwise_energy_distance
from brenier.gaussian import GaussianPotential
from brenier.metrics import noise_band, round_trip
from brenier.problem import TransportProblem
from brenier.samplers import POOL, Sampler
from brenier.transport import Transport
from brenier.typing import Key

MAX_HELD_OUT = 2048
MIN_HELD_OUT = 32  # or a quarter of the points, where that is less
FEWEST = 8
MIN_OF_CLASS = 4
WAYS = ("forward", "backward")


def hold_out(sampler: Sampler, share: float, seed: int) -> tuple[Sampler, np.ndarray | None]:
    """Split off `share` of a sampler's points, at most `MAX_HELD_OUT`; `None` where it would be too few.

    Of few points a larger share: those are the ones that a map learns by heart. With classes, as many of each, and
    `share` of the smallest.
    """
    available, blocks = sampler.evenly, max(len(sampler.classes), 1)
    n = MAX_HELD_OUT
    if available is not None:
        n = min(max(int(share * available), min(MIN_HELD_OUT, available // 4)), MAX_HELD_OUT)
    n -= n % blocks
    if share == 0.0 or n < max(FEWEST, MIN_OF_CLASS * blocks):
        return sampler, None
    return sampler.split(n, seed)


Split = tuple[Sampler, Sampler, np.ndarray | None, np.ndarray | None]


def split_sides(problem: TransportProblem, share: float, key: Key) -> Split:
    """What a fit with this key trains on and what it holds out, source first: the same every time."""
    seed = seed_of(key)
    source, x = hold_out(problem.source, share, seed)
    target, y = hold_out(problem.target, share, seed + 1)
    return source, target, x, y


def seed_of(key: Key) -> int:
    """A seed for the host's generators."""
    return int(np.asarray(jax.random.key_data(key), np.uint64).sum() % (2**32))


class Look(NamedTuple):
    """What a map makes of held-out points, as arrays. Of a map without an inverse there is the way forward alone."""

    forward: Any
    """Energy distances by class, shape (blocks,)."""
    backward: Any
    returned: Any
    """`S(T(x))`, shape (n, d)."""
    terms: Any
    """Of the dual value, an array a side; `None` without a dual, or where it was not asked for."""


class Candidate(NamedTuple):
    """A map that may become the result of a fit, once it is asked for, and what held-out points say of it."""

    transport: Callable[[], Transport]
    look: Callable[[], Look] | None = None
    """Where it is found together with those of other fits."""


class HeldOut:
    """Held-out samples of both sides, in the frame's coordinates, and the noise bands that belong to their sizes.

    Args:
        problem: the training samples, in the same coordinates.
        x, y: held-out points (n, d) and (m, d).
        scale: of the frame; scores are reported in the user's units.
        key: of the permutations behind the noise bands.
    """

    def __init__(
        self, problem: TransportProblem, x: np.ndarray, y: np.ndarray, scale: float, key: Key
    ):
        self.problem, self.x, self.y, self.scale = problem, x, y, scale
        self.blocks = max(len(problem.classes), 1)
        # By class; one without classes.
        self.class_bands = {
            "band_forward": self._bands(problem.target, y, len(x), len(y), key),
            "band_backward": self._bands(problem.source, x, len(y), len(x), key),
        }
        # Those of means over independent classes: their noise averages out.
        self.bands = {
            name: float(np.linalg.norm(bands)) / self.blocks
            for name, bands in self.class_bands.items()
        }

    def _bands(self, sampler: Sampler, held: np.ndarray, n: int, m: int, key: Key) -> list[float]:
        n, m = n // self.blocks, m // self.blocks
        pool = sampler.blocks(MAX_HELD_OUT)
        pools = zip(*(np.split(a, self.blocks) for a in (held, pool)), strict=True)
        return [noise_band(np.concatenate(both), n, m, key=key) for both in pools]

    def look(self, transport: Transport, *, dual: bool) -> Look:
        """What the map makes of the points; with `dual` also the terms of the dual."""
        return look(transport, self.x, self.y, self.blocks, dual)

    def scores(self, look: Look) -> dict[str, float]:
        """Energy distances both ways, their bands, the round trip and `ratio`.

        `ratio` is the larger of both energy distances in units of its band: at most 1 for a match. Of a map without
        an inverse there is the way forward alone.
        """
        raw = {name: float(np.mean(values)) for name, values in self._by_class(look).items()}
        ways = [way for way in WAYS if f"energy_{way}" in raw]
        ratios = [_ratio(raw[f"energy_{way}"], self.bands[f"band_{way}"]) for way in ways]
        scaled = {k: self.scale * v for k, v in raw.items() if k.startswith("energy")}
        bands = {f"band_{way}": self.scale * self.bands[f"band_{way}"] for way in ways}
        trip = {k: v for k, v in raw.items() if k == "round_trip"}
        return scaled | bands | trip | {"ratio": max(ratios)}

    def _by_class(self, look: Look) -> dict[str, Any]:
        found = {"energy_forward": look.forward}
        if look.backward is None:
            return found
        trip = round_trip(self.x, look.returned) / 100.0
        return found | {"energy_backward": look.backward, "round_trip": trip}

    def class_scores(self, transport: Transport, look: Look) -> dict[str, dict[str, float]]:
        """By label, the energy distances, their bands, and the shares of points that keep their class."""
        if not self.problem.classes:
            return {}
        raw = self._by_class(look)
        columns = {k: np.asarray(v) for k, v in raw.items() if k.startswith("energy")}
        columns |= {k: np.asarray(v) for k, v in self.class_bands.items()}
        columns = {name: self.scale * column for name, column in columns.items()}
        columns["kept_forward"] = _kept(
            np.asarray(transport.forward(self.x)), self.problem.target, self.blocks
        )
        columns["kept_backward"] = _kept(
            np.asarray(transport.inverse(self.y)), self.problem.source, self.blocks
        )
        return {
            str(label): {name: float(column[i]) for name, column in columns.items()}
            for i, label in enumerate(self.problem.classes)
        }

    def linear_scores(self) -> dict[str, float]:
        """Energy distances of the linear (Gaussian) map between the training samples' moments."""
        linear = GaussianPotential.from_samples(
            self.problem.source.pool(POOL, 0), self.problem.target.pool(POOL, 0)
        )
        images, preimages = linear.forward(self.x), linear.inverse(self.y)
        forward = _energies(images.astype(self.x.dtype), self.y, self.blocks)
        backward = _energies(self.x, preimages.astype(self.y.dtype), self.blocks)
        return {
            "linear_forward": self.scale * float(np.mean(forward)),
            "linear_backward": self.scale * float(np.mean(backward)),
        }


def dual_cost(
    transport: Transport, problem: TransportProblem, unit: float, held_out: HeldOut | None
) -> dict[str, float]:
    """The optimal cost as the dual value over up to 100 000 training samples a side, and its standard error.

    Times `unit`, the worth of a unit of the problem's cost; empty where the potential was not trained for it. It is
    taken of as many points at once as are held out, whose program is there already.
    """
    if problem.classes:
        sides = problem.source, problem.target
        least = min(MAX_HELD_OUT, *(side.evenly or MAX_HELD_OUT for side in sides))
        pools = tuple(side.blocks(least) for side in sides)
        sizes = tuple(len(pool) for pool in pools)
    else:
        pools = problem.source.pool(POOL, 0), problem.target.pool(POOL, 0)
        held = pools if held_out is None else (held_out.x, held_out.y)
        sizes = tuple(min(MAX_HELD_OUT, len(points)) for points in held)
    parts: list[Any] = []
    for i in range(min(len(pool) // n for pool, n in zip(pools, sizes, strict=True))):
        x, y = (pool[n * i : n * (i + 1)] for pool, n in zip(pools, sizes, strict=True))
        terms = _dual_terms(transport, x, y, max(len(problem.classes), 1))
        if terms is None:
            return {}
        parts.append([np.asarray(t, np.float64) for t in terms])
    at_x, at_y = (np.concatenate(side) for side in zip(*parts, strict=True))
    error = np.sqrt(at_x.var() / len(at_x) + at_y.var() / len(at_y))
    return {
        "cost": unit * float(at_x.mean() + at_y.mean()),
        "cost_standard_error": unit * float(error),
    }


def gain(terms: Sequence[Any], before: Sequence[Any]) -> float:
    """How much a mean has grown, in standard errors of the change; both were taken on the same points."""
    changes = [np.asarray(new) - np.asarray(old) for new, old in zip(terms, before, strict=True)]
    error = float(np.sqrt(sum(c.var() / len(c) for c in changes)))
    return sum(float(c.mean()) for c in changes) / max(error, 1e-300)


def worse_than_linear(scores: dict[str, Any]) -> bool:
    """Whether the linear map matches held-out samples better, by more than their noise.

    Of two equally good maps, on samples that happen to lie apart, one is always a little worse.
    """
    return any(
        scores[f"energy_{way}"] > max(scores[f"linear_{way}"], 0.0) + scores[f"band_{way}"]
        for way in WAYS
        if f"energy_{way}" in scores
    )


def verdict(scores: dict[str, Any]) -> str:
    """What the scores say, in plain sentences."""
    if not scores:
        return "Nothing was held out, so the map was not validated."
    ratio = scores["ratio"]
    words = (
        "The map matches held-out samples within their noise."
        if ratio <= 1.0
        else f"The held-out energy distance is {ratio:.2g} times its noise band."
    )
    if worse_than_linear(scores):
        words += " It is worse than the linear (Gaussian) map."
    return words


def _kept(points: np.ndarray, side: Sampler, blocks: int) -> np.ndarray:
    """By class, the share of the points (n, d), in blocks, whose nearest sample of a side is of their class."""
    samples = side.blocks(8 * MAX_HELD_OUT)
    nearest = KDTree(samples).query(points)[1] // (len(samples) // blocks)
    own = np.arange(len(points)) // (len(points) // blocks)
    return (nearest == own).reshape(blocks, -1).mean(axis=1)


@partial(jax.jit, static_argnums=2)
def _energies(x: Any, y: Any, blocks: int) -> jax.Array:
    """By class, shape (blocks,); source or preimages first, that both ways may be one program."""
    return classwise_energy_distance(x, y, blocks)


@partial(jax.jit, static_argnums=3)
def _dual_terms(transport: Transport, x: jax.Array, y: jax.Array, blocks: int) -> Any:
    if blocks == 1:
        return transport.dual_terms(x, y)
    # The minimum over the own class alone.
    by_class = (side.reshape(blocks, -1, side.shape[1]) for side in (x, y))
    return jax.tree.map(jnp.ravel, jax.vmap(transport.dual_terms)(*by_class))


def look(transport: Transport, x: Any, y: Any, blocks: int, dual: bool) -> Look:
    """What a map makes of held-out points.

    NumPy arrays, as a user would pass, are padded to few shapes, so that all maps share their programs.
    """
    images = transport.forward(x)
    forward, backward, returned = _energies(images, y, blocks), None, None
    if transport.invertible:
        preimages, returned = transport.inverse(y), transport.inverse(images)
        backward = _energies(x, preimages, blocks)
    terms = _dual_terms(transport, x, y, blocks) if dual else None
    return Look(forward, backward, returned, terms)


@partial(jax.jit, static_argnums=(3, 4))
def look_at_all(transports: Transport, xs: Any, ys: Any, blocks: int, dual: bool) -> Look:
    """The same of maps, and of points, with a leading axis, in one program."""
    one = partial(look, blocks=blocks, dual=dual)
    return jax.vmap(lambda transport, x, y: one(transport, x, y))(transports, xs, ys)


def _ratio(distance: float, band: float) -> float:
    return distance / band if band > 0.0 else float("inf")
