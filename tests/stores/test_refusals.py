"""Errors of real servers: each has a reason and a hint."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest

from deployer.config import Store
from deployer.errors import ConfigError, KdeployError, StoreError
from deployer.store.open import open_store


def refusal(config: Store, folder: Path) -> KdeployError:
    with pytest.raises(KdeployError) as caught:
        open_store(config, folder).find("digits", "1.0-0123456789ab")
    return caught.value


def test_a_wrong_secret_is_an_error(
    s3_config: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    error = refusal(s3_config, tmp_path)
    assert "credentials are invalid" in error.what
    assert "planted" not in str(error)
    assert "planted" not in str(error.__cause__)


def test_a_missing_bucket_is_an_error(s3_config: Store, tmp_path: Path) -> None:
    error = refusal(msgspec.structs.replace(s3_config, uri="s3://elsewhere"), tmp_path)
    assert "the bucket does not exist" in error.what
    assert "kdeploy does not create buckets" in (error.hint or "")


def test_a_missing_container_is_an_error(azure_config: Store, tmp_path: Path) -> None:
    error = refusal(msgspec.structs.replace(azure_config, uri="az://elsewhere"), tmp_path)
    assert "the bucket does not exist" in error.what


def test_a_wrong_region_is_an_error(s3_config: Store, tmp_path: Path) -> None:
    error = refusal(msgspec.structs.replace(s3_config, region="eu-west-3"), tmp_path)
    assert "another region" in error.what
    assert "store.region" in (error.hint or "")


def test_a_wrong_key_of_azure_is_an_error(
    azure_config: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", "cGxhbnRlZA==")
    error = refusal(azure_config, tmp_path)
    assert "credentials are invalid" in error.what
    assert "cGxhbnRlZA" not in f"{error} {error.__cause__}"


def test_an_unreachable_server_is_an_error(s3_config: Store, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = msgspec.structs.replace(s3_config, endpoint=f"http://127.0.0.1:{port}")
    error = refusal(config, tmp_path)
    assert "cannot connect to the server" in error.what
    assert isinstance(error, StoreError)


def test_a_missing_ca_bundle_is_an_error(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the CA bundle"):
        open_store(Store(uri="s3://models", ca_bundle="no-such.pem"), tmp_path)
