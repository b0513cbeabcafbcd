"""Where a run is on its way, which of its maps is the best, and when it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brenier.validation import gain

CHUNK = 25
"""Steps per compiled call: the grain of progress reports, validation and interruption."""

_SIGNIFICANT = 2.0  # standard errors of a change of the held-out dual
_SLACK = 1.2  # of the energy distance, within which two maps are alike
_PATIENCE = 12  # validations without improvement of the energy distance, which is noisy
_DUAL_PATIENCE = 6  # the same for the held-out dual, whose changes are told from noise
_EARLIEST_STOP = 0.4  # of the schedule: before it the scores of a large learning rate say little
_AGREEMENT = 0.01  # round trip, as a share of the variance, above which a match is not the end
_COOL_DOWN = 1 / 3  # of the steps done, spent on the rest of the schedule once a stop is decided


@dataclasses.dataclass
class Plan:
    """The host's side of a run; plain numbers, so that a checkpoint continues with the same bits.

    Within a phase the position is linear in the step, from `phase_progress` at `phase_step` to 1 at `last_step`. A
    decision to stop, or a new estimate from the clock, begins a new phase.
    """

    last_step: int
    step: int = 0
    phase_step: int = 0
    phase_progress: float = 0.0
    reason: str | None = None
    best: float = float("inf")
    since_best: int = 0
    kept: float = float("inf")
    kept_step: int = -1  # none yet
    chunk: int = 0
    elapsed: float = 0.0
    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    terms: list[list[float]] = dataclasses.field(default_factory=list)
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def slope(self) -> float:
        return (1.0 - self.phase_progress) / max(self.last_step - self.phase_step, 1)

    @property
    def position(self) -> float:
        if self.step >= self.last_step:
            return 1.0
        return self.phase_progress + self.slope * (self.step - self.phase_step)

    @property
    def goes_on(self) -> bool:
        ended = self.reason in ("stopped", "interrupted", "diverged")
        return self.step < self.last_step and not ended

    @property
    def count(self) -> int:
        """The steps of the next chunk."""
        return min(CHUNK, self.last_step - self.step) if self.goes_on else 0

    def record(self, **columns: float) -> None:
        for name, value in columns.items():
            self.history.setdefault(name, []).append(float(value))

    def news(self, since: Mapping[str, int]) -> dict[str, Any]:
        """What has changed, JSON-able, since the columns of the history had these lengths; see `follow`."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del plain["terms"]  # which only the one that judges needs
        columns = plain.pop("history").items()
        return plain | {"history": {k: column[since.get(k, 0) :] for k, column in columns}}

    def follow(self, news: Mapping[str, Any]) -> None:
        """Takes over what another process has decided."""
        for name, value in news.items():
            if name != "history":
                setattr(self, name, value)
        for name, values in news["history"].items():
            self.history.setdefault(name, []).extend(values)

    def judge(self, ratio: float, terms: Sequence[np.ndarray], converges: bool) -> bool:
        """Takes note of a validation; whether its map shall be kept.

        Args:
            ratio: the held-out energy distance in units of its noise band.
            terms: of the held-out dual, where there is one.
            converges: whether maps on the way are comparable; otherwise the last one counts.
        """
        if not converges:
            keep = improved = True
        elif terms:
            # The energy distance is blind to what the dual still improves, so the dual itself is the judge.
            change = gain(terms, self.terms) if self.terms else np.inf
            improved = change > _SIGNIFICANT
            # Where the dual cannot tell, as from few samples, the energy distance still can. The start is no draw of a
            # noisy optimiser's: it stays unless there is something to be said for another.
            least = 0.0 if self.kept_step == 0 else -_SIGNIFICANT
            keep = improved or (change >= least and ratio <= max(1.0, _SLACK * self.kept))
            if improved:
                self.terms = [t.tolist() for t in terms]
            self.record(held_out_dual=sum(t.mean() for t in terms))
        else:
            # Within the noise band scores cannot rank two maps, so the later one, less noisy, is kept.
            keep, improved = ratio <= max(self.kept, 1.0), ratio < 0.98 * self.best
        keep = bool(np.isfinite(ratio) and keep)
        if keep:
            self.kept, self.kept_step = ratio, self.step
        self.best = min(self.best, ratio)
        self.since_best = 0 if improved else self.since_best + 1
        return keep

    def revise(self, planned: int, early_stopping: bool, affordable: int | None) -> None:
        """Decides when the schedule ends: early, in time, or as it stands.

        Args:
            planned: steps of the whole schedule.
            early_stopping: whether a match, or no more improvement, ends it.
            affordable: steps that end in the time there is, `None` without a time budget.
        """
        decided = self.reason in ("matched", "stalled")
        if early_stopping and not decided and self.position >= _EARLIEST_STOP:
            recent = self.history.get("score", [])[-2:]
            agree = self.history.get("round_trip", [1.0])[-1] <= _AGREEMENT
            if len(recent) == 2 and max(recent) <= 1.0 and agree and not self.terms:
                self.reason = "matched"
            elif self.since_best >= _PATIENCE or (
                self.terms and agree and self.since_best >= _DUAL_PATIENCE
            ):
                self.reason = "stalled"
            decided = self.reason in ("matched", "stalled")
            if decided:
                self._end_at(
                    min(self.last_step, self.step + max(2 * CHUNK, int(self.step * _COOL_DOWN)))
                )
        if affordable is None:
            return
        if decided:
            self._end_at(min(affordable, self.last_step))
        else:
            self.reason = "time_budget" if affordable < planned else None
            self._end_at(min(affordable, planned))

    def _end_at(self, last_step: int) -> None:
        if last_step != self.last_step:
            self.phase_progress, self.phase_step = self.position, self.step
            self.last_step = max(last_step, self.step)
