"""What a person watching a fit sees: a progress bar in a terminal, two lines in a log file."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from brenier.callbacks import Event


class FitProgress:
    """A callback of `fit`, and a context manager around it, that shows its progress on stderr.

    In a terminal: a bar with the loss terms, the held-out energy distance in units of its noise
    band, steps per second and the time left; below it the device and the time compilation took.
    Anywhere else: one line at the start and one at the end.

    Args:
        title: what is fitted, for example "ncf, dimension 2".
        quiet: show nothing at all.
        stream: where to write; stderr by default.

    Example:
        >>> with FitProgress("ncf") as progress:                              # doctest: +SKIP
        ...     solution = brenier.fit(problem, brenier.NCF(), callbacks=[progress])
    """

    def __init__(self, title: str = "fit", *, quiet: bool = False, stream: TextIO | None = None):
        self.title = title
        self.quiet = quiet
        self._stream = sys.stderr if stream is None else stream
        self._live: Live | None = None
        self._last: Event | None = None
        self._scores: dict[str, float] = {}

    def __enter__(self) -> FitProgress:
        if self.quiet:
            return self
        if not _is_terminal(self._stream):
            self._print(f"{self.title}: fitting; the first steps wait for compilation")
            return self
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            expand=True,
        )
        self._task = self._bar.add_task(self.title, total=None, left="")
        console = Console(file=self._stream)
        # Live owns stderr alone: warnings and the result are printed above the bar or after it.
        self._live = Live(
            self._view("compiling"), console=console, transient=True, redirect_stdout=False
        )
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        if self._last is not None and not self.quiet:
            self._print(f"{self.title}: {_summary(self._last, self._scores)}")

    def __call__(self, event: Event) -> None:
        """Show the state of the fit after a chunk of steps."""
        self._last = event
        self._scores = event.scores or self._scores
        if self._live is not None:
            left = f"{_clock(event.remaining)} left"
            self._bar.update(self._task, total=1.0, completed=event.progress, left=left)
            self._live.update(self._view(describe(event, self._scores)))

    def _view(self, status: str) -> Group:
        return Group(self._bar, Text(status, style="dim"))

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def describe(event: Event, scores: dict[str, float] | None = None) -> str:
    """The numbers of an event in one line; `scores` are the latest where it has none of its own."""
    terms = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in event.metrics.items()]
    parts = [f"step {event.step} of {event.steps}", ", ".join(terms)]
    scores = event.scores or scores
    if scores:
        parts.append(f"held out {scores['ratio']:.2f} × noise")
    parts.append(f"{event.steps_per_second:.0f} steps/s")
    parts.append(f"{event.device}, compiled in {event.compile_seconds:.1f} s")
    return " · ".join(part for part in parts if part)


def _summary(event: Event, scores: dict[str, float]) -> str:
    held_out = f"held out {scores['ratio']:.2f} × noise, " if scores else ""
    return (
        f"{event.step} steps in {event.elapsed:.1f} s ({event.compile_seconds:.1f} s of it "
        f"compilation), {held_out}{event.steps_per_second:.0f} steps/s on {event.device}"
    )


def _clock(seconds: float) -> str:
    if not 0 <= seconds < 360_000:  # a first estimate may be infinite
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _is_terminal(stream: TextIO) -> bool:
    # rich believes FORCE_COLOR, which CI systems set for logs.
    return stream.isatty() and os.environ.get("TERM") != "dumb"
