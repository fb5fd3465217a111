"""Lists the inputs to send: files, each line of a `.jsonl` file, stdin and the text of `--data`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from msgspec import Struct

from deployer.errors import PredictError
from deployer.predict.content import JSON, identify, is_lines, is_text
from deployer.predict.images import FittedImage, read_file

LINES_MAX = 1 << 30  # bytes of a .jsonl file
STDIN, DATA = "stdin", "--data"


class Input(Struct, frozen=True, kw_only=True):
    """One input, with the name that results and errors show: a file, or its bytes and their content type."""

    name: str
    path: Path | None = None
    content: FittedImage | None = None


def of_bytes(name: str, data: bytes) -> Input:
    """Return the input for the bytes of stdin or of a flag. Raises PredictError if there are none."""
    if not data.strip():
        raise PredictError("the input is empty", where=name, hint="Pass a file, or `--data '{\"x\": 1}'`.")
    content = FittedImage(*identify("", data))
    if name == DATA and data.lstrip().startswith(b"{"):  # text does not: a quote is missing
        content = FittedImage(data, JSON)
    return Input(name=name, content=content)


def expand(given: Iterable[Path | Input]) -> list[Input]:
    """Return the inputs in order, with a `.jsonl` file as one input for each line."""
    return [one for item in given for one in ([item] if isinstance(item, Input) else _of_file(item))]


def _of_file(path: Path) -> Iterator[Input]:
    try:
        lines = read_file(path, LINES_MAX).splitlines() if is_lines(path.name) else []
    except PredictError:  # sending the file reports it
        lines = []
    if not lines:
        yield Input(name=str(path), path=path)
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Input(name=f"{path}:{number}", content=FittedImage(line, JSON))


def find_pictures(given: Iterable[Path | Input]) -> dict[str, Path | bytes]:
    """Return the inputs that are not text or JSON by their names: those that can be images."""
    files = {str(one): one for one in given if isinstance(one, Path) and not is_text(one.name)}
    others = {one.name: one.content for one in given if isinstance(one, Input)}
    images = {
        name: content.data
        for name, content in others.items()
        if content and content.content_type.startswith("image/")
    }
    return {**files, **images}


def find_file(text: str) -> Path:
    """Return the file that an argument names: `FILE` or, as for curl, `@FILE`."""
    return Path(text[1:] if text.startswith("@") and not os.path.lexists(text) else text)
