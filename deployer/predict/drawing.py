"""Draws what a prediction found on its picture, as people see it: upright, in its own size.

A handler that opens an image with Pillow or torchvision gets the stored pixels, without the EXIF orientation,
and its boxes count from their corner. They are turned with the picture. Boxes that only fit the upright
picture, as from OpenCV, stay as they are. If a smaller image was sent (`--resize`), it was upright, and the
boxes are enlarged.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from deployer.errors import PredictError
from deployer.predict.boxes import Box
from deployer.predict.images import Resized, open_picture
from deployer.predict.masks import Mask
from deployer.predict.vision import Found, Size

if TYPE_CHECKING:
    from PIL import Image

_COLORS = (
    *((230, 25, 75), (0, 130, 200), (60, 180, 75), (245, 130, 48), (145, 30, 180), (0, 128, 128)),
    *((128, 0, 0), (240, 50, 230)),
)
_MASK_OPACITY = 110  # of 255
_CAPTIONS = 5  # classes that are written on a picture


class Canvas(Struct, frozen=True, kw_only=True):
    """A picture as people see it, and how the coordinates of the sent one become its own."""

    picture: Image.Image
    sent: Size
    orientation: int = 1  # EXIF's, that the sent pixels have and the picture has not


def open_canvas(source: Path | bytes, resized: Resized | None) -> Canvas:
    """Open the picture that was sent, or of which a smaller one was. Raises PredictError if it is invalid."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_picture(source) as stored:
                orientation = stored.getexif().get(0x0112, 1)
                size = Size(*stored.size)
                upright = _visible(ImageOps.exif_transpose(stored))
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        what = f"cannot draw on the picture: {error}"
        raise PredictError(what, where=str(source), hint="Remove `--save`.") from error
    if resized:
        return Canvas(picture=upright, sent=Size(resized.width, resized.height))
    known = orientation if orientation in range(1, 9) else 1
    return Canvas(picture=upright, sent=size, orientation=known)


def place(found: Sequence[Found], canvas: Canvas, *, upright: bool) -> tuple[list[Found], Canvas]:
    """Return what was found in the coordinates of the picture as people see it, and the canvas for masks.

    With `upright`, the handler has applied the EXIF orientation itself.
    """
    turned = Size(*canvas.picture.size)
    extents = [extent for one in found for extent in _extents(one)]
    only_upright = not _fit(extents, canvas.sent) and _fit(extents, turned)
    if canvas.orientation > 1 and (upright or only_upright):
        canvas = replace(canvas, sent=turned, orientation=1)
    return [replace(one, box=_place(one.box, canvas) if one.box else None) for one in found], canvas


def draw(found: Sequence[Found], canvas: Canvas) -> bytes:
    """Return a PNG of the picture with the boxes, masks and labels of what was found, placed before."""
    picture = canvas.picture.copy()
    labels = list(dict.fromkeys(one.label for one in found))
    captions = []
    for one in found:
        color = _COLORS[labels.index(one.label) % len(_COLORS)]
        if one.mask:
            picture.paste(color, mask=_mask_image(one.mask, canvas).point(lambda bit: bit and _MASK_OPACITY))
        if one.box:
            _draw_box(picture, one, one.box, color)
        else:
            captions.append(_caption(one))
    if captions:
        _write(picture, (0, 0), "\n".join(captions[:_CAPTIONS]), (0, 0, 0))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _visible(image: Image.Image) -> Image.Image:
    """Return an image in RGB; levels of 16 or 32 bits are scaled, since a conversion would cut them off."""
    if image.mode.startswith(("I", "F")):
        levels = image.convert("F")
        low, high = levels.getextrema()
        scale = 255 / max(high - low, 1e-9)  # type: ignore[operator]
        image = levels.point(lambda level: level * scale - low * scale).convert("L")  # type: ignore[operator]
    return image.convert("RGB")


def _extents(one: Found) -> Iterator[tuple[float, float]]:
    """Yield the right and bottom edges of a box and of the mask in the size of its picture."""
    if one.box:
        yield one.box[2:]
    if one.mask and one.mask.bits:
        yield one.mask.width, one.mask.height
    for polygon in one.mask.polygons if one.mask else ():
        yield max(x for x, _ in polygon), max(y for _, y in polygon)


def _fit(extents: Sequence[tuple[float, float]], size: Size) -> bool:
    return all(right <= size.width + 1 and bottom <= size.height + 1 for right, bottom in extents)


def _place(box: Box, canvas: Canvas) -> Box:
    """Turn and enlarge a box."""
    (x1, y1), (x2, y2) = (_point(x, y, canvas) for x, y in (box[:2], box[2:]))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _point(x: float, y: float, canvas: Canvas) -> tuple[float, float]:
    """Turn a point of the sent pixels, as `exif_transpose` turns them, and enlarge it."""
    width, height = canvas.sent.width, canvas.sent.height
    turned = {
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }.get(canvas.orientation, (x, y))
    across, down = (height, width) if canvas.orientation > 4 else (width, height)
    return turned[0] * canvas.picture.width / across, turned[1] * canvas.picture.height / down


def _mask_image(mask: Mask, canvas: Canvas) -> Image.Image:
    """Return a mask as a gray image of the picture's size."""
    from PIL import Image, ImageDraw

    if mask.polygons:
        drawn = Image.new("L", canvas.picture.size)
        for polygon in mask.polygons:
            ImageDraw.Draw(drawn).polygon([_point(x, y, canvas) for x, y in polygon], fill=255)
        return drawn
    if mask.image:
        with open_picture(mask.image) as opened:
            image: Image.Image = opened.convert("L").point(lambda level: 255 * (level > 0))
    else:
        image = Image.frombytes("L", (mask.width, mask.height), mask.bits)
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(canvas.orientation)
    turned = image if method is None else image.transpose(method)
    return turned.resize(canvas.picture.size, Image.Resampling.NEAREST)


def _draw_box(picture: Image.Image, one: Found, box: Box, color: tuple[int, int, int]) -> None:
    from PIL import ImageDraw

    limits = (picture.width - 1, picture.height - 1) * 2
    left, top, right, bottom = (
        round(min(max(edge, 0), most)) for edge, most in zip(box, limits, strict=True)
    )
    line = max(2, round(max(picture.size) / 300))
    ImageDraw.Draw(picture).rectangle(
        (left, top, max(left, right), max(top, bottom)), outline=color, width=line
    )
    if caption := _caption(one):
        _write(picture, (left + line, top + line), caption, color)


def _write(picture: Image.Image, corner: tuple[int, int], text: str, color: tuple[int, int, int]) -> None:
    """Write white text on a background."""
    from PIL import ImageDraw, ImageFont

    draw_on = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, round(max(picture.size) / 50)))
    shown = text.encode("latin-1", "replace").decode("latin-1")  # Pillow's own font has no other letters
    draw_on.rectangle(draw_on.multiline_textbbox(corner, shown, font=font), fill=color)
    draw_on.multiline_text(corner, shown, fill=(255, 255, 255), font=font)


def _caption(one: Found) -> str:
    score = "" if one.score is None else f"{one.score:.2f}"
    return " ".join(filter(None, (one.label, score)))
