"""KServe's own downloader reads the uploads of kdeploy, with only our Secret and ServiceAccount."""

from __future__ import annotations

import subprocess
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model, Scaling, Store
from deployer.manifest import render
from deployer.observed import Capabilities
from deployer.release import Release, encode_release, plan_release
from deployer.store import ModelStore
from deployer.store.open import open_store
from tests.stores import azurite as azure
from tests.stores.azurite import Azurite, Tunnel
from tests.stores.certificates import make_certificates
from tests.stores.fixtures import IN_CLUSTER
from tests.stores.installed import DOWNLOADERS, environment
from tests.stores.kserve import container_environment, download

Pushed = tuple[Release, bytes]


def push(store: ModelStore, folder: Path, version: str) -> Pushed:
    member = Member(name="w.pt", size=300_000, sha256=None, source=bytes(300_000))
    archive = Archive(name="digits", version=version, format="zip-store", members=(member,))
    with store.stage() as staging:
        place = staging.archive_path("digits.mar")
        written = write_archive(archive, place, DigestCache(folder / "digests.json"))
        release = plan_release(Config(model=Model(name="digits", version=version, handler="h")), written)
        store.put(release, staging)
        return release, place.read_bytes() if place.exists() else archive_of(store, release)


def archive_of(store: ModelStore, release: Release) -> bytes:
    """Return the archive of a release that moved into a folder store."""
    place = Path(store.uri(release).removeprefix("file://"))
    return (place / "model-store" / "digits.mar").read_bytes()


@pytest.fixture(scope="module", params=DOWNLOADERS)
def kserve(request: pytest.FixtureRequest) -> Path:
    """The Python with one version of KServe's downloader."""
    return environment("kserve-storage", request.param)


def check(store: ModelStore, folder: Path, kserve: Path, here: str | None = None, **more: str) -> None:
    """Push two releases, where one version is a prefix of the other, and download the first.

    `here`: the address of the server for the downloader, which runs on this machine and in no pod.
    """
    (release, archive), _ = push(store, folder, "1"), push(store, folder, "10")
    access = store.access()
    variables = dict(more)
    if access:
        bundle = render(
            release,
            storage_uri=store.uri(release),
            namespace="team",
            capabilities=Capabilities(deployment_mode="Knative", canary=True),
            scaling=Scaling(),
            access=access,
        )
        assert bundle.secret
        found = container_environment([*bundle.beside, bundle.service])
        variables |= {name: value.replace(IN_CLUSTER, here or IN_CLUSTER) for name, value in found.items()}
    place = folder / "models"
    place.mkdir()
    assert download(kserve, store.uri(release), place, variables) == {
        "config/config.properties": release.config_properties.encode(),
        "model-store/digits.mar": archive,
        "release.json": encode_release(release),
    }


def test_kserve_downloads_from_s3(kserve: Path, s3_config: Store, tmp_path: Path) -> None:
    check(open_store(s3_config, tmp_path), tmp_path, kserve, here=s3_config.endpoint)


def test_kserve_downloads_from_a_folder(kserve: Path, tmp_path: Path) -> None:
    check(open_store(Store(uri="store"), tmp_path), tmp_path, kserve)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_kserve_downloads_an_archive_over_http(kserve: Path, suffix: str, tmp_path: Path) -> None:
    store = open_store(Store(uri="store"), tmp_path)
    release, archive = push(store, tmp_path, "1")
    place = Path(store.uri(release).removeprefix("file://"))
    (tmp_path / "served").mkdir()
    name = f"digits-{release.id}{suffix}"
    # The command in docs/explanation/model-stores.md.
    command = ["tar", "-C", place, "-caf", tmp_path / "served" / name]
    if suffix == ".zip":
        with zipfile.ZipFile(tmp_path / "served" / name, "w") as packed:
            for path in sorted(place.rglob("*")):
                packed.write(path, path.relative_to(place))
    else:
        subprocess.run([*command, "config", "model-store", "release.json"], check=True)
    serve = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    (tmp_path / "models").mkdir()
    try:
        found = download(kserve, f"http://127.0.0.1:{server.server_port}/{name}", tmp_path / "models", {})
    finally:
        server.shutdown()
        server.server_close()
    assert found == {
        "config/config.properties": release.config_properties.encode(),
        "model-store/digits.mar": archive,
        "release.json": encode_release(release),
    }


@pytest.fixture
def azure_with_its_host_name(
    kserve: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, dict[str, str]]]:
    """Azurite with TLS and Azure's host name, and the variables that connect a client to it."""
    made = make_certificates(tmp_path, azure.HOST)
    (tmp_path / "azurite").mkdir()
    server = Azurite(tmp_path / "azurite", (made.certificate, made.key)).start()
    tunnel = Tunnel(azure.HOST, server.port)
    try:
        server.make_container("models")
        monkeypatch.setenv("AZURE_STORAGE_KEY", azure.KEY)
        monkeypatch.setenv("HTTPS_PROXY", tunnel.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        config = Store(uri=f"https://{azure.HOST}/models/team", ca_bundle=str(made.authority))
        yield config, {"HTTPS_PROXY": tunnel.url, "SSL_CERT_FILE": str(made.authority)}
    finally:
        tunnel.close()
        server.stop()


def test_kserve_downloads_from_azure(
    kserve: Path, azure_with_its_host_name: tuple[Store, dict[str, str]], tmp_path: Path
) -> None:
    config, variables = azure_with_its_host_name
    store = open_store(config, tmp_path)
    check(store, tmp_path, kserve, **variables, REQUESTS_CA_BUNDLE=variables["SSL_CERT_FILE"])
