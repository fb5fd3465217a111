"""Reads what predictions found on pictures, and saves answers: `kdeploy predict --save`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from deployer.cli.terminal import warn
from deployer.errors import PredictError

if TYPE_CHECKING:
    from deployer.predict import Prediction
    from deployer.predict.drawing import Canvas
    from deployer.predict.vision import Found

_SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/gif": ".gif", "image/webp": ".webp"}


class Seen(Struct, frozen=True, kw_only=True):
    """What a prediction found, in the coordinates of the picture if there is one."""

    found: list[Found]
    canvas: Canvas | None


class Saver:
    """Saves answers in a folder, never over an input. `pictures` has the inputs that are images, by name."""

    def __init__(self, folder: Path | None, pictures: Mapping[str, Path | bytes], *, upright: bool) -> None:
        self.folder = folder
        self._pictures = pictures
        self._upright = upright
        self._taken = {path.resolve() for path in pictures.values() if isinstance(path, Path)}

    def look(self, answer: Prediction) -> Seen | None:
        """Return what a prediction found, or None if it is another value."""
        from deployer.predict import drawing, vision

        found, picture = vision.found_in(answer.value), self._pictures.get(answer.name)
        if picture is None or (found is None and not _is_grid(answer.value)):
            return None if found is None else Seen(found=found, canvas=None)
        try:
            canvas = drawing.open_canvas(picture, answer.resized)
        except PredictError as error:
            if self.folder:
                warn(str(error))
            return None if found is None else Seen(found=found, canvas=None)
        found = vision.found_in(answer.value, canvas.sent)
        if found is None:
            return None
        placed, canvas = drawing.place(found, canvas, upright=self._upright)
        return Seen(found=placed, canvas=canvas)

    def save(self, answer: Prediction, seen: Seen | None) -> Path | None:
        """Write the picture with what was found, or the answer itself. Returns the path, or None."""
        if self.folder is None:
            return None
        if seen and seen.canvas:
            from deployer.predict.drawing import draw

            data, suffix = draw(seen.found, seen.canvas), ".png"
        else:
            data, suffix = _encoded(answer.value)
        path = self._free_path(answer.name, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(data)
        partial.replace(path)
        return path

    def _free_path(self, name: str, suffix: str) -> Path:
        assert self.folder
        line = re.fullmatch(r"(.*)\.[a-z]+:(\d+)", name)  # of a .jsonl file
        stem = f"{Path(line[1]).name}-{line[2]}" if line else Path(name).stem.lstrip("-")
        path, number = self.folder / f"{stem}{suffix}", 1
        while path.resolve() in self._taken:
            number += 1
            path = self.folder / f"{stem}-{number}{suffix}"
        self._taken.add(path.resolve())
        return path


def _is_grid(value: Any) -> bool:
    """Return whether a value can be a class for each pixel."""
    return isinstance(value, list) and len(value) > 1 and isinstance(value[0], list)


def bytes_of(value: object) -> bytes | None:
    """Return the bytes of an answer that is neither JSON nor text: bytes, or an image in base64."""
    from deployer.predict.masks import image_of

    if isinstance(value, bytes):
        return value
    return image_of(value) if isinstance(value, str) else None


def _encoded(value: Any) -> tuple[bytes, str]:
    """Return the bytes of an answer, and the suffix of its file."""
    from deployer.predict.content import sniff

    if (data := bytes_of(value)) is not None:
        return data, _SUFFIXES.get(sniff(data), ".bin")
    if isinstance(value, str):
        return value.encode(errors="surrogatepass"), ".txt"
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="surrogatepass") + b"\n", ".json"
