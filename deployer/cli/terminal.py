r"""Writes text to a terminal safely: text from servers, handlers and file names cannot control it.

Control characters (except line end and tab), direction marks and bytes that are not UTF-8 become escapes as
in JSON, such as `\u001b`. Colours are dropped. Pipes and files get the same, since a file may be shown later.
"""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

_COLOUR = re.compile("\x1b\\[[0-9;:]*m")
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, the 8-bit ones too
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line and paragraph ends; marks of direction
    "\ufeff\ufff9-\ufffb\ud800-\udfff]"  # what is invisible; surrogates: bytes that are not UTF-8
)


class ReaderGoneError(Exception):
    """The reader of stdout has closed it, as `head` does."""


def plain(text: str) -> str:
    """Return a text, of one or more lines, that is safe on a terminal."""
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", _COLOUR.sub("", text))


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
    """Write a message to stderr. Further lines are indented: none looks like one of kdeploy's own."""
    draw(re.sub(r"\n(?=\S)", "\n  ", plain(text)) + "\n")


def draw(text: str) -> None:
    """Write trusted text to stderr, with its control characters."""
    with suppress(OSError):  # a closed stderr: the exit code is enough
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
