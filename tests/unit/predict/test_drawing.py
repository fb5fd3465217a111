"""What is drawn on a picture is where people see it, in any EXIF orientation and after a resize."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployer.errors import PredictError
from deployer.predict.drawing import draw, open_canvas, place
from deployer.predict.images import fit_image
from deployer.predict.masks import Mask
from deployer.predict.vision import Found
from tests.unit.predict.test_images import STORED, write

RED = (230, 25, 75)
WIDTH, HEIGHT = 120, 80
BOX = (30, 10, 50, 40)  # where people see the object: left, top, right, bottom


def upright() -> Image.Image:
    """A gray picture with a white object."""
    pixels = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    left, top, right, bottom = BOX
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels)


def seen_by_pillow(data: bytes) -> np.ndarray:
    """The pixels that a handler gets from Pillow and torchvision: as they are stored."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


def detect(pixels: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(pixels > 200)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def drawn(source: Path | bytes, found: Found, resized=None, *, upright: bool = False) -> np.ndarray:
    placed, canvas = place([found], open_canvas(source, resized), upright=upright)
    return np.asarray(Image.open(io.BytesIO(draw(placed, canvas))))


def extent(pixels: np.ndarray, color=RED) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(np.abs(pixels.astype(int) - color).sum(2) < 30)
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_box_is_drawn_where_people_see_the_object(tmp_path, orientation, suffix):
    path = write(tmp_path / f"picture.{suffix}", upright(), orientation)
    box = detect(seen_by_pillow(path.read_bytes()))
    pixels = drawn(path, Found(label="", box=box))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.allclose(extent(pixels), BOX, atol=2)


@pytest.mark.parametrize("orientation", STORED)
def test_a_mask_is_drawn_where_people_see_the_object(tmp_path, orientation):
    path = write(tmp_path / "picture.png", upright(), orientation)
    stored = seen_by_pillow(path.read_bytes()) > 200
    bits = (stored * np.uint8(255)).tobytes()
    masks = [Mask(width=stored.shape[1], height=stored.shape[0], bits=bits), Mask(image=as_png(stored))]
    left, top, right, bottom = detect(stored * 255)
    masks.append(Mask(polygons=(((left, top), (right, top), (right, bottom), (left, bottom)),)))
    for mask in masks:
        pixels = drawn(path, Found(label="", mask=mask))
        changed = np.abs(pixels.astype(int) - np.asarray(upright())).sum(2) > 60
        rows, columns = np.nonzero(changed[15:, :])  # below the caption
        assert np.allclose((columns.min(), columns.max(), rows.max() + 15), (30, 50, 40), atol=2)


def as_png(mask: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray((mask * 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("orientation", STORED)
def test_a_handler_can_turn_the_picture_itself(tmp_path, orientation):
    path = write(tmp_path / "picture.png", upright(), orientation)
    assert np.allclose(extent(drawn(path, Found(label="", box=BOX), upright=True)), BOX, atol=2)


def test_a_box_that_only_fits_the_upright_picture_is_not_turned(tmp_path):
    path = write(tmp_path / "picture.png", upright(), 6)  # stored as 80 x 120
    wide = (70, 10, 110, 40)
    assert np.allclose(extent(drawn(path, Found(label="", box=wide))), wide, atol=2)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_box_of_a_resized_picture_is_enlarged(tmp_path, orientation):
    noisy = np.asarray(upright().resize((WIDTH * 5, HEIGHT * 5), Image.Resampling.NEAREST)).astype(int)
    noisy = noisy - np.random.default_rng(0).integers(0, 40, noisy.shape)
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    path = write(tmp_path / "large.jpg", picture, orientation, quality=98)
    fitted = fit_image(path, path.stat().st_size // 6, resize=True)
    box = detect(seen_by_pillow(fitted.data))
    pixels = drawn(path, Found(label="", box=box), fitted.resized)
    assert pixels.shape == (HEIGHT * 5, WIDTH * 5, 3)
    assert fitted.resized.factor < 0.7
    assert np.allclose(extent(pixels), [5 * edge for edge in BOX], atol=9)


def test_hostile_boxes_stay_inside_the_picture(tmp_path):
    path = write(tmp_path / "picture.png", upright())
    pixels = drawn(path, Found(label="böx\n漢", score=0.5, box=(-1e300, 1e300, 1e300, -5)))
    assert pixels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_picture_of_more_than_8_bits_is_visible(dtype):
    stream = io.BytesIO()
    levels = np.linspace(0, 60_000, 100 * 100).reshape(100, 100).astype(dtype)
    Image.fromarray(levels).save(stream, "TIFF")
    pixels = drawn(stream.getvalue(), Found(label="", box=(0, 0, 5, 5)))
    assert (pixels[50:].mean((1, 2)) > pixels[40].mean()).all()
    assert 100 < pixels.mean() < 150


def test_classes_are_written_on_the_picture(tmp_path):
    path = write(tmp_path / "picture.png", upright())
    pixels = drawn(path, Found(label="cat", score=0.9))
    assert (pixels[:15, :25] == 0).all(2).any()
    assert (pixels[20:] == np.asarray(upright())[20:]).all()


def test_a_broken_picture_is_an_error(tmp_path):
    (path := tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(PredictError, match="cannot draw on the picture"):
        open_canvas(path, None)
