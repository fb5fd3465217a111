"""Pods' statuses and events, as documents."""

from __future__ import annotations

import pytest

from deployer.observed import Document
from deployer.targets.kserve.state import pods
from tests.unit.kserve.documents import AFTER, BEFORE, GPU, condition, event, pod

ERROR = {"exitCode": 1, "reason": "Error", "message": "boom"}


@pytest.mark.parametrize(
    ("main", "failures"),
    [
        ({"running": {}}, 0),
        ({"running": {}, "restarts": 2, "last": ERROR}, 2),
        ({"terminated": ERROR}, 1),
        ({"terminated": ERROR, "restarts": 2}, 3),
        ({"waiting": {"reason": "CrashLoopBackOff"}, "restarts": 1, "last": ERROR}, 2),
        ({"waiting": {"reason": "ContainerCreating"}}, 0),
        ({"terminated": {"exitCode": 0, "reason": "OOMKilled"}}, 1),
    ],
)
def test_failures_are_counted(main: Document, failures: int) -> None:
    assert pods.count_failures(pod(main=main)) == {"kserve-container": failures}


def test_an_initializer_that_succeeded_has_not_failed() -> None:
    done = pods.find_container(
        pod(init={"terminated": {"exitCode": 0}, "restarts": 0}), "storage-initializer"
    )
    assert (done.failures, done.ended) == (0, {})
    assert pods.find_container(pod(), "kserve-container") == pods.Container(name="kserve-container")


@pytest.mark.parametrize(("restarts", "seconds"), [(0, 10), (1, 20), (4, 160), (5, 300), (5000, 300)])
def test_back_off_doubles(restarts: int, seconds: int) -> None:
    failed = pods.find_container(pod(main={"terminated": ERROR, "restarts": restarts}), "kserve-container")
    assert pods.back_off(failed) == seconds
    again = pods.find_container(pod(main={"running": {}, "restarts": 1, "last": ERROR}), "kserve-container")
    assert pods.back_off(again) == 0


def test_scheduling_faults() -> None:
    unscheduled = condition("PodScheduled", "False", "Unschedulable", GPU)
    waits = pod(node="", conditions=[unscheduled])
    assert pods.scheduling_faults(waits, [event("digits-1", "FailedScheduling", "older")]) == [GPU, "older"]
    assert pods.scheduling_faults(pod(conditions=[unscheduled]), []) == []  # it has a node
    assert pods.scheduling_faults(waits, [event("digits-1", "TriggeredScaleUp", "0->1", kind="Normal")]) == []


def test_only_events_that_delay_a_pod_are_reported() -> None:
    harmless = event("digits-1", "MissingClusterDNS", "kubelet does not have ClusterDNS")
    mount = event("digits-1", "FailedMount", "no such claim", BEFORE)
    assert pods.delaying_event(pod(), [harmless]) == ""
    assert pods.delaying_event(pod(), [harmless, mount]) == "FailedMount: no such claim"
    assert pods.explain_pod(pod(main={"waiting": {"reason": "ContainerCreating"}}), [harmless]) == (
        "ContainerCreating: container kserve-container"
    )
    assert pods.explain_pod(pod(main={"terminated": ERROR}), [mount]) == "FailedMount: no such claim"
    assert pods.explain_pod(pod(main={"terminated": ERROR}), []) == "Error: boom"
    assert pods.explain_pod(pod(node=""), [event("digits-1", "FailedScheduling", GPU)]) == (
        f"FailedScheduling: {GPU}"
    )
    unscheduled = condition("PodScheduled", "False", "Unschedulable", GPU)
    assert pods.explain_pod(pod(node="", conditions=[unscheduled]), []) == f"Unschedulable: {GPU}"
    assert pods.explain_pod(pod(), []) == ""


def test_the_newest_failed_probe_counts() -> None:
    events = [
        event("digits-1", "Unhealthy", "Readiness probe failed: model digits has\nno READY worker\n", AFTER),
        event("digits-1", "Unhealthy", "Readiness probe failed: TorchServe's management API", BEFORE),
        event("other", "Unhealthy", "Readiness probe failed: another"),
    ]
    assert pods.probe_message(pod(), events) == "model digits has no READY worker"
    assert pods.probe_message(pod(), []) == ""


INITIALIZER = "2026-11-25 13:31:31.{} 1 storage.initializer {} [initializer-entrypoint:<module>():31] {}\n"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            INITIALIZER.format("054", "INFO", "Initializing")
            + INITIALIZER.format("835", "ERROR", "Unexpected error during storage initialization: no route"),
            "no route",
        ),
        ("Traceback (most recent call last):\n  File x\nRuntimeError: no model\n", "RuntimeError: no model"),
        ("boom", "boom"),
        (INITIALIZER.format("054", "INFO", "Initializing"), None),
        ("", ""),
    ],
)
def test_the_initializers_error_without_log_lines(message: str, error: str | None) -> None:
    assert pods.explain_initializer(message) == (" ".join(message.split()) if error is None else error)


def test_resources_of_a_pod() -> None:
    held = pod(limits={"cpu": "1", "nvidia.com/gpu": "2"})
    assert pods.resources_of(held) == {"cpu": "1", "nvidia.com/gpu": "2"}
    assert pods.describe_held(held) == "pod digits-1 (2 nvidia.com/gpu)"
    assert pods.describe_held(pod(limits={"cpu": "1"})) == "pod digits-1 (1 cpu)"
    assert pods.describe_held(pod()) == "pod digits-1"
    held["spec"]["containers"].append({"name": "proxy", "resources": {"requests": {"cpu": "100m"}}})
    held["spec"]["containers"].append({"name": "bare"})
    assert pods.resources_of(held)["cpu"] == "1 + 100m"
    assert pods.memory_limit(pod(limits={"memory": "1Gi"}), "kserve-container") == "1Gi"
    assert pods.memory_limit(pod(), "kserve-container") == ""
    assert pods.memory_limit(pod(), "another") == ""
