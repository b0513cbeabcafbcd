"""What a fit tells those who watch it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from brenier.transport import Transport


@dataclasses.dataclass(frozen=True)
class Event:
    """The state of a running fit after a chunk of steps.

    Attributes:
        step: steps done.
        steps: steps planned as things stand; early stopping and time budgets change it.
        progress: position in the schedule, 0 to 1.
        metrics: loss terms, mean over the chunk.
        scores: held-out scores where this chunk was validated, else `None`; `ratio` is the larger of the two
            energy distances, each in units of its noise band.
        elapsed, compile_seconds, remaining: seconds; `remaining` is an estimate.
        steps_per_second: without compilation.
        device: for example `cpu`.
        transport: gives the map so far.
    """

    step: int
    steps: int
    progress: float
    metrics: dict[str, float]
    scores: dict[str, float] | None
    elapsed: float
    compile_seconds: float
    steps_per_second: float
    remaining: float
    device: str
    transport: Callable[[], Transport]


Callback = Callable[[Event], bool | None]
"""Called after every chunk; a true value stops the fit and keeps the best map so far."""
