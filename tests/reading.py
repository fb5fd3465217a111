"""Draws 100 of the repository's texts at random, for an editor to judge: `python -m tests.reading [SEED]`.

The texts are messages, docstrings, comments, names of tests, and the sentences of pages. The draw depends on
the seed and the texts, so `docs/reading.md` names the commit that it was drawn from.
"""

from __future__ import annotations

import ast
import io
import random
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.style import ROOT, tracked

COUNT, SEED = 100, 11
WORDS = 4  # shorter strings are keys, not text


def texts() -> Iterator[tuple[str, str]]:
    """Yield every text with its place, in the order of the files."""
    for path in sorted(tracked([])):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py":
            read = of_python(path.read_text("utf-8"), is_test=name.startswith("tests/"))
        elif path.suffix == ".md" and name != "docs/reading.md":
            read = of_page(path.read_text("utf-8"))
        else:
            continue
        for line, text in read:
            if len(re.findall(r"[A-Za-z]{2,}", text)) >= WORDS:
                yield f"{name}:{line}", " ".join(text.split())


def of_python(source: str, *, is_test: bool) -> Iterator[tuple[int, str]]:
    """Yield docstrings, comments, and the messages of the program or the names of tests."""
    tree = ast.parse(source)
    pieces = {
        id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values
    }
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
        elif isinstance(node, ast.JoinedStr) and not is_test:
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            yield from [(node.lineno, node.value)] if id(node) in docstrings or not is_test else []
    comment: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comment.append(token.string.lstrip("# "))
        elif comment and token.type not in (tokenize.NL, tokenize.NEWLINE):
            yield token.start[0] - 1, " ".join(comment)
            comment = []


def of_page(text: str) -> Iterator[tuple[int, str]]:
    """Yield the sentences of a page, and the rows of its tables; blocks of code are left out."""
    text = re.sub(
        r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL
    )
    line = 1
    for paragraph in re.split(r"(\n\s*\n|\n(?=[|#-] ))", text):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z`*])", paragraph):
            yield line, sentence
        line += paragraph.count("\n")


def main(arguments: list[str]) -> None:
    """Print the draw as rows of a table."""
    seed = int(arguments[0]) if arguments else SEED
    drawn = random.Random(seed).sample(list(texts()), COUNT)
    for number, (place, text) in enumerate(drawn, 1):
        shown = text.replace("|", "\\|")
        sys.stdout.write(f"| {number} | {Path(place)} | {shown} | |\n")


if __name__ == "__main__":
    main(sys.argv[1:])
