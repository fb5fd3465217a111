"""A server on loopback for every test that wants one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.predict.loopback import Server


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()
