"""The output of a rollout that fails, is refused, is rolled back or is run again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from deployer.observed import RELEASE_LABEL
from tests.cluster.commands import Ended, Kdeploy, become_ready
from tests.cluster.conftest import Put
from tests.cluster.kube import Kube
from tests.cluster.play import Play
from tests.cluster.proxy import Fault, Proxy

CAUSE = (
    "ValueError: wrong weights (handler.py, line 12)\n  File handler.py, line 12, in initialize\nlast line"
)
BROKEN = ("rollout", "--set", "model.version=2.0")


def applied(play: Play, version: str) -> str:
    """Wait until a version is applied, and return its release."""
    end = time.monotonic() + 20
    while True:
        status, service = play.kube.request("GET", play._service)
        release = str(service["metadata"].get("labels", {}).get(RELEASE_LABEL, "")) if status == 200 else ""
        if release.startswith(version):
            return release
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def meanwhile(play_cluster: Callable[[], Any]) -> Iterator[None]:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(play_cluster)
        yield
        future.result(30)


def fail_to_load(play: Play, version: str = "2.0") -> str:
    release = applied(play, version)
    play.updating()
    play.replica_set(release, available=0, number=2)
    play.pod(release, main={"terminated": {"exitCode": 78, "reason": "Error", "message": CAUSE}})
    return release


def test_a_model_that_cannot_be_loaded_shows_its_traceback(
    kdeploy: Kdeploy, rolled_out: str, play: Play
) -> None:
    with meanwhile(lambda: fail_to_load(play)):
        ended = kdeploy(*BROKEN)
    assert ended.code == 8
    failed = play.service()["metadata"]["labels"][RELEASE_LABEL]
    lines = [line for line in ended.err.splitlines() if line.startswith(("error:", "  |", "hint:"))]
    assert lines[0] == (
        f"error: release {failed} cannot become ready: ModelLoadFailed: ValueError: wrong weights "
        f"(handler.py, line 12); {rolled_out} still answers requests"
    )
    assert lines[1:3] == ["  |   File handler.py, line 12, in initialize", "  | last line"]
    assert f"{failed} stays applied and takes over if it becomes ready" in lines[3]
    assert lines[3].endswith(f"; run `kdeploy rollout --release {rolled_out}` to go back.")
    status = kdeploy("status")
    assert status.code == 8
    rows = dict(line.split(None, 1) for line in status.out.splitlines()[1:])
    assert rows["phase"] == "Failed"
    assert "ValueError: wrong weights" in rows["reason"]
    assert rows["traffic"] == f"100% {rolled_out}"
    assert kdeploy("rollout", "history").out.splitlines()[-1].endswith("Failed (ModelLoadFailed)")
    assert json.loads(kdeploy("rollout", "history", "-o", "json").out)[-1]["reason"] == "ModelLoadFailed"
    plan = [line.split() for line in kdeploy("plan").out.splitlines()]
    assert ["serving", "now", rolled_out] in plan
    assert ["wanted", "now", failed] in plan


def test_a_plan_before_the_first_pod(kdeploy: Kdeploy, play: Play) -> None:
    assert kdeploy("rollout", "--no-wait").code == 0
    play.show("01")
    plan = [line.split() for line in kdeploy("plan").out.splitlines()]
    assert ["serving", "now", "no", "release"] in plan


def test_a_list_after_a_deadline_shows_the_answering_release(
    kdeploy: Kdeploy, rolled_out: str, play: Play
) -> None:
    assert kdeploy(*BROKEN, "--no-wait").code == 0
    failed = play.service()["metadata"]["labels"][RELEASE_LABEL]
    play.replica_set(failed, available=0, number=2)
    play.show("15")
    (_, row) = kdeploy("list").out.splitlines()
    assert f"100% {rolled_out}" in row


class TestRollbackOnFailure:
    def test_the_last_ready_release_is_restored(
        self, kdeploy: Kdeploy, rolled_out: str, play: Play, proxy: Proxy
    ) -> None:
        before = play.service()

        def play_cluster() -> None:
            failed = fail_to_load(play)
            applied(play, "1.0")
            play.replica_set(failed, available=0, replicas=0)
            play.replica_set(rolled_out, available=1, number=3)
            play.ready()

        with meanwhile(play_cluster):
            ended = kdeploy(*BROKEN, "--rollback-on-failure")
        assert ended.code == 8
        assert f"rolling back to release {rolled_out}" in ended.err
        assert f"{rolled_out} is restored and Ready" in ended.err
        assert play.service()["spec"] == before["spec"]
        outcomes = [entry["outcome"] for entry in json.loads(kdeploy("rollout", "history", "-o", "json").out)]
        assert outcomes == ["Ready", "Failed", "Ready"]

    def test_on_a_full_node_the_failed_pods_are_stopped_first(
        self, kdeploy: Kdeploy, rolled_out: str, play: Play, proxy: Proxy
    ) -> None:
        def play_cluster() -> None:
            play.replica_set(rolled_out, available=0, replicas=0)  # its pods are stopped first
            failed = fail_to_load(play)
            applied(play, "1.0")
            play.replica_set(failed, available=0, replicas=0)
            play.replica_set(rolled_out, available=1, number=3)
            play.ready()

        with meanwhile(play_cluster):
            ended = kdeploy(*BROKEN, "--strategy", "recreate", "--rollback-on-failure")
        assert ended.code == 8
        assert f"{rolled_out} is restored and Ready" in ended.err
        assert play.service()["spec"]["predictor"]["deploymentStrategy"] == {"type": "Recreate"}

    def test_a_failed_rollback_shows_the_first_cause(
        self, kdeploy: Kdeploy, rolled_out: str, play: Play, proxy: Proxy
    ) -> None:
        with meanwhile(lambda: fail_to_load(play)):
            ended = kdeploy(*BROKEN, "--rollback-on-failure", "--timeout", "3s")
        assert ended.code == 8
        assert "ValueError: wrong weights" in ended.err
        assert f"rolling back to {rolled_out} failed: timed out after 3 s" in ended.err
        assert f"{rolled_out} stays applied and takes over when it is ready" in ended.err

    def test_an_unreadable_journal_does_not_hide_the_cause(
        self, kdeploy: Kdeploy, rolled_out: str, play: Play, proxy: Proxy
    ) -> None:
        broken = Fault("GET .*/controllerrevisions", times=99, status=500, message="etcd is down")

        def play_cluster() -> None:
            applied(play, "2.0")
            with proxy.failing(broken):
                fail_to_load(play)
                assert broken.over.wait(30)

        with meanwhile(play_cluster):
            ended = kdeploy(*BROKEN, "--rollback-on-failure")
            broken.over.set()
        assert ended.code == 8
        assert "ValueError: wrong weights" in ended.err
        assert "cannot roll back: " in ended.err

    def test_a_first_release_cannot_be_rolled_back(self, kdeploy: Kdeploy, play: Play) -> None:
        with meanwhile(lambda: fail_to_load(play)):
            ended = kdeploy(*BROKEN, "--rollback-on-failure")
        assert ended.code == 8
        assert f"; nothing to roll back to: no other release of {play.reference} was Ready" in ended.err

    def test_rollback_on_failure_needs_wait(self, kdeploy: Kdeploy) -> None:
        ended = kdeploy("rollout", "--no-wait", "--rollback-on-failure")
        assert (ended.code, "cannot be combined" in ended.err) == (3, True)


@pytest.mark.parametrize("command", [("rollout",), ("status",)], ids=" ".join)
def test_the_next_rollout_corrects_the_outcome(
    kdeploy: Kdeploy, play: Play, command: tuple[str, ...]
) -> None:
    assert kdeploy("rollout", "--timeout", "300ms").code == 9
    assert kdeploy("rollout", "history").out.splitlines()[-1].split()[-1] == "TimedOut"
    become_ready(play)
    assert kdeploy(*command).code == 0
    assert kdeploy("rollout", "history").out.splitlines()[-1].split()[-1] == "Ready"


def test_a_release_that_became_ready_after_the_wait_is_restored(kdeploy: Kdeploy, play: Play) -> None:
    assert kdeploy("rollout", "--no-wait").code == 0
    become_ready(play)
    assert kdeploy(*BROKEN, "--no-wait").code == 0
    outcomes = [entry["outcome"] for entry in json.loads(kdeploy("rollout", "history", "-o", "json").out)]
    assert outcomes[0] == "Ready"


class TestStrategy:
    def test_recreate_applies_to_one_rollout(self, kdeploy: Kdeploy, rolled_out: str, play: Play) -> None:
        assert kdeploy("rollout", "--strategy", "recreate").err.splitlines()[-1].startswith("unchanged: ")
        ended = kdeploy(*BROKEN, "--strategy", "recreate", "--no-wait")
        assert ended.code == 0
        assert "is unavailable from the end of its old pods until the new ones are ready" in ended.err
        assert play.service()["spec"]["predictor"]["deploymentStrategy"] == {"type": "Recreate"}
        release = play.service()["metadata"]["labels"][RELEASE_LABEL]
        play.replica_set(rolled_out, available=0, replicas=0)
        play.replica_set(release, available=1, number=2)
        play.ready()
        again = kdeploy(*BROKEN)  # a different strategy is not written
        assert (again.code, again.out) == (0, f"{release}\n")
        assert "unchanged: " in again.err
        third = kdeploy("rollout", "--set", "model.version=3.0", "--no-wait")
        assert third.code == 0
        assert "deploymentStrategy" not in play.service()["spec"]["predictor"]

    def test_recreate_is_used_if_a_failed_first_release_blocks_the_next(
        self, kdeploy: Kdeploy, play: Play
    ) -> None:
        assert kdeploy("rollout", "--no-wait").code == 0
        first = play.service()["metadata"]["labels"][RELEASE_LABEL]
        play.replica_set(first, available=0)
        play.pending()
        ended = kdeploy(*BROKEN, "--no-wait")
        assert f"no release answers requests, so kdeploy stops the pods of {first} first" in ended.err
        assert play.service()["spec"]["predictor"]["deploymentStrategy"] == {"type": "Recreate"}

    def test_knative_has_no_strategy(self, kdeploy: Kdeploy, proxy: Proxy) -> None:
        knative = ("--set", "targets.production.deployment-mode=Knative")
        ended = kdeploy("rollout", *knative, "--strategy", "recreate")
        assert (ended.code, "needs a cluster in Standard mode" in ended.err) == (3, True)
        assert proxy.writes() == []


class TestCanary:
    KNATIVE = ("--set", "targets.production.deployment-mode=Knative")

    def knative(
        self, play: Play, version: str, number: int, traffic: Callable[[int], Any] = lambda _: None
    ) -> None:
        release = applied(play, version)
        play.revision(release, number)
        play.ready_knative(f"digits-predictor-{number:05}", traffic(number))

    def test_a_first_release_gets_all_traffic(self, kdeploy: Kdeploy, play: Play) -> None:
        with meanwhile(lambda: self.knative(play, "1.0", 1)):
            ended = kdeploy("rollout", *self.KNATIVE, "--canary", "10")
        assert ended.code == 0
        assert "is the first release: it gets all requests, not 10%" in ended.err
        assert "canaryTrafficPercent" not in play.service()["spec"]["predictor"]

    def test_a_canary_of_the_stable_release_changes_nothing(
        self, kdeploy: Kdeploy, play: Play, proxy: Proxy
    ) -> None:
        with meanwhile(lambda: self.knative(play, "1.0", 1)):
            assert kdeploy("rollout", *self.KNATIVE).code == 0
        proxy.requests.clear()
        for percent in ("10", "0"):
            ended = kdeploy("rollout", *self.KNATIVE, "--canary", percent)
            assert ended.code == 0
            assert "is already rolled out: it keeps all requests" in ended.err
            assert "unchanged: " in ended.err
        assert proxy.writes() == []

    def test_ready_needs_the_wanted_traffic(self, kdeploy: Kdeploy, play: Play) -> None:
        def split(number: int) -> list[Any]:
            return [
                {"revisionName": f"digits-predictor-{number:05}", "percent": 10, "latestRevision": True},
                {"revisionName": f"digits-predictor-{number - 1:05}", "percent": 90, "tag": "prev"},
            ]

        with meanwhile(lambda: self.knative(play, "1.0", 1)):
            assert kdeploy("rollout", *self.KNATIVE).code == 0
        stable = play.service()["metadata"]["labels"][RELEASE_LABEL]
        with meanwhile(lambda: self.knative(play, "2.0", 2, split)):
            assert kdeploy(*BROKEN, *self.KNATIVE, "--canary", "10").code == 0
        ended = kdeploy(*BROKEN, *self.KNATIVE, "--timeout", "1s")
        assert ended.code == 9  # KServe has not changed the traffic yet
        assert "waiting for the traffic to be 100% 2.0-" in ended.err
        assert f"; {stable} still answers requests" in ended.err
        play.ready_knative("digits-predictor-00002")
        assert kdeploy(*BROKEN, *self.KNATIVE).code == 0
        assert kdeploy("rollout", "history", *self.KNATIVE).out.splitlines()[-1].split()[-1] == "Ready"


class TestRefusedBeforeTheFirstWrite:
    @pytest.mark.parametrize("annotation", ["stop", "disable-auto-update"])
    def test_a_stopped_or_frozen_service_is_refused(
        self, kdeploy: Kdeploy, rolled_out: str, play: Play, kube: Kube, proxy: Proxy, annotation: str
    ) -> None:
        key = f"serving.kserve.io/{annotation}"
        kube.merge(play._service, {"metadata": {"annotations": {key: "true"}}})
        proxy.requests.clear()
        ended = kdeploy(*BROKEN)
        assert ended.code == 3
        assert f"annotation {key}" in ended.err
        assert f"annotate inferenceservice digits {key}-`" in ended.err
        assert proxy.writes() == []
        assert f"annotation {key}" in kdeploy("status").out
        found = json.loads(kdeploy("doctor", "-o", "json").out)
        assert [one["name"] for one in found if one["status"] == "failure"] == ["annotation"]

    def test_a_stopped_service_has_the_phase_stopped(
        self, kdeploy: Kdeploy, rolled_out: str, play: Play
    ) -> None:
        play.show("08")
        ended = kdeploy("status")
        assert ended.code == 8
        assert ["phase", "Stopped"] in [line.split() for line in ended.out.splitlines()]

    def test_a_quota_that_one_pod_exceeds_is_refused(
        self, kdeploy: Kdeploy, kube: Kube, namespace: str, proxy: Proxy
    ) -> None:
        quota = {"metadata": {"name": "q"}, "spec": {"hard": {"requests.memory": "1Gi"}}}
        kube.create(f"/api/v1/namespaces/{namespace}/resourcequotas", quota)
        ended = kdeploy("rollout")
        assert (ended.code, proxy.writes()) == (3, [])
        assert "ResourceQuota q allows 1Gi requests.memory, but one pod requests 2Gi" in ended.err

    def test_a_limit_range_that_a_pod_exceeds_is_refused(
        self, kdeploy: Kdeploy, kube: Kube, namespace: str
    ) -> None:
        limits = [{"type": "Container", "max": {"memory": "1Gi"}}]
        body = {"metadata": {"name": "l"}, "spec": {"limits": limits}}
        kube.create(f"/api/v1/namespaces/{namespace}/limitranges", body)
        assert "LimitRange l allows 1Gi memory, but [serving] requests 2Gi" in kdeploy("plan").err


class TestDoctor:
    def failures(self, ended: Ended) -> dict[str, str]:
        return {one["name"]: one["detail"] for one in json.loads(ended.out) if one["status"] == "failure"}

    def test_a_controller_without_pods_is_a_failure(
        self, kdeploy: Kdeploy, kserve: Callable[..., None]
    ) -> None:
        kserve(running=0)
        failures = self.failures(kdeploy("doctor", "-o", "json"))
        assert "has no available pod" in failures["KServe controller"]

    def test_a_webhook_that_does_not_answer_is_a_failure(
        self, kdeploy: Kdeploy, kube: Kube, namespace: str
    ) -> None:
        webhook = {
            "name": "isvc.kserve-webhook-server.validator",
            "clientConfig": {"url": "https://127.0.0.1:9/validate"},
            "rules": [
                {
                    "apiGroups": ["serving.kserve.io"],
                    "apiVersions": ["*"],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": ["inferenceservices"],
                }
            ],
            "namespaceSelector": {"matchLabels": {"test": namespace}},
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }
        path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
        kube.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": {"test": namespace}}})
        kube.create(path, {"metadata": {"name": namespace}, "webhooks": [webhook]})
        try:
            end = time.monotonic() + 20  # the API server calls it a moment later
            while "admission" not in (found := self.failures(kdeploy("doctor", "-o", "json"))):
                assert time.monotonic() < end
            assert "isvc.kserve-webhook-server.validator" in found["admission"]
        finally:
            kube.delete(f"{path}/{namespace}")

    def test_pod_security_that_rejects_the_initializer_is_a_failure(
        self, kdeploy: Kdeploy, kube: Kube, namespace: str, put: Put
    ) -> None:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        kube.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})
        containers = "/apis/serving.kserve.io/v1alpha1/clusterstoragecontainers"
        container: dict[str, Any] = {
            "name": "storage-initializer",
            "image": "kserve/storage-initializer:v0.20.0",
        }
        named = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ClusterStorageContainer"}
        put(containers, "default", **named, spec={"container": container, "supportedUriFormats": []})
        failures = self.failures(kdeploy("doctor", "-o", "json"))
        assert "storage-initializer does not comply" in failures["Pod Security"]
        context = {
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        kube.merge(f"{containers}/default", {"spec": {"container": {"securityContext": context}}})
        assert "Pod Security" not in self.failures(kdeploy("doctor", "-o", "json"))

    def test_a_node_without_a_free_gpu_is_a_warning(
        self, kdeploy: Kdeploy, rolled_out: str, kube: Kube, put: Put, play: Play
    ) -> None:
        name = f"full-{play.namespace}"
        put("/api/v1/nodes", name)
        kube.merge(f"/api/v1/nodes/{name}", {"spec": {"taints": None}})
        room = {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"}
        kube.merge(f"/api/v1/nodes/{name}/status", {"status": {"allocatable": room}})
        gpu = ("--set", "serving.gpu=1")
        assert f"node {name} has 1 nvidia.com/gpu free" in kdeploy("doctor", *gpu).out
        play.pod(rolled_out, main={"running": {}}, limits={"nvidia.com/gpu": "1"}, node=name)
        text = kdeploy("plan", *gpu).err
        assert (
            "an update starts a new pod before it stops the old one, and no node has 1 nvidia.com/gpu free"
            in text
        )
        assert "Stop the old pod first with `--strategy recreate`" in text
        assert "no node" not in kdeploy("plan", *gpu, "--strategy", "recreate").err


def test_scaling_to_zero_in_standard_mode_is_a_warning(kdeploy: Kdeploy) -> None:
    ended = kdeploy("plan", "--set", "scaling.min-replicas=0")
    assert (
        "warning: min-replicas = 0 does not scale to zero in Standard mode: KServe runs 1 replica"
        in ended.err
    )


def test_terminating_pods_still_hold_their_gpus(kdeploy: Kdeploy, rolled_out: str, play: Play) -> None:
    pod = play.pod(rolled_out, main={"running": {}}, limits={"nvidia.com/gpu": "1"})
    play.terminate(pod)
    held = f"pod {pod['metadata']['name']} (1 nvidia.com/gpu)"
    assert f"terminating                {held}" in kdeploy("status").out
    ended = kdeploy("delete", "--yes")
    assert f"still terminating: {held}" in ended.err


def test_a_timeout_above_knatives_maximum_is_refused(
    kdeploy: Kdeploy, put: Put, kube: Kube, proxy: Proxy
) -> None:
    """A revision's timeout is its pods' grace period: the drain and one prediction."""
    knative = ("--set", "targets.production.deployment-mode=Knative")
    ended = kdeploy("rollout", *knative, "--set", "serving.response-timeout=700")
    assert (ended.code, proxy.writes()) == (3, [])
    assert "but Knative allows 600 s" in ended.err
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": "knative-serving"}})
    put(
        "/api/v1/namespaces/knative-serving/configmaps",
        "config-defaults",
        data={"max-revision-timeout-seconds": "1200"},
    )
    assert kdeploy("plan", *knative, "--set", "serving.response-timeout=700").code == 0


def test_delete_names_the_pods_that_still_run(kdeploy: Kdeploy, rolled_out: str, play: Play) -> None:
    pod = play.pod(rolled_out, main={"running": {}}, ready=True, limits={"nvidia.com/gpu": "1"})
    ended = kdeploy("delete", "--yes")
    assert f"still terminating: pod {pod['metadata']['name']} (1 nvidia.com/gpu)" in ended.err
