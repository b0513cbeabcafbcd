from __future__ import annotations

import abc
from typing import Any, Generic, TypeVar

import jax

from brenier.coordinates import Frame
from brenier.problem import TransportProblem
from brenier.transport import Transport
from brenier.typing import Key

State = TypeVar("State")


class Method(abc.ABC, Generic[State]):
    """How to solve a `TransportProblem`: a frozen dataclass of hyper-parameters and pure functions of a state.

    `fit` chooses coordinates, draws batches, counts, validates, checkpoints and stops; a method never does.
    The problem a method sees is the one in the frame's coordinates.
    """

    @property
    @abc.abstractmethod
    def planned_steps(self) -> int:
        """Optimiser steps when the caller of `fit` names neither steps nor a time budget."""

    @property
    @abc.abstractmethod
    def batch(self) -> int:
        """Samples drawn from each side per step."""

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
