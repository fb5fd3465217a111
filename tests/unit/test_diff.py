"""Differences between live objects and documents, without the server's fields and a Secret's values."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from deployer.diff import compare
from deployer.observed import Document


def service(**predictor: Any) -> Document:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "digits", "namespace": "n"},
        "spec": {"predictor": {"minReplicas": 1, **predictor}},
    }


def live(document: Document, **metadata: Any) -> Document:
    servers = {"resourceVersion": "7", "generation": 2, "uid": "u", "managedFields": [{}], **metadata}
    return {**document, "metadata": {**document["metadata"], **servers}, "status": {"url": "http://x"}}


def changes(before: Document | None, after: Document) -> list[tuple[str, Any, Any]]:
    found = compare(before, after)
    return [(c.path, c.before, c.after) for c in found.changes] if found else []


@pytest.mark.parametrize(
    "after",
    [
        service(model={"cpu": "1500m", "containers": [{"name": "c"}]}),
        service(model={"cpu": "1.5", "containers": [{"name": "c"}]}),
        live(service(model={"cpu": "1500m", "containers": [{"name": "c"}]}), resourceVersion="8"),
    ],
)
def test_fields_of_the_server_and_webhooks_are_not_differences(after: Document) -> None:
    written = service(model={"cpu": "1500m", "containers": [{"name": "c", "protocol": "TCP"}]})
    assert compare(live(written), after) is None


def test_every_different_field_is_a_change() -> None:
    before = live(service(env=[{"name": "A"}, {"name": "B"}], image="old", gone=1, args=["a"]))
    after = service(env=[{"name": "A"}, {"name": "C"}], image="new", added={"x": 1}, args=["a", "b"])
    assert changes(before, after) == [
        ("spec.predictor.added", None, {"x": 1}),
        ("spec.predictor.args", ["a"], ["a", "b"]),
        ("spec.predictor.env[1].name", "B", "C"),
        ("spec.predictor.gone", 1, None),
        ("spec.predictor.image", "old", "new"),
    ]


def test_a_new_object_is_one_change() -> None:
    found = compare(None, service())
    assert found
    assert (found.kind, found.name, found.before) == ("InferenceService", "digits", None)
    assert found.changes[0].after == found.after == service()


def test_a_secrets_diff_names_only_its_changed_keys() -> None:
    last = {"kubectl.kubernetes.io/last-applied-configuration": "planted-c", "serving.kserve.io/s3": "kept"}
    metadata = {"name": "s", "annotations": last}
    held = {"kind": "Secret", "metadata": metadata, "data": {"A": "planted-a", "B": "planted-b"}}
    wanted = {**held, "data": {"A": "planted-a", "B": "planted-x", "C": "planted-y"}}
    assert changes(held, wanted) == [("data.B", "(hidden)", "(changed)"), ("data.C", None, "(hidden)")]
    for before in (held, None):
        assert "planted" not in json.dumps(msgspec.to_builtins(compare(before, wanted)))
    without = {"name": "s", "annotations": {"serving.kserve.io/s3": "kept"}}
    assert compare(held, {**held, "metadata": without}) is None


def test_a_removed_annotation() -> None:
    annotated = {**service(), "metadata": {**service()["metadata"], "annotations": {"a": "b"}}}
    assert changes(live(annotated), service()) == [("metadata.annotations", {"a": "b"}, None)]
