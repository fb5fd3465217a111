"""What cannot heal and what still may, from documents as the cluster's own parts write them."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.target import RELEASE_LABEL, Document
from deployer.targets.kserve.diagnosis import Failure, diagnose, explain_waiting
from deployer.targets.kserve.serving import Children

A, B = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb"
APPLIED = "2026-01-01T10:00:00Z"
BEFORE, AFTER = "2026-01-01T09:59:59Z", "2026-01-01T10:00:01Z"
GPU = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


def service(**model_status: Any) -> Document:
    return {
        "kind": "InferenceService",
        "metadata": {
            "name": "digits",
            "uid": "service",
            "labels": {RELEASE_LABEL: A},
            "managedFields": [{"manager": "kdeploy", "time": APPLIED, "fieldsV1": {"f:spec": {}}}],
        },
        "status": {"modelStatus": model_status} if model_status else {},
    }


def pod(
    release: str = A, *, init: Document | None = None, main: Document | None = None, **more: Any
) -> Document:
    status: Document = {"conditions": more.pop("conditions", [])}
    if init:
        status["initContainerStatuses"] = [{"name": "storage-initializer", **init}]
    if main:
        status["containerStatuses"] = [{"name": "kserve-container", **main}]
    metadata = {"name": "digits-1", "uid": "pod", "labels": {RELEASE_LABEL: release}, **more}
    return {"kind": "Pod", "metadata": metadata, "spec": {}, "status": status}


def event(uid: str, reason: str, message: str, time: str = AFTER) -> Document:
    about = {"uid": uid}
    return {
        "involvedObject": about,
        "type": "Warning",
        "reason": reason,
        "message": message,
        "lastTimestamp": time,
    }


def made(kind: str, *conditions: Document, release: str = A) -> Document:
    metadata = {"name": "digits-predictor", "uid": "made", "labels": {RELEASE_LABEL: release}}
    return {"kind": kind, "metadata": metadata, "status": {"conditions": list(conditions)}}


def failure(of: Document | None = None, **children: Any) -> Failure | None:
    return diagnose(of or service(), Children(**children))


WAITING = {"reason": "ContainerCreating"}
CRASHED = {
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
    "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
    "restartCount": 3,
}


def test_a_crash_loop_tells_how_it_ended() -> None:
    found = failure(pods=[pod(main=CRASHED)])
    assert found
    assert found.reason == "CrashLoopBackOff"
    assert found.message.endswith("it ends again and again: OOMKilled, exit code 137")
    assert (found.pod, found.container, found.previous) == ("digits-1", "kserve-container", True)


def test_a_crash_loop_whose_end_is_not_known() -> None:
    found = failure(pods=[pod(main={"state": CRASHED["state"]})])
    assert found
    assert found.message.endswith("it ends again and again")


@pytest.mark.parametrize(
    "reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "RunContainerError"]
)
def test_a_container_that_never_starts(reason: str) -> None:
    found = failure(pods=[pod(main={"state": {"waiting": {"reason": reason, "message": "why"}}})])
    assert found
    assert (found.reason, found.previous) == (reason, False)
    assert found.message.endswith(": why")


def test_without_a_message_the_event_tells() -> None:
    events = [event("pod", "Failed", "older", BEFORE), event("pod", "Failed", "pull access denied")]
    found = failure(pods=[pod(main={"state": {"waiting": {"reason": "ErrImagePull"}}})], events=events)
    assert found
    assert found.message.endswith("Failed: pull access denied")


@pytest.mark.parametrize(
    ("state", "previous"),
    [
        ({"state": {"terminated": {"exitCode": 1, "message": "no such bucket"}}}, False),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "message": "no such bucket"}},
            },
            True,
        ),
    ],
)
def test_the_model_cannot_be_fetched(state: Document, previous: bool) -> None:
    found = failure(pods=[pod(init=state, main={"state": {"waiting": {"reason": "PodInitializing"}}})])
    assert found
    assert found.reason == "StorageInitializerFailed"
    assert "no such bucket" in found.message
    assert found.previous is previous


@pytest.mark.parametrize(
    "harmless",
    [
        pod(),
        pod(init={"state": {"terminated": {"exitCode": 0}}}, main={"state": {"running": {}}}),
        pod(main={"state": {"waiting": WAITING}}),
        pod(main={"state": {"terminated": {"exitCode": 1}}}),  # it is started again at once
        pod(B, main=CRASHED),
        pod(main=CRASHED, deletionTimestamp=APPLIED),
    ],
)
def test_what_still_may_heal(harmless: Document) -> None:
    assert failure(pods=[harmless]) is None


def test_a_gpu_that_no_node_has() -> None:
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": GPU}
    by_condition = failure(pods=[pod(conditions=[unschedulable])])
    by_event = failure(pods=[pod()], events=[event("pod", "FailedScheduling", GPU)])
    assert by_condition == by_event
    assert by_condition
    assert by_condition.message.startswith("no node has a free nvidia.com/gpu for pod digits-1")
    assert explain_waiting(service(), Children(pods=[pod(conditions=[unschedulable])]))[0] == "Unschedulable"


def test_a_gpu_that_is_on_its_way() -> None:
    events = [event("pod", "FailedScheduling", GPU), event("pod", "TriggeredScaleUp", "0->1")]
    assert failure(pods=[pod()], events=events) is None


def test_cpu_may_become_free() -> None:
    events = [event("pod", "FailedScheduling", "0/2 nodes are available: 2 Insufficient cpu.")]
    assert failure(pods=[pod()], events=events) is None


def test_a_pod_that_was_scheduled_after_all() -> None:
    placed = pod()
    placed["spec"]["nodeName"] = "n1"
    assert failure(pods=[placed], events=[event("pod", "FailedScheduling", GPU)]) is None


LATE = {
    "type": "Progressing",
    "status": "False",
    "reason": "ProgressDeadlineExceeded",
    "message": "timed out",
}
QUOTA = {
    "type": "ReplicaFailure",
    "status": "True",
    "reason": "FailedCreate",
    "message": 'pods "digits" is forbidden: exceeded quota: compute',
}


def test_deadlines_and_quotas() -> None:
    for one in (failure(deployments=[made("Deployment", LATE)]), failure(revisions=[made("Revision", LATE)])):
        assert one
        assert one.reason == "ProgressDeadlineExceeded"
    found = failure(replica_sets=[made("ReplicaSet", QUOTA)])
    assert found
    assert found.reason == "QuotaExceeded"
    assert failure(deployments=[made("Deployment", LATE, release=B)]) is None


def test_events_of_what_was_made() -> None:
    children = {"replica_sets": [made("ReplicaSet")]}
    refused = event("made", "FailedCreate", "violates PodSecurity restricted", BEFORE)
    found = failure(**children, events=[refused])
    assert found
    assert found.reason == "FailedCreate"
    assert failure(**children, events=[event("made", "FailedCreate", "timeout, will retry")]) is None


def test_events_of_the_service_count_from_its_specification_on() -> None:
    said = 'admission webhook "w" denied the request: no'
    assert failure(events=[event("service", "InternalError", said, BEFORE)]) is None
    assert failure(events=[event("service", "InternalError", "the object has been modified")]) is None
    assert failure(events=[event("service", "InternalError", said)])
    assert failure(events=[event("service", "ServerlessModeRejected", "Knative is not installed")])


def test_kserves_own_verdict() -> None:
    told = {"reason": "NoSupportingRuntime", "message": "no runtime"}
    found = failure(service(transitionStatus="InvalidSpec", lastFailureInfo=told))
    assert found
    assert (found.reason, found.message, found.certain) == (
        "NoSupportingRuntime",
        "KServe says: no runtime",
        False,
    )
    for time, certain in ((BEFORE, False), (APPLIED, False), (AFTER, True)):
        dated = service(transitionStatus="BlockedByFailedLoad", lastFailureInfo={"time": time})
        found = failure(dated)
        assert found
        assert (found.reason, found.certain) == ("BlockedByFailedLoad", certain)
    assert failure(service(transitionStatus="InProgress", lastFailureInfo=told)) is None


def test_what_it_waits_for() -> None:
    starting = pod(main={"state": {"waiting": {"reason": "PodInitializing"}}})
    said = explain_waiting(service(), Children(pods=[pod(B, main=CRASHED), starting]))
    assert said == ("PodInitializing", "container kserve-container of pod digits-1")
    assert explain_waiting(service(), Children(pods=[pod()])) == ("", "")
    assert explain_waiting(service(), Children()) == ("", "")
