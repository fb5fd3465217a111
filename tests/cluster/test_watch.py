"""Waits on a real API server: Ready must last, and a failure must be certain, under any fault."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployer.config import KServeTarget
from deployer.errors import (
    ConflictError,
    KdeployError,
    NotFoundError,
    RolloutFailedError,
    RolloutTimeoutError,
    TargetError,
)
from deployer.observed import Phase
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.state.diagnosis import CANNOT_LOAD
from tests.cluster.calls import roll, watch_rollout
from tests.cluster.play import A, B, Play, documents
from tests.cluster.proxy import Proxy
from tests.cluster.waiting import Waiting
from tests.recorded import documents as recorded

GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


class TestReady:
    def test_ready_in_standard_mode(self, waiting: Callable[..., Waiting], play: Play) -> None:
        one = waiting()
        assert one.observed[0].phase is Phase.PENDING
        play.replica_set(A, available=0)
        play.ready(ready=False)
        play.replica_set(A, available=1)
        play.ready()
        one.end()
        last = one.observed[-1]
        assert (last.phase, last.wanted) == (Phase.READY, A)
        assert [(share.percent, share.release) for share in last.traffic] == [(100, A)]
        assert [status.phase for status in one.observed].count(Phase.READY) == 1

    def test_ready_of_the_previous_release_does_not_count(
        self, waiting: Callable[..., Waiting], play: Play
    ) -> None:
        first = waiting(A)
        play.replica_set(A, available=1)
        play.ready()
        first.end()
        second = waiting(B)  # KServe still reports Ready for a while
        play.replica_set(B, available=0, number=2)
        second.until(lambda status: status.traffic and status.traffic[0].release == A)
        play.replica_set(B, available=1, number=2)
        time.sleep(0.6)  # twice the window, while both releases serve
        assert not second.future.done()
        play.replica_set(A, available=0, replicas=0)
        second.end()
        assert second.observed[-1].traffic[0].release == B

    def test_ready_in_knative_mode(self, waiting: Callable[..., Waiting], play: Play) -> None:
        one = waiting(A, mode="Knative")
        play.revision(A, 1)
        play.ready_knative("digits-predictor-00001")
        one.end()
        two = waiting(B, mode="Knative", percent=10)
        play.ready_knative("digits-predictor-00001", created="digits-predictor-00002")
        play.revision(B, 2)
        traffic = [
            {"revisionName": "digits-predictor-00002", "percent": 10, "latestRevision": True},
            {"revisionName": "digits-predictor-00001", "percent": 90, "tag": "prev"},
        ]
        play.ready_knative("digits-predictor-00002", traffic)
        two.end()
        assert [(share.percent, share.release) for share in two.observed[-1].traffic] == [(10, B), (90, A)]

    def test_a_short_ready_does_not_count(self, waiting: Callable[..., Waiting], play: Play) -> None:
        one = waiting()
        play.replica_set(A, available=1)
        for _ in range(3):
            play.ready()
            one.until(lambda status: status.reason == "Ready")
            play.ready(ready=False)
        one.until(lambda status: status.reason != "Ready")
        time.sleep(0.4)
        assert not one.future.done()
        began = time.monotonic()
        play.ready()
        assert one.end() - began >= 0.3


CRASHED = {"exitCode": 1, "reason": "Error", "message": "ModuleNotFoundError: No module named 'x'"}
BACK_OFF = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}
NO_IMAGE = {"reason": "ErrImagePull", "message": "manifest for pytorch/nothing:1 not found"}
NO_SECRET = {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": GPU}
LATE = {
    "type": "Progressing",
    "status": "False",
    "reason": "ProgressDeadlineExceeded",
    "message": 'ReplicaSet "digits" has timed out progressing.',
}
CAUSE = "ValueError: wrong weights (handler.py, line 12)\n  File handler.py, line 12, in initialize\nlast"
QUOTA = 'Error creating: pods "digits-x" is forbidden: exceeded quota: compute, requested: cpu=1, used: cpu=9'
WEBHOOK = 'fails to reconcile predictor: admission webhook "policy.example.com" denied the request: no owner'


def crash(play: Play) -> None:
    play.pod(A, main={"waiting": BACK_OFF, "last": CRASHED})


def no_image(play: Play) -> None:
    play.pod(A, main={"waiting": NO_IMAGE})


def no_model(play: Play) -> None:
    text = "RuntimeError: Failed to fetch model. No model found in s3://models/"
    play.pod(A, init={"terminated": {"exitCode": 1, "message": text}})


def no_secret(play: Play) -> None:
    play.pod(A, init={"waiting": NO_SECRET})


def no_gpu(play: Play) -> None:
    play.pod(A, conditions=[UNSCHEDULABLE])


def no_gpu_by_event(play: Play) -> None:
    play.event(play.pod(A), "FailedScheduling", GPU)


def no_quota(play: Play) -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA}
    play.replica_set(A, available=0, conditions=[refused])


def no_pod(play: Play) -> None:
    (deployment,) = [one for one in recorded("11") if one["kind"] == "Deployment"]
    refused = [one for one in deployment["status"]["conditions"] if one["type"] == "ReplicaFailure"]
    play.replica_set(A, available=0, conditions=refused)


def too_late(play: Play) -> None:
    play.deployment(A, [LATE])


def no_load(play: Play) -> None:
    play.pod(A, main={"terminated": {"exitCode": CANNOT_LOAD, "reason": "Error", "message": CAUSE}})


def no_memory(play: Play) -> None:
    killed = {"exitCode": 0, "reason": "OOMKilled"}
    play.pod(A, main={"running": {}, "last": killed, "restarts": 1}, limits={"memory": "150Mi"})


def no_route(play: Play) -> None:
    play.replica_set(A, available=1)
    play.show("31")


def refused(play: Play) -> None:
    play.event(play.service(), "InternalError", WEBHOOK, time="2100-01-01T00:00:00Z")


def invalid(play: Play) -> None:
    play.invalid(reason="NoSupportingRuntime", message="no runtime for pytorch")


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (
            crash,
            r"CrashLoopBackOff: container kserve-container .*fails repeatedly.*exit code 1.*No module named",
        ),
        (
            no_image,
            r"ErrImagePull: cannot pull the image of container kserve-container .*nothing:1 not found",
        ),
        (no_model, r"StorageInitializerFailed: .*storage-initializer could not download.*No model found"),
        (
            no_load,
            r"ModelLoadFailed: ValueError: wrong weights \(handler.py, line 12\)\n  \|   File .*line 12",
        ),
        (no_memory, r"OOMKilled: container kserve-container .*exceeded its memory limit of 150Mi"),
        (
            no_route,
            r"NotAllowedByListeners: the gateway rejects the service's route: Predictor namespace two",
        ),
        (no_secret, r'CreateContainerConfigError: .*secret "s3" not found'),
        (no_gpu, r"Unschedulable: no node has a free nvidia\.com/gpu"),
        (no_gpu_by_event, r"Unschedulable: no node has a free nvidia\.com/gpu"),
        (no_quota, r"QuotaExceeded: ReplicaSet .*exceeded quota: compute"),
        (no_pod, r"FailedCreate: ReplicaSet .*violates PodSecurity"),
        (too_late, r"ProgressDeadlineExceeded: Deployment digits-predictor"),
        (refused, r"InternalError: InferenceService digits: .*policy\.example\.com.*no owner"),
        (invalid, r"NoSupportingRuntime: KServe reports an invalid specification: no runtime for pytorch"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_permanent_failure_ends_the_wait_immediately(
    waiting: Callable[..., Waiting], play: Play, fail: Callable[[Play], None], message: str
) -> None:
    one = waiting()
    began = time.monotonic()
    fail(play)
    with pytest.raises(RolloutFailedError, match=message):
        one.end()
    assert time.monotonic() - began < 3


def test_a_failure_shows_the_last_lines_of_the_log(
    waiting: Callable[..., Waiting], play: Play, proxy: Proxy
) -> None:
    text = "Traceback (most recent call last):\nModuleNotFoundError: No module named 'x'"
    where = "/log.*container=kserve-container.*previous=true.*tailLines=20"
    with proxy.fault(where, status=200, body=text):  # the tests have no kubelet
        one = waiting()
        crash(play)
        with pytest.raises(RolloutFailedError, match=r"\n  \| Traceback.*\n  \| ModuleNotFoundError"):
            one.end()


class TestNotYet:
    def test_a_timeout_is_not_a_failure(self, waiting: Callable[..., Waiting], play: Play) -> None:
        one = waiting(timeout=1)
        play.pod(
            A,
            init={"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            main={"waiting": {"reason": "PodInitializing"}},
        )
        play.ready(ready=False)
        with pytest.raises(
            RolloutTimeoutError,
            match=rf"after 1 s waiting for release {A}: downloading the model$",
        ):
            one.end()

    def test_ready_just_before_the_timeout_gets_its_window(
        self, waiting: Callable[..., Waiting], play: Play
    ) -> None:
        one = waiting(timeout=1)
        play.replica_set(A, available=1)
        time.sleep(0.5)
        play.ready()
        one.end()

    def test_a_failure_of_the_previous_release_does_not_count(
        self, waiting: Callable[..., Waiting], play: Play
    ) -> None:
        first = waiting(A)
        invalid(play)
        with pytest.raises(RolloutFailedError):
            first.end()
        second = waiting(B)
        time.sleep(0.5)
        assert not second.future.done()
        play.replica_set(B, available=1)
        play.ready()
        second.end()

    def test_events_of_the_previous_release_are_not_shown(
        self, waiting: Callable[..., Waiting], play: Play
    ) -> None:
        first = waiting(A)
        crash(play)
        with pytest.raises(RolloutFailedError):
            first.end()
        second = waiting(B)
        play.replica_set(B, available=1)
        play.ready()
        second.end()

    def test_the_wait_continues_while_a_node_is_added(
        self, waiting: Callable[..., Waiting], play: Play
    ) -> None:
        one = waiting(timeout=2)
        pod = play.pod(A)
        play.event(pod, "TriggeredScaleUp", "pod triggered scale-up")
        play.kube.merge(
            f"/api/v1/namespaces/{play.namespace}/pods/{pod['metadata']['name']}/status",
            {"status": {"conditions": [UNSCHEDULABLE]}},
        )
        play.ready(ready=False)
        with pytest.raises(RolloutTimeoutError, match=r"waiting for a node that the autoscaler adds"):
            one.end()

    def test_another_applied_release_ends_the_wait(
        self, cluster: Cluster, waiting: Callable[..., Waiting], namespace: str
    ) -> None:
        one = waiting(A)
        roll(cluster, documents(namespace, B))
        with pytest.raises(ConflictError, match=f"applied release {B} at"):
            one.end()

    def test_a_deleted_service_ends_the_wait(
        self, cluster: Cluster, waiting: Callable[..., Waiting], play: Play
    ) -> None:
        one = waiting(A)
        cluster.services.delete(play.reference)
        with pytest.raises(NotFoundError, match="was deleted"):
            one.end()

    def test_a_missing_service_ends_the_wait(self, cluster: Cluster, play: Play) -> None:
        with pytest.raises(NotFoundError, match=r"service .* not found"):
            list(cluster.services.watch(play.reference, 5))


WATCH = "GET .*watch=true"


class TestFaults:
    @pytest.mark.parametrize(
        "fault",
        [
            {"status": 410, "reason": "Expired"},
            {"gone": True},
            {"status": 500},
            {"status": 503},
            {"status": 429, "headers": {"Retry-After": "1"}},
            {"cut": 0},
            {"cut": 40},
            {"before": 1.0},
        ],
        ids=str,
    )
    def test_a_broken_watch_is_resumed(
        self, waiting: Callable[..., Waiting], play: Play, proxy: Proxy, fault: dict[str, Any]
    ) -> None:
        with proxy.fault(WATCH, times=10, **fault) as one_fault:
            one = waiting()
            play.replica_set(A, available=1)
            play.ready()
            one.end()
            assert one_fault.seen

    def test_dropped_connections_are_opened_again(
        self, waiting: Callable[..., Waiting], play: Play, proxy: Proxy
    ) -> None:
        one = waiting()
        for _ in range(3):
            proxy.drop()
            play.ready(ready=False)
            time.sleep(0.2)
        play.replica_set(A, available=1)
        play.ready()
        one.end()

    def test_ready_does_not_count_while_a_watch_fails(
        self, waiting: Callable[..., Waiting], play: Play, proxy: Proxy
    ) -> None:
        one = waiting(timeout=2)
        play.replica_set(A, available=1)
        play.ready()
        one.until(lambda status: status.reason == "Ready")
        with proxy.fault("GET", status=503, times=9999):
            proxy.drop()
            with pytest.raises(RolloutTimeoutError, match="the API server is overloaded or failing"):
                one.end()

    def test_a_failing_list_is_reported_and_retried(
        self, waiting: Callable[..., Waiting], play: Play, proxy: Proxy
    ) -> None:
        with proxy.fault("GET .*/pods", status=503, times=3):
            one = waiting()
            play.replica_set(A, available=1)
            play.ready()
            one.end()

    def test_a_missing_permission_ends_the_wait(
        self, cluster: Cluster, play: Play, namespace: str, proxy: Proxy
    ) -> None:
        roll(cluster, documents(namespace))
        text = (
            'pods is forbidden: User "ci" cannot watch resource "pods" in API group "" in the namespace "x"'
        )
        with (
            proxy.fault("GET .*/pods.*watch=true", status=403, message=text, reason="Forbidden"),
            pytest.raises(TargetError, match="user ci cannot watch pods"),
        ):
            list(cluster.services.watch(play.reference, 10))


def test_the_wait_ends_at_the_timeout_without_a_lasting_ready(
    cluster: Cluster, play: Play, namespace: str
) -> None:
    roll(cluster, documents(namespace))
    play.replica_set(A, available=1)
    play.ready()
    *_, last = cluster.services.watch(play.reference, 1)
    assert last.phase is Phase.READY


def test_the_threads_end_with_the_wait(cluster: Cluster, play: Play, namespace: str) -> None:
    roll(cluster, documents(namespace))
    watch = cluster.services.watch(play.reference, 30)
    next(watch)
    assert any(thread.name.startswith("watch ") for thread in threading.enumerate())
    watch.close()  # type: ignore[attr-defined]
    assert [thread for thread in threading.enumerate() if thread.name.startswith("watch ")] == []


def test_a_second_process_sees_an_existing_failure(
    kubeconfig: Path, cluster: Cluster, play: Play, namespace: str
) -> None:
    roll(cluster, documents(namespace))
    invalid(play)
    with Cluster(KServeTarget(kubeconfig=str(kubeconfig))) as other:
        roll(other, documents(namespace))  # the second rollout changes nothing
        with pytest.raises(KdeployError, match="no runtime for pytorch"):
            list(watch_rollout(other, play.reference, A, 10))
