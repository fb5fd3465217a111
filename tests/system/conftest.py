"""The small project and the archives of the unit tests, for programs to work on."""

from __future__ import annotations

from tests.unit.archive.conftest import archive, digests, root

__all__ = ["archive", "digests", "root"]
