"""Fitting files into the request limit: within it, decodable, upright, and at nearly the largest scale."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from deployer.errors import PredictError
from deployer.predict import images
from deployer.predict.codecs import encode, request_size
from deployer.predict.content import sniff
from deployer.predict.images import read_file

CORNERS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (235, 235, 235)}
# For each EXIF orientation, the operation that was applied to the upright image before it was stored.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def photograph(width: int, height: int, seed: int = 0, noise: float = 20.0) -> Image.Image:
    """Return an upright image like a photograph: a color in each quarter, a gradient and noise."""
    quarters = np.array(
        [[CORNERS["red"], CORNERS["green"]], [CORNERS["blue"], CORNERS["white"]]], dtype=np.float32
    )
    rows = (np.arange(height) * 2 // max(height, 1)).clip(0, 1)
    columns = (np.arange(width) * 2 // max(width, 1)).clip(0, 1)
    pixels = quarters[rows][:, columns]
    pixels += np.linspace(-15, 15, width)[None, :, None]
    pixels += np.random.default_rng(seed).normal(0, noise, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write(path: Path, picture: Image.Image, orientation: int = 1, **options) -> Path:
    turn = STORED[orientation]
    stored = picture if turn is None else picture.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif, **options)
    return path


def corners(picture: Image.Image) -> list[str]:
    """Return the nearest color of each quarter's middle: top left, top right, bottom left, bottom right."""
    rgb, (width, height) = picture.convert("RGB"), picture.size
    found = []
    for y, x in ((1, 1), (1, 3), (3, 1), (3, 3)):
        box = (width * x // 4 - width // 8, height * y // 4 - height // 8)
        patch = rgb.crop((*box, box[0] + max(1, width // 4), box[1] + max(1, height // 4)))
        mean = np.asarray(patch, dtype=float).mean((0, 1))
        found.append(min(CORNERS, key=lambda name: float(np.abs(mean - CORNERS[name]).sum())))
    return found


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


fit_image = partial(images.fit_image, resize=True)


def refused(path: Path, limit: int = 1000, **options) -> PredictError:
    with pytest.raises(PredictError) as caught:
        fit_image(path, limit, **options)
    assert caught.value.where == str(path)
    assert caught.value.hint
    return caught.value


# Files that fit are sent unchanged


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "tiff"])
def test_an_image_that_fits_is_sent_unchanged(tmp_path, suffix):
    path = tmp_path / f"small.{suffix}"
    photograph(20, 10).save(path)
    fitted = fit_image(path, path.stat().st_size)
    assert fitted.data == path.read_bytes()
    assert fitted.content_type == f"image/{'jpeg' if suffix == 'jpg' else suffix}"
    assert fitted.resized is None


def test_another_small_file_is_sent_as_plain_bytes(tmp_path):
    path = tmp_path / "sound.wav"
    path.write_bytes(b"RIFF....WAVE")
    assert fit_image(path, 12).content_type == "application/octet-stream"
    assert sniff(b"\0\0\0\x1cftypavif") == "image/avif"
    assert sniff(b"MM\0*") == "image/tiff"


def test_small_files_are_sent_without_pillow(tmp_path):
    path = write(tmp_path / "small.png", photograph(8, 8))
    code = (
        f"import sys, pathlib; sys.path.insert(0, {str(Path(images.__file__).parents[2])!r})\n"
        "from deployer.predict import fit_image\n"
        f"fit_image(pathlib.Path({str(path)!r}), 10_000)\n"
        "assert not {'PIL', 'urllib3', 'http.client'} & set(sys.modules), sorted(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Files that do not fit are resized


def test_the_note_has_the_sizes_and_the_scale(tmp_path):
    path = write(tmp_path / "image.jpg", photograph(1200, 900, noise=60), quality=98)
    size, measure = path.stat().st_size, partial(request_size, "v1")
    fitted = fit_image(path, 400_000, request_size=measure)
    width, height = opened(fitted.data).size
    resized = fitted.resized
    assert (resized.width, resized.height, resized.format, resized.size) == (
        width,
        height,
        "JPEG",
        len(fitted.data),
    )
    assert resized.factor == round(width / 1200, 4) < 1
    assert resized.note == (
        f"{path}: {measure(size) / 1e6:.1f} MB as JSON, limit 400.0 kB: "
        f"sent as {width}x{height} JPEG ({len(fitted.data) / 1e3:.1f} kB), resized by {resized.factor:g}"
    )
    assert fitted.content_type == "image/jpeg"


def test_similar_sizes_are_shown_in_bytes(tmp_path):
    path = write(tmp_path / "close.jpg", photograph(1200, 900), quality=95)
    size = path.stat().st_size
    assert f"{size} bytes, limit {size - 1} bytes" in refused(path, size - 1, resize=False).what


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_a_resized_image_is_upright(tmp_path, orientation, suffix):
    path = write(tmp_path / f"turned.{suffix}", photograph(320, 200), orientation)
    fitted = fit_image(path, path.stat().st_size // 3)
    sent = opened(fitted.data)
    assert corners(sent) == ["red", "green", "blue", "white"]
    assert abs(sent.width / sent.height - 1.6) < 0.1
    assert sent.getexif().get(0x0112, 1) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 500),
    height=st.integers(1, 500),
    mode=st.sampled_from(["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16"]),
    orientation=st.sampled_from(list(STORED)),
    protocol=st.sampled_from(["plain", "v1", "v2"]),
    share=st.floats(0.01, 0.99),
    noise=st.sampled_from([0.0, 10.0, 80.0]),
    seed=st.integers(0, 3),
)
def test_a_resized_image_is_decodable_and_within_the_limit(
    tmp_path, width, height, mode, orientation, protocol, share, noise, seed
):
    picture = photograph(width, height, seed, noise)
    if mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        picture.putalpha(128)
    elif mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    path = write(tmp_path / ("p.tiff" if mode == "CMYK" else "p.png"), picture, orientation)
    limit = max(request_size(protocol, 1500), int(share * request_size(protocol, path.stat().st_size)))
    fitted = fit_image(path, limit, request_size=partial(request_size, protocol))
    wire = encode(protocol, "m", fitted.data, fitted.content_type).body
    assert len(wire) == request_size(protocol, len(fitted.data)) <= limit
    sent = opened(fitted.data)
    if fitted.resized is not None:
        kept = {"RGBA": "RGBA", "LA": "RGBA", "I;16": "I;16", "L": "L", "1": "L"}
        assert sent.mode == kept.get(mode, "RGB")
        assert sent.width <= width
        assert sent.height <= height


def test_the_scale_is_nearly_the_largest_and_found_in_few_attempts(tmp_path, monkeypatch):
    tries = []
    encoded = images._encoded
    monkeypatch.setattr(images, "_encoded", lambda *given: tries.append(given) or encoded(*given))
    path = write(tmp_path / "large.jpg", photograph(1600, 1200), quality=95)
    for limit in (300_000, 100_000, 30_000, 10_000):
        tries.clear()
        fitted = fit_image(path, limit)
        assert limit * 0.7 <= len(fitted.data) <= limit
        assert len(tries) <= images.MAX_ENCODES


def test_a_bitmap_that_fits_as_jpeg_keeps_all_its_pixels(tmp_path):
    path = tmp_path / "scan.bmp"
    photograph(800, 600).save(path)
    assert opened(fit_image(path, 700_000).data).size == (800, 600)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path, monkeypatch):
    path = write(tmp_path / "large.jpg", photograph(1600, 1200), quality=95)
    whole = []
    largest = images._largest
    monkeypatch.setattr(
        images, "_largest", lambda picture, *given: whole.append(picture.size) or largest(picture, *given)
    )
    fit_image(path, 10_000)
    assert whole[0][0] <= 400


def test_the_search_ends_if_nothing_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_ENCODES", 1)
    path = write(tmp_path / "image.png", photograph(400, 300))
    assert "cannot shrink it that much" in refused(path, 2000).what


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_an_image_of_16_bits_keeps_16_bits(tmp_path, kind):
    path = tmp_path / f"depth.{kind}"
    values = np.linspace(0, 65_535, 40_000).reshape(200, 200)
    values += np.random.default_rng(0).normal(0, 300, values.shape)
    Image.fromarray(values.clip(0, 65_535).astype(np.uint16)).save(path)
    sent = opened(fit_image(path, path.stat().st_size // 3).data)
    assert sent.mode == "I;16"
    assert np.asarray(sent).max() > 60_000


def test_transparency_is_kept_and_an_opaque_alpha_channel_is_dropped(tmp_path):
    picture = photograph(200, 200)
    picture.putalpha(Image.linear_gradient("L").resize((200, 200)))
    path = write(tmp_path / "clear.png", picture)
    fitted = fit_image(path, path.stat().st_size // 2)
    assert fitted.content_type == "image/png"
    alpha = np.asarray(opened(fitted.data).getchannel("A"))
    assert alpha[0].mean() < 20
    assert alpha[-1].mean() > 235
    picture.putalpha(255)
    path = write(tmp_path / "opaque.png", picture)
    assert fit_image(path, path.stat().st_size // 2).content_type == "image/jpeg"


def test_comments_and_profiles_are_dropped(tmp_path):
    path = write(
        tmp_path / "commented.jpg", photograph(300, 300), comment=b"c" * 30_000, icc_profile=b"p" * 30_000
    )
    sent = opened(fit_image(path, path.stat().st_size - 1).data)
    assert sent.size == (300, 300)
    assert not {"comment", "icc_profile", "exif"} & set(sent.info)


def test_an_image_with_broken_exif_is_resized(tmp_path):
    path = tmp_path / "junk.jpg"
    photograph(300, 300).save(path, quality=95, exif=b"Exif\0\0" + b"\xff" * 40)
    assert fit_image(path, path.stat().st_size // 2).resized


def test_an_image_longer_than_the_limit_of_jpeg_is_resized(tmp_path):
    path = write(tmp_path / "strip.png", photograph(70_000, 4))
    fitted = fit_image(path, path.stat().st_size - 1)
    assert opened(fitted.data).width <= 65_500


# Files that cannot be sent


def test_without_resize_the_error_has_the_sizes_and_both_remedies(tmp_path):
    path = write(tmp_path / "image.jpg", photograph(400, 300), quality=95)
    with pytest.raises(PredictError) as caught:
        images.fit_image(path, 2000, request_size=partial(request_size, "v1"))
    error = caught.value
    assert "as JSON, limit 2.0 kB" in error.what
    assert "--resize" in error.hint
    assert "serving.max-request-size" in error.hint


def test_a_limit_below_the_smallest_image_is_refused(tmp_path):
    path = write(tmp_path / "image.jpg", photograph(400, 300))
    assert "cannot shrink it that much" in refused(path, 100).what
    assert "cannot shrink it that much" in refused(path, 5, request_size=partial(request_size, "v1")).what


@pytest.mark.parametrize("suffix", ["txt", "jpg", "png", "tiff", "eps"])
def test_a_large_file_that_is_not_an_image_is_refused(tmp_path, suffix):
    path = tmp_path / f"large.{suffix}"
    path.write_bytes((b"%!PS-Adobe-3.0 EPSF-3.0\n" if suffix == "eps" else b"no picture\n") * 1000)
    assert "Pillow cannot read it" in refused(path).what


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "gif"])
def test_a_truncated_image_is_refused(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    photograph(300, 300).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "Pillow cannot read it" in refused(path, 500).what


def bomb(path: Path, width: int, height: int) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, side):
    path = bomb(tmp_path / "bomb.png", side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "more pixels than can be decoded safely" in refused(path, 500).what


def test_pixels_of_32_bits_are_refused(tmp_path):
    path = tmp_path / "depth.tiff"
    Image.fromarray(np.ones((50, 50), dtype=np.float32)).save(path)
    assert "32 bits" in refused(path).what


def test_a_path_without_a_regular_file_is_refused(tmp_path):
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refused(tmp_path / "empty.jpg").what == "the file is empty"
    assert refused(tmp_path / "pipe").what == "not a regular file"
    assert refused(tmp_path).what == "cannot read a folder"
    assert refused(tmp_path / "none.jpg").what == "cannot read the file: No such file or directory"
    assert refused(tmp_path / "loop").what.startswith("cannot read the file")
    assert refused(tmp_path / ("x" * 300)).what == "cannot read the file: File name too long"
    assert refused(Path(tmp_path / "a\0b")).what == "cannot read the file: embedded null byte"


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "1099511.6 MB, limit 1.0 kB" in refused(path).what
    with pytest.raises(PredictError, match="limit"):
        read_file(path, 1000)


def test_other_files_are_read_up_to_the_limit(tmp_path):
    path = tmp_path / "request.json"
    path.write_bytes(b"[1]")
    assert read_file(path, 3) == b"[1]"
    with pytest.raises(PredictError, match=r"request\.json: too large: 3 bytes, limit 2 bytes"):
        read_file(path, 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(["jpg", "png", "gif", "webp", "bmp", "tiff", "ppm"]), data=st.data())
def test_hostile_bytes_become_an_image_or_one_error(tmp_path, suffix, data):
    path = tmp_path / f"hostile.{suffix}"
    photograph(60, 60).save(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, min(len(raw) - 1, 400)))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        fitted = fit_image(path, len(raw) - 1)
    except PredictError as error:
        assert error.where == str(path)
    else:
        assert len(fitted.data) < len(raw)


def test_many_threads_can_resize_images(tmp_path):
    paths = [write(tmp_path / f"{index}.jpg", photograph(300, 200, index)) for index in range(8)]
    fitted: dict[Path, bytes] = {}
    threads = [
        threading.Thread(target=lambda path=path: fitted.update({path: fit_image(path, 8000).data}))
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(fitted[path] == fit_image(path, 8000).data for path in paths)
