"""Fits a file into the request limit: unchanged if it fits, else, with `--resize`, as a smaller image.

A smaller image is another input of the model, so the user must request it and the result reports it. It is
upright (the EXIF orientation is applied, since not every handler reads it) and a JPEG of quality 90 in gray
or RGB; an image with transparency or 16 bits per pixel becomes a PNG, since JPEG has neither. The size of a
file is checked before it is read; only an image that must shrink is decoded.
"""

from __future__ import annotations

import io
import math
import os
import stat
import threading
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from msgspec import Struct

from deployer.errors import PredictError
from deployer.files import open_nonblocking
from deployer.predict.content import sniff

if TYPE_CHECKING:
    from PIL import Image

QUALITY = 90  # of a JPEG; below about 85 its artifacts begin to change predictions
MAX_ENCODES = 8
CLOSE_ENOUGH = 0.9  # of the largest scale that could fit
OPAQUE = 255
RAISE_LIMIT = "Raise `serving.max-request-size` in `kdeploy.toml`, then run `kdeploy rollout`."

# The formats that Pillow reads without another program (EPS would start Ghostscript).
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
_MAX_SIDE = 65_500  # pixels; JPEG's limit
_OVERHEAD = 400  # bytes of headers and tables in the smallest JPEG, about

_decoding = threading.Lock()  # a decoded image can be large, so threads decode one at a time


class Resized(Struct, frozen=True, kw_only=True):
    """The image that is sent instead of a file: `factor` is its width divided by the file's, both upright.

    `format` is JPEG or PNG; `size` is in bytes; `note` is a sentence for people.
    """

    factor: float
    width: int
    height: int
    format: str
    size: int
    note: str


class FittedImage(Struct, frozen=True):
    """The bytes to send for a file; `resized` if they are not the file's."""

    data: bytes
    content_type: str
    resized: Resized | None = None


def fit_image(
    source: Path | bytes,
    max_bytes: int,
    *,
    name: str = "",
    request_size: Callable[[int], int] = int,
    resize: bool = False,
) -> FittedImage:
    """Return the file's bytes, or with `resize` those of the same image at the largest scale that fits.

    `request_size` returns the size of the request for a file's size; `max_bytes` limits the request. Raises
    PredictError, which names the file, if it is empty, unreadable or not a regular file, or if it must shrink
    and `resize` is false, it is not a valid image or it exceeds Pillow's `MAX_IMAGE_PIXELS`. `name` is the
    name of an image without a file.
    """
    name = name or str(source)
    with _opened(source, name) as (file, size):
        wanted = request_size(size)
        if wanted <= max_bytes:
            data = file.read(size)
            return FittedImage(data, sniff(data))
        sizes = _sizes(wanted, max_bytes, as_json=wanted != size)
        if not resize:
            hint = f"{RAISE_LIMIT} Or add `--resize` to send a smaller image, which is another input."
            raise PredictError(f"too large: {sizes}", where=name, hint=hint)
        room = max(bisect_right(range(max_bytes + 1), max_bytes, key=request_size) - 1, 0)  # bytes of a file
        try:
            with _decoding:
                data, kind, (width, height), factor = _shrink(file, size, room)
        except PredictError as error:
            raise PredictError(f"too large: {sizes}; {error.what}", where=name, hint=error.hint) from error
    sent = f"{width}x{height} {kind} ({_readable(len(data))}), resized by {factor:g}"
    note = f"{name}: {sizes}: sent as {sent}"
    resized = Resized(factor=factor, width=width, height=height, format=kind, size=len(data), note=note)
    return FittedImage(data, f"image/{kind.lower()}", resized)


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file that does not shrink. Raises PredictError as `fit_image` does."""
    with _opened(path, str(path)) as (file, size):
        if size > max_bytes:
            sizes = _sizes(size, max_bytes, as_json=False)
            raise PredictError(f"too large: {sizes}", where=str(path), hint=RAISE_LIMIT)
        return file.read(size)


def read_start(path: Path) -> bytes:
    """Return the first bytes of a file. Raises PredictError as `fit_image` does."""
    with _opened(path, str(path)) as (file, _):
        return file.read(64)


@contextmanager
def _opened(path: Path | bytes, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file that is not empty; yield it with its size."""
    if isinstance(path, bytes):
        yield io.BytesIO(path), len(path)
        return
    try:
        with open(path, "rb", opener=open_nonblocking) as file:
            status = os.fstat(file.fileno())
            regular = stat.S_ISREG(status.st_mode)
            if not regular or not status.st_size:
                what = "the file is empty" if regular else "not a regular file"
                raise PredictError(what, where=name, hint="Pass a file with an image or JSON.")
            yield file, status.st_size
    except IsADirectoryError as error:
        hint = f"Run `kdeploy predict {path}/*` to send its files."
        raise PredictError("cannot read a folder", where=name, hint=hint) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = f"Run `ls -l {path.parent}` to check the path and its permissions."
        raise PredictError(f"cannot read the file: {reason}", where=name, hint=hint) from error


def open_picture(source: Path | bytes) -> Image.Image:
    """Open an image as `fit_image` does, with its pixels as they are stored. Raises as Pillow does."""
    from PIL import Image

    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    if opened.width * opened.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError("it has more pixels than can be decoded safely")
    return opened


def _shrink(file: BinaryIO, size: int, room: int) -> tuple[bytes, str, tuple[int, int], float]:
    """Return the image in at most `room` bytes, its format, its pixels, and the factor of its sides."""
    from PIL import Image

    Image.init()
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images and odd metadata; _decoded checks the limit that matters.
            warnings.simplefilter("ignore")
            formats = [name for name in _FORMATS if name in Image.OPEN]
            with Image.open(file, formats=formats) as opened:
                longest = max(opened.size)  # before a JPEG is decoded smaller
                picture = _decoded(opened, scale=2 * (max(room, 1) / size) ** 0.5)
    except PredictError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels() from error
    except Exception as error:  # hostile bytes make Pillow's readers fail in any way
        raise PredictError(
            f"cannot shrink it: Pillow cannot read it: {error}",
            hint=f"Convert it to JPEG or PNG. Or: {RAISE_LIMIT}",
        ) from error
    found = _largest(picture, room, size)
    if found is None:
        raise PredictError("cannot shrink it that much", hint=RAISE_LIMIT)
    data, pixels = found
    return data, _format(picture), pixels, round(max(pixels) / longest, 4)


def _too_many_pixels() -> PredictError:
    return PredictError(
        "it has more pixels than can be decoded safely",
        hint="If you trust the file, resize it with another program first.",
    )


def _decoded(image: Image.Image, scale: float) -> Image.Image:
    """Return the image, upright, in the mode in which it is sent.

    A JPEG is decoded at 1/2, 1/4 or 1/8 if that is at least `scale`, twice what the bytes suggest.
    """
    from PIL import Image, ImageOps

    if scale < 1:
        image.draft(None, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise _too_many_pixels()
    if image.mode in ("I", "F"):
        raise PredictError(
            "cannot shrink it: its pixels have 32 bits, which JPEG and PNG do not support",
            hint=f"Convert it to 16 bits. Or: {RAISE_LIMIT}",
        )
    ImageOps.exif_transpose(image, in_place=True)
    picture = _in_mode(image)
    picture.info = {}  # comments and profiles, which writers would copy
    return picture


def _in_mode(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return image.convert("I;16")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        opaque = picture.getchannel("A").getextrema()[0] == OPAQUE
        return picture.convert("RGB") if opaque else picture
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _format(picture: Image.Image) -> str:
    return "JPEG" if picture.mode in ("L", "RGB") else "PNG"


def _largest(picture: Image.Image, room: int, before: int) -> tuple[bytes, tuple[int, int]] | None:
    """Find nearly the largest scale that fits, from the bytes per pixel of each attempt.

    `before` is the size of the file, which gives the first scale of a PNG: encoding one is slow.
    """
    best = None
    low, high = 0.0, min(1.0, _MAX_SIDE / max(picture.size))
    scale = high if _format(picture) == "JPEG" else min(high, (max(room, 1) / before) ** 0.5)
    for _ in range(MAX_ENCODES):
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        data = _encoded(picture, size)
        if len(data) <= room:
            best, low = (data, size), scale
        else:
            high = scale
        if low >= CLOSE_ENOUGH * high or (size == (1, 1) and best is None):
            break
        guess = scale * (max(room - _OVERHEAD, room / 8) / max(len(data) - _OVERHEAD, 1)) ** 0.5 * 0.98
        # Stay between the bounds: at least a tenth below the upper one, and not too near it.
        scale = min(max(guess, low + (high - low) / 8), 0.9 * high if best is None else (low + 3 * high) / 4)
    return best


def _encoded(picture: Image.Image, size: tuple[int, int]) -> bytes:
    from PIL.Image import Resampling

    small = picture if size == picture.size else picture.resize(size, Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, _format(picture), quality=QUALITY)
    return buffer.getvalue()


def _sizes(wanted: int, limit: int, *, as_json: bool) -> str:
    """Format both sizes, in bytes if they would look the same."""
    size, maximum = _readable(wanted), _readable(limit)
    if size == maximum:
        size, maximum = f"{wanted} bytes", f"{limit} bytes"
    return f"{size}{' as JSON' if as_json else ''}, limit {maximum}"


def _readable(size: int) -> str:
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e6:.1f} MB" if size >= 1_000_000 else f"{size / 1e3:.1f} kB"
