"""Releases and their rendered documents, for tests that need no model files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deployer.bundle import Bundle
from deployer.config import Scaling, Serving
from deployer.journal import Entry, Provenance, plan_entry
from deployer.manifest import render
from deployer.observed import Capabilities, Document, Reference
from deployer.release import ArchiveRecord, Release, Traffic
from deployer.storage_access import StorageAccess

A, B, C = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb", "1.2-cccccccccccc"
DEMO = Reference("default", "demo")
ALICE = "alice@laptop"
KNATIVE = Capabilities(deployment_mode="Knative", canary=True)

RUNTIME: Document = {"containers": [{"name": "kserve-container", "image": "torchserve"}]}


def make_release(
    release: str = A, name: str = "demo", *, runtime: Document | None = RUNTIME, **serving: Any
) -> Release:
    """Make a release; without a `runtime` it has the one that kdeploy renders."""
    return Release(
        id=release,
        name=name,
        version=release.partition("-")[0],
        archive=ArchiveRecord(f"{name}.mar", "sha256:0", ()),
        serving=Serving(**serving),
        config_properties="",
        runtime=runtime,
    )


def make_bundle(
    release: str = A,
    *,
    service: Reference = DEMO,
    model: str = "",
    percent: int = 100,
    capabilities: Capabilities = KNATIVE,
    storage_uri: str = "",
    scaling: Scaling | None = None,
    access: StorageAccess | None = None,
    runtime: Document | None = RUNTIME,
    overlays: Sequence[Document] = (),
    **serving: Any,
) -> Bundle:
    """Render a release's documents. The default of `model` is the name of the service."""
    model = model or service.name
    return render(
        make_release(release, model, runtime=runtime, **serving),
        storage_uri=storage_uri or f"s3://models/{model}/{release}/",
        namespace=service.namespace,
        capabilities=capabilities,
        scaling=scaling or Scaling(),
        service=service.name,
        traffic=Traffic(percent),
        access=access,
        overlays=overlays,
    )


def make_entry(bundle: Bundle, *, who: str = ALICE, stable: str | None = None, **more: Any) -> Entry:
    """Make the journal entry of a rollout."""
    return plan_entry(bundle, Provenance(who=who, archive="sha256:0", commit="abc"), stable=stable, **more)
