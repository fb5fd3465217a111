"""The files of a new project."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.scaffold import write_project


@pytest.mark.parametrize(
    ("handler", "written"),
    [
        ("handler.py", {"kdeploy.toml", ".gitignore", "handler.py"}),
        ("own.py", {"kdeploy.toml", ".gitignore", "own.py"}),
        ("image_classifier", {"kdeploy.toml", ".gitignore"}),  # TorchServe's
        ("serve.py:handle", {"kdeploy.toml", ".gitignore"}),  # a function that only its author can write
    ],
)
def test_a_handler_is_written_if_it_is_a_file(tmp_path: Path, handler: str, written: set[str]) -> None:
    write_project(tmp_path, "demo", handler=handler)
    assert {path.name for path in tmp_path.iterdir()} == written
    assert f'handler = "{handler}"' in (tmp_path / "kdeploy.toml").read_text("utf-8")


def test_a_handler_that_exists_stays(tmp_path: Path) -> None:
    (tmp_path / "handler.py").write_text("mine")
    write_project(tmp_path, "demo")
    assert (tmp_path / "handler.py").read_text() == "mine"
