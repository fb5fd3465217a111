"""The entry point: runs the app and turns every failure into one error and its exit code."""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NoReturn

import typer

from deployer.cli import deps
from deployer.cli.app import app
from deployer.cli.terminal import ReaderGoneError, draw, plain, prepare, tell
from deployer.errors import KdeployError, read_fault

INTERNAL = 1
INTERRUPTED = 130
TERMINATED = 143

_AGAIN = "run the same command again to complete it"


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run kdeploy and exit: 0, 2 for wrong usage, or the code of the error's kind."""
    prepare()
    atexit.register(gc.freeze)  # else Python collects garbage for 0.1 s as it ends
    arguments = sys.argv[1:] if arguments is None else arguments
    with _hear_sigterm() as heard:
        code = _run(arguments)
    if code == INTERRUPTED and heard:
        _say("terminated", hint=_AGAIN)
        code = TERMINATED
    elif code == INTERRUPTED:  # Typer, too, says Ctrl-C with this code
        _say("interrupted", hint=_AGAIN)
    sys.exit(code)


@contextmanager
def _hear_sigterm() -> Iterator[list[int]]:
    """Let SIGTERM, which CI sends to cancel a job, stop a command as Ctrl-C does; yield those received."""
    heard: list[int] = []

    def stop(number: int, _frame: object) -> NoReturn:
        heard.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        yield heard
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str]) -> int:
    """Run a command, print its error, and return the exit code."""
    try:
        with deps.opened:
            code = _commands()(arguments, prog_name="kdeploy", standalone_mode=False)
    except KdeployError as error:
        code = _failed(error)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except typer.Exit as exit_:
        code = exit_.exit_code
    except ReaderGoneError:
        code = 0
    except SystemExit as exit_:  # how Click ends, without a word, where any pipe breaks
        if not isinstance(exit_.__context__, OSError):
            raise
        code = _foreign(exit_.__context__)
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback on people
        code = _foreign(error)
    try:
        sys.stdout.flush()
    except OSError:  # reported above, and Python would report it again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(code or 0)


def _failed(error: KdeployError) -> int:
    _say(str(error.what), where=error.where, hint=error.hint)
    _trace()
    return error.exit_code


@cache
def _commands() -> Callable[..., int | None]:
    """Build the command tree, once per process: that takes 20 ms."""
    return typer.main.get_command(app)


def _foreign(error: Exception) -> int:
    """Print an error that is not ours: the parser's, or an unexpected one."""
    if show := getattr(error, "show", None):
        text = io.StringIO()
        show(file=text)
        draw(plain(text.getvalue()))
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, OSError | UnicodeError | RecursionError | MemoryError):
        return _failed(read_fault(error))
    _say(
        f"{type(error).__name__}: {error}",
        hint="this is a bug in kdeploy: please report it with the output of `kdeploy --debug …`",
    )
    _trace()
    return INTERNAL


def _say(what: str, *, where: str | None = None, hint: str | None = None) -> None:
    tell(f"error: {what}")
    if where:
        tell(f"where: {where}")
    if hint:
        tell(f"hint:  {hint}")


def _trace() -> None:
    if os.environ.get("KDEPLOY_DEBUG"):
        import traceback

        draw(plain(traceback.format_exc()))
