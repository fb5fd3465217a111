"""Fixtures of the unit tests: a small project and its archives."""

from __future__ import annotations

from tests.unit.archive.conftest import archive, digests, root

__all__ = ["archive", "digests", "root"]
