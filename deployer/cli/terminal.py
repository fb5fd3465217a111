r"""The edge where text meets a terminal: whatever a server, a handler or a file name says is shown as text.

What a terminal would obey is written as an escape, `\u001b` for one, as in JSON: control characters but the
line end and the tab, marks that turn the direction of text, and what is not UTF-8. Colours are left out.
A pipe and a file get the same: what is in a file comes to a terminal later.
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
    """Nobody reads stdout any more: `head`, say, has seen enough."""


def plain(text: str) -> str:
    """Return a text of one or more lines that no terminal obeys."""
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", _COLOUR.sub("", text))


def cell(text: object) -> str:
    """Return a text that takes one line."""
    return plain(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def show(text: str) -> None:
    """Write data to stdout, and a line end. Raises ReaderGoneError."""
    try:
        _write(sys.stdout, plain(text) + "\n")
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def tell(text: str) -> None:
    """Write words for people to stderr. Further lines are indented: none looks like one of kdeploy's own."""
    draw(re.sub(r"\n(?=\S)", "\n  ", plain(text)) + "\n")


def draw(text: str) -> None:
    """Write to stderr what a terminal is to obey; it holds nothing that others have said."""
    with suppress(OSError):  # where nobody listens, the exit code says it
        _write(sys.stderr, text)


def prepare() -> None:
    """Let every text be written: what the terminal's encoding lacks is escaped, a closed stream takes all."""
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
