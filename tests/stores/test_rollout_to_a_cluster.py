"""A rollout from an object store to a cluster: the applied documents, and the ones that are shown."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest

from deployer.bundle import Bundle
from deployer.config import Store, load_settings
from deployer.errors import ConfigError, IntegrityError
from deployer.events import Event
from deployer.journal import Entry
from deployer.project import Project
from deployer.rollouts import Rollouts
from deployer.store.objects import ObjectStore
from deployer.store.open import open_store
from deployer.targets.local import OneNode
from deployer.targets.memory import MemoryTarget
from tests.contract.sides import side_of
from tests.stores import swift as s3


class Cluster(MemoryTarget):
    """A target in memory that keeps the last applied bundle, including the Secret."""

    applied: Bundle | None = None

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        self.applied = bundle
        return super().apply(bundle, entry, expect=expect)


class Here:
    """A project in a folder, its bucket and its cluster."""

    def __init__(self, config: Store, folder: Path) -> None:
        (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
        flags = {"model.name": "digits", "model.version": "1.0", "model.handler": "handler.py"}
        flags |= {f"store.{key}": str(value) for key, value in msgspec.to_builtins(config).items() if value}
        settings = load_settings(None, environment={}, flags=flags, folder=folder)
        self.events: list[Event] = []
        self.cluster = Cluster(namespace="team")
        self.store = open_store(settings.config.store, folder)
        self.project = Project(settings, self.events.append)
        self.rollouts = Rollouts(self.project, self.store, self.cluster.target, self.events.append)


def test_credentials_are_applied_and_never_shown(s3_config: Store, tmp_path: Path) -> None:
    here = Here(s3_config, tmp_path)
    release = here.rollouts.rollout()
    bundle = here.cluster.applied
    assert bundle
    assert bundle.secret
    kinds = [document["kind"] for document in (*bundle.beside, bundle.service)]
    assert kinds == ["Secret", "ServiceAccount", "ServingRuntime", "InferenceService"]
    data = bundle.secret.document["data"]
    assert base64.b64decode(data["AWS_SECRET_ACCESS_KEY"]).decode() == s3.SECRET
    assert bundle.storage_uri == here.store.uri(release)
    decision = here.rollouts.decide(preview=True)
    entries = here.cluster.entries(bundle.reference)
    shown = msgspec.json.encode(
        [decision.bundle.documents, decision.changes, entries, here.events], enc_hook=repr
    ).decode()
    shown += repr(decision)
    assert s3.SECRET not in shown
    assert base64.b64encode(s3.SECRET.encode()).decode() not in shown


def test_temporary_credentials_are_refused_before_anything_is_stored(
    s3_config: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "planted-token")
    here = Here(s3_config, tmp_path)
    for decide in (here.rollouts.rollout, here.rollouts.decide, lambda: here.rollouts.decide(preview=True)):
        with pytest.raises(ConfigError, match="temporary or personal"):
            decide()
    assert (here.events, here.cluster.applied) == ([], None)
    named = Here(
        msgspec.structs.replace(s3_config, service_account="models", cluster_endpoint=None), tmp_path
    )
    bundle = named.rollouts.decide(look=False).bundle
    assert bundle.secret is None
    assert "planted-token" not in str(bundle.documents)


def test_temporary_credentials_are_allowed_without_a_cluster(
    s3_config: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "planted-token")
    here = Here(s3_config, tmp_path)
    node = OneNode(state=tmp_path / "state", namespace="team", ingress_host="127.0.0.1", ingress_port=0)
    with pytest.raises(ConfigError, match="this machine's disk, not from s3://"):
        Rollouts(here.project, here.store, node.target, here.events.append).rollout()


def test_an_older_release_is_rolled_out_without_a_download(
    s3_config: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Here(s3_config, tmp_path)
    release = here.project.push(here.store)

    def download(*_: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(ObjectStore, "_download", download)
    assert here.rollouts.rollout(release.id) == release
    assert here.cluster.applied
    assert here.cluster.delete(here.cluster.applied.reference) is not None
    here.cluster.applied = None
    side_of(here.store).remove(release, "model-store/digits.mar")
    with pytest.raises(IntegrityError, match="is missing"):
        here.rollouts.rollout(release.id)
    assert here.cluster.applied is None
