"""Reads the Markdown pages of the repository: their links, headings, code blocks and inline code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "*/README.md",
        "examples/**/*.md",
        "tests/**/*.md",
        ".github/**/*.md",
    )
    for path in ROOT.glob(pattern)
    if not any(part.startswith(".") and part != ".github" for part in path.relative_to(ROOT).parts)
)


class Code(NamedTuple):
    """A piece of code on a page: `language` is empty for inline code and for a block that names none."""

    page: str
    line: int
    language: str
    text: str
    inline: bool

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def code(path: Path) -> Iterator[Code]:
    """Yield the code blocks and the inline code of a page."""
    name = path.relative_to(ROOT).as_posix()
    for token, line in _tokens(path):
        if token.type in ("fence", "code_block"):
            yield Code(name, line, token.info.strip(), token.content, inline=False)
        elif token.type == "code_inline":
            yield Code(name, line, "", token.content, inline=True)


def links(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the destination of each link and picture of a page."""
    for token, line in _tokens(path):
        if destination := token.attrs.get("href") or token.attrs.get("src"):
            yield line, str(destination)


@cache
def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and Sphinx name them."""
    tokens = _parse(path)
    titles = [after for before, after in itertools.pairwise(tokens) if before.type == "heading_open"]
    return {_slug("".join(part.content for part in title.children or [])) for title in titles}


def _slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def _tokens(path: Path) -> Iterator[tuple[Token, int]]:
    line = 1
    for token in _parse(path):
        line = token.map[0] + 1 if token.map else line
        yield token, line
        for child in token.children or []:
            yield child, line


def _parse(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
