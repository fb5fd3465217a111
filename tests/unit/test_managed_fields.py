"""Owners of fields, and differences between live objects and applied documents."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.managed_fields import (
    Drift,
    agrees,
    compare_with_applied,
    find_dropped,
    leave_to_others,
    owned,
)
from deployer.observed import Document

OURS = {
    "f:metadata": {"f:labels": {"f:kdeploy.dev/release": {}}},
    "f:spec": {"f:predictor": {"f:minReplicas": {}, "f:model": {"f:env": {'k:{"name":"A"}': {".": {}}}}}},
}


def entry(fields: Document, manager: str = "kdeploy", operation: str = "Apply", time: str = "1") -> Document:
    return {"manager": manager, "operation": operation, "time": time, "fieldsV1": fields}


def wanted(**predictor: Any) -> Document:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "digits", "namespace": "n", "labels": {"kdeploy.dev/release": "a"}},
        "spec": {
            "predictor": {"minReplicas": 1, "model": {"env": [{"name": "A", "value": "1"}]}, **predictor}
        },
    }


def live(fields: Document = OURS, **predictor: Any) -> Document:
    document = wanted(**predictor)
    document["metadata"]["managedFields"] = [
        entry(fields),
        entry({"f:spec": {"f:predictor": {"f:maxReplicas": {}}}}, "scaler", "Update", time="2"),
        entry({"f:status": {"f:url": {}}}, "kserve", "Update", time="3"),
    ]
    return document


def test_fields_that_a_server_does_not_know_are_named() -> None:
    sent = {"a": {"b": 1, "c": None, "d": {}}, "l": [{"x": 1, "y": 2}], "m": [1]}
    stored = {"a": {"b": 2}, "l": [{"x": 1, "z": 3}], "m": [], "n": 1}
    assert list(find_dropped(sent, stored)) == ["l[0].y"]
    assert list(find_dropped({"a": {"nope": {"x": 1}}, "b": 1}, {"a": {}})) == ["a.nope", "b"]
    assert list(find_dropped(sent, sent)) == []


def test_an_applied_document_agrees() -> None:
    assert agrees(live(), wanted())


def test_fields_of_other_managers_are_not_differences() -> None:
    assert agrees(live(maxReplicas=3, model={"env": [{"name": "A", "value": "1"}], "name": ""}), wanted())


@pytest.mark.parametrize(
    "predictor",
    [
        {"minReplicas": 2},
        {"maxReplicas": 1},
        {"model": {"env": [{"name": "A", "value": "2"}]}},
        {"model": {"env": []}},
        {"model": {"env": [{"value": "1"}]}},
        {"model": "x"},
    ],
)
def test_a_changed_value_is_a_difference(predictor: Document) -> None:
    assert not agrees(live(**predictor), wanted(maxReplicas=2))


def test_an_applied_field_that_is_not_wanted_is_a_difference() -> None:
    fields = {"f:spec": {"f:predictor": {"f:canaryTrafficPercent": {}, ".": {}}}}
    assert not agrees(live(fields, canaryTrafficPercent=10), wanted())


def test_an_applied_parent_of_wanted_fields_is_not_a_difference() -> None:
    assert agrees(live({"f:spec": {"f:predictor": {".": {}, "f:minReplicas": {}}}}), wanted())


@pytest.mark.parametrize(
    ("stored", "said", "same"),
    [
        ("1", "1000m", True),
        ("2Gi", "2048Mi", True),
        ("1500m", "1.5", True),
        ("2G", "2Gi", False),
        ("1", "2", False),
        ("x", "1", False),
        (True, "1", False),
    ],
)
def test_equal_quantities_agree(stored: object, said: str, same: bool) -> None:
    fields = {"f:spec": {"f:predictor": {"f:model": {"f:cpu": {}}}}}
    assert agrees(live(fields, model={"cpu": stored}), wanted(model={"cpu": said})) is same


def test_without_managed_fields_every_field_counts() -> None:
    assert agrees(wanted(), wanted())
    assert not agrees(wanted(maxReplicas=2), wanted())
    assert not agrees({**wanted(), "metadata": {"name": "digits"}}, wanted())


def test_owned_fields() -> None:
    assert ("spec", "predictor", "model", "env") in owned(live())
    assert ("status", "url") not in owned(live())


class TestChangedOutside:
    def held(self, manager: str, fields: Document, *more: Document, **predictor: Any) -> Document:
        document = wanted(**predictor)
        document["metadata"]["managedFields"] = [
            *more,
            entry({"f:spec": {"f:predictor": fields}}, manager, "Update", "2026-01-01T12:03:11Z"),
        ]
        return document

    def test_an_unchanged_document_has_no_drift(self) -> None:
        assert compare_with_applied(live(), wanted()) == []
        assert compare_with_applied(wanted(), wanted()) == []  # the local target manages no fields
        together = self.held("kubectl", {"f:minReplicas": {}}, entry(OURS))
        assert compare_with_applied(together, wanted()) == []  # the other manager applied the same value

    def test_a_changed_value_names_the_manager_and_the_time(self) -> None:
        document = self.held("kubectl-edit", {"f:minReplicas": {}}, entry(OURS), minReplicas=3)
        found = compare_with_applied(document, wanted())
        assert found == [Drift("spec.predictor.minReplicas", "kubectl-edit", "2026-01-01T12:03:11Z")]

    def test_a_field_that_another_manager_took_over(self) -> None:
        ours = {"f:metadata": {"f:labels": {"f:kdeploy.dev/release": {}}}}
        document = self.held("argocd", {"f:minReplicas": {}}, entry(ours))
        assert [(one.field, one.manager) for one in compare_with_applied(document, wanted())] == [
            ("spec.predictor.minReplicas", "argocd")
        ]

    def test_a_removed_field(self) -> None:
        document = self.held("kubectl-edit", {"f:maxReplicas": {}}, entry(OURS))
        del document["spec"]["predictor"]["minReplicas"]
        document["metadata"]["managedFields"][0] = entry({"f:metadata": {}})
        assert Drift("spec.predictor.minReplicas") in compare_with_applied(document, wanted())

    @pytest.mark.parametrize("manager", ["manager", "kdeploy"])
    def test_changes_by_kserve_are_not_drift(self, manager: str) -> None:
        document = self.held(manager, {"f:minReplicas": {}}, entry(OURS), minReplicas=3)
        assert compare_with_applied(document, wanted()) == []


def test_fields_of_other_managers_are_left_out() -> None:
    paths = (("spec", "predictor", "minReplicas"), ("spec", "predictor", "maxReplicas"))
    left = leave_to_others(wanted(maxReplicas=9), live(), paths)
    assert left["spec"]["predictor"] == wanted()["spec"]["predictor"]
    assert left["metadata"] == wanted()["metadata"]
