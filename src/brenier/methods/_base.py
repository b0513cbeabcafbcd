"""What a method is, and what all of ours share: presets, checks of their options, schedules."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from brenier.coordinates import Frame
from brenier.costs import Quadratic
from brenier.errors import InputError, UnsupportedProblemError
from brenier.gaussian import GaussianPotential
from brenier.networks import SumPotential
from brenier.problem import TransportProblem
from brenier.transport import Transport
from brenier.typing import Key, Potential

State = TypeVar("State")
T = TypeVar("T")
Preset = Literal["default", "published"]
Schedule = Literal["cosine", "linear", "constant"]
FROM_PRESET: Any = None
"""Default of an option that takes the preset's value."""


class Method(abc.ABC, Generic[State]):
    """How to solve a `TransportProblem`: a frozen dataclass of hyper-parameters and pure functions of a state.

    `fit` chooses coordinates, draws batches, counts, validates, checkpoints and stops; a method never does.
    The problem a method sees is the one in the frame's coordinates.
    """

    @property
    @abc.abstractmethod
    def planned_steps(self) -> int:
        """Optimiser steps when the caller of `fit` names neither steps nor a time budget."""

    @abc.abstractmethod
    def batch(self, problem: TransportProblem) -> int:
        """Samples drawn from each side per step."""

    def settled(self, problem: TransportProblem) -> Method[State]:
        """This method with what it leaves to the number of samples decided as for this problem."""
        del problem
        return self

    @property
    @abc.abstractmethod
    def scaled(self) -> bool:
        """Whether `fit` shall centre and scale the data."""

    @property
    def stratified(self) -> bool:
        """Whether batches shall be spread evenly over the samples."""
        return False

    @property
    def validation_interval(self) -> int:
        """Chunks of steps between two looks at the held-out points."""
        return 2

    @property
    def converges(self) -> bool:
        """Whether maps on the way are comparable, so that held-out scores may choose one and stop the run.

        Where training circles its solution until the rate has decayed, only the last one counts.
        """
        return True

    @abc.abstractmethod
    def check(self, problem: TransportProblem) -> None:
        """Raise `UnsupportedProblemError` for what this method cannot solve, naming one that can."""

    @abc.abstractmethod
    def init(self, problem: TransportProblem, key: Key) -> State:
        """Everything that is carried from step to step, as one pytree of arrays."""

    @abc.abstractmethod
    def step(
        self,
        problem: TransportProblem,
        state: State,
        batch: tuple[jax.Array, jax.Array],
        key: Key,
        progress: jax.Array,
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update from samples `x` (n, d) and `y` (m, d); `progress` in [0, 1] drives schedules.

        Returns the new state and scalar metrics, among them `loss`.
        """

    @abc.abstractmethod
    def extract(self, problem: TransportProblem, state: State, frame: Frame) -> Transport:
        """The map that the state describes, in the user's coordinates."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The name and the resolved hyper-parameters, JSON-able."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PresetMethod(Method[State]):
    """A method whose options come from a preset where they are left out."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    preset: Preset = "default"
    batch_size: int = FROM_PRESET
    scale_inputs: bool = FROM_PRESET
    steps: int = FROM_PRESET

    def __post_init__(self) -> None:
        if self.preset not in self.presets:
            raise InputError(
                f"Expected preset to be one of {', '.join(self.presets)}, found {self.preset!r}."
            )
        self._fill(self.presets[self.preset])
        for field in dataclasses.fields(self):  # equal options make equal methods
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        self._check_options(Expected(self))

    def _fill(self, values: Mapping[str, Any]) -> None:
        """Gives options that were left out a value."""
        for name, value in values.items():
            if getattr(self, name, value) is None:
                object.__setattr__(self, name, value)

    @abc.abstractmethod
    def _check_options(self, expected: Expected) -> None:
        """Raise `InputError` for an option out of range."""

    @property
    def planned_steps(self) -> int:
        return self.steps

    def batch(self, problem: TransportProblem) -> int:
        return self.batch_size

    @property
    def scaled(self) -> bool:
        return bool(self.scale_inputs)

    def describe(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {
            name: value
            if isinstance(value, str | int | float | bool | tuple | list | None)
            else type(value).__name__
            for name, value in fields.items()
        }
        return {"name": type(self).__name__, **plain}


class Expected:
    """Checks of a method's options, each of which names the option and what it should be."""

    def __init__(self, method: Any):
        self._method = method

    def that(self, ok: Any, name: str, what: str) -> None:
        if not ok:
            raise InputError(
                f"Expected {name} to be {what}, found {getattr(self._method, name)!r}."
            )

    def whole(self, *names: str, least: int = 1) -> None:
        for name in names:
            value = getattr(self._method, name)
            ok = isinstance(value, int | np.integer) and not isinstance(value, bool)
            self.that(ok and value >= least, name, f"a whole number >= {least}")

    def number(self, *names: str, test: Callable[[float], bool], what: str) -> None:
        for name in names:
            value = getattr(self._method, name)
            ok = isinstance(value, int | float | np.number) and bool(np.isfinite(value))
            self.that(ok and test(float(value)), name, what)

    def one_of(self, name: str, choices: Sequence[str]) -> None:
        *first, last = choices
        value = getattr(self._method, name)
        self.that(
            isinstance(value, str) and value in choices, name, f"{', '.join(first)} or {last}"
        )

    def network(self, name: str, known: Sequence[str], signature: str = "u(t, x)") -> None:
        value = getattr(self._method, name)
        self.that(
            isinstance(value, eqx.Module) or (isinstance(value, str) and value in known),
            name,
            f"an equinox module {signature} or one of {', '.join(known)}",
        )

    def learning_rate(self, *names: str) -> None:
        self.number(*names, test=lambda v: 0.0 < v < 10.0, what="between 0 and 10")


def refuse_bent_paths(problem: TransportProblem, name: str) -> None:
    """Raise `UnsupportedProblemError` for what makes optimal paths other than straight lines."""
    for option in ("state_cost", "drift"):
        if getattr(problem, option) is not None:
            raise UnsupportedProblemError(
                f"{name} moves points along straight lines and cannot take a {option}; leave it out, or "
                "use brenier.HOTA."
            )
    if problem.noise > 0.0:
        raise UnsupportedProblemError(
            f"{name} needs noise=0, found {problem.noise}; use brenier.HOTA."
        )


def refuse_classes(problem: TransportProblem, name: str) -> None:
    """Raise `UnsupportedProblemError` where the samples have class labels."""
    if problem.classes:
        raise UnsupportedProblemError(
            f"{name} knows no classes; leave the labels out, or use brenier.NCF."
        )


def refuse_other_costs(problem: TransportProblem, option: str) -> None:
    """Raise `UnsupportedProblemError` where the cost is not the quadratic one, which the option needs."""
    if not isinstance(problem.cost, Quadratic):
        raise UnsupportedProblemError(f"{option} needs the quadratic cost.")


def decay(schedule: Schedule, progress: jax.Array, final: float, *, hold: float = 0.0) -> jax.Array:
    """The share of the learning rate at `progress` in [0, 1]: 1 while it is held, then down to `final`.

    `hold` is the share of the run before the decay begins.
    """
    if schedule == "constant":
        return jnp.ones_like(progress)
    gone = jnp.clip((progress - hold) / (1.0 - hold), 0.0, 1.0) if hold else progress
    left = 1.0 - gone if schedule == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * gone))
    return final + (1.0 - final) * left


def averaged(average: T, current: T, step: jax.Array, rate: float) -> T:
    """The running average after `step` updates; its decay grows to `rate`, so that the start is forgotten."""
    k = step.astype(jnp.float32)
    weight = 1.0 - jnp.minimum(rate, (1.0 + k) / (10.0 + k)) if rate else jnp.ones(())
    return jax.tree.map(lambda a, p: a + weight.astype(a.dtype) * (p - a), average, current)


def with_base(base: GaussianPotential | None, network: Potential) -> Potential:
    """`base + network`, where there is a base."""
    return network if base is None else SumPotential(base, network)


# The same object every time: what it compiles is compiled once.
adam = functools.cache(optax.adam)


@eqx.filter_jit
def built(network: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """`network(*arguments, **options)` as one compiled program: layer by layer it takes longer than many steps."""
    return network(*arguments, **options)


class Blueprint(NamedTuple):
    """A network that is not drawn yet."""

    network: Callable[..., Any]
    dim: int
    options: dict[str, Any]


def drawn(network: eqx.Module | Blueprint, key: Key) -> Any:
    """A network from its blueprint; one of the user's is as it is."""
    if isinstance(network, eqx.Module):
        return network
    return built(network.network, network.dim, **network.options, key=key)


def cast(module: Any, dtype: Any) -> Any:
    """A module with arrays of another precision."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), module)
