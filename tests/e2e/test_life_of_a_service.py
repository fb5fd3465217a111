"""One service on a real cluster. The tests run in order, and each continues from the state of the last."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from deployer.journal import Outcome
from tests.e2e.project import Load, Project, predict, until

pytestmark = pytest.mark.timeout(1200)


def serving(project: Project) -> str:
    """Return the release that gets traffic."""
    live = project.cluster.services.get(project.reference)
    assert live
    assert live.status.serving
    return live.status.serving


def test_doctor_reports_no_failure(project: Project) -> None:
    project.write("1")
    ended = project.run("doctor")
    assert ended.code == 0, ended.out + ended.err


def test_a_first_release_becomes_ready(project: Project) -> None:
    ended = project.rollout()
    assert ended.code == 0, ended.err
    assert "Ready; traffic: 100% 1-" in ended.err
    status, answer = predict(project, "x")
    assert (status, answer) == (200, {"predictions": [{"marker": "1"}]})
    assert project.outcomes() == ["Ready"]


def test_a_rollout_without_changes_changes_nothing(project: Project) -> None:
    ended = project.rollout()
    assert ended.code == 0
    assert "unchanged: " in ended.err
    assert project.run("diff").code == 0


def test_an_update_under_load_loses_no_request(project: Project, core: Any) -> None:
    project.write("2")
    with Load(project.endpoint()) as load:
        time.sleep(3)
        ended = project.rollout()
        assert ended.code == 0, ended.err
        time.sleep(10)  # longer than the gateway's switch and the drain
    assert load.failures == []
    assert load.markers == {"1", "2"}
    assert len(load.answers) > 100


def test_the_old_pods_end_soon_after_the_drain(project: Project, core: Any) -> None:
    """They drain for drain-seconds (5) and end, long before their grace period does."""
    with until(25) as waits:
        while waits():
            pods = core.list_namespaced_pod(project.reference.namespace).items
            if not [pod for pod in pods if pod.metadata.deletion_timestamp]:
                return
    pytest.fail("a pod of the previous release is still terminating")


def test_a_long_request_outlives_an_update(project: Project) -> None:
    """It begins before the old pod is deleted, and takes longer than the default grace period of 30 s."""
    answers: list[Any] = []
    request = threading.Thread(target=lambda: answers.append(predict(project, {"sleep": 45}, seconds=90)))
    request.start()
    time.sleep(2)
    project.write("3")
    ended = project.rollout()
    request.join()
    assert ended.code == 0, ended.err
    assert answers == [(200, {"predictions": [{"marker": "2"}]})]


def test_a_variable_of_a_secret_reaches_the_handler(project: Project, core: Any) -> None:
    namespace = project.reference.namespace
    variable = ("--set", 'serving.env={"TOKEN": {"secret": "e2e", "key": "token"}}')
    project.write("3.1", initialize='import os; assert os.environ["TOKEN"] == "from the Secret"')
    missing = project.rollout(*variable)
    assert missing.code == 3
    assert f"Secret e2e not found in namespace {namespace}" in missing.err
    secret = {"metadata": {"name": "e2e"}, "stringData": {"token": "from the Secret"}}
    core.create_namespaced_secret(namespace, secret)
    ended = project.rollout(*variable)
    assert ended.code == 0, ended.err
    assert "from the Secret" not in project.run("render", *variable).out


def test_an_overlay_of_the_target_arrives_in_the_pods_of_the_same_release(
    project: Project, core: Any
) -> None:
    release = serving(project)
    sidecar = {"name": "sidecar", "image": "busybox:1.37", "command": ["sleep", "100000"]}
    predictor = {"containers": [sidecar], "model": {"resources": {"requests": {"cpu": "100m"}}}}
    overlay = {"metadata": {"labels": {"team": "e2e"}}, "spec": {"predictor": predictor}}
    flags = ("--release", release, "--set", f"targets.e2e.overlay={json.dumps(overlay)}")
    with Load(project.endpoint()) as load:
        ended = project.rollout(*flags)
    assert ended.code == 0, ended.err
    assert load.failures == []
    assert "archiving" not in ended.err
    pods = core.list_namespaced_pod(project.reference.namespace, label_selector="team=e2e").items
    assert pods
    for pod in pods:
        containers = {one.name: one for one in pod.spec.containers}
        assert "sidecar" in containers
        assert containers["kserve-container"].resources.requests["cpu"] == "100m"
    assert project.run("diff", *flags).code == 0


class TestFailures:
    """Each failure has a reason and a time limit, and leaves the traffic to the stable release."""

    def fails(self, project: Project, *words: str, code: int = 8, within: float = 240) -> str:
        before = serving(project)
        ended = project.rollout()
        assert ended.code == code, ended.err
        for word in words:
            assert word in ended.err, ended.err
        assert f"{before} still answers requests" in ended.err
        assert ended.seconds < within
        assert predict(project, "x")[0] == 200
        return ended.err

    def test_a_handler_that_raises_fails_with_its_exception(self, project: Project) -> None:
        project.write("4", initialize='raise ValueError("wrong weights")')
        self.fails(project, "ModelLoadFailed: ValueError: wrong weights", "handler.py, line")
        assert project.run("status").code == 8

    def test_requirements_that_cannot_be_installed_fail_with_their_names(self, project: Project) -> None:
        project.write("5", requirements="no-such-package-of-ours==1.0\n")
        self.fails(project, "ModelLoadFailed", "no-such-package-of-ours")

    def test_a_model_that_needs_too_much_memory_fails_with_the_setting(self, project: Project) -> None:
        project.write("6", initialize="self.weights = bytearray(8 << 30)")
        self.fails(project, "memory", "serving.memory")

    def test_a_corrected_release_becomes_ready_after_a_failure(self, project: Project) -> None:
        project.write("7")
        ended = project.rollout()
        assert ended.code == 0, ended.err
        assert predict(project, "x")[1] == {"predictions": [{"marker": "7"}]}

    def test_a_pod_that_fits_on_no_node_times_out_with_the_reason(self, project: Project) -> None:
        project.write("8", cpu="900")
        before = serving(project)
        ended = project.run("rollout", "--timeout", "30s")
        assert ended.code == 9
        assert "no node has" in ended.err
        assert f"{before} still answers requests" in ended.err

    def test_a_quota_fails_a_release_until_it_fits(self, project: Project, core: Any) -> None:
        namespace = project.reference.namespace
        project.write("9")
        assert project.rollout().code == 0
        quota = {"metadata": {"name": "e2e"}, "spec": {"hard": {"requests.memory": "1500Mi"}}}
        core.create_namespaced_resource_quota(namespace, quota)
        try:
            project.write("10", memory="1400Mi")
            with until(60) as waits:  # terminating pods count as used
                while waits():
                    used = core.read_namespaced_resource_quota("e2e", namespace).status.used
                    if used:
                        break
            ended = project.rollout()
            assert ended.code == 8, ended.err
            assert "QuotaExceeded" in ended.err
            assert "kdeploy logs" not in ended.err
        finally:
            core.delete_namespaced_resource_quota("e2e", namespace)
        project.write("11")
        ended = project.rollout()
        assert ended.code == 0, ended.err
        assert project.outcomes()[-1] == "Ready"


def test_rolling_out_an_earlier_release_uploads_nothing(project: Project) -> None:
    entries = project.cluster.journal.entries(project.reference)
    first = next(one.release for one in entries if one.outcome is Outcome.READY)
    with Load(project.endpoint()) as load:
        ended = project.rollout("--release", first)
    assert ended.code == 0, ended.err
    assert "archiving" not in ended.err
    assert load.failures == []
    assert serving(project) == first


def test_a_failed_rollout_rolls_back_automatically(project: Project) -> None:
    before = serving(project)
    project.write("12", initialize='raise ValueError("wrong weights")')
    ended = project.rollout("--rollback-on-failure")
    assert ended.code == 8
    assert f"{before} is restored and Ready" in ended.err
    assert serving(project) == before
    assert project.run("status").code == 0


def test_a_canary_gets_its_share_or_is_refused_in_standard_mode(project: Project) -> None:
    before = serving(project)
    project.write("13")
    ended = project.rollout("--canary", "20")
    if project.mode == "Standard":
        assert ended.code == 3
        assert "a canary has no effect in Standard mode" in ended.err
        return
    assert ended.code == 0, ended.err
    assert f"80% {before}" in ended.err
    with Load(project.endpoint(), rate=100.0, most=500) as load:
        time.sleep(6)
    assert load.failures == []
    assert len(load.markers) == 2
    assert project.rollout().code == 0
    assert serving(project).startswith("13-")


def test_delete_removes_pods_and_secrets(project: Project, core: Any) -> None:
    assert project.run("delete", "--yes").code == 0
    with until(120) as waits:
        while waits():
            namespace = project.reference.namespace
            pods = core.list_namespaced_pod(namespace).items
            secrets = [
                one
                for one in core.list_namespaced_secret(namespace).items
                if (one.metadata.labels or {}).get("app.kubernetes.io/managed-by") == "kdeploy"
            ]
            if not pods and not secrets:
                return
    pytest.fail("pods or Secrets are left in the namespace")
