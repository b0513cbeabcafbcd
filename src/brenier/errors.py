"""The exceptions a user may want to catch.

`InputError` means "change what you passed in"; `DivergenceError` and `OutputError` mean "the work itself failed";
`LostProcessError` means "run it again". The command line turns the first into exit status 2, the last into 3 and the
others into 1.
"""

from __future__ import annotations

from typing import Any


class BrenierError(Exception):
    """Base class of every error raised on purpose by this library."""


class InputError(BrenierError, ValueError):
    """Data or arguments that cannot be used; the message says what was expected and found."""


class UnsupportedProblemError(InputError):
    """A method was given a problem it cannot solve; the message names one that can."""


class FileFormatError(InputError):
    """A file that is damaged, foreign, of the wrong kind or written by a newer version."""


class OutputError(BrenierError, OSError):
    """A result that could not be written."""


class DivergenceError(BrenierError, RuntimeError):
    """A fit whose loss or parameters became non-finite, or paths that cannot be followed.

    Attributes:
        solution: the last good `Solution`, or `None` when there was none yet.
    """

    def __init__(self, message: str, solution: Any = None):
        super().__init__(message)
        self.solution = solution


class LostProcessError(BrenierError, RuntimeError):
    """A fit of several processes of which one is gone; all of them together continue from their checkpoint."""


class BrenierWarning(UserWarning):
    """Something a user should know about a result that is still usable."""
