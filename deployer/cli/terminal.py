r"""Writes text to a terminal safely: text from servers, handlers and file names cannot control it.

Control characters (except newline and tab), direction marks and bytes that are not UTF-8 become escapes as
in JSON, such as `\u001b`. Colors are removed. Pipes and files get the same text, since a file can be shown
later.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_COLOR = re.compile("\x1b\\[[0-9;:]*m")
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, C1 included
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line and paragraph separators, direction marks
    "\ufeff\ufff9-\ufffb\ud800-\udfff]"  # invisible characters; surrogates: bytes that are not UTF-8
)


class ReaderGoneError(Exception):
    """The reader of stdout has closed it, as `head` does."""


class StoppedError(Exception):
    """Ctrl-C or SIGTERM stopped the command; the text is its progress."""


class DeclinedError(Exception):
    """The user has answered a question with no. The message is already printed."""


class UnfollowedError(Exception):
    """Ctrl-C or SIGTERM ended a command that prints until it is stopped: no error, as for kubectl."""


class _Messages:
    """Holds messages back with `-o json`; `kept` has the warnings until the command ends."""

    kept: list[str] | None = None


def plain(text: str) -> str:
    """Return a text, of one or more lines, that is safe on a terminal."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", _COLOR.sub("", text))


def cell(text: object) -> str:
    """Return a text on one line that is safe on a terminal."""
    return plain(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def show(text: str) -> None:
    """Write a line of data to stdout. Raises ReaderGoneError."""
    try:
        _write(sys.stdout, plain(text) + "\n")
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def tell(text: str) -> None:
    """Write a message to stderr, unless messages are held back. Lines after the first are indented."""
    if _Messages.kept is None:
        draw(re.sub(r"\n(?=\S)", "\n  ", plain(text)) + "\n")


def warn(text: str, *, label: str = "warning: ") -> None:
    """Write a warning to stderr; keep it if messages are held back."""
    if _Messages.kept is None:
        tell(label + text)
    else:
        _Messages.kept.append(text)


def is_quiet() -> bool:
    """Return whether messages are held back."""
    return _Messages.kept is not None


@contextmanager
def hold_messages() -> Iterator[list[str]]:
    """Hold messages back, so that stderr can be one JSON object; yield the list of warnings."""
    import logging
    import warnings

    before, logging.lastResort = logging.lastResort, None
    kept: list[str] = []
    _Messages.kept = kept
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield kept
    finally:
        _Messages.kept, logging.lastResort = None, before


def draw(text: str) -> None:
    """Write trusted text to stderr, with its control characters."""
    with suppress(OSError):  # stderr is closed: the exit code is enough
        _write(sys.stderr, text)


def prepare() -> None:
    """Make every text writable: escape what the encoding lacks, and open /dev/null for closed streams."""
    nothing = Path(os.devnull)
    sys.stdin = sys.stdin or nothing.open(encoding="utf-8")
    sys.stdout = sys.stdout or nothing.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or nothing.open("w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()
