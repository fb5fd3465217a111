"""Turns every failure of a command into a report: what is wrong, where, and what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deployer.errors import KdeployError, did_you_mean, read_fault, use_one_of

INTERNAL, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
CODES = {
    INTERNAL: KdeployError.code,
    USAGE: "usage-error",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}


class Report(NamedTuple):
    """One failure. `code` is the kind of error; it does not change between versions."""

    code: str
    message: str
    where: str | None
    hint: str | None
    exit_code: int
    traceback: str | None = None  # with --debug


def program() -> str:
    """Return how the user runs this program: kdeploy, or as a plugin of kubectl."""
    return "kubectl kdeploy" if Path(sys.argv[0]).name == "kubectl-kdeploy" else "kdeploy"


def report_error(error: Exception) -> Report:
    """Report an exception: a KdeployError, an error of the operating system, or an unexpected one."""
    if isinstance(error, OSError | UnicodeError | RecursionError | MemoryError):
        error = read_fault(error)
    if isinstance(error, KdeployError):
        where = error.where or None
        message = error.what.removeprefix(f"{where}: ") if where else error.what
        return Report(error.code, message, where, error.hint or None, error.exit_code)
    return Report(
        CODES[INTERNAL],
        f"{type(error).__name__}: {error}",
        None,
        "This is a bug in kdeploy. Run the command again with `--debug` and report the output.",
        INTERNAL,
    )


def report_interrupt(code: int, progress: str = "") -> Report:
    """Report Ctrl-C or SIGTERM, with the progress of the command."""
    message = CODES[code] + (f": {progress}" if progress else "")
    return Report(CODES[code], message, None, "Run the same command again to complete it.", code)


def report_usage(error: Any, arguments: Sequence[str]) -> Report:
    """Report an error of the command line parser, an exception of Typer."""
    context: Any = getattr(error, "ctx", None)
    place = context.command_path if context else " ".join([program(), *_leading_words(arguments)])
    hint = f"Run `{place} --help` to see its options."
    if hasattr(error, "possibilities"):
        message = f"unknown option {error.option_name!r}"
        hint += did_you_mean(error.option_name, error.possibilities or ())
    elif command := re.match(r"No such command '(.*?)'\.", error.message, re.DOTALL):
        message = f"unknown command {command[1]!r}"
        near = did_you_mean(command[1], context.command.commands)
        hint = f"Run `{place} --help` to list the commands.{near}"
    else:
        message, closed_set = _invalid_value(error)
        hint = closed_set or hint
        names = getattr(error, "param_hint", None) or _names(getattr(error, "param", None))
        place = f"{place} {names}" if names else place
    return Report(CODES[USAGE], message, place, hint, USAGE)


def _leading_words(arguments: Sequence[str]) -> list[str]:
    """Return the names of commands at the start of the arguments."""
    words = []
    for argument in arguments:
        if not re.fullmatch(r"[a-z-]*[a-z]", argument) or argument.startswith("-"):
            break
        words.append(argument)
    return words


def _names(parameter: Any) -> str:
    if parameter is None:
        return ""
    return str(max(parameter.opts, key=len)) if parameter.opts[0].startswith("-") else parameter.name.upper()


def _invalid_value(error: Any) -> tuple[str, str | None]:
    """Return what is wrong with a value, and the hint if the valid values are a closed set."""
    message = error.message or f"missing {error.param.param_type_name} {_names(error.param)}"
    message = message.rstrip(".")
    if closed := re.fullmatch(r"'(.*)' is not one of (.*)", message, re.DOTALL):
        return f"invalid value {closed[1]!r}", use_one_of(closed[1], re.findall(r"'(.*?)'", closed[2]))
    if extra := re.fullmatch(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", message, re.DOTALL):
        return f"unexpected argument {extra[1].split(' ')[0]!r}", None
    if limit := re.fullmatch(r"(.*) is not in the range (?:(.*)<=)?x[<>]=(.*)", message):
        wanted = f"from {limit[2]} to {limit[3]}" if limit[2] else f"{limit[3]} or more"
        return f"invalid number '{limit[1]}': must be {wanted}", None
    if number := re.fullmatch(r"('.*') is not a valid int(?: range)?", message, re.DOTALL):
        return f"invalid number {number[1]}", None
    return message[0].lower() + message[1:], None
