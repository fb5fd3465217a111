"""Failures that end a wait immediately, failures that must last, and states that can still recover."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.observed import Document
from deployer.targets.kserve.state.children import Children
from deployer.targets.kserve.state.diagnosis import (
    CANNOT_LOAD,
    FIRST_TRACEBACK,
    PULLS,
    STALE,
    TRIED_AGAIN,
    Failure,
    diagnose,
)
from tests.unit.kserve.documents import (
    AFTER,
    BEFORE,
    GPU,
    A,
    B,
    condition,
    deployment,
    event,
    pod,
    replica_set,
    revision,
    service,
)

CRASHED = {
    "waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"},
    "last": {"exitCode": 1, "reason": "Error", "message": "No module named 'x'"},
    "restarts": 3,
}
SAID = "ValueError: wrong weights (handler.py, line 12)\n  File handler.py, line 12, in initialize\nlast line"


def failure(*pods: Document, of: Document | None = None, **children: Any) -> Failure | None:
    before = children.pop("before", None)
    spec_before = children.pop("spec_before", None)
    conditions_before = children.pop("conditions_before", ())
    found = Children(pods=list(pods), **children)
    return diagnose(of or service(), found, before, spec_before, conditions_before)


def diagnosed(*pods: Document, **children: Any) -> Failure:
    found = failure(*pods, **children)
    assert found
    return found


class TestContainers:
    def test_a_crash_loop_names_the_exit_code(self) -> None:
        found = diagnosed(pod(main=CRASHED))
        assert found.reason == "CrashLoopBackOff"
        assert found.message.endswith("fails repeatedly: Error, exit code 1: No module named 'x'")
        assert (found.pod, found.container, found.previous) == ("digits-1", "kserve-container", True)

    def test_a_crash_loop_without_an_exit_code(self) -> None:
        found = diagnosed(pod(main={"waiting": CRASHED["waiting"], "restarts": 1}))
        assert found.message.endswith("fails repeatedly")

    @pytest.mark.parametrize(
        "main",
        [
            {"terminated": {"exitCode": CANNOT_LOAD, "message": SAID}},
            {"running": {}, "last": {"exitCode": CANNOT_LOAD, "message": SAID}, "restarts": 1},
            {"waiting": {"reason": "CrashLoopBackOff"}, "last": {"exitCode": CANNOT_LOAD, "message": SAID}},
        ],
    )
    def test_the_first_process_reports_why_the_model_does_not_load(self, main: Document) -> None:
        found = diagnosed(pod(main=main))
        assert (found.reason, found.after) == ("ModelLoadFailed", 0)
        assert found.message == "ValueError: wrong weights (handler.py, line 12)"
        assert found.lines == ("  File handler.py, line 12, in initialize", "last line")

    def test_a_first_process_without_a_termination_message(self) -> None:
        found = diagnosed(pod(main={"terminated": {"exitCode": CANNOT_LOAD}}))
        assert (found.message, found.lines) == ("the model cannot be loaded", ())

    def test_out_of_memory(self) -> None:
        killed = {"running": {}, "last": {"exitCode": 0, "reason": "OOMKilled"}, "restarts": 1}
        found = diagnosed(pod(main=killed, limits={"memory": "150Mi"}))
        assert found.message.endswith("exceeded its memory limit of 150Mi")
        assert "serving.memory" in found.hint
        init = diagnosed(pod(init={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}))
        assert init.message == "container storage-initializer of pod digits-1 exceeded its memory limit"
        assert "ClusterStorageContainer" in init.hint

    @pytest.mark.parametrize(
        "reason", ["InvalidImageName", "RunContainerError", "CreateContainerConfigError"]
    )
    def test_a_container_that_never_starts(self, reason: str) -> None:
        for part in ("init", "main"):
            states: dict[str, Any] = {part: {"waiting": {"reason": reason, "message": "why"}}}
            found = diagnosed(pod(**states))
            assert (found.reason, found.container) == (reason, "")
            assert found.message.endswith(": why")

    @pytest.mark.parametrize(
        ("message", "after"),
        [
            ("manifest for x:1 not found: manifest unknown", 0),
            ("pull access denied", 0),
            ("401 Unauthorized", 0),
            ("dial tcp 10.0.0.1:443: connect: connection refused", PULLS),
            ("net/http: TLS handshake timeout", PULLS),
        ],
    )
    @pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff"])
    def test_an_image_pull_fails_after_a_while_unless_the_answer_is_final(
        self, reason: str, message: str, after: float
    ) -> None:
        assert diagnosed(pod(main={"waiting": {"reason": reason, "message": message}})).after == after

    def test_without_a_message_the_newest_event_explains_it(self) -> None:
        events = [event("digits-1", "Failed", "older", BEFORE), event("digits-1", "Failed", "access denied")]
        assert diagnosed(pod(main={"waiting": {"reason": "ErrImagePull"}}), events=events).message.endswith(
            "Failed: access denied"
        )

    @pytest.mark.parametrize(
        "harmless",
        [
            pod(),
            pod(init={"terminated": {"exitCode": 0}}, main={"running": {}}),
            pod(main={"waiting": {"reason": "ContainerCreating"}}),
            pod(main={"terminated": {"exitCode": 1}}),  # the kubelet starts it again immediately
            pod(B, main=CRASHED),
            pod(main=CRASHED, deletionTimestamp=AFTER),
            pod(main=CRASHED, ready=True),
            # Evicted: its ReplicaSet creates another pod.
            pod(main={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, phase="Failed"),
            # The fourth download succeeded, or its node was restarted three times.
            pod(init={"terminated": {"exitCode": 0}, "restarts": 3}, main={"running": {}}),
            pod(main=CRASHED, app="isvc.digits-canary-predictor"),  # another user's canary
        ],
    )
    def test_pods_that_can_still_recover(self, harmless: Document) -> None:
        assert failure(harmless) is None

    def test_earlier_failures_do_not_count(self) -> None:
        before = {"digits-1": {"kserve-container": 4}}
        assert failure(pod(main=CRASHED), before=before) is None
        assert failure(pod(main={**CRASHED, "restarts": 4}), before=before)
        ended = {"terminated": {"exitCode": CANNOT_LOAD, "message": SAID}, "restarts": 3}
        assert failure(pod(main=ended), before=before) is None


class TestDownloads:
    @staticmethod
    def ended(message: str, failures: int) -> Document:
        return pod(init={"terminated": {"exitCode": 1, "message": message}, "restarts": failures - 1})

    @pytest.mark.parametrize(
        "message",
        [
            "An error occurred (403) when calling the HeadBucket operation: Forbidden",
            "An error occurred (404) when calling the HeadBucket operation: Not Found",
            "RuntimeError: Failed to fetch model. No model found in s3://models/team/digits/.",
            "botocore.exceptions.NoCredentialsError: Unable to locate credentials",
            "ErrorCode:ContainerNotFound The specified container does not exist.",
            "SSL validation failed: certificate verify failed",
        ],
    )
    def test_a_final_answer_of_the_store_fails_immediately(self, message: str) -> None:
        found = diagnosed(self.ended(message, 1))
        assert found.reason == "StorageInitializerFailed"
        assert found.message == f"the storage-initializer could not download the model: {message}"
        assert found.container == ""  # its log would repeat the message

    def test_other_downloads_fail_after_three_attempts(self) -> None:
        refused = "Could not connect to the endpoint URL"
        assert failure(self.ended(refused, 1)) is None
        assert failure(self.ended(refused, 2)) is None
        assert (
            "could not download the model in 3 attempts: Could not"
            in diagnosed(self.ended(refused, 3)).message
        )
        before = {"digits-1": {"storage-initializer": 1}}
        assert failure(self.ended(refused, 3), before=before) is None
        assert failure(self.ended(refused, 4), before=before)

    def test_a_download_without_a_message_refers_to_the_log(self) -> None:
        found = diagnosed(self.ended("", 3))
        assert (found.container, found.previous) == ("storage-initializer", False)

    def test_a_download_that_is_retried(self) -> None:
        last = {"exitCode": 1, "message": "403 Forbidden"}
        waits = pod(init={"waiting": {"reason": "CrashLoopBackOff"}, "last": last, "restarts": 1})
        runs = pod(init={"running": {}, "last": last, "restarts": 1})
        assert diagnosed(waits).previous
        assert diagnosed(runs).previous
        last["message"] = "timed out"
        assert failure(waits) is None


class TestScheduling:
    WAITS = pod(node="", conditions=[condition("PodScheduled", "False", "Unschedulable", GPU)])

    def test_a_gpu_that_no_node_has(self) -> None:
        by_event = failure(pod(node=""), events=[event("digits-1", "FailedScheduling", GPU)])
        assert failure(self.WAITS) == by_event
        assert by_event
        assert by_event.message.startswith("no node has a free nvidia.com/gpu for pod digits-1")
        assert by_event.hint == "Free a GPU, or lower `serving.gpu`."

    def test_the_hint_names_the_old_pod_that_holds_the_gpu(self) -> None:
        old = pod(B, name="digits-0", limits={"nvidia.com/gpu": "1"}, ready=True)
        assert "--strategy recreate" in diagnosed(self.WAITS, old).hint
        assert "digits-0" in diagnosed(self.WAITS, old).hint

    def test_a_gpu_is_not_missing_while_a_terminating_pod_holds_one(self) -> None:
        leaving = pod(B, name="digits-0", limits={"nvidia.com/gpu": "1"}, deletionTimestamp=AFTER)
        assert failure(self.WAITS, leaving) is None
        other = pod(B, name="digits-0", limits={"cpu": "1"}, deletionTimestamp=AFTER)
        assert failure(self.WAITS, other)

    def test_cpu_and_autoscaled_nodes_can_still_come(self) -> None:
        cpu = [event("digits-1", "FailedScheduling", "0/2 nodes are available: 2 Insufficient cpu.")]
        assert failure(pod(node=""), events=cpu) is None
        comes = [event("digits-1", "FailedScheduling", GPU), event("digits-1", "TriggeredScaleUp", "0->1")]
        assert failure(pod(node=""), events=comes) is None


class TestLogs:
    LOADS = pod(main={"running": {}})
    WORKER = "2026-01-01T10:00:00,000 [INFO ] W-9000-digits_1.0-stdout MODEL_LOG - "
    TRACEBACK = (
        WORKER + "Traceback (most recent call last):",
        WORKER + '  File "/m/h.py", line 7, in initialize',
        WORKER + "ValueError: wrong weights",
    )
    RETRY = "2026-01-01T10:00:01,000 [INFO ] W-9000-digits_1.0 Wlm - Retry worker: 9000 in 1 seconds."

    def logs(self, *lines: str) -> dict[str, Any]:
        return {"logs": {"digits-1": lines}}

    def test_a_first_traceback_must_last(self) -> None:
        found = diagnosed(self.LOADS, **self.logs(*self.TRACEBACK))
        assert (found.reason, found.after) == ("ModelLoadFailed", FIRST_TRACEBACK)
        assert found.message == "ValueError: wrong weights (h.py, line 7)"

    def test_a_repeated_traceback_counts_immediately(self) -> None:
        twice = (*self.TRACEBACK, self.RETRY, *self.TRACEBACK, self.RETRY)
        assert diagnosed(self.LOADS, **self.logs(*twice)).after == 0

    def test_a_traceback_of_another_server(self) -> None:
        lines = [
            "Traceback (most recent call last):",
            '  File "/app/m.py", line 3, in <module>',
            "KeyError: 'a'",
        ]
        assert diagnosed(self.LOADS, **self.logs(*lines)).message == "KeyError: 'a' (m.py, line 3)"

    def test_logs_without_a_traceback(self) -> None:
        assert failure(self.LOADS, **self.logs("INFO all is well")) is None
        assert failure(pod(main={"running": {}}, ready=True), **self.logs(*self.TRACEBACK)) is None


LATE = condition(
    "Progressing", "False", "ProgressDeadlineExceeded", 'ReplicaSet "digits-predictor-1" has timed out'
)
QUOTA = condition(
    "ReplicaFailure",
    "True",
    "FailedCreate",
    'pods "digits-predictor-1-x" is forbidden: exceeded quota: compute',
)


class TestDeployments:
    def test_deadlines_and_quotas(self) -> None:
        assert diagnosed(deployments=[deployment(A, LATE)]).reason == "ProgressDeadlineExceeded"
        late = condition("Ready", "False", "ProgressDeadlineExceeded", "timed out")
        knative = service(mode="Knative")
        assert (
            diagnosed(of=knative, revisions=[revision(A, 1, late)]).message
            == "Revision digits-predictor-00001: timed out"
        )
        assert diagnosed(replica_sets=[replica_set(conditions=[QUOTA])]).reason == "QuotaExceeded"
        assert diagnosed(deployments=[deployment(A, QUOTA)]).reason == "QuotaExceeded"

    def test_conditions_of_the_previous_release_do_not_count(self) -> None:
        old, new = replica_set(B, 1, conditions=[QUOTA]), replica_set(A, 2)
        assert failure(replica_sets=[old, new], deployments=[deployment(A, QUOTA)]) is None
        assert failure(replica_sets=[old, new], deployments=[deployment(A, LATE)]) is None
        assert failure(deployments=[deployment(A, LATE, generation=3, observed=2)]) is None
        assert failure(of=service(mode="Knative"), revisions=[revision(B, 1, LATE)]) is None

    def test_a_deployment_repeats_the_rejection_of_the_previous_release(self) -> None:
        said = 'admission webhook "w" denied the request: no'
        denied = condition("ReplicaFailure", "True", "FailedCreate", said)
        old, new = replica_set(B, 1, conditions=[denied]), replica_set(A, 2)
        assert failure(replica_sets=[old, new], deployments=[deployment(A, denied)]) is None
        refused = replica_set(A, 2, conditions=[denied])
        assert diagnosed(replica_sets=[old, refused]).message == f"ReplicaSet digits-predictor-2: {said}"

    def test_conditions_from_before_the_wait_do_not_count(self) -> None:
        before = [LATE, QUOTA]
        assert failure(deployments=[deployment(A, LATE)], conditions_before=before) is None
        later = {**LATE, "lastUpdateTime": AFTER}
        assert diagnosed(deployments=[deployment(A, later)], conditions_before=before).after == 0
        refused = diagnosed(replica_sets=[replica_set(conditions=[QUOTA])], conditions_before=before)
        assert (refused.reason, refused.after) == ("QuotaExceeded", TRIED_AGAIN)

    def test_conditions_that_can_still_change(self) -> None:
        again = condition("ReplicaFailure", "True", "FailedCreate", "timeout, will retry")
        assert failure(replica_sets=[replica_set(conditions=[again])]) is None
        deploys = revision(A, 1, condition("Ready", "Unknown", "Deploying"))
        assert failure(of=service(mode="Knative"), revisions=[deploys]) is None


class TestKServe:
    def test_events_older_than_the_specification_do_not_count(self) -> None:
        error = 'admission webhook "w" denied the request: no'
        assert failure(events=[event("service", "InternalError", error, BEFORE)]) is None
        assert failure(events=[event("service", "InternalError", "the object has been modified")]) is None
        assert diagnosed(events=[event("service", "InternalError", error)]).hint.startswith("Fix the cause")
        assert diagnosed(events=[event("service", "ServerlessModeRejected", "no Knative")])

    def test_a_route_that_the_gateway_rejects(self) -> None:
        def routed(reason: str, predictor: str = "True") -> Document:
            conditions = [
                condition("PredictorReady", predictor),
                condition("IngressReady", "False", reason, "namespace two is not allowed"),
            ]
            return service(conditions=conditions)

        assert diagnosed(of=routed("NotAllowedByListeners")).after == 1
        assert failure(of=routed("NotAllowedByListeners", "False")) is None
        assert failure(of=routed("ParentStatusNotAvailable")) is None

    def test_of_kserves_model_statuses_only_invalid_spec_counts(self) -> None:
        said = {"reason": "NoSupportingRuntime", "message": "no runtime"}
        invalid = {"transitionStatus": "InvalidSpec", "lastFailureInfo": said}
        found = diagnosed(of=service(modelStatus=invalid))
        assert (found.reason, found.after) == ("NoSupportingRuntime", 0)
        assert found.message == "KServe reports an invalid specification: no runtime"
        assert diagnosed(of=service(modelStatus=invalid), spec_before=invalid).after == STALE
        assert (
            diagnosed(of=service(modelStatus=invalid), spec_before={"transitionStatus": "UpToDate"}).after
            == 0
        )
        assert diagnosed(of=service(modelStatus={"transitionStatus": "InvalidSpec"})).reason == "InvalidSpec"
        for other in ("BlockedByFailedLoad", "InProgress"):
            status = {"transitionStatus": other, "lastFailureInfo": {"exitCode": 137}}
            assert failure(of=service(modelStatus=status)) is None
