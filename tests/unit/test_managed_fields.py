"""Who owns what on a live object, and what is no difference."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.managed_fields import Drift, agrees, compare_with_applied, leave_to_others, owned
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


def test_the_same() -> None:
    assert agrees(live(), wanted())


def test_what_others_added_is_no_difference() -> None:
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
def test_another_value_is_a_difference(predictor: Document) -> None:
    assert not agrees(live(**predictor), wanted(maxReplicas=2))


def test_what_we_applied_and_want_no_more_is_a_difference() -> None:
    fields = {"f:spec": {"f:predictor": {"f:canaryTrafficPercent": {}, ".": {}}}}
    assert not agrees(live(fields, canaryTrafficPercent=10), wanted())


def test_a_table_that_we_applied_is_none() -> None:
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
def test_quantities(stored: object, said: str, same: bool) -> None:
    fields = {"f:spec": {"f:predictor": {"f:model": {"f:cpu": {}}}}}
    assert agrees(live(fields, model={"cpu": stored}), wanted(model={"cpu": said})) is same


def test_where_nobody_keeps_account_everything_counts() -> None:
    assert agrees(wanted(), wanted())
    assert not agrees(wanted(maxReplicas=2), wanted())
    assert not agrees({**wanted(), "metadata": {"name": "digits"}}, wanted())


def test_owners() -> None:
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

    def test_what_is_as_it_was_applied_is_not(self) -> None:
        assert compare_with_applied(live(), wanted()) == []
        assert compare_with_applied(wanted(), wanted()) == []  # one node keeps no account
        together = self.held("kubectl", {"f:minReplicas": {}}, entry(OURS))
        assert compare_with_applied(together, wanted()) == []  # who wants the same changes nothing

    def test_another_value_names_who_and_when(self) -> None:
        document = self.held("kubectl-edit", {"f:minReplicas": {}}, entry(OURS), minReplicas=3)
        found = compare_with_applied(document, wanted())
        assert found == [Drift("spec.predictor.minReplicas", "kubectl-edit", "2026-01-01T12:03:11Z")]

    def test_a_field_that_was_taken_over(self) -> None:
        ours = {"f:metadata": {"f:labels": {"f:kdeploy.dev/release": {}}}}
        document = self.held("argocd", {"f:minReplicas": {}}, entry(ours))
        assert [(one.field, one.manager) for one in compare_with_applied(document, wanted())] == [
            ("spec.predictor.minReplicas", "argocd")
        ]

    def test_a_field_that_was_taken_out(self) -> None:
        document = self.held("kubectl-edit", {"f:maxReplicas": {}}, entry(OURS))
        del document["spec"]["predictor"]["minReplicas"]
        document["metadata"]["managedFields"][0] = entry({"f:metadata": {}})
        assert Drift("spec.predictor.minReplicas") in compare_with_applied(document, wanted())

    @pytest.mark.parametrize("manager", ["manager", "kdeploy"])
    def test_kserve_is_not_outside(self, manager: str) -> None:
        document = self.held(manager, {"f:minReplicas": {}}, entry(OURS), minReplicas=3)
        assert compare_with_applied(document, wanted()) == []


def test_what_others_hold_is_left_to_them() -> None:
    paths = (("spec", "predictor", "minReplicas"), ("spec", "predictor", "maxReplicas"))
    left = leave_to_others(wanted(maxReplicas=9), live(), paths)
    assert left["spec"]["predictor"] == wanted()["spec"]["predictor"]
    assert left["metadata"] == wanted()["metadata"]
