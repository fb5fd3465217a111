"""S3 behind TLS, with a certificate authority that the config names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from deployer.config import Store
from deployer.errors import StoreError
from deployer.store.open import open_store
from tests.stores import swift as s3
from tests.stores.certificates import make_certificates
from tests.stores.pushing import Start, start
from tests.stores.swift import Swift

__all__ = ["start"]


@pytest.fixture
def secure(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    made = make_certificates(tmp_path, "127.0.0.1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
    (tmp_path / "swift").mkdir()
    server = Swift(tmp_path / "swift", (made.certificate, made.key)).start()
    try:
        config = Store(uri="s3://models/team", endpoint=server.url, ca_bundle=str(made.authority))
        server.make_bucket("models", made.authority)
        yield config
    finally:
        server.stop()


def test_a_large_release_is_stored_over_tls(secure: Store, start: Start, tmp_path: Path) -> None:
    assert start(secure).wait() == 0
    store = open_store(secure, tmp_path)
    (release,) = store.releases()
    store.verify(release)


def test_an_untrusted_certificate_is_refused(secure: Store, tmp_path: Path) -> None:
    config = msgspec.structs.replace(secure, ca_bundle=None)
    with pytest.raises(StoreError, match="certificate is not trusted"):
        open_store(config, tmp_path).releases()
