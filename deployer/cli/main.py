"""The entry point: runs a command and turns every failure into one error and its exit code."""

from __future__ import annotations

import atexit
import gc
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from typing import NoReturn

import typer

from deployer.cli import deps
from deployer.cli.app import app
from deployer.cli.failures import (
    INTERRUPTED,
    TERMINATED,
    USAGE,
    Report,
    program,
    report_error,
    report_interrupt,
    report_usage,
)
from deployer.cli.terminal import (
    DeclinedError,
    ReaderGoneError,
    StoppedError,
    UnfollowedError,
    draw,
    hold_messages,
    plain,
    prepare,
    tell,
    warn,
)

Ended = int | Report
_SHORT_OUTPUT = "-[Afpy]*o"  # -o, after short options without a value


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run kdeploy and exit with 0, or with the exit code of the error."""
    prepare()
    atexit.register(gc.freeze)  # else Python collects garbage for 0.1 s when it exits
    arguments = _without_debug(sys.argv[1:] if arguments is None else arguments)
    warnings: list[str] = []
    with _handle_sigterm() as received:
        if as_json := _wants_json(arguments):
            with hold_messages() as warnings:
                ended = _run(arguments, received)
        else:
            ended = _run(arguments, received)
    if isinstance(ended, int):
        for warning in warnings:
            warn(warning)
        sys.exit(ended)
    if as_json:
        _print_json(ended, warnings)
    else:
        _print(ended)
    sys.exit(ended.exit_code)


def complete_for_kubectl() -> NoReturn:
    """Print the completions of the words after `kubectl kdeploy`: kubectl runs this program for them."""
    words = sys.argv[1:] or [""]
    os.environ.update(
        _KDEPLOY_COMPLETE="complete_bash",
        COMP_WORDS=shlex.join(["kdeploy", *words]),
        COMP_CWORD=str(len(words)),
    )
    with suppress(SystemExit):
        main([])
    sys.stdout.write(":0\n")  # kubectl's directive: if there are none, complete files
    sys.exit(0)


def _options(arguments: Sequence[str]) -> list[str]:
    return list(arguments[: arguments.index("--")] if "--" in arguments else arguments)


def _without_debug(arguments: list[str]) -> list[str]:
    """Accept --debug anywhere on the command line."""
    options = _options(arguments)
    if "--debug" in options:
        os.environ["KDEPLOY_DEBUG"] = "1"
    return [one for one in options if one != "--debug"] + arguments[len(options) :]


def _wants_json(arguments: Sequence[str]) -> bool:
    """Return whether `-o json` is given, even if the parser fails before it."""
    last, options = "", _options(arguments)
    for option, following in pairwise([*options, ""]):
        if given := re.fullmatch(rf"(?:--output=|{_SHORT_OUTPUT})(.+)", option):
            last = given[1]
        elif re.fullmatch(rf"--output|{_SHORT_OUTPUT}", option):
            last = following
    return last == "json"


@contextmanager
def _handle_sigterm() -> Iterator[list[int]]:
    """Handle SIGTERM, which CI sends to cancel a job, like Ctrl-C; yield the received signals."""
    received: list[int] = []

    def stop(number: int, _frame: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread can set handlers
        yield received
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str], received: list[int]) -> Ended:
    """Run a command and return its exit code or its failure."""
    ended = _call(arguments, received)
    try:
        sys.stdout.flush()
    except OSError:  # reported before; Python would report it again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ended


def _call(arguments: list[str], received: list[int]) -> Ended:
    try:
        with deps.opened:
            code = _commands()(arguments, prog_name=program(), standalone_mode=False) or 0
        return _interrupted(received) if code == INTERRUPTED else code  # Typer returns this code for Ctrl-C
    except (KeyboardInterrupt, typer.Abort, StoppedError) as error:
        return _interrupted(received, str(error))
    except (DeclinedError, UnfollowedError):
        return TERMINATED if received else INTERRUPTED
    except typer.Exit as error:
        return error.exit_code
    except ReaderGoneError:
        return 0
    except SystemExit as error:  # how Click exits, without a message, if any pipe breaks
        if not isinstance(error.__context__, OSError):
            raise
        return _traced(report_error(error.__context__))
    except Exception as error:  # noqa: BLE001 - the last line of defense: users see no traceback
        if type(error).__name__ == "NoArgsIsHelpError":
            draw(plain(str(error)) + "\n")
            return USAGE
        if hasattr(error, "format_message"):
            return report_usage(error, arguments)
        return _traced(report_error(error))


def _interrupted(received: list[int], progress: str = "") -> Report:
    return report_interrupt(TERMINATED if received else INTERRUPTED, progress)


@cache
def _commands() -> Callable[..., int | None]:
    """Build the command tree, once per process: that takes 20 ms."""
    return typer.main.get_command(app)


def _traced(report: Report) -> Report:
    """Add the traceback of the current exception if --debug asks for it."""
    if not os.environ.get("KDEPLOY_DEBUG"):
        return report
    import traceback

    return report._replace(traceback=traceback.format_exc())


def _print(report: Report) -> None:
    tell(f"error: {report.message}")
    if report.where:
        tell(f"where: {report.where}")
    if report.hint:
        tell(f"hint: {report.hint}")
    if report.traceback:
        draw(plain(report.traceback))


def _print_json(report: Report, warnings: list[str]) -> None:
    """Print a failure as the one JSON object on stderr."""
    import json

    data: dict[str, object] = report._asdict() | {"warnings": warnings}
    for optional in ("traceback", "warnings"):
        if not data[optional]:
            del data[optional]
    draw(plain(json.dumps(data)) + "\n")
