"""What an input is: by its name, else by its bytes."""

from __future__ import annotations

import pytest

from deployer.errors import PredictError
from deployer.predict import content
from deployer.predict.content import BYTES, JSON, identify, is_json, is_lines, is_text, read_json, sniff

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("name", "data", "content_type"),
    [
        ("a.json", b"{", JSON),
        ("a.GeoJSON", b"{}", JSON),
        ("a.txt", b'{"a": 1}', "text/plain"),
        ("a.txt", b"\x0c", "text/plain"),
        ("a.csv", b"1,2", "text/csv"),
        ("a.TSV", b"1\t2", "text/tab-separated-values"),
        ("a.md", b"# x", "text/markdown"),
        ("a.csv", b"caf\xe9", "text/csv"),
        ("a.py", b"import os\r\n\tx\n", "text/plain"),
        ("a.py", b'{"a": 1}', "text/plain"),
        ("a", b' {"a": 1}', JSON),
        ("", b"[1]", JSON),
        ("", b"true", JSON),
        ("", b"[1", "text/plain"),
        ("", b"[" * 100_000, "text/plain"),
        ("", b"a\x00b", BYTES),
        ("a.bin", b"abc\x1b[m", BYTES),
        ("a.mp3", b"\xff\xfea\0", BYTES),
        ("a.png", b"no picture", BYTES),
        ("a.svg", b"<svg/>", BYTES),
        ("a.wav", b"RIFF....WAVE", BYTES),
        ("a.npy", b"\x93NUMPY", BYTES),
        ("a.png", PNG, "image/png"),
        ("a", PNG, "image/png"),
        ("a.pgm", b"P2\n# seven\n1 1\n255\n7\n", "image/x-portable-anymap"),
        ("a.ppm", b"P6 1 1 255\nabc", "image/x-portable-anymap"),
        ("note", b"P2 is my favorite", "text/plain"),
    ],
)
def test_the_kind_of_an_input(name, data, content_type):
    assert identify(name, data) == (data, content_type)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("a.txt", "utf-8-sig"), ("a.dat", "utf-8-sig"), ("a", "utf-8"), ("a.csv", "utf-16")],
)
def test_text_is_sent_in_utf_8_without_a_byte_order_mark(name, encoding):
    assert identify(name, "ü, 漢".encode(encoding))[0] == "ü, 漢".encode()


def test_the_name_of_a_file_can_decide():
    assert is_json("A.JSON")
    assert not is_json("a.ndjson")
    assert is_lines("a.ndjson")
    assert is_lines("a.jsonl")
    assert is_text("a.csv")
    assert is_text("a.json")
    assert not is_text("a.jpg")


def test_the_first_bytes_of_an_image():
    assert sniff(b"\0\0\0\x0cjP  \r\n") == "image/jp2"
    assert sniff(b"P7 1 1") == sniff(b"") == BYTES


def test_invalid_json_has_a_hint():
    with pytest.raises(PredictError, match="invalid JSON") as caught:
        read_json(b"{")
    assert caught.value.hint == "Correct it. To send it as text, use a file whose name ends in `.txt`."
    assert read_json(b"\xef\xbb\xbf[1]") == (b"[1]", [1])


def test_the_module_is_pure():
    assert not {"os", "urllib3", "socket"} & set(vars(content))
