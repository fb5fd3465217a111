"""Servers, one of each per test run, and separate stores in them for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.config import Store
from tests.stores import azurite as azure
from tests.stores import swift as s3
from tests.stores.azurite import Azurite
from tests.stores.swift import Swift

IN_CLUSTER = "http://swift.stores.svc:8080"  # the address of the server that pods would use
CLOUDS = ("AWS_", "AZURE_", "AZ_", "GOOGLE_", "CLOUDSDK_")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Remove all credentials from the environment; return a new, empty home folder."""
    import os

    for name in list(os.environ):
        if name.startswith(CLOUDS):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return home


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    server = Swift(tmp_path_factory.mktemp("swift"))
    try:
        server.start()
        server.make_bucket("models")
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    server = Azurite(tmp_path_factory.mktemp("azurite")).start()
    try:
        server.make_container("models")
        yield server
    finally:
        server.stop()


@pytest.fixture
def s3_config(swift: Swift, bare: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in Swift, with its keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
    return Store(uri=f"s3://models/{uuid.uuid4().hex}", endpoint=swift.url, cluster_endpoint=IN_CLUSTER)


@pytest.fixture
def azure_config(azurite: Azurite, bare: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in Azurite, with its key in the environment."""
    monkeypatch.setenv("AZURE_STORAGE_KEY", azure.KEY)
    return Store(uri=f"az://models/{uuid.uuid4().hex}", account=azure.ACCOUNT, endpoint=azurite.url)
