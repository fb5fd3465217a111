"""A release's documents as one value."""

from __future__ import annotations

import msgspec
import pytest

from deployer.bundle import Bundle
from deployer.observed import Document
from deployer.storage_access import StorageAccess
from tests.bundles import DEMO, A, make_bundle

ACCESS = StorageAccess(data={"AWS_SECRET_ACCESS_KEY": "hunter2"})
BUDGET: Document = {"kind": "PodDisruptionBudget", "metadata": {"name": "demo"}}


def test_a_bundle_knows_its_service_release_and_traffic() -> None:
    bundle = make_bundle(A, percent=10, storage_uri="s3://models/demo/")
    assert (bundle.reference, bundle.release, bundle.percent) == (DEMO, A, 10)
    assert bundle.storage_uri == "s3://models/demo/"
    assert make_bundle(A).percent == 100


def test_a_service_that_kdeploy_did_not_render_has_no_release() -> None:
    service = make_bundle().service
    assert Bundle(service={**service, "metadata": {"name": "demo", "namespace": "team"}}).release == ""


def test_the_service_is_applied_last() -> None:
    bundle = msgspec.structs.replace(make_bundle(access=ACCESS), extras=(BUDGET,))
    kinds = [document["kind"] for document in bundle.beside]
    assert kinds == ["Secret", "ServiceAccount", "ServingRuntime"]
    shown = [document["kind"] for document in bundle.documents]
    assert shown == [*kinds[1:], "PodDisruptionBudget", "InferenceService"]


def test_a_recreating_bundle_stops_old_pods_first() -> None:
    bundle = make_bundle(A)
    predictor = bundle.recreating().service["spec"]["predictor"]
    assert predictor == {**bundle.service["spec"]["predictor"], "deploymentStrategy": {"type": "Recreate"}}


def test_a_secret_cannot_be_shown_or_encoded() -> None:
    bundle = make_bundle(access=ACCESS)
    assert bundle.secret
    assert bundle.secret.document["data"] == {"AWS_SECRET_ACCESS_KEY": "aHVudGVyMg=="}
    for text in (repr(bundle), str(bundle.documents), msgspec.json.encode(bundle.without_secret()).decode()):
        assert "aHVudGVyMg" not in text
        assert "hunter2" not in text
    with pytest.raises(TypeError):
        msgspec.json.encode(bundle)
    assert bundle.without_secret().secret is None


def test_a_bundle_without_its_secret_can_be_encoded() -> None:
    bundle = msgspec.structs.replace(make_bundle(access=ACCESS), extras=(BUDGET,)).without_secret()
    assert msgspec.json.decode(msgspec.json.encode(bundle), type=Bundle) == bundle
