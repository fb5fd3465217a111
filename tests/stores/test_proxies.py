"""Model stores and the proxies in the environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from deployer.config import Store
from deployer.store.open import open_store
from tests.unit.predict.proxying import Proxy, proxying


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxying() as running:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv("HTTP_PROXY", running.url)
        yield running


def test_a_server_on_loopback_uses_no_proxy(s3_config: Store, proxy: Proxy, tmp_path: Path) -> None:
    assert open_store(s3_config, tmp_path).releases() == []
    assert proxy.asked == []


def test_any_other_server_uses_the_proxy(s3_config: Store, proxy: Proxy, tmp_path: Path) -> None:
    config = msgspec.structs.replace(s3_config, endpoint="http://s3.example")
    proxy.routes["s3.example:80"] = int(str(s3_config.endpoint).rpartition(":")[2])
    assert open_store(config, tmp_path).releases() == []
    assert {method for method, *_ in proxy.asked} == {"GET"}
