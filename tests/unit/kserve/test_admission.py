"""What keeps a service from starting: annotations, the controller, Pod Security."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.findings import Finding
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.admission import (
    check_controller,
    check_frozen,
    check_pod_security,
    check_user,
)
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts
from deployer.targets.kserve.state.settings import KServeConfig

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


def secured(of: Document, **facts: Any) -> list[Finding]:
    return list(check_pod_security(of, ClusterFacts(**facts)))


def test_annotations_that_stop_a_rollout() -> None:
    assert list(check_frozen(None)) == []
    assert list(check_frozen(service(**{"serving.kserve.io/stop": "false"}))) == []
    (one,) = check_frozen(service(**{"serving.kserve.io/stop": "true"}))
    assert one.detail == "annotation serving.kserve.io/stop stops the service"
    assert one.remedy == (
        "Remove it: `kubectl -n team annotate inferenceservice digits serving.kserve.io/stop-`"
    )
    (one,) = check_frozen(service(**{"serving.kserve.io/disable-auto-update": "True"}))
    assert "keeps KServe from updating" in one.detail


def test_a_controller_that_does_not_run() -> None:
    def found(**facts: Any) -> list[str]:
        return [one.status for one in check_controller(service(), ClusterFacts(**facts))]

    config = KServeConfig()
    assert found(config=config) == []
    assert found(controller=None) == []  # KServe's ConfigMap cannot be read
    assert found(config=config, controller=None) == ["warning"]
    assert found(config=config, controller={"status": {}}) == ["failure"]
    assert found(config=config, controller={"status": {"availableReplicas": 1}}) == ["ok"]


def test_pod_security_rejects_the_storage_initializer() -> None:
    assert secured(service(), storage_container=container()) == []
    assert secured(service(), namespace={"metadata": {}}, storage_container=container()) == []
    assert secured(service("pvc://models/x"), namespace=RESTRICTED, storage_container=container()) == []
    assert secured(service(), namespace=RESTRICTED) == []
    (one,) = secured(service(), namespace=RESTRICTED, storage_container=container(**CONTEXT))
    assert one.status == "ok"
    (one,) = secured(service(), namespace=RESTRICTED, storage_container=None)
    assert one.status == "failure"


@pytest.mark.parametrize("missing", CONTEXT)
def test_each_part_of_the_security_context_is_needed(missing: str) -> None:
    context = {key: value for key, value in CONTEXT.items() if key != missing}
    (one,) = secured(service(), namespace=RESTRICTED, storage_container=container(**context))
    assert one.status == "failure"


RANGE = "openshift.io/sa.scc.uid-range"


def runtime_with(**context: Any) -> Document:
    return {"spec": {"containers": [{"name": "kserve-container", "securityContext": context}]}}


@pytest.mark.parametrize(
    ("annotations", "runtime", "pod", "own", "status"),
    [
        ({RANGE: "1000650000/10000"}, {"runAsNonRoot": True}, {}, {}, "ok"),
        ({RANGE: "1000650000/10000"}, {}, {}, {"runAsUser": 1000}, "warning"),
        ({RANGE: "1000650000/10000"}, {"runAsUser": 1000}, {}, {}, "warning"),  # a runtime of the cluster
        ({RANGE: "1000650000/10000"}, {}, {"runAsUser": 1000}, {}, "warning"),
        ({RANGE: "1000650000/10000"}, {"runAsUser": 1000}, {}, {"runAsUser": 1000659999}, "ok"),
        ({RANGE: "1000650000/10000"}, {}, {}, {"runAsUser": 1000660000}, "warning"),
        ({RANGE: "1000-2000"}, {}, {}, {"runAsUser": 2000}, "ok"),
        ({RANGE: "1000-2000"}, {}, {}, {"runAsUser": 2001}, "warning"),
        ({RANGE: "any"}, {}, {}, {"runAsUser": 1000}, "warning"),
        ({}, {"runAsNonRoot": True}, {}, {}, "warning"),
        (None, {"runAsNonRoot": True}, {}, {"runAsUser": 1000}, None),
        ({}, {}, {}, {}, None),
    ],
)
def test_the_user_of_pods_fits_the_namespace(
    annotations: dict[str, str] | None, runtime: Document, pod: Document, own: Document, status: str | None
) -> None:
    made = service()
    made["spec"]["predictor"] |= {"securityContext": pod}
    made["spec"]["predictor"]["model"] |= {"securityContext": own}
    namespace = {"metadata": {"name": "team", "annotations": annotations}}
    facts = ClusterFacts(namespace=namespace, runtime=runtime_with(**runtime))
    assert [one.status for one in check_user(made, facts)] == ([status] if status else [])
    assert list(check_user(made, ClusterFacts())) == []


def test_the_warning_about_the_user_names_both_and_the_way_out() -> None:
    made = service()
    made["spec"]["predictor"]["model"] |= {"securityContext": {"runAsUser": 1000}}
    namespace = {"metadata": {"annotations": {RANGE: "1000650000/10000"}}}
    (one,) = check_user(made, ClusterFacts(namespace=namespace))
    assert one.detail == "pods run as user 1000, but namespace team assigns 1000650000/10000"
    assert 'run-as-user = "namespace"' in one.remedy
