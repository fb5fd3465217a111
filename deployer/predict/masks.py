"""Reads masks: pixels, COCO's polygons and run lengths, YOLO's segments, and images in base64. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from msgspec import Struct

_HALF = 0.5  # a pixel's probability from which it belongs to the mask
_IMAGES = ("iVBORw0KGg", "/9j/", "R0lGOD", "UklGR")  # PNG, JPEG, GIF and WebP in base64
_PIXELS_MAX = 1 << 28


class Mask(Struct, frozen=True, kw_only=True):
    """The pixels of one object: `bits` of width x height, 255 or 0 each; polygons of points; or an image."""

    width: int = 0
    height: int = 0
    bits: bytes = b""
    polygons: tuple[tuple[tuple[float, float], ...], ...] = ()
    image: bytes = b""


def mask_of(value: Any) -> Mask | None:
    """Return the mask in one of the common forms, else None."""
    if isinstance(value, str):
        data = image_of(value)
        return Mask(image=data) if data else None
    if isinstance(value, Mapping):
        return _of_runs(value) if "counts" in value else _of_segments(value)
    if not isinstance(value, list) or not value:
        return None
    while len(value) == 1 and isinstance(value[0], list) and value[0] and isinstance(value[0][0], list):
        value = value[0]  # torchvision's channel
    return _of_pixels(value) or _of_polygons(value)


def image_of(text: str) -> bytes | None:
    """Return the bytes of an image in base64, also as a data URI, else None."""
    if text.startswith("data:image/"):
        text = text.partition("base64,")[2]
    if not text.startswith(_IMAGES):
        return None
    with suppress(ValueError):
        return base64.b64decode(text, validate=True)
    return None


def _of_pixels(rows: list[Any]) -> Mask | None:
    """Read rows of truth values, or of probabilities."""
    if len(rows) < 2 or not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        return None
    width = len(rows[0])
    pixels = list(chain.from_iterable(rows))
    # Numbers above 1 are the points of polygons.
    if width < 3 or not all(isinstance(pixel, int | float) and 0 <= pixel <= 1 for pixel in pixels):
        return None
    return Mask(width=width, height=len(rows), bits=bytes(255 * (pixel > _HALF) for pixel in pixels))


def _of_polygons(value: list[Any]) -> Mask | None:
    """Read `[[x, y, x, y, …], …]`, `[[x, y], …]` and `[x, y, x, y, …]`."""
    if all(isinstance(one, int | float) for one in value):
        value = [value]
    if all(isinstance(point, list) and len(point) == 2 for point in value):
        value = [list(chain.from_iterable(value))]
    polygons = [_points(flat) for flat in value]
    return Mask(polygons=tuple(filter(None, polygons))) if all(polygons) else None


def _points(flat: Any) -> tuple[tuple[float, float], ...]:
    numeric = isinstance(flat, list) and all(isinstance(one, int | float) for one in flat)
    if not numeric or len(flat) < 6 or len(flat) % 2:
        return ()
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _of_segments(value: Mapping[str, Any]) -> Mask | None:
    xs, ys = value.get("x"), value.get("y")
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
        return None
    points = _points(list(chain.from_iterable(zip(xs, ys, strict=True))))
    return Mask(polygons=(points,)) if points else None


def _of_runs(value: Mapping[str, Any]) -> Mask | None:
    """Read COCO's run lengths: column by column, beginning with the pixels outside the mask."""
    counts, size = value["counts"], value.get("size")
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    whole = isinstance(size, list) and len(size) == 2 and all(type(one) is int and one > 0 for one in size)
    if not whole or not isinstance(counts, list) or not all(type(one) is int and one >= 0 for one in counts):
        return None
    height, width = size  # type: ignore[misc]
    if sum(counts) != width * height or width * height > _PIXELS_MAX:
        return None
    column_major = b"".join(bytes([255 * (index % 2)]) * count for index, count in enumerate(counts))
    bits = b"".join(column_major[row::height] for row in range(height))
    return Mask(width=width, height=height, bits=bits)


def _uncompressed(text: str) -> Sequence[int] | None:
    """Decode the text form of run lengths: 6 bits a character, low bits first.

    From the fourth on, a number is the difference to the one before the last.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        six = ord(character) - 48
        if not 0 <= six < 64:
            return None
        number |= (six & 31) << shift
        shift += 5
        if not six & 32:
            if six & 16:
                number -= 1 << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    return counts
