"""`kdeploy predict --save` with scikit-image's photographs: the pixels that are drawn."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from deployer.cli.predictions import print_answers
from deployer.cli.saving import Saver
from deployer.predict import Client, Prediction
from deployer.targets.protocols import Endpoint
from tests.unit.predict.loopback import Asked, Reply, Server
from tests.unit.predict.test_images import STORED, write

RED = (230, 25, 75)
FACE = (168, 60, 280, 210)  # of the astronaut: left, top, right, bottom


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def photograph() -> Image.Image:
    """The astronaut, of which the handler knows the face by its pixels."""
    return Image.fromarray(data.astronaut())


def find_face(body: bytes, upright: bool) -> list[int]:
    """Find the face in the pixels that a handler gets, by comparing them with the astronaut's."""
    picture = Image.open(io.BytesIO(body))
    if upright:
        from PIL import ImageOps

        picture = ImageOps.exif_transpose(picture)
    left, top, right, bottom = FACE
    known = np.zeros((512, 512), bool)
    known[top:bottom, left:right] = True
    whole = Image.fromarray(data.astronaut())
    best = min(
        STORED.values(),
        key=lambda turn: difference(whole if turn is None else whole.transpose(turn), picture),
    )
    marked = Image.fromarray(known)
    turned = marked if best is None else marked.transpose(best)
    rows, columns = np.nonzero(np.asarray(turned.resize(picture.size)))
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def difference(one: Image.Image, other: Image.Image) -> float:
    small = [np.asarray(picture.convert("L").resize((32, 32)), float) for picture in (one, other)]
    return float(np.abs(small[0] - small[1]).mean())


def saved(server: Server, path: Path, out: Path, *, upright: bool = False, **options) -> np.ndarray:
    with Client(Endpoint(server.url), "faces", timeout=20, **options) as client:
        answers = list(client.predict([path], "v1"))
    assert isinstance(answers[0], Prediction), answers[0].error
    print_answers(answers, "table", Saver(out, {str(path): path}, upright=upright))
    return np.asarray(Image.open(out / f"{path.stem}.png"))


def extent(pixels: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((pixels == RED).all(2))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def detector(*, upright: bool) -> Callable[[Asked], Reply]:
    def answer(asked: Asked) -> Reply:
        [row] = json.loads(asked.body)["instances"]
        box = find_face(base64.b64decode(row["data"]), upright)
        found = [{"label": "", "score": None, "box": box}]
        return Reply(200, json.dumps({"predictions": [found]}).encode())

    return answer


@pytest.mark.parametrize(
    ("orientation", "upright"), [(1, False), (3, False), (6, False), (7, False), (8, True)]
)
def test_the_face_is_framed_where_people_see_it(
    server: Server, tmp_path: Path, orientation: int, upright: bool
) -> None:
    path = write(tmp_path / "astronaut.jpg", photograph(), orientation, quality=95)
    server.answering = detector(upright=upright)
    pixels = saved(server, path, tmp_path / "out", upright=upright)
    assert pixels.shape == (512, 512, 3)
    assert np.allclose(extent(pixels), FACE, atol=2)
    inside = pixels[FACE[1] + 20 : FACE[3] - 20, FACE[0] + 20 : FACE[2] - 20]
    original = data.astronaut()[FACE[1] + 20 : FACE[3] - 20, FACE[0] + 20 : FACE[2] - 20]
    assert np.abs(inside.astype(int) - original).mean() < 8  # the picture itself is unchanged


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_face_is_framed_in_the_original_of_a_resized_picture(
    server: Server, tmp_path: Path, orientation: int
) -> None:
    path = write(tmp_path / "astronaut.jpg", photograph(), orientation, quality=95)
    server.answering = detector(upright=True)
    limit = path.stat().st_size // 2
    pixels = saved(server, path, tmp_path / "out", max_request_size=limit, resize=True)
    assert len(server.asked[0].body) <= limit
    assert pixels.shape == (512, 512, 3)
    assert np.allclose(extent(pixels), FACE, atol=4)


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_a_segmentation_covers_its_pixels(server: Server, tmp_path: Path, name: str) -> None:
    picture = Image.fromarray(getattr(data, name)())
    picture.save(path := tmp_path / f"{name}.png")
    bright = np.asarray(picture.convert("L")) > 128
    server.answering = lambda asked: Reply(
        200, json.dumps({"predictions": [bright.astype(int).tolist()]}).encode()
    )
    pixels = saved(server, path, tmp_path / "out").astype(int)
    below = slice(30, None)  # the caption is above
    changed = np.abs(pixels - np.asarray(picture).astype(int)).sum(2)[below] > 0
    dark = ~bright[below]
    assert not changed[dark].any()
    assert changed[bright[below]].mean() > 0.99
