"""Waiting on a real API server: Ready is believed when it lasts, failure when certain, whatever breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
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
from deployer.rollout import watch_rollout
from deployer.target import Phase, Status
from deployer.targets.kserve import Cluster
from tests.cluster.kube import Kube
from tests.cluster.play import A, B, Play, documents
from tests.cluster.proxy import Proxy

GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


class Waiting:
    """`watch_rollout` in a thread, with what it told."""

    def __init__(self, cluster: Cluster, play: Play, release: str, timeout: float) -> None:
        self.told: list[Status] = []
        self._changed = threading.Condition()
        self.future: Future[float] = Future()
        threading.Thread(target=self._run, args=(cluster, play, release, timeout)).start()

    def _run(self, cluster: Cluster, play: Play, release: str, timeout: float) -> None:
        try:
            for status in watch_rollout(cluster, play.reference, release, timeout):
                with self._changed:
                    self.told.append(status)
                    self._changed.notify_all()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(time.monotonic())

    def until(self, test: Callable[[Status], bool], seconds: float = 10) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(test, self.told)), seconds), self.told

    def end(self, seconds: float = 20) -> float:
        """Return when it ended well, or raise what it ended with."""
        return self.future.result(seconds)


@pytest.fixture
def play(kube: Kube, namespace: str) -> Play:
    return Play(kube, namespace)


@pytest.fixture
def waiting(cluster: Cluster, play: Play, namespace: str) -> Iterator[Callable[..., Waiting]]:
    """Apply a release and wait for it; what still waits at the end is deleted and ends by that."""
    started: list[Waiting] = []

    def start(
        release: str = A, *, mode: str = "Standard", timeout: float = 30, percent: int = 100
    ) -> Waiting:
        cluster.apply(documents(namespace, release, mode=mode, percent=percent))
        one = Waiting(cluster, play, release, timeout)
        started.append(one)
        one.until(lambda status: True)
        return one

    yield start
    cluster.delete(play.reference)
    for one in started:
        one.future.exception(20)


class TestReady:
    def test_standard(self, waiting: Callable[..., Waiting], play: Play) -> None:
        one = waiting()
        assert one.told[0].phase is Phase.PENDING
        play.replica_set(A, available=0)
        play.ready(ready=False)
        play.replica_set(A, available=1)
        play.ready()
        one.end()
        last = one.told[-1]
        assert (last.phase, last.release) == (Phase.READY, A)
        assert [(share.percent, share.release) for share in last.traffic] == [(100, A)]
        assert [status.phase for status in one.told].count(Phase.READY) == 1

    def test_ready_of_the_release_before_is_not_believed(
        self, waiting: Callable[..., Waiting], play: Play
    ) -> None:
        first = waiting(A)
        play.replica_set(A, available=1)
        play.ready()
        first.end()
        second = waiting(B)  # KServe still says Ready, and will for a while
        play.replica_set(B, available=0, number=2)
        second.until(lambda status: status.traffic and status.traffic[0].release == A)
        play.replica_set(B, available=1, number=2)
        time.sleep(0.6)  # twice the window: both serve, and the old one still does
        assert not second.future.done()
        play.replica_set(A, available=0, replicas=0)
        second.end()
        assert second.told[-1].traffic[0].release == B

    def test_knative(self, waiting: Callable[..., Waiting], play: Play) -> None:
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
        assert [(share.percent, share.release) for share in two.told[-1].traffic] == [(10, B), (90, A)]

    def test_ready_that_does_not_last_is_not_believed(
        self, waiting: Callable[..., Waiting], play: Play
    ) -> None:
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
QUOTA = 'Error creating: pods "digits-x" is forbidden: exceeded quota: compute, requested: cpu=1, used: cpu=9'
WEBHOOK = 'fails to reconcile predictor: admission webhook "policy.example.com" denied the request: no owner'


def crash(play: Play) -> None:
    play.pod(A, main={"waiting": BACK_OFF, "last": CRASHED})


def no_image(play: Play) -> None:
    play.pod(A, main={"waiting": NO_IMAGE})


def no_model(play: Play) -> None:
    play.pod(A, init={"terminated": {"exitCode": 1, "message": "RuntimeError: Failed to fetch model"}})


def no_secret(play: Play) -> None:
    play.pod(A, init={"waiting": NO_SECRET})


def no_gpu(play: Play) -> None:
    play.pod(A, conditions=[UNSCHEDULABLE])


def no_gpu_by_event(play: Play) -> None:
    play.event(play.pod(A), "FailedScheduling", GPU)


def no_quota(play: Play) -> None:
    play.event(play.replica_set(A, available=0), "FailedCreate", QUOTA, kind="ReplicaSet")


def too_late(play: Play) -> None:
    play.deployment(A, [LATE])


def refused(play: Play) -> None:
    play.event(play.service(), "InternalError", WEBHOOK, time="2100-01-01T00:00:00Z")


def invalid(play: Play) -> None:
    play.failed_to_load("InvalidSpec", reason="NoSupportingRuntime", message="no runtime for pytorch")


def blocked(play: Play) -> None:
    play.failed_to_load(reason="ModelLoadFailed", message="out of memory")


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (
            crash,
            r"CrashLoopBackOff: container kserve-container of pod .*ends again.*exit code 1.*No module named",
        ),
        (no_image, r"ErrImagePull: container kserve-container .*pytorch/nothing:1 not found"),
        (no_model, r"StorageInitializerFailed: .*storage-initializer.*Failed to fetch model"),
        (no_secret, r'CreateContainerConfigError: .*secret "s3" not found'),
        (no_gpu, r"Unschedulable: no node has a free nvidia\.com/gpu"),
        (no_gpu_by_event, r"Unschedulable: no node has a free nvidia\.com/gpu"),
        (no_quota, r"QuotaExceeded: ReplicaSet .*exceeded quota: compute"),
        (too_late, r"ProgressDeadlineExceeded: Deployment digits-predictor"),
        (refused, r"InternalError: InferenceService digits: .*policy\.example\.com.*no owner"),
        (invalid, r"NoSupportingRuntime: KServe says: no runtime for pytorch"),
        (blocked, r"ModelLoadFailed: KServe says: out of memory"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_heal_ends_it_at_once(
    waiting: Callable[..., Waiting], play: Play, happens: Callable[[Play], None], told: str
) -> None:
    one = waiting()
    began = time.monotonic()
    happens(play)
    with pytest.raises(RolloutFailedError, match=told):
        one.end()
    assert time.monotonic() - began < 3


def test_the_last_lines_of_the_log_are_told(
    waiting: Callable[..., Waiting], play: Play, proxy: Proxy
) -> None:
    said = "Traceback (most recent call last):\nModuleNotFoundError: No module named 'x'"
    where = "/log.*container=kserve-container.*previous=true.*tailLines=20"
    with proxy.fault(where, status=200, body=said):  # there is no kubelet to ask
        one = waiting()
        crash(play)
        with pytest.raises(RolloutFailedError, match=r"\n  \| Traceback.*\n  \| ModuleNotFoundError"):
            one.end()


class TestNotYet:
    def test_a_time_out_is_no_failure(self, waiting: Callable[..., Waiting], play: Play) -> None:
        one = waiting(timeout=1)
        play.pod(
            A,
            init={"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            main={"waiting": {"reason": "PodInitializing"}},
        )
        play.ready(ready=False)
        with pytest.raises(
            RolloutTimeoutError, match=r"after 1 s: PodInitializing: container kserve-container"
        ):
            one.end()

    def test_ready_within_the_time_gets_its_window(self, waiting: Callable[..., Waiting], play: Play) -> None:
        one = waiting(timeout=1)
        play.replica_set(A, available=1)
        time.sleep(0.5)
        play.ready()
        one.end()

    def test_a_verdict_on_the_release_before_is_not_believed(
        self, waiting: Callable[..., Waiting], play: Play
    ) -> None:
        first = waiting(A)
        blocked(play)
        with pytest.raises(RolloutFailedError):
            first.end()
        second = waiting(B)
        time.sleep(0.5)
        assert not second.future.done()
        play.replica_set(B, available=1)
        play.ready()
        second.end()

    def test_what_happened_to_the_release_before_is_not_told_of_this_one(
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

    def test_a_node_that_is_on_its_way(self, waiting: Callable[..., Waiting], play: Play) -> None:
        one = waiting(timeout=2)
        pod = play.pod(A)
        play.event(pod, "TriggeredScaleUp", "pod triggered scale-up")
        play.kube.merge(
            f"/api/v1/namespaces/{play.namespace}/pods/{pod['metadata']['name']}/status",
            {"status": {"conditions": [UNSCHEDULABLE]}},
        )
        play.ready(ready=False)
        with pytest.raises(RolloutTimeoutError, match=r"Unschedulable: pod .*Insufficient"):
            one.end()

    def test_another_release_is_applied(
        self, cluster: Cluster, waiting: Callable[..., Waiting], namespace: str
    ) -> None:
        one = waiting(A)
        cluster.apply(documents(namespace, B))
        with pytest.raises(ConflictError, match=f"applied release {B} at"):
            one.end()

    def test_it_is_deleted(self, cluster: Cluster, waiting: Callable[..., Waiting], play: Play) -> None:
        one = waiting(A)
        cluster.delete(play.reference)
        with pytest.raises(NotFoundError, match="was deleted"):
            one.end()

    def test_it_is_not_there(self, cluster: Cluster, play: Play) -> None:
        with pytest.raises(NotFoundError, match="there is no service"):
            list(cluster.watch(play.reference, 5))


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
    def test_a_watch_that_breaks_is_gone_on_with(
        self, waiting: Callable[..., Waiting], play: Play, proxy: Proxy, fault: dict[str, Any]
    ) -> None:
        with proxy.fault(WATCH, times=10, **fault) as one_fault:
            one = waiting()
            play.replica_set(A, available=1)
            play.ready()
            one.end()
            assert one_fault.seen

    def test_connections_that_are_dropped(
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

    def test_ready_is_not_believed_of_what_is_not_seen(
        self, waiting: Callable[..., Waiting], play: Play, proxy: Proxy
    ) -> None:
        one = waiting(timeout=2)
        play.replica_set(A, available=1)
        play.ready()
        one.until(lambda status: status.reason == "Ready")
        with proxy.fault("GET", status=503, times=9999):
            proxy.drop()
            with pytest.raises(RolloutTimeoutError, match="Unreachable"):
                one.end()

    def test_a_list_that_fails_is_told_and_tried_again(
        self, waiting: Callable[..., Waiting], play: Play, proxy: Proxy
    ) -> None:
        with proxy.fault("GET .*/pods", status=503, times=3):
            one = waiting()
            play.replica_set(A, available=1)
            play.ready()
            one.end()

    def test_what_may_not_be_watched_ends_it(
        self, cluster: Cluster, play: Play, namespace: str, proxy: Proxy
    ) -> None:
        cluster.apply(documents(namespace))
        said = (
            'pods is forbidden: User "ci" cannot watch resource "pods" in API group "" in the namespace "x"'
        )
        with (
            proxy.fault("GET .*/pods.*watch=true", status=403, message=said, reason="Forbidden"),
            pytest.raises(TargetError, match="user ci may not watch pods"),
        ):
            list(cluster.watch(play.reference, 10))


def test_it_ends_in_time_though_ready(cluster: Cluster, play: Play, namespace: str) -> None:
    cluster.apply(documents(namespace))
    play.replica_set(A, available=1)
    play.ready()
    *_, last = cluster.watch(play.reference, 1)
    assert last.phase is Phase.READY


def test_its_threads_end_with_it(cluster: Cluster, play: Play, namespace: str) -> None:
    cluster.apply(documents(namespace))
    watch = cluster.watch(play.reference, 30)
    next(watch)
    assert any(thread.name.startswith("watch ") for thread in threading.enumerate())
    watch.close()  # type: ignore[attr-defined]
    assert [thread for thread in threading.enumerate() if thread.name.startswith("watch ")] == []


def test_a_second_process_sees_the_failure_that_is_there(
    kubeconfig: Path, cluster: Cluster, play: Play, namespace: str
) -> None:
    cluster.apply(documents(namespace))
    blocked(play)
    with Cluster(KServeTarget(kubeconfig=str(kubeconfig))) as other:
        other.apply(documents(namespace))  # nothing changes by it
        with pytest.raises(KdeployError, match="out of memory"):
            list(watch_rollout(other, play.reference, A, 10))
