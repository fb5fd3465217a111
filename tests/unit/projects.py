"""A small project on disk, for tests. Its files are old enough for the digest cache."""

from __future__ import annotations

import time
from pathlib import Path

from deployer.archive import DigestCache
from deployer.config import Settings, load_settings
from deployer.events import Event
from deployer.project import DIGESTS, Project

HANDLER = "def handle(data, context):\n    return [1] * len(data or [])\n"


class Folder:
    """A project's folder, and the events of the last call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        (folder / "handler.py").write_text(HANDLER)
        self.change(b"w")

    def change(self, weights: bytes) -> None:
        """Write weights that are large enough that a plan does not read them."""
        (self.folder / "weights.pt").write_bytes(weights * 300_000)

    def settings(self, **flags: str) -> Settings:
        """Load the settings. The flag of model.archive-format is `model__archive_format`."""
        set_by_flags = {key.replace("__", ".").replace("_", "-"): value for key, value in flags.items()}
        return load_settings(
            None,
            environment={},
            flags={
                "model.name": "demo",
                "model.version": "1.0",
                "model.handler": "handler.py",
                "model.serialized-file": "weights.pt",
                **set_by_flags,
            },
            folder=self.folder,
        )

    def project(self, *, strict: bool = False, **flags: str) -> Project:
        """Open the project, as a command does. Its clock is a second after the files' times."""
        self.events.clear()
        digests = DigestCache(self.folder / DIGESTS, clock=lambda: time.time_ns() + 1_000_000_000)
        return Project(self.settings(**flags), self.events.append, strict=strict, digests=digests)

    def kinds(self) -> list[type]:
        return [type(event) for event in self.events]
