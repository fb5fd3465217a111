"""Provides an HTTP server on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.predict.loopback import Server


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()
