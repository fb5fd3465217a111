"""Model stores and the proxies of the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from deployer.config import Store
from deployer.store import open_store
from deployer.store.credentials import find_credentials
from deployer.store.location import locate
from deployer.store.s3_requests import Bucket
from tests.unit.predict.proxying import Proxy, proxying


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with proxying() as running:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv("HTTP_PROXY", running.url)
        yield running


def bucket(config: Store) -> Bucket:
    return Bucket(locate(config, {}), find_credentials("s3", os.environ), None)


def test_a_server_on_loopback_is_reached_straight(s3_config: Store, proxy: Proxy, tmp_path: Path) -> None:
    assert open_store(s3_config, tmp_path).list() == []
    assert bucket(s3_config).ask("GET").status == 200
    assert proxy.asked == []


def test_any_other_server_through_the_proxy(s3_config: Store, proxy: Proxy, tmp_path: Path) -> None:
    config = msgspec.structs.replace(s3_config, endpoint="http://s3.example")
    proxy.leads["s3.example:80"] = int(str(s3_config.endpoint).rpartition(":")[2])
    assert open_store(config, tmp_path).list() == []
    seen = len(proxy.asked)
    assert seen >= 1
    assert bucket(config).ask("GET").status == 200
    assert len(proxy.asked) == seen + 1
    assert {method for method, *_ in proxy.asked} == {"GET"}
