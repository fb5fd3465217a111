from __future__ import annotations

from pathlib import Path

import pytest

from deployer.archive.stock_handlers import needed_packages
from deployer.config import Model

VISION = ("captum", "torchvision")


@pytest.mark.parametrize(
    ("handler", "packages"),
    [
        ("image_classifier", VISION),
        ("object_detector", VISION),
        ("image_segmenter", VISION),
        ("text_classifier", ("captum",)),
        ("base_handler", ()),
        ("mine.py", VISION),
        ("mine", VISION),
        ("mine.py:handle", VISION),
        ("other.py", ("captum",)),
        ("plain.py", ()),
        ("gone.py", ()),
    ],
)
def test_the_packages_of_stock_handlers(tmp_path: Path, handler: str, packages: tuple[str, ...]) -> None:
    (tmp_path / "mine.py").write_text("from ts.torch_handler.image_classifier import ImageClassifier\n")
    (tmp_path / "other.py").write_text("from ts.torch_handler import text_handler\n")
    (tmp_path / "plain.py").write_text("from ts.torch_handler.base_handler import BaseHandler\n")
    assert needed_packages(Model(name="m", version="1", handler=handler), tmp_path) == packages


@pytest.mark.parametrize(
    ("requirements", "packages"),
    [("torchvision==0.19.*\n", ("captum",)), ("Captum\ntorchvision", ()), ("", VISION), ("a b c", VISION)],
)
def test_what_the_requirements_list_is_left_out(
    tmp_path: Path, requirements: str, packages: tuple[str, ...]
) -> None:
    (tmp_path / "r.txt").write_text(requirements)
    model = Model(name="m", version="1", handler="image_classifier", requirements_file="r.txt")
    assert needed_packages(model, tmp_path) == packages
    gone = Model(name="m", version="1", handler="image_classifier", requirements_file="gone.txt")
    assert needed_packages(gone, tmp_path) == VISION
