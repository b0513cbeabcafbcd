"""What `NCF` and `HJPINN` share: both directions matched in energy distance, one potential, closed-form maps."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from brenier.coordinates import Frame
from brenier.costs import Cost, Quadratic
from brenier.devices import split
from brenier.discrepancies import Statistic, classwise_energy_distance
from brenier.errors import InputError
from brenier.gaussian import GaussianPotential
from brenier.hamiltonian import backward_map, forward_map
from brenier.methods._base import (
    FROM_PRESET,
    Blueprint,
    Expected,
    PresetMethod,
    Schedule,
    adam,
    averaged,
    cast,
    decay,
    drawn,
    refuse_bent_paths,
    refuse_other_costs,
    with_base,
)
from brenier.methods._muon import muon
from brenier.networks import MLP, DenseQuadratic, ResNet, with_zero_head
from brenier.problem import TransportProblem
from brenier.samplers import POOL
from brenier.transport import CharacteristicTransport
from brenier.typing import Key, Points, Potential

Collocation = Literal["path", "box", "mix"]

PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "network": None,
        "widths": None,
        "activation": None,
        "optimizer": "muon",
        "learning_rate": 3e-3,
        "schedule": "cosine",
        "averaging": 0.99,
        "batch_size": None,
        "anchor": "both",
        "hj_weight": 10.0,
        "collocation": "path",
        "collocation_size": 512,
        "scale_inputs": True,
        "steps": 2000,
    },
    "published": {
        "network": "dense_quadratic",
        "widths": None,
        "activation": "celu",
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "averaging": 0.0,
        "batch_size": 2000,
        "anchor": "start",
        "hj_weight": 1.0,
        "collocation": "box",
        "collocation_size": 1000,
        "scale_inputs": False,
        "steps": 20_000,
    },
}
"""What one argument switches. Entries of "published" that the paper leaves open are listed in docs/methods.md."""

_FINAL_RATE = 0.003
_LEVEL = 1.2
_NETWORKS = {"dense_quadratic": DenseQuadratic, "mlp": MLP, "resnet": ResNet}


class Design(NamedTuple):
    """A network by its name, the widths of its layers and its activation."""

    name: str
    widths: tuple[int, ...]
    activation: str


class CharacteristicState(eqx.Module):
    """What is carried from step to step."""

    network: Any
    averaged: Any
    base: Any
    optimizer: optax.OptState
    box: Float[Array, "2 d"]
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharacteristicMethod(PresetMethod[CharacteristicState]):
    """One potential, both energy distances and a Hamilton–Jacobi residual; see `NCF`."""

    presets = PRESETS

    network: str | eqx.Module | None = FROM_PRESET
    widths: Sequence[int] | None = FROM_PRESET
    activation: str | None = FROM_PRESET
    optimizer: str | optax.GradientTransformation = FROM_PRESET
    learning_rate: float = FROM_PRESET
    schedule: Schedule = FROM_PRESET
    averaging: float = FROM_PRESET
    collocation: Collocation = FROM_PRESET
    collocation_size: int = FROM_PRESET
    hj_weight: float = FROM_PRESET
    matching_weight: float = 1.0
    statistic: Statistic = "U"
    gaussian_start: bool = False

    @abc.abstractmethod
    def residuals(
        self, u: Potential, cost: Cost, t: Float[Array, "n"], z: Points
    ) -> Float[Array, "n"]:
        """How far `u` is from solving the Hamilton–Jacobi equation at each collocation point."""

    @property
    def stratified(self) -> bool:
        return self.preset == "default"

    def check(self, problem: TransportProblem) -> None:
        refuse_bent_paths(problem, type(self).__name__)
        if self.gaussian_start:
            refuse_other_costs(problem, "gaussian_start=True")
        batch = self.batch(problem)
        if problem.classes and batch < 2 * len(problem.classes):
            raise InputError(
                f"Expected batch_size to hold two points of each of {len(problem.classes)} classes, "
                f"found {batch}."
            )

    def batch(self, problem: TransportProblem) -> int:
        return self.default_batch(problem) if self.batch_size is None else self.batch_size

    def default_batch(self, problem: TransportProblem) -> int:
        """Our batch size for a problem, as measured."""
        del problem
        return 1024

    def init(self, problem: TransportProblem, key: Key) -> CharacteristicState:
        x, y = problem.source.pool(POOL, 0), problem.target.pool(POOL, 0)
        network = drawn(self._blueprint(problem), key)
        base = None
        if self.gaussian_start:
            network = with_zero_head(network)
            base = cast(GaussianPotential.from_samples(x, y), problem.dtype)
        network = cast(network, problem.dtype)
        box = np.stack([np.minimum(x.min(0), y.min(0)), np.maximum(x.max(0), y.max(0))])
        return CharacteristicState(
            network=network,
            averaged=network,
            base=base,
            optimizer=jax.jit(self._optimizer().init)(network),
            box=jnp.asarray(box, problem.dtype),
            step=jnp.zeros((), jnp.int32),
        )

    def step(
        self,
        problem: TransportProblem,
        state: CharacteristicState,
        batch: tuple[jax.Array, jax.Array],
        key: Key,
        progress: jax.Array,
    ) -> tuple[CharacteristicState, dict[str, jax.Array]]:
        def loss(network: Potential) -> tuple[jax.Array, dict[str, jax.Array]]:
            u = with_base(state.base, network)
            classes = max(len(problem.classes), 1)
            return self._loss(u, problem.cost, batch, state.box, key, classes)

        return self.update(loss, state, progress)

    def update(
        self,
        loss: Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]],
        state: CharacteristicState,
        progress: jax.Array,
        share: float = 1.0,
    ) -> tuple[CharacteristicState, dict[str, jax.Array]]:
        """One optimiser step, or a share of it, down the gradient of `loss`, and the running average."""
        grads, metrics = jax.grad(loss, has_aux=True)(state.network)
        updates, optimizer = self._optimizer().update(grads, state.optimizer, state.network)
        rate = share * decay(self.schedule, progress, _FINAL_RATE)
        network = jax.tree.map(
            lambda p, g: p + rate.astype(p.dtype) * g.astype(p.dtype), state.network, updates
        )
        averages = averaged(state.averaged, network, state.step, self.averaging)
        return CharacteristicState(
            network, averages, state.base, optimizer, state.box, state.step + 1
        ), metrics

    def extract(
        self, problem: TransportProblem, state: CharacteristicState, frame: Frame
    ) -> CharacteristicTransport:
        return CharacteristicTransport(with_base(state.base, state.averaged), frame, problem.cost)

    def _check_options(self, expected: Expected) -> None:
        expected.whole("steps", "collocation_size", least=2)
        if self.batch_size is not None:
            expected.whole("batch_size", least=2)
        expected.number("hj_weight", "matching_weight", test=lambda v: v >= 0.0, what=">= 0")
        expected.learning_rate("learning_rate")
        expected.number("averaging", test=lambda v: 0.0 <= v < 1.0, what="in [0, 1)")
        expected.one_of("collocation", ("path", "box", "mix"))
        expected.one_of("schedule", ("cosine", "linear", "constant"))
        expected.one_of("statistic", ("U", "V"))
        if self.network is not None:
            expected.network("network", tuple(_NETWORKS))
        expected.that(
            isinstance(self.optimizer, optax.GradientTransformation)
            or self.optimizer in ("adam", "muon"),
            "optimizer",
            "adam, muon or an optax.GradientTransformation",
        )

    def _loss(
        self,
        u: Potential,
        cost: Cost,
        batch: tuple[jax.Array, jax.Array],
        box: jax.Array,
        key: Key,
        classes: int,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, y = batch
        forward, backward, images, preimages = matching_loss(
            u, cost, x, y, statistic=self.statistic, classes=classes
        )
        t, z = self._points(x, images, y, preimages, box, key)
        hj = jnp.mean(self.residuals(u, cost, t, z) ** 2)
        loss = self.matching_weight * (forward + backward) + self.hj_weight * hj
        return loss, {
            "loss": loss,
            "energy_forward": forward,
            "energy_backward": backward,
            "hj": hj,
        }

    def _points(
        self,
        x: jax.Array,
        images: jax.Array,
        y: jax.Array,
        preimages: jax.Array,
        box: jax.Array,
        key: Key,
    ) -> tuple[jax.Array, jax.Array]:
        n = self.collocation_size
        on_paths = {"path": n, "box": 0, "mix": n // 2}[self.collocation]
        path_key, box_key = jax.random.split(key)
        parts = []
        if on_paths:
            parts.append(path_points(x, images, y, preimages, path_key, on_paths))
        if n - on_paths:
            parts.append(box_points(box, box_key, n - on_paths))
        t, z = (split(jnp.concatenate(columns)) for columns in zip(*parts, strict=True))
        return t, z

    def default_network(self, problem: TransportProblem) -> Design:
        """Our network for a problem, as measured."""
        dim = problem.dim
        if not isinstance(problem.cost, Quadratic) and _levels_off(problem.cost, dim):
            # Its potentials have bounded slopes, which quadratic skips would bend beyond the bound in the tails.
            return Design("mlp", (64,) * 4 if dim <= 4 else (128, 128, 128, 64), "softplus")
        return Design("dense_quadratic", (256, 256, 128) if dim >= 48 else (128, 128, 64), "celu")

    def _blueprint(self, problem: TransportProblem, **which: Any) -> eqx.Module | Blueprint:
        if isinstance(self.network, eqx.Module):
            return self.network
        default = self.default_network(problem, **which)
        name = default.name if self.network is None else self.network
        activation = default.activation if self.activation is None else self.activation
        options: dict[str, Any] = {"activation": activation}
        ours, widths = self.preset == "default", self.widths
        if ours and widths is None and name == default.name:
            widths = default.widths
        if widths is not None and name != "resnet":
            options["widths"] = widths
        if name == "dense_quadratic":
            options["direct"] = ours
        return Blueprint(_NETWORKS[name], problem.dim, options)

    def _optimizer(self) -> optax.GradientTransformation:
        if isinstance(self.optimizer, optax.GradientTransformation):
            return self.optimizer
        return (muon if self.optimizer == "muon" else adam)(self.learning_rate)


@eqx.filter_jit
def _levels_off(cost: Cost, dim: int) -> jax.Array:
    """Whether moves of four spreads have hardly more momentum than those of two: `L` is nearly linear there."""
    along = jnp.full(dim, dim**-0.5)
    near, far = (jnp.linalg.norm(cost.grad_lagrangian(length * along)) for length in (2.0, 4.0))
    return far < _LEVEL * near


def matching_loss(
    u: Potential,
    cost: Cost,
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    *,
    statistic: Statistic = "U",
    classes: int = 1,
) -> tuple[jax.Array, jax.Array, Float[Array, "n d"], Float[Array, "m d"]]:
    """Energy distances of `T♯μ` to `ν` and of `S♯ν` to `μ`, and the images `T(x)`, `S(y)` (NCF, eq. for MMD).

    Of samples in blocks of so many `classes` the mean over the classes: the class-conditional loss.
    """
    images = jax.vmap(lambda x: forward_map(u, cost, x))(x)
    preimages = jax.vmap(lambda y: backward_map(u, cost, y))(y)
    forward, backward = (
        jnp.mean(classwise_energy_distance(moved, side, classes, statistic=statistic))
        for moved, side in ((images, y), (preimages, x))
    )
    return forward, backward, images, preimages


def path_points(
    x: Float[Array, "n d"],
    images: Float[Array, "n d"],
    y: Float[Array, "m d"],
    preimages: Float[Array, "m d"],
    key: Key,
    k: int,
) -> tuple[Float[Array, "k"], Float[Array, "k d"]]:
    """`k` times and places on the current characteristics, half from either side, held fixed.

    In high dimension a box is empty: its points never come near the paths, while the map is used on the paths only.
    """
    time_key, x_key, y_key = jax.random.split(key, 3)
    t = jax.random.uniform(time_key, (k,), x.dtype)
    half = k // 2
    i = jax.random.randint(x_key, (half,), 0, len(x))
    j = jax.random.randint(y_key, (k - half,), 0, len(y))
    s, r = t[:half, None], 1.0 - t[half:, None]
    z = jnp.concatenate([x[i] + s * (images[i] - x[i]), y[j] + r * (preimages[j] - y[j])])
    return t, jax.lax.stop_gradient(z)


def box_points(
    box: Float[Array, "2 d"], key: Key, k: int
) -> tuple[Float[Array, "k"], Float[Array, "k d"]]:
    """`k` uniform times and places in `box = (lower, upper)`, shape (2, d), as published."""
    time_key, place_key = jax.random.split(key)
    t = jax.random.uniform(time_key, (k,), box.dtype)
    unit = jax.random.uniform(place_key, (k, box.shape[1]), box.dtype)
    return t, box[0][None] + unit * (box[1] - box[0])[None]
