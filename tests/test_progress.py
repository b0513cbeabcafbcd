"""What a person sees of a fit, for terminals, log files and nobody."""

import io
import re

import pytest

from brenier.callbacks import Event
from brenier.progress import FitProgress, describe


class Terminal(io.StringIO):
    def isatty(self):
        return True


def event(step=25, scores=None, **changes):
    values = {
        "step": step,
        "steps": 100,
        "progress": step / 100,
        "metrics": {"loss": 0.5, "energy_forward": 0.125, "hj": 0.25},
        "scores": scores,
        "elapsed": 12.0,
        "compile_seconds": 3.0,
        "steps_per_second": 40.0,
        "remaining": 75.0,
        "device": "cpu",
        "transport": lambda: None,
    }
    return Event(**(values | changes))


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")


def watch(stream, *events, quiet=False):
    with FitProgress("ncf", quiet=quiet, stream=stream) as progress:
        stops = [progress(e) for e in events]
    assert stops == [None] * len(events)  # a callback that returned a true value would stop the fit
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_a_terminal_shows_everything():
    shown = watch(Terminal(), event(25, {"ratio": 1.5}), event(50))
    assert "compiling" in shown
    assert "1:15 left" in shown
    assert "50%" in shown
    assert "step 50 of 100" in shown
    assert "loss 0.5, energy forward 0.125, hj 0.25" in shown
    assert "held out 1.50 × noise" in shown  # of the last validation
    assert "40 steps/s" in shown
    assert "cpu, compiled in 3.0 s" in shown


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_elsewhere_one_line_at_each_end(stream, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = watch(stream(), event(25, {"ratio": 1.5}), event(50)).splitlines()
    assert lines == [
        "ncf: fitting; the first steps wait for compilation",
        "ncf: 50 steps in 12.0 s (3.0 s of it compilation), "
        "held out 1.50 × noise, 40 steps/s on cpu",
    ]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_shows_nothing(stream):
    assert watch(stream(), event(25), quiet=True) == ""


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_fit_that_fails_before_its_first_steps(stream):
    stream = stream()
    with pytest.raises(RuntimeError, match="boom"), FitProgress("ncf", stream=stream):
        raise RuntimeError("boom")
    assert "steps in" not in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "clock"),
    [(0.4, "0:00"), (59.6, "1:00"), (3725.0, "1:02:05"), (float("inf"), "?"), (float("nan"), "?")],
)
def test_time_left(seconds, clock):
    assert f"{clock} left" in watch(Terminal(), event(remaining=seconds))


def test_own_scores_come_before_older_ones():
    assert "held out 2.00" in describe(event(scores={"ratio": 2.0}), {"ratio": 3.0})
    assert "held out 3.00" in describe(event(), {"ratio": 3.0})
    assert "held out" not in describe(event())
