"""What keeps a service from coming to life: annotations, the controller, Pod Security."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.admission import (
    check_controller,
    check_frozen,
    check_pod_security,
)

RESTRICTED: Document = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
CONTEXT: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def service(uri: str = "s3://models/x", **annotations: str) -> Document:
    metadata = {"name": "digits", "namespace": "team", "annotations": annotations}
    return {"metadata": metadata, "spec": {"predictor": {"model": {"storageUri": uri}}}}


def container(**context: Any) -> Document:
    return {"spec": {"container": {"securityContext": context}}}


def test_annotations_that_stop_a_rollout() -> None:
    assert list(check_frozen(None)) == []
    assert list(check_frozen(service(**{"serving.kserve.io/stop": "false"}))) == []
    (one,) = check_frozen(service(**{"serving.kserve.io/stop": "true"}))
    assert one.detail == "annotation serving.kserve.io/stop stops the service"
    assert one.remedy == (
        "`kubectl -n team annotate inferenceservice digits serving.kserve.io/stop-` removes it"
    )
    (one,) = check_frozen(service(**{"serving.kserve.io/disable-auto-update": "True"}))
    assert "keeps KServe from updating" in one.detail


def test_the_controller() -> None:
    assert list(check_controller(UNSET)) == []
    (one,) = check_controller(None)
    assert one.status == "warning"
    (one,) = check_controller({"status": {}})
    assert one.status == "failure"
    (one,) = check_controller({"status": {"availableReplicas": 1}})
    assert one.status == "ok"


def test_pod_security() -> None:
    assert list(check_pod_security(service(), UNSET, container())) == []
    assert list(check_pod_security(service(), {"metadata": {}}, container())) == []
    assert list(check_pod_security(service("pvc://models/x"), RESTRICTED, container())) == []
    assert list(check_pod_security(service(), RESTRICTED, UNSET)) == []
    (one,) = check_pod_security(service(), RESTRICTED, container(**CONTEXT))
    assert one.status == "ok"
    (one,) = check_pod_security(service(), RESTRICTED, None)
    assert one.status == "failure"


@pytest.mark.parametrize("missing", CONTEXT)
def test_each_part_of_the_security_context_is_needed(missing: str) -> None:
    context = {key: value for key, value in CONTEXT.items() if key != missing}
    (one,) = check_pod_security(service(), RESTRICTED, container(**context))
    assert one.status == "failure"
