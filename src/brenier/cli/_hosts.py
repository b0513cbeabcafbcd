"""`brenier fit` in several processes: how they meet, and how all of them end when one is lost.

The runtime ends a process at once when it hears that another one is gone, in words of its own. So the work is done in a
child, and its parent says what became of it, with an exit status that a scheduler can act on.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, TextIO

from brenier.errors import InputError, LostProcessError

if TYPE_CHECKING:
    from brenier.hosts import Hosts

_WATCHED = (
    "BRENIER_WATCHED_THROUGH"  # in a child's environment: the pipe that its parent holds open
)
_STARTED = "BRENIER_STARTED_AT"  # in a child's environment: seconds since the epoch
_HEARTBEAT = 30  # seconds of silence after which a process counts as lost
_FAREWELL = 60  # seconds that a process which has finished waits for the others


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of this process among those of a fit."""

    coordinator: str
    processes: int
    rank: int


def place_of(
    coordinator: str | None, processes: int | None, process_id: int | None, devices: int
) -> Place | None:
    """The place that the options name, `None` without them.

    Raises:
        InputError: some of the options without the others, or such as make no sense together.
    """
    given = {
        "--coordinator": coordinator,
        "--processes": processes,
        "--process-id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if coordinator is None or processes is None or process_id is None:
        raise InputError(
            f"Expected {', '.join(given)} together, found no {' and no '.join(missing)}."
        )
    if not re.fullmatch(r"\S+:\d{1,5}", coordinator):
        raise InputError(
            f"Expected --coordinator as HOST:PORT, the same for every process, found {coordinator!r}."
        )
    if process_id >= processes:
        raise InputError(
            f"Expected --process-id from 0 to {processes - 1}, found {process_id} of {processes} processes."
        )
    if devices != 1:
        raise InputError(
            f"Expected no --devices beside --coordinator, found {devices}: all devices of all processes are used."
        )
    return Place(coordinator, processes, process_id)


def is_watched() -> bool:
    """Whether this process is the child that does the work."""
    return _WATCHED in os.environ


def watch() -> int:
    """Runs this command once more in a child, and gives its exit status.

    Raises:
        LostProcessError: the child did not end by itself.
    """
    alive, held = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", "from brenier.cli import main; main()", *sys.argv[1:]],
        env=os.environ | {_WATCHED: str(alive), _STARTED: str(time.time())},
        pass_fds=[alive],
        start_new_session=True,  # signals reach it through here, once
    )
    os.close(alive)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: child.send_signal(number))
    status = child.wait()
    os.close(held)
    if status >= 0:
        return status
    if status == -signal.SIGABRT:
        what = "Another process of this fit was lost, or did not come in time"
    else:
        what = f"This process of the fit was ended by signal {-status}"
    raise LostProcessError(
        f"{what}. Start all of them again by the same commands: with --checkpoint they continue from it."
    )


def join(place: Place | None, patience: int) -> Hosts:
    """Meets the other processes, of which a fit without a place has none.

    The seconds of patience count from the start of the command, its imports included: a process that is killed before
    it has come is then missed as soon as one that is killed later.
    """
    from brenier.hosts import Hosts

    if place is None:
        return Hosts()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "--debug" not in sys.argv:
        _silence_runtime()

    import jax

    waited = time.time() - float(os.environ[_STARTED])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # A process that is asked to end shall end, and the others with it: the checkpoint has the work.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.rank,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, round(patience - waited)),
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_FAREWELL,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise LostProcessError(
            f"Expected {place.processes} processes to meet at {place.coordinator}, found that they could not "
            f"({reason}). Look for a wrong host, a port in use or a process that was not started."
        ) from error
    return Hosts.all()


def leave_at_once(status: int) -> None:
    """Ends a child without waiting for processes that may be gone."""
    if is_watched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end_with_parent() -> None:
    os.read(int(os.environ[_WATCHED]), 1)  # returns when the parent is gone
    os._exit(1)


def _silence_runtime() -> None:
    """Python keeps both streams; what the runtime writes past it goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    sys.stdout, sys.stderr = _moved(sys.stdout, nowhere), _moved(sys.stderr, nowhere)


def _moved(stream: TextIO, nowhere: int) -> TextIO:
    stream.flush()
    number = stream.fileno()
    copy = os.dup(number)
    os.dup2(nowhere, number)
    return open(copy, "w", encoding=stream.encoding, errors=stream.errors, buffering=1)
