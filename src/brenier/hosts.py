"""Several processes, on one machine or on many, that solve one problem together.

All run the same program, each on its share of every batch. What depends on clocks, files and people is decided by the
first of them, which alone writes files and calls callbacks; the others are told. What fails in one fails in all.

The exchange goes through the devices, like that of the compiled steps, so that both keep one order everywhere.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from brenier import errors
from brenier.errors import BrenierError, LostProcessError

T = TypeVar("T")

_SMALLEST = 1024  # bytes of a message: few lengths, few compiled programs


class Hosts:
    """The processes of a fit. Of a single one there is nothing to agree on.

    Args:
        count: how many.
        rank: which of them this one is.

    Attributes:
        interrupted: whether Ctrl-C had been pressed in any of them by the last exchange.
    """

    def __init__(self, count: int = 1, rank: int = 0):
        self.count, self.rank = count, rank
        self.interrupted = False
        self._asked = False
        self._error: Exception | None = None
        self._handler: Any = None

    @classmethod
    def of(cls, mesh: Mesh | None) -> Hosts:
        """Those whose devices are in a mesh, which has devices of this process alone or of all."""
        if mesh is None or all(d.process_index == jax.process_index() for d in mesh.devices.flat):
            return cls()
        return cls.all()

    @classmethod
    def all(cls) -> Hosts:
        """Those that `jax.distributed` has brought together."""
        return cls(jax.process_count(), jax.process_index())

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, n: int) -> slice:
        """The rows of this process in batches of `n`."""
        each = n // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def told(self, do: Callable[[], T]) -> T:
        """What `do` gives in the first process, as JSON; its error is raised in all of them."""
        if self.count == 1:
            return do()
        return self._exchanged(do if self.first else lambda: None)[1]

    def together(self, do: Callable[[], T]) -> T:
        """What `do` gives in this process; an error in one of them is raised in all."""
        if self.count == 1:
            return do()
        found: list[T] = []
        self._exchanged(lambda: found.append(do()))
        return found[0]

    def later(self, do: Callable[[], None]) -> None:
        """`do`, whose error is raised at the next exchange, in all."""
        try:
            do()
        except Exception as error:
            if self.count == 1:
                raise
            self._error = error

    def shared(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays of the first process in all of them, which have arrays of the same shapes."""
        content = b"".join(array.tobytes() for array in arrays.values())
        content = _broadcast(content, len(content), self.first)
        found, at = {}, 0
        for name, array in arrays.items():
            part = np.frombuffer(content, array.dtype, array.size, at)
            found[name], at = part.reshape(array.shape), at + array.nbytes
        return found

    def _exchanged(self, do: Callable[[], Any]) -> tuple[Any, Any]:
        """What `do` gives here and, once all have done it, what it gave in the first process."""
        error, result, self._error = self._error, None, None
        try:
            result = do() if error is None else None
        except Exception as problem:
            error = problem
        content: Any = result if self.first else None
        if error is not None:
            content = [type(error).__name__, str(error)]
        message = json.dumps(content).encode()
        own = np.array([len(message), error is not None, self._asked], np.int32)
        facts = _collective(lambda: multihost_utils.process_allgather(own))
        self.interrupted = bool(facts[:, 2].any())
        failed = np.flatnonzero(facts[:, 1])
        speaker = int(failed[0]) if len(failed) else 0
        answer = json.loads(_broadcast(message, int(facts[speaker, 0]), self.rank == speaker))
        if error is not None:
            raise error
        if len(failed):
            kind, words = answer
            raise _rebuilt(kind, words, speaker)
        return result, answer

    def __enter__(self) -> Hosts:
        # A process that left the loop alone would leave the others waiting: all leave at the next exchange.
        if self.count > 1 and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)

    def _note(self, *_: object) -> None:
        self._asked = True

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Where compiled programs of all processes run: an error is that another one is gone."""
        try:
            yield
        except (RuntimeError, ValueError) as error:  # as the runtime has it, by the kind of device
            if self.count == 1:
                raise
            raise _lost(error) from error


def _collective(function: Callable[[], T]) -> T:
    try:
        return function()
    except (RuntimeError, ValueError) as error:
        raise _lost(error) from error


def _broadcast(message: bytes, size: int, speaks: bool) -> bytes:
    """The message of the process that speaks, whose length all know."""
    padded = np.zeros(max(_SMALLEST, 1 << (size - 1).bit_length()), np.uint8)
    if speaks:
        padded[:size] = np.frombuffer(message, np.uint8)
    found = _collective(lambda: multihost_utils.broadcast_one_to_all(padded, is_source=speaks))
    return np.asarray(found)[:size].tobytes()


def _lost(error: Exception) -> LostProcessError:
    reason = str(error).strip().partition("\n")[0][:200]
    return LostProcessError(
        f"Another process of this fit was lost ({reason}). Start all of them again by the same commands: "
        "with a checkpoint they continue from it."
    )


def _rebuilt(kind: str, message: str, rank: int) -> BrenierError:
    where = f"Process {rank}: " if rank else ""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, BrenierError):
        return known(f"{where}{message}")
    return BrenierError(f"{where}unexpected {kind}: {message}")
