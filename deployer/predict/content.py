"""Finds out what an input is: JSON, text, an image or other bytes. Pure.

| input | sent as |
|---|---|
| `.json`, `.geojson` | JSON |
| `.txt`, `.csv`, `.tsv`, `.md` and other text formats | text |
| the first bytes of an image format | an image |
| the name of an image, a sound or a video | bytes |
| no suffix, stdin or `--data`, and valid JSON | JSON |
| UTF-8 without control characters | text |
| everything else | bytes |

Text is sent as UTF-8 without a byte order mark.
"""

from __future__ import annotations

import codecs
import json
import re
from contextlib import suppress
from pathlib import PurePath
from typing import Any

from deployer.errors import PredictError

JSON = "application/json"
BYTES = "application/octet-stream"
TEXT = "text/plain"

_TEXTS = {
    ".csv": "text/csv",
    ".htm": "text/html",
    ".html": "text/html",
    ".log": TEXT,
    ".md": "text/markdown",
    ".tsv": "text/tab-separated-values",
    ".txt": TEXT,
    ".xml": "text/xml",
    ".yaml": TEXT,
    ".yml": TEXT,
}
_MEDIA = {
    *(".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".svg", ".tif", ".tiff", ".webp"),
    *(".flac", ".m4a", ".mp3", ".ogg", ".wav", ".avi", ".mkv", ".mov", ".mp4", ".webm"),
}
_LINES = (".jsonl", ".ndjson")  # one JSON value per line
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (4, b"ftypavif", "image/avif"),
    (4, b"jP  \r\n", "image/jp2"),
)
_NETPBM = re.compile(rb"P[1-6]\s+(#|\d)")  # P1 to P3 are also text
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def sniff(data: bytes) -> str:
    """Return the content type for the first bytes of an image, or `application/octet-stream`."""
    for offset, signature, content_type in _SIGNATURES:
        if data.startswith(signature, offset):
            return content_type
    return "image/x-portable-anymap" if _NETPBM.match(data) else BYTES


def is_json(name: str) -> bool:
    """Return whether a file's name says that it is one JSON value."""
    return _suffix(name).endswith("json") and not is_lines(name)


def is_lines(name: str) -> bool:
    """Return whether a file's name says that each of its lines is a JSON value."""
    return _suffix(name) in _LINES


def is_text(name: str) -> bool:
    """Return whether a file's name says that it is text or JSON."""
    return _suffix(name) in _TEXTS or is_json(name)


def identify(name: str, data: bytes) -> tuple[bytes, str]:
    """Return the bytes to send for an input, and their content type."""
    suffix = _suffix(name)
    if is_json(name):
        return data, JSON
    if suffix in _TEXTS:
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = _decode(data, "utf-16" if utf_16 else "utf-8-sig")
        return (data if text is None else text.encode()), _TEXTS[suffix]
    if (image := sniff(data)) != BYTES:
        return data, image
    text = None if suffix in _MEDIA else _decode(data)
    if text is None or _CONTROLS.search(text):
        return data, BYTES
    if not suffix:
        with suppress(ValueError, RecursionError):
            json.loads(text)
            return text.encode(), JSON
    return text.encode(), TEXT


def read_json(data: bytes) -> tuple[bytes, Any]:
    """Return JSON as UTF-8 without a byte order mark, and its value. Raises PredictError."""
    try:
        text = data.decode(json.detect_encoding(data))
        return text.encode(), json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PredictError(
            f"invalid JSON: {error}",
            hint="Correct it. To send it as text, use a file whose name ends in `.txt`.",
        ) from error


def _suffix(name: str) -> str:
    return PurePath(name).suffix.lower()


def _decode(data: bytes, encoding: str = "utf-8-sig") -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None
