"""Replays the behavior of a real KServe: waits that must end, and waits that must not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployer.config import KServeTarget
from deployer.errors import RolloutFailedError, RolloutTimeoutError
from deployer.observed import Document, Phase
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.client.watch import EVENTS_MAX
from deployer.targets.kserve.preflight.facts import may_scale_up, returns_gpu
from deployer.targets.kserve.preflight.rules.admission import STOP
from tests.cluster.calls import roll, watch_rollout
from tests.cluster.kube import Kube
from tests.cluster.play import A, B, Play, documents
from tests.cluster.proxy import Proxy
from tests.cluster.waiting import Waiting

Start = Callable[..., Waiting]

REFUSED = {"exitCode": 1, "message": "Could not connect to the endpoint URL"}
FORBIDDEN = {
    "exitCode": 1,
    "message": "An error occurred (403) when calling the HeadBucket operation: Forbidden",
}
GPU = {"nvidia.com/gpu": "1"}


def serve(play: Play, release: str, *, number: int = 1, before: str | None = None) -> None:
    """Make a release ready, and stop the previous one."""
    play.deployment(release, [])
    play.replica_set(release, available=1, number=number)
    if before:
        play.replica_set(before, available=0, replicas=0)
    play.ready()


def rolled_out(start: Start, play: Play, release: str = A) -> None:
    one = start(release)
    serve(play, release)
    one.end()


def condition(kind: str, reason: str, message: str) -> Document:
    status = "True" if kind == "ReplicaFailure" else "False"
    return {"type": kind, "status": status, "reason": reason, "message": message}


class TestFailuresOfAnotherRelease:
    def test_a_rollback_right_after_a_deadline_becomes_ready(self, waiting: Start, play: Play) -> None:
        rolled_out(waiting, play)
        late = condition(
            "Progressing", "ProgressDeadlineExceeded", f'ReplicaSet "digits-predictor-{B[-6:]}" has timed out'
        )
        failed = waiting(B)
        play.replica_set(B, available=0, number=2)
        generation = play.deployment(B, [])["metadata"]["generation"]
        play.deployment(B, [late], observedGeneration=generation)
        play.show("15")
        with pytest.raises(RolloutFailedError, match=rf"ProgressDeadlineExceeded: .*{A} still answers"):
            failed.end()
        back = waiting(A)
        play.deployment(A)  # KServe changes its label first; its conditions are still those of B
        time.sleep(0.5)
        assert not back.future.done()
        serve(play, A, number=3, before=B)
        back.end()

    def test_a_release_after_one_that_exceeded_a_quota_becomes_ready(
        self, waiting: Start, play: Play
    ) -> None:
        text = (
            f'pods "digits-predictor-{A[-6:]}-2xkvh" is forbidden: exceeded quota: q, requested: memory=512Mi'
        )
        refused = condition("ReplicaFailure", "FailedCreate", text)
        first = waiting(A)
        play.replica_set(A, available=0, conditions=[refused])
        generation = play.deployment(A, [])["metadata"]["generation"]
        play.deployment(A, [refused], observedGeneration=generation)
        with pytest.raises(RolloutFailedError, match=r"QuotaExceeded: .*512Mi") as caught:
            first.end()
        assert "Raise the quota" in (caught.value.hint or "")
        assert "kdeploy logs" not in (caught.value.hint or "")  # no container has run
        second = waiting(B)  # the Deployment keeps the condition until the old ReplicaSet is empty
        generation = play.deployment(B, [])["metadata"]["generation"]
        play.deployment(B, [refused], observedGeneration=generation)
        play.replica_set(B, available=0, number=2)
        time.sleep(0.5)
        assert not second.future.done()
        serve(play, B, number=2, before=A)
        second.end()

    def test_a_killed_pod_of_the_previous_release_is_ignored(self, waiting: Start, play: Play) -> None:
        rolled_out(waiting, play)
        one = waiting(B)
        play.replica_set(A, available=0, replicas=0)
        play.replica_set(B, available=0, number=2)
        blocked = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": {"exitCode": 137}}
        play.show("35", modelStatus=blocked)
        time.sleep(0.5)
        assert not one.future.done()
        serve(play, B, number=2)
        one.end()


class TestOneFailedAttempt:
    def test_a_failed_download_is_retried_by_the_kubelet(self, waiting: Start, play: Play) -> None:
        one = waiting()
        play.pending()
        pod = play.pod(A, init={"terminated": REFUSED}, main={"waiting": {"reason": "PodInitializing"}})
        one.until(
            lambda s: s.message.startswith("storage-initializer has failed once and starts again after 10 s")
        )
        play.change_pod(pod, init={"running": {}, "last": REFUSED, "restarts": 1})
        one.until(lambda s: s.message.startswith("downloading the model, attempt 2"))
        serve(play, A)
        one.end()

    def test_three_failed_downloads_end_the_wait(self, waiting: Start, play: Play) -> None:
        one = waiting()
        play.pod(A, init={"terminated": REFUSED, "restarts": 2})
        with pytest.raises(
            RolloutFailedError, match=r"could not download the model in 3 attempts: .*endpoint URL"
        ):
            one.end()

    def test_the_same_rollout_again_deletes_the_failed_pod(
        self, kubeconfig: Path, waiting: Start, play: Play, namespace: str
    ) -> None:
        first = waiting()
        play.pending()
        failed = play.pod(A, init={"terminated": FORBIDDEN})
        with pytest.raises(RolloutFailedError, match="403"):
            first.end()
        again = KServeTarget(kubeconfig=str(kubeconfig), wait_window=0.1)
        with Cluster(again) as cluster:
            roll(cluster, documents(namespace))  # the second rollout changes nothing
            one = Waiting(cluster, play, A, 30)
            one.until(lambda status: failed["metadata"]["name"] in " ".join(status.holding))
            play.gone(failed)
            play.pod(A, init={"running": {}})
            one.until(lambda status: status.message == "downloading the model")
            serve(play, A)
            one.end()

    def test_a_pod_that_failed_before_the_release_was_applied_again(self, waiting: Start, play: Play) -> None:
        first = waiting(A)
        play.pending()
        failed = play.pod(A, init={"terminated": FORBIDDEN})
        with pytest.raises(RolloutFailedError, match="403"):
            first.end()
        waiting(B)  # it also fails; the previous release's pod stays
        time.sleep(1.1)  # times have a resolution of one second
        again = waiting(A)
        again.until(lambda status: failed["metadata"]["name"] in " ".join(status.holding))
        play.gone(failed)
        play.pod(A, init={"running": {}})
        again.until(lambda status: status.message == "downloading the model")
        serve(play, A)
        again.end()

    def test_the_same_rollout_again_after_a_deadline_becomes_ready(self, waiting: Start, play: Play) -> None:
        late = condition(
            "Progressing", "ProgressDeadlineExceeded", f'ReplicaSet "digits-predictor-{A[-6:]}" has timed out'
        )
        first = waiting(A)
        play.replica_set(A, available=0)
        generation = play.deployment(A, [])["metadata"]["generation"]
        play.deployment(A, [late], observedGeneration=generation)
        with pytest.raises(RolloutFailedError, match="ProgressDeadlineExceeded"):
            first.end()
        again = waiting(A)  # the Deployment reports the deadline until a pod becomes ready
        time.sleep(0.5)
        assert not again.future.done()
        serve(play, A)
        again.end()

    def test_without_permission_to_delete_pods_the_kubelet_retries(
        self, kubeconfig: Path, waiting: Start, play: Play, namespace: str, proxy: Proxy
    ) -> None:
        first = waiting()
        play.pending()
        failed = play.pod(A, init={"terminated": FORBIDDEN})
        with pytest.raises(RolloutFailedError):
            first.end()
        text = (
            'pods is forbidden: User "ci" cannot delete resource "pods" in API group "" in the namespace "x"'
        )
        with (
            proxy.fault("DELETE .*/pods", status=403, message=text, reason="Forbidden"),
            Cluster(KServeTarget(kubeconfig=str(kubeconfig), wait_window=0.1)) as cluster,
        ):
            roll(cluster, documents(namespace))
            one = Waiting(cluster, play, A, 30)
            one.until(lambda status: "starts again after 10 s" in status.message)
            time.sleep(0.3)
            assert not one.future.done()
            play.change_pod(failed, init={"terminated": FORBIDDEN, "restarts": 1})
            with pytest.raises(RolloutFailedError, match="403"):
                one.end()


def test_a_pod_is_diagnosed_beside_many_of_the_previous_release(waiting: Start, play: Play) -> None:
    rolled_out(waiting, play)
    for _ in range(EVENTS_MAX):
        play.pod(A, main={"running": {}}, ready=True)
    one = waiting(B)
    play.updating()
    play.replica_set(B, available=0, number=2)
    pod = play.pod(B, main={"running": {}})
    play.event(pod, "Unhealthy", "Readiness probe failed: model digits has no READY worker")
    one.until(lambda status: status.message == "loading the model: no READY worker yet")
    serve(play, B, number=2, before=A)
    one.end()


class TestOneGpu:
    NO_GPU = condition(
        "PodScheduled", "Unschedulable", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    )

    def test_the_wait_continues_while_an_old_pod_returns_its_gpu(self, waiting: Start, play: Play) -> None:
        rolled_out(waiting, play)
        old = play.pod(A, main={"running": {}}, ready=True, limits=GPU)
        one = waiting(B)
        play.replica_set(B, available=0, number=2)
        play.terminate(old)
        waits = play.pod(B, conditions=[self.NO_GPU])
        one.until(lambda status: "is terminating" in status.message)
        time.sleep(1.5)
        assert not one.future.done()
        play.gone(old)
        play.change_pod(waits, main={"running": {}}, ready=True)
        serve(play, B, number=2, before=A)
        one.end()

    def test_an_old_pod_that_keeps_its_gpu_is_named_with_a_hint(self, waiting: Start, play: Play) -> None:
        rolled_out(waiting, play)
        old = play.pod(A, main={"running": {}}, ready=True, limits=GPU)
        one = waiting(B)
        play.replica_set(B, available=0, number=2)
        play.pod(B, conditions=[self.NO_GPU])
        with pytest.raises(
            RolloutFailedError, match=rf"no node has a free nvidia.com/gpu .*; {A} still"
        ) as caught:
            one.end()
        hint = caught.value.hint or ""
        assert f"Pod {old['metadata']['name']} of release {A} holds a GPU" in hint
        assert "`kdeploy rollout --strategy recreate`" in hint
        assert f"{B} stays applied and takes over if it becomes ready" in hint

    def test_a_terminating_pod_of_another_service_can_return_a_gpu(
        self, cluster: Cluster, kube: Kube, play: Play, waiting: Start
    ) -> None:
        name = f"gpu-{play.namespace}"
        kube.create("/api/v1/nodes", {"metadata": {"name": name}})
        try:
            kube.merge(f"/api/v1/nodes/{name}", {"spec": {"taints": None}})
            kube.merge(f"/api/v1/nodes/{name}/status", {"status": {"allocatable": GPU}})
            other = play.pod(B, main={"running": {}}, limits=GPU, node=name)
            assert not returns_gpu(cluster.api)
            play.terminate(other)
            assert returns_gpu(cluster.api)
            play.gone(other)
            assert not returns_gpu(cluster.api)
        finally:
            kube.delete(f"/api/v1/nodes/{name}")


def test_a_service_that_is_stopped_during_the_wait_fails(waiting: Start, play: Play) -> None:
    one = waiting()
    play.kube.merge(play._service, {"metadata": {"annotations": {STOP: "true"}}})
    play.show("08")
    with pytest.raises(
        RolloutFailedError, match=r"annotation serving\.kserve\.io/stop stops the service"
    ) as caught:
        one.end()
    assert "annotate inferenceservice digits serving.kserve.io/stop-" in (caught.value.hint or "")


def test_an_autoscaler_is_found_by_its_objects_or_assumed(cluster: Cluster, kube: Kube, proxy: Proxy) -> None:
    assert not may_scale_up(cluster.api)
    where, name = "/api/v1/namespaces/kube-system/configmaps", "cluster-autoscaler-status"
    text = f'configmaps "{name}" is forbidden: User "ci" cannot get resource "configmaps" in API group ""'
    with proxy.fault(f"GET .*/{name}", status=403, message=text, reason="Forbidden"):
        assert may_scale_up(cluster.api)
    kube.create(where, {"metadata": {"name": name}})
    try:
        assert may_scale_up(cluster.api)
    finally:
        kube.delete(f"{where}/{name}")


class TestCanaryOfAnotherUser:
    @pytest.mark.parametrize(
        ("weights", "traffic"),
        [
            ({"digits-predictor": 1, "digits-canary-predictor": 0}, [(100, False)]),
            ({"digits-predictor": 90, "digits-canary-predictor": 10}, [(90, False), (10, True)]),
        ],
        ids=["0.20 splits nothing", "later it does"],
    )
    def test_the_service_stays_ready_with_another_users_canary(
        self, cluster: Cluster, waiting: Start, play: Play, weights: dict[str, int], traffic: list[Any]
    ) -> None:
        rolled_out(waiting, play)
        play.add_canary(10, *weights.items())
        play.show("09")
        live = cluster.services.get(play.reference)
        assert live
        assert live.status.phase is Phase.READY
        assert [(share.percent, share.foreign) for share in live.status.traffic] == traffic
        again = waiting(A)
        again.end()
        update = waiting(B)
        serve(play, B, number=2, before=A)
        play.show("09")
        update.end()


class TestTraffic:
    def test_the_wait_continues_until_the_traffic_changes(self, waiting: Start, play: Play) -> None:
        first = waiting(A, mode="Knative")
        play.revision(A, 1)
        play.ready_knative("digits-predictor-00001")
        first.end()
        canary = waiting(B, mode="Knative", percent=10)
        play.revision(B, 2)
        new, old = "digits-predictor-00002", "digits-predictor-00001"

        def split(percent: int) -> list[Document]:
            return [
                {"revisionName": new, "percent": percent, "latestRevision": True},
                {"revisionName": old, "percent": 100 - percent, "tag": "prev"},
            ]

        play.ready_knative(new, split(10))
        canary.end()
        for wanted, percent in (
            (0, 0),
            (None, 100),
        ):  # KServe changes the traffic later
            one = waiting(B, mode="Knative", percent=100 if wanted is None else wanted)
            time.sleep(0.8)
            assert not one.future.done()
            one.until(lambda status: status.reason == "TrafficNotSwitched")
            play.ready_knative(new, split(percent) if percent < 100 else None)
            one.end()
            assert sum(share.percent for share in one.observed[-1].traffic if share.release == B) == percent


class TestRuntimeOfTheCluster:
    def test_a_traceback_in_its_log_ends_the_wait(
        self, cluster: Cluster, play: Play, proxy: Proxy, namespace: str
    ) -> None:
        text = (
            "2026-01-01T10:00:00.000000000Z Traceback (most recent call last):\n"
            '2026-01-01T10:00:00.000000000Z   File "/app/handler.py", line 12, in initialize\n'
            "2026-01-01T10:00:00.000000000Z ValueError: wrong weights\n"
        )
        roll(cluster, documents(namespace, runtime="theirs"))
        play.pending()
        play.pod(A, main={"running": {"startedAt": "2026-01-01T10:00:00Z"}})
        with proxy.fault("/log.*container=kserve-container", status=200, body=text, times=99):
            began = time.monotonic()
            with pytest.raises(
                RolloutFailedError, match=r"ModelLoadFailed: ValueError: .*handler.py, line 12"
            ):
                list(watch_rollout(cluster, play.reference, A, 30))
        assert time.monotonic() - began <= 12  # 10 s, plus time for the API server

    def test_no_log_of_kdeploys_runtime_is_read(self, waiting: Start, play: Play, proxy: Proxy) -> None:
        one = waiting(timeout=1)
        play.pending()
        play.pod(A, main={"running": {}})
        with pytest.raises(RolloutTimeoutError, match="loading the model"):
            one.end()
        assert [path for _, path in proxy.requests if "/log" in path] == []


def test_progress_names_the_current_step(waiting: Start, play: Play) -> None:
    one = waiting()

    def shows(sentence: str) -> None:
        one.until(lambda status: status.message.startswith(sentence))

    play.show("01")
    play.deployment(A, [])
    shows("waiting for Kubernetes to create the release's pods")
    pod = play.pod(A)
    shows("waiting for a node")
    play.bind(pod)
    play.change_pod(pod, init={"running": {}})
    shows("downloading the model")
    done = {"terminated": {"exitCode": 0}}
    play.change_pod(pod, init=done, main={"running": {}})
    shows("loading the model")
    play.event(pod, "Unhealthy", "Readiness probe failed: model digits has no READY worker")
    shows("loading the model: no READY worker yet")
    play.change_pod(pod, main={"running": {}}, ready=True)
    play.replica_set(A, available=1)
    play.show("03")
    shows("waiting for the gateway to accept the route")
    play.ready()
    one.end()


def test_events_are_selected_by_object(waiting: Start, play: Play, proxy: Proxy, kube: Kube) -> None:
    """A shared namespace can hold thousands of other events; none of them is listed or watched."""
    one = waiting()
    play.pending()
    pod = play.pod(A, main={"running": {}})
    play.event(pod, "Unhealthy", "Readiness probe failed: no READY worker")
    one.until(lambda status: "no READY worker" in status.message)
    asked = [path for _, path in proxy.requests if re.search(r"/events\?", path)]
    assert asked
    assert all("fieldSelector=involvedObject.uid%3D" in path for path in asked)
    serve(play, A)
    one.end()
