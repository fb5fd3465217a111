"""Whether a Python file parses on the serving image's Python, which is seldom the one that runs here.

`ast.parse(feature_version=...)` knows most of what came later: `match`, `except*`, `type`, type parameters.
What it lets through is looked for here. Where the serving Python is newer than this one, only what parses
is known.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
import tokenize
import warnings
from collections.abc import Iterable, Iterator

from msgspec import Struct

from deployer.errors import ArchiveError


class Source(Struct, frozen=True):
    """A Python file of the archive: `path` is what people know it by, `name` its name as a member."""

    path: str
    name: str
    content: bytes


def minor_version(python: str) -> int:
    """Return 9 for "3.9"."""
    return int(python.partition(".")[2])


def parse(source: Source, python: str) -> ast.Module | None:
    """Return the syntax tree, or None where only a newer Python than this one could tell.

    `ArchiveError` with file and line if the file cannot be run on Python `python` ("3.9").
    """
    minor = minor_version(python)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source.content, source.path, feature_version=(3, minor))
            compile(tree, source.path, "exec", dont_inherit=True)  # finds a `return` outside of a function
    except SyntaxError as error:
        if minor > sys.version_info.minor:
            return None
        raise _unfit(source, error.lineno or 1, error.msg, python) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise _unfit(source, 1, str(error) or "too deeply nested", python) from error
    for line, what in sorted(_later_syntax(tree, source.content, minor)):
        raise _unfit(source, line, what, python)
    return tree


def _unfit(source: Source, line: int, what: str, python: str) -> ArchiveError:
    return ArchiveError(
        f"does not parse on the serving image's Python {python}: {what}",
        where=f"{source.path}:{line}",
        hint="change the file, or say in model.python which Python the serving image has",
    )


def _later_syntax(tree: ast.Module, content: bytes, minor: int) -> Iterator[tuple[int, str]]:
    """Find what the parser of an older Python refuses and `feature_version` does not."""
    if minor >= 12:
        return
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    text = content.decode(encoding)
    lines = [line.encode() for line in re.split(r"\r\n|\r|\n", text)]
    formatted = False
    for node in ast.walk(tree):
        formatted = formatted or isinstance(node, ast.JoinedStr)
        if minor < 11 and _is_starred(node, lines):
            yield getattr(node, "lineno", 1), "* in an index or annotation needs Python 3.11"
        if minor < 10:
            for walrus in _bare_walruses(node, lines):
                yield walrus.lineno, "a bare := in an index or set needs Python 3.10"
    if formatted:
        with contextlib.suppress(tokenize.TokenError, SyntaxError):
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            yield from later_f_strings((tokenize.tok_name[t.type], t.string, t.start[0]) for t in tokens)


def _is_starred(node: ast.AST, lines: list[bytes]) -> bool:
    if isinstance(node, ast.arg):
        return isinstance(node.annotation, ast.Starred)
    if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)):
        return False
    starred = any(isinstance(element, ast.Starred) for element in node.slice.elts)
    return starred and lines[node.slice.lineno - 1][node.slice.col_offset :][:1] != b"("


def _bare_walruses(node: ast.AST, lines: list[bytes]) -> Iterator[ast.NamedExpr]:
    within: list[ast.expr] = []
    if isinstance(node, ast.Subscript):
        within = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    elif isinstance(node, ast.Set):
        within = node.elts
    elif isinstance(node, ast.SetComp):
        within = [node.elt]
    for element in within:
        if isinstance(element, ast.NamedExpr):
            before = lines[element.lineno - 1][: element.col_offset].rstrip()
            if before.endswith((b"[", b"{", b",")):
                yield element


def later_f_strings(tokens: Iterable[tuple[str, str, int]]) -> Iterator[tuple[int, str]]:
    """Find f-strings that only Python 3.12 reads, in tokens (kind, text, line) as that Python makes them.

    Before, an f-string was one string literal: inside its braces there was no room for its own quotes, for
    backslashes, for comments, nor for line ends unless it had triple quotes.
    """
    quotes: list[str] = []  # of the f-strings that are open, outermost first
    for kind, text, line in tokens:
        if kind == "FSTRING_END":
            quotes.pop()
            continue
        around = quotes[:-1] if kind == "FSTRING_MIDDLE" else quotes  # of those in whose braces the token is
        if (
            any(quote in text for quote in around)
            or (around and (kind == "COMMENT" or "\\" in text))
            or ("\n" in text and any(len(quote) == 1 for quote in around))
        ):
            yield line, "such an f-string needs Python 3.12"
        if kind == "FSTRING_START":
            quotes.append(text.lstrip("rRfF"))
