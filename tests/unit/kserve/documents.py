"""Small Kubernetes documents for the pure tests, with only the fields that the code reads."""

from __future__ import annotations

from typing import Any

from deployer.observed import RELEASE_LABEL, Document

A, B = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb"
APPLIED = "2026-01-01T10:00:00Z"
BEFORE, AFTER = "2026-01-01T09:59:59Z", "2026-01-01T10:00:01Z"
GPU = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
APP = "isvc.digits-predictor"


def service(release: str = A, *, mode: str = "Standard", **status: Any) -> Document:
    """Return an InferenceService."""
    return {
        "kind": "InferenceService",
        "metadata": {
            "name": "digits",
            "namespace": "team",
            "uid": "service",
            "labels": {RELEASE_LABEL: release},
            "annotations": {"serving.kserve.io/deploymentMode": mode},
            "managedFields": [{"manager": "kdeploy", "time": APPLIED, "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {"predictor": {"model": {}}},
        "status": status,
    }


def condition(kind: str, status: str, reason: str = "", message: str = "") -> Document:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def container(name: str, *, restarts: int = 0, last: Document | None = None, **state: Any) -> Document:
    """Return a container's status: `running`, `waiting` or `terminated`, and its last termination."""
    document = {"name": name, "state": state, "restartCount": restarts}
    return {**document, "lastState": {"terminated": last}} if last else document


def pod(
    release: str = A,
    *,
    init: Document | None = None,
    main: Document | None = None,
    ready: bool = False,
    name: str = "digits-1",
    node: str = "n1",
    conditions: list[Document] | None = None,
    **more: Any,
) -> Document:
    status: Document = {"conditions": conditions or []}
    if ready:
        status["conditions"].append(condition("Ready", "True"))
    if init:
        status["initContainerStatuses"] = [container("storage-initializer", **init)]
    if main:
        status["containerStatuses"] = [container("kserve-container", **main)]
    if "phase" in more:
        status["phase"] = more.pop("phase")
    limits = more.pop("limits", {})
    labels = {RELEASE_LABEL: release, "app": more.pop("app", APP)}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "uid": name, "labels": labels, **more},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "kserve-container", "resources": {"limits": limits}}],
        },
        "status": status,
    }


def event(uid: str, reason: str, message: str, time: str = AFTER, kind: str = "Warning") -> Document:
    return {
        "involvedObject": {"uid": uid},
        "type": kind,
        "reason": reason,
        "message": message,
        "lastTimestamp": time,
    }


def replica_set(
    release: str = A, number: int = 1, *, wanted: int = 1, available: int = 0, **more: Any
) -> Document:
    return {
        "kind": "ReplicaSet",
        "metadata": {
            "name": more.pop("name", f"digits-predictor-{number}"),
            "uid": f"rs{number}",
            "labels": {RELEASE_LABEL: release, "app": more.pop("app", APP)},
            "annotations": {"deployment.kubernetes.io/revision": str(number)},
        },
        "spec": {"replicas": wanted},
        "status": {"replicas": wanted, "availableReplicas": available, **more},
    }


def deployment(release: str = A, *conditions: Document, generation: int = 1, observed: int = 1) -> Document:
    return {
        "kind": "Deployment",
        "metadata": {
            "name": "digits-predictor",
            "uid": "deployment",
            "generation": generation,
            "labels": {RELEASE_LABEL: release, "app": APP},
        },
        "status": {"observedGeneration": observed, "conditions": list(conditions)},
    }


def revision(release: str = A, number: int = 1, *conditions: Document, **status: int) -> Document:
    return {
        "kind": "Revision",
        "metadata": {"name": f"digits-predictor-{number:05}", "labels": {RELEASE_LABEL: release}},
        "status": {"conditions": list(conditions), **status},
    }
