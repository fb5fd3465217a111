"""A rollout from an object store to a cluster: what is applied, and what of that is shown."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from deployer.pipeline import Pipeline

from deployer.config import Store, load_settings
from deployer.errors import ConfigError, IntegrityError
from deployer.events import Event
from deployer.journal import Provenance
from deployer.observed import Capabilities, Document, Reference
from deployer.release import Traffic
from deployer.store.objects import ObjectStore
from deployer.store.open import open_store
from deployer.targets.local import OneNode
from tests.contract.sides import side_of
from tests.stores import swift as s3


class Cluster(OneNode):
    """A target that keeps what is applied, and does as a cluster says of itself."""

    def __init__(self, state: Path) -> None:
        super().__init__(state=state, namespace="team", ingress_host="127.0.0.1", ingress_port=0)
        self.applied: list[Document] = []

    def capabilities(self) -> Capabilities:
        return Capabilities(deployment_mode="Standard", canary=False)

    def check(self, documents: Sequence[Document], *, wait: bool = True) -> list[str]:
        return []

    def apply(
        self,
        documents: Sequence[Document],
        provenance: Provenance | None = None,
        traffic: Traffic | None = None,
    ) -> Reference:
        self.applied = list(documents)
        return Reference("team", "digits")


def pipeline(config: Store, folder: Path, events: list[Event]) -> tuple[Pipeline, Cluster]:
    (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
    flags = {"model.name": "digits", "model.version": "1.0", "model.handler": "handler.py"}
    flags |= {f"store.{key}": str(value) for key, value in msgspec.to_builtins(config).items() if value}
    settings = load_settings(None, environment={}, flags=flags, folder=folder)
    cluster = Cluster(folder / "state")
    return Pipeline(settings, open_store(settings.config.store, folder), cluster, events.append), cluster


def test_credentials_are_applied_and_never_shown(s3_config: Store, tmp_path: Path) -> None:
    events: list[Event] = []
    pipe, cluster = pipeline(s3_config, tmp_path, events)
    release = pipe.rollout(None, timeout=None)
    kinds = [document["kind"] for document in cluster.applied]
    assert kinds == ["Secret", "ServiceAccount", "ServingRuntime", "InferenceService"]
    secret = cluster.applied[0]
    assert base64.b64decode(secret["data"]["AWS_SECRET_ACCESS_KEY"]).decode() == s3.SECRET
    assert cluster.applied[-1]["spec"]["predictor"]["model"]["storageUri"] == pipe.store.uri(release)
    encoded = base64.b64encode(s3.SECRET.encode()).decode()
    shown = msgspec.json.encode([pipe.plan(100), pipe.render(release, Traffic()), events]).decode()
    assert s3.SECRET not in shown
    assert encoded not in shown


def test_temporary_credentials_are_refused_before_anything_is_stored(
    s3_config: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "planted-token")
    events: list[Event] = []
    pipe, cluster = pipeline(s3_config, tmp_path, events)
    for decide in (
        lambda: pipe.rollout(None, timeout=None),
        lambda: pipe.plan(100),
        lambda: pipe.diff(None, 100),
    ):
        with pytest.raises(ConfigError, match="temporary or personal"):
            decide()
    assert (events, cluster.applied) == ([], [])
    named = msgspec.structs.replace(s3_config, service_account="models")
    pipe, cluster = pipeline(named, tmp_path, events)
    documents = pipe.with_secret(pipe.render(pipe.release(None), Traffic()))
    assert "planted-token" not in str(documents)
    assert "Secret" not in [document["kind"] for document in documents]


def test_where_nothing_goes_to_a_cluster_temporary_credentials_are_no_matter(
    s3_config: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "planted-token")
    pipe, _ = pipeline(s3_config, tmp_path, [])
    pipe.target = OneNode(
        state=tmp_path / "state", namespace="team", ingress_host="127.0.0.1", ingress_port=0
    )
    with pytest.raises(ConfigError, match="this machine's disk, not from s3://"):
        pipe.rollout(None, timeout=None)


def test_an_older_release_is_rolled_out_without_a_download(
    s3_config: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, cluster = pipeline(s3_config, tmp_path, [])
    release = pipe.push()

    def download(*_: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(ObjectStore, "_download", download)
    assert pipe.rollout(release.id, timeout=None) == release
    assert cluster.applied
    cluster.applied = []
    side_of(pipe.store).remove(release, "model-store/digits.mar")
    with pytest.raises(IntegrityError, match="is missing"):
        pipe.rollout(release.id, timeout=None)
    assert cluster.applied == []
