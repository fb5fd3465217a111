from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deployer.archive import Archive, DigestCache, Member, plan_archive
from deployer.config import Model

HANDLER = """
class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return data
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the smallest possible model."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "handler.py").write_text(HANDLER)
    (folder / "weights.pt").write_bytes(b"weights")
    return folder


@pytest.fixture
def digests(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "state" / "digests.json")


@pytest.fixture
def plan(root: Path, digests: DigestCache) -> Callable[..., Archive]:
    def planned(**changes: object) -> Archive:
        values = {"name": "m", "version": "1.0", "handler": "handler.py", "serialized_file": "weights.pt"}
        return plan_archive(Model(**{**values, **changes}), root, digests)

    return planned


@pytest.fixture
def archive() -> Callable[..., Archive]:
    """Return a function that makes an archive of names and contents (bytes or paths)."""

    def made(members: dict[str, bytes | Path], archive_format: str = "zip-store") -> Archive:
        return Archive(
            name="m",
            version="1",
            format=archive_format,
            members=tuple(
                Member(
                    name,
                    len(content) if isinstance(content, bytes) else content.stat().st_size,
                    None,
                    content,
                )
                for name, content in sorted(members.items())
            ),
        )

    return made
