"""Fits a file into the request limit: unchanged if it fits, else, if the user wants so, a smaller picture.

A smaller picture is another input of the model, so the user must ask for it, and the answer reports it. It is
upright (the EXIF orientation is applied, for not every handler reads it) and a JPEG of quality 90 in grey or
RGB; a picture with transparency, or with 16 bits a pixel, becomes a PNG, since JPEG has neither. No file is
read before its size is known; only a picture that must shrink is decoded.
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
from typing import TYPE_CHECKING

from msgspec import Struct

from deployer.errors import PredictError
from deployer.files import open_nonblocking

if TYPE_CHECKING:
    from PIL import Image

QUALITY = 90  # of a JPEG; below about 85 its artefacts begin to move predictions
MAX_ENCODES = 8
CLOSE_ENOUGH = 0.9  # of the largest scale that might fit
OPAQUE = 255
RAISE_LIMIT = "raise serving.max-request-size in kdeploy.toml and roll out: kdeploy rollout"

_SIGNATURES = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (4, b"ftypavif", "image/avif"),
)
# Of what Pillow reads, the formats that need no other program (EPS would start Ghostscript).
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
_ORIENTATION = 0x0112  # EXIF's tag, and for each value what makes the picture upright
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_MAX_SIDE = 65_500  # pixels; no JPEG has more
_OVERHEAD = 400  # bytes of headers and tables in the smallest JPEG, about

_decoding = threading.Lock()  # one picture at a time is decoded, however many are sent: it is all the memory


class Resized(Struct, frozen=True, kw_only=True):
    """The picture that is sent in a file's place: `factor` is its width divided by the file's, both upright.

    `format` is JPEG or PNG; `size` is in bytes, `note` a sentence for people.
    """

    factor: float
    width: int
    height: int
    format: str
    size: int
    note: str


class FittedImage(Struct, frozen=True):
    """What is sent for a file; `resized` if that is not the file itself."""

    data: bytes
    content_type: str
    resized: Resized | None = None


def fit_image(
    path: Path, max_bytes: int, *, request_size: Callable[[int], int] = int, resize: bool = False
) -> FittedImage:
    """Return the file's bytes, or with `resize` those of the same picture at the largest scale that fits.

    `request_size` returns the size of a request for a file of a size; `max_bytes` limits the request. Raises
    PredictError, which names the file, if it is empty, unreadable or not a regular file, or if it must shrink
    and may not, is broken or not a picture, or has more pixels than Pillow's `MAX_IMAGE_PIXELS`.
    """
    with _opened(path) as (file, size):
        wanted = request_size(size)
        if wanted <= max_bytes:
            data = file.read(size)
            return FittedImage(data, sniff(data))
        sizes = _sizes(wanted, max_bytes, as_json=wanted != size)
        if not resize:
            raise PredictError(
                sizes,
                where=path.name,
                hint=f"{RAISE_LIMIT}; or add --resize to send a smaller picture, which is another input",
            )
        room = max(bisect_right(range(max_bytes + 1), max_bytes, key=request_size) - 1, 0)  # bytes of a file
        try:
            with _decoding:
                data, kind, pixels, factor = _shrink(file, size, room)
        except PredictError as error:
            raise PredictError(f"{sizes}; {error.what}", where=path.name, hint=error.hint) from error
    width, height = pixels
    sent = f"{width}x{height} {kind} ({_readable(len(data))}), resized by {factor:g}"
    resized = Resized(
        factor=factor,
        width=width,
        height=height,
        format=kind,
        size=len(data),
        note=f"{path.name}: {sizes}: sent as {sent}",
    )
    return FittedImage(data, f"image/{kind.lower()}", resized)


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file that cannot shrink. Raises PredictError as `fit_image` does."""
    with _opened(path) as (file, size):
        if size > max_bytes:
            raise PredictError(_sizes(size, max_bytes, as_json=False), where=path.name, hint=RAISE_LIMIT)
        return file.read(size)


def sniff(data: bytes) -> str:
    """Return the content type by the first bytes of a file, or that of plain bytes."""
    for offset, signature, content_type in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            return content_type
    return "application/octet-stream"


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedReader, int]]:
    """Open a regular file that is not empty; yield it with its size."""
    try:
        with open(path, "rb", opener=open_nonblocking) as file:
            status = os.fstat(file.fileno())
            regular = stat.S_ISREG(status.st_mode)
            if not regular or not status.st_size:
                what = "is empty" if regular else "is not a regular file"
                raise PredictError(what, where=path.name, hint="pass a file with a picture or JSON")
            yield file, status.st_size
    except IsADirectoryError as error:
        hint = f"name its files: kdeploy predict {path}/*"
        raise PredictError("is a folder", where=path.name, hint=hint) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = f"check its permissions: ls -l {path.parent}"
        raise PredictError(f"cannot be read: {reason}", where=path.name, hint=hint) from error


def _shrink(file: io.BufferedReader, size: int, room: int) -> tuple[bytes, str, tuple[int, int], float]:
    """Return the picture in at most `room` bytes, its format, its pixels, and the factor of its sides."""
    from PIL import Image

    Image.init()
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures, and of odd metadata; the limit that counts is _decoded's.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_formats()) as opened:
                longest = max(opened.size)  # before a JPEG is decoded smaller
                picture = _decoded(opened, scale=2 * (max(room, 1) / size) ** 0.5)
    except PredictError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels() from error
    except Exception as error:  # hostile bytes make Pillow's readers fail in any way
        raise PredictError(
            f"it must shrink, and Pillow cannot read it: {error}",
            hint=f"convert it to JPEG or PNG, or {RAISE_LIMIT}",
        ) from error
    found = _largest(picture, room, size)
    if found is None:
        raise PredictError("it cannot shrink that much", hint=RAISE_LIMIT)
    data, pixels = found
    return data, _format(picture), pixels, round(max(pixels) / longest, 4)


def _formats() -> list[str]:
    from PIL import Image

    return [name for name in _FORMATS if name in Image.OPEN]


def _too_many_pixels() -> PredictError:
    return PredictError(
        "it has more pixels than can be decoded safely",
        hint="if you trust the file, resize it with another program first",
    )


def _decoded(image: Image.Image, scale: float) -> Image.Image:
    """Return the picture, upright, in the mode in which it is sent.

    A JPEG is decoded at 1/2, 1/4 or 1/8 if that is no less than `scale`, twice what its bytes tell it needs.
    """
    from PIL import Image

    if scale < 1:
        image.draft(None, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise _too_many_pixels()
    if image.mode in ("I", "F"):
        raise PredictError(
            "its pixels have 32 bits, which JPEG and PNG do not support",
            hint=f"convert it to 16 bits, or {RAISE_LIMIT}",
        )
    image.load()
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))  # after load, which turns TIFF by itself
    picture = _in_mode(image)
    if turn is not None:
        picture = picture.transpose(Image.Transpose[turn])
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
    """Find the largest scale that fits, or nearly, from how the bytes of each try go with its pixels.

    `before` is the size of the file, from which a PNG's first try, a slow one, is estimated.
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
        # Within the bounds; down by a tenth at least, and up by no more than leaves something in between.
        scale = min(max(guess, low + (high - low) / 8), 0.9 * high if best is None else (low + 3 * high) / 4)
    return best


def _encoded(picture: Image.Image, size: tuple[int, int]) -> bytes:
    from PIL.Image import Resampling

    small = picture if size == picture.size else picture.resize(size, Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, _format(picture), quality=QUALITY)
    return buffer.getvalue()


def _sizes(wanted: int, limit: int, *, as_json: bool) -> str:
    """Write both sizes, in bytes if they would read the same."""
    size, maximum = _readable(wanted), _readable(limit)
    if size == maximum:
        size, maximum = f"{wanted} bytes", f"{limit} bytes"
    return f"{size}{' as JSON' if as_json else ''}, limit {maximum}"


def _readable(size: int) -> str:
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e6:.1f} MB" if size >= 1_000_000 else f"{size / 1e3:.1f} kB"
