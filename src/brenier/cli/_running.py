"""How every command runs: errors in one line, results as JSON, compiled programs kept on disk."""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from brenier.cli._hosts import leave_at_once
from brenier.errors import (
    BrenierError,
    BrenierWarning,
    DivergenceError,
    InputError,
    LostProcessError,
)

DONE, FAILED, WRONG_INPUT, LOST = 0, 1, 2, 3


class Interrupted(BrenierError):
    """Ctrl-C before there was a result to keep."""


class Commands(TyperGroup):
    """A group of commands that turns every exception into one line on stderr and an exit status."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and exit."""
        arguments = list(sys.argv[1:] if args is None else args)
        # An option of the group, but whoever repeats a command with it types it at the end.
        arguments.sort(key=lambda argument: argument != "--debug")
        try:
            with warnings.catch_warnings():
                _show_only_ours()
                status = super().main(
                    arguments, prog_name, complete_var, False, windows_expand_args, **extra
                )
            sys.stdout.flush()
        except Exception as error:
            status = _explain(error, arguments)
            # What all processes of a fit raise they raise together; otherwise the others wait in vain.
            if isinstance(error, LostProcessError) or not isinstance(error, BrenierError):
                leave_at_once(status)
        sys.exit(status if isinstance(status, int) else DONE)

    def invoke(self, ctx: Any) -> Any:
        """Run the command of a context."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted(
                "Interrupted before there was a result; nothing was written."
            ) from error


def _explain(error: Exception, arguments: list[str]) -> int:
    """Say what went wrong, on stderr and where asked for as JSON on stdout; the exit status."""
    if isinstance(error, BrokenPipeError):
        # The reader of stdout has left; Python would complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if isinstance(error, DivergenceError) and error.solution is not None:
        # The error's own advice is about arguments that only Python has.
        status = FAILED
        message = (
            "The fit diverged: its loss became infinite or NaN, and nothing was written; "
            "try the default preset, fewer steps or another --seed."
        )
    elif isinstance(error, BrenierError):
        kinds = {InputError: WRONG_INPUT, LostProcessError: LOST}
        status = next((kinds[kind] for kind in kinds if isinstance(error, kind)), FAILED)
        message = str(error)
    elif describe := getattr(error, "format_message", None):  # the parser's own errors
        status, message = WRONG_INPUT, describe()
        if context := getattr(error, "ctx", None):
            message = f"{message.strip()} Try `{context.command_path} --help`."
    elif isinstance(error, MemoryError):
        status = FAILED
        message = "Expected enough memory, found too little; use fewer points or smaller pictures."
    else:
        status = FAILED
        reason = str(error).partition("\n")[0][:300]
        message = (
            f"Unexpected {type(error).__name__}: {reason}; rerun with --debug for the traceback."
        )
    if "--debug" in arguments:
        traceback.print_exception(error)
    message = message.strip()
    print(f"error: {message}", file=sys.stderr)
    if "--json" in arguments:
        print_json(
            {"error": {"type": type(error).__name__, "message": message, "exit_status": status}}
        )
    return status


def _show_only_ours() -> None:
    """Warnings of the library in a line each; those of its dependencies are for developers."""

    def show(message: Warning | str, *_: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", BrenierWarning)
    # The message of a fit: every command that fits reports it with the result.
    warnings.filterwarnings("ignore", "Stopped after", BrenierWarning)
    warnings.showwarning = show


def print_json(data: dict[str, Any]) -> None:
    """One JSON object on stdout; NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(_plain(data), indent=2, allow_nan=False))


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if hasattr(data, "tolist"):  # arrays and numbers of NumPy and JAX
        return _plain(data.tolist())
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data if data is None or isinstance(data, str | int | bool) else str(data)


def keep_compiled() -> None:
    """Keep compiled programs on disk between runs.

    In `BRENIER_CACHE_DIR` (empty: nowhere), in JAX's own `JAX_COMPILATION_CACHE_DIR`, or in the
    user's cache folder. A folder that cannot be made costs a few seconds a run and nothing else.
    """
    import jax

    folder = os.environ.get("BRENIER_CACHE_DIR")
    if folder is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if folder == "":
        jax.config.update("jax_compilation_cache_dir", None)
        return
    try:
        path = Path(folder).expanduser() if folder else _user_cache() / "brenier" / "jax"
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return
    if os.access(path, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
