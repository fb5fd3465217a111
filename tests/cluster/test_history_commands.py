"""`kdeploy diff`, `status` and `rollout history` on a cluster."""

from __future__ import annotations

import getpass
import json
from pathlib import Path

import pytest
import yaml

from deployer.observed import Document
from deployer.targets.kserve.preflight.permissions import ACCOUNT
from tests.cluster.commands import Kdeploy, become_ready
from tests.cluster.kube import Kube
from tests.cluster.play import RUNTIME, Play
from tests.cluster.proxy import Proxy
from tests.stores.swift import SECRET

EDIT = "fieldManager=kubectl-edit"


def services(namespace: str) -> str:
    return f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/digits"


def secrets(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets/digits-model-store"


def rewrite(kube: Kube, path: str, change: Document) -> None:
    """Change an object without a field manager for the change, as a webhook's changes have none."""
    held = kube.get(path)["metadata"]["managedFields"]
    kube.merge(path, change)
    kube.merge(path, {"metadata": {"managedFields": held}})


def history(kdeploy: Kdeploy) -> list[Document]:
    ended = kdeploy("rollout", "history", "-o", "json")
    assert ended.code == 0
    entries: list[Document] = json.loads(ended.out)
    return entries


class TestHistory:
    def test_the_history_shows_how_each_rollout_ended(
        self, kdeploy: Kdeploy, rolled_out: str, play: Play
    ) -> None:
        assert "is Ready with release" in kdeploy("rollout").err  # an unchanged rollout adds no entry
        kdeploy("rollout", "--no-wait", "--set", "serving.batch-size=2")
        assert kdeploy("rollout", "--timeout", "100ms", "--set", "serving.batch-size=3").code == 9
        kdeploy("rollout", "--no-wait", "--set", "serving.batch-size=4")
        release = play.service()["metadata"]["labels"]["kdeploy.dev/release"]
        play.pod(release, main={"waiting": {"reason": "InvalidImageName", "message": "no such image"}})
        assert kdeploy("rollout", "--set", "serving.batch-size=4").code == 8
        entries = history(kdeploy)
        ends = [entry["outcome"] for entry in entries]
        assert ends == ["Ready", "Applied", "TimedOut", "Applied", "Failed"]
        assert entries[-1]["reason"] == "InvalidImageName"
        assert [entry["number"] for entry in entries] == [1, 2, 3, 4, 5]
        assert entries[0]["release"] == rolled_out
        assert entries[0]["who"].startswith(f"{getpass.getuser()}@")
        assert entries[0]["archive"].startswith("sha256:")
        assert set(entries[0]["bundle"]) == {"account", "runtime", "service"}
        table = kdeploy("rollout", "history").out.splitlines()
        assert table[0].split() == ["NUMBER", "RELEASE", "TRAFFIC", "WHEN", "WHO", "COMMIT", "OUTCOME"]
        assert table[1].split()[:3] == ["1", rolled_out, "100%"]
        assert table[5].endswith("Failed (InvalidImageName)")
        assert kdeploy("rollout", "history", "-o", "name").out.split()[0] == rolled_out
        assert kdeploy("rollout", "--no-wait", "--history-limit", "2").code == 0
        assert [entry["number"] for entry in history(kdeploy)] == [5, 6]

    def test_a_failing_journal_does_not_change_the_exit_code(
        self, kdeploy: Kdeploy, play: Play, proxy: Proxy
    ) -> None:
        kdeploy("rollout", "--no-wait")
        release = play.service()["metadata"]["labels"]["kdeploy.dev/release"]
        play.pod(release, main={"waiting": {"reason": "InvalidImageName", "message": "no such image"}})
        note = "PATCH .*controllerrevisions"
        with proxy.fault(note), proxy.fault(note, status=403, times=9):  # the first one passes
            ended = kdeploy("rollout")
        assert ended.code == 8
        assert "warning: cannot note in the journal how the rollout ended" in ended.err
        assert [entry["outcome"] for entry in history(kdeploy)] == ["Applied", "Applied"]

    def test_options_before_history_are_refused(self, kdeploy: Kdeploy) -> None:
        ended = kdeploy("rollout", "-n", "elsewhere", "history")
        assert ended.code == 2
        assert "--namespace" in ended.err
        assert kdeploy("rollout", "nonsense").code == 2


class TestRotation:
    def test_a_rotated_secret_is_applied_for_an_unchanged_release(
        self, kdeploy: Kdeploy, rolled_out: str, kube: Kube, namespace: str, proxy: Proxy
    ) -> None:
        before = kube.get(secrets(namespace))
        rewrite(kube, secrets(namespace), {"data": {"AWS_SECRET_ACCESS_KEY": "b2xk"}})
        ended = kdeploy("rollout")
        assert ended.code == 0, ended.err
        assert "applied" in ended.err
        assert kube.get(secrets(namespace))["data"] == before["data"]
        proxy.requests.clear()
        assert "is Ready with release" in kdeploy("rollout").err
        assert proxy.writes() == []
        assert len([path for _, path in proxy.requests if "/secrets/" in path]) == 1
        assert len(proxy.requests) <= 6
        kube.merge(secrets(namespace), {"metadata": {"ownerReferences": None}})  # as a kill -9 can leave it
        assert kdeploy("rollout").code == 0
        assert kube.get(secrets(namespace))["metadata"]["ownerReferences"]


class TestDiff:
    def test_a_diff_against_nothing_adds_every_field(self, kdeploy: Kdeploy, proxy: Proxy) -> None:
        ended = kdeploy("diff")
        assert ended.code == 15
        assert "+kind: InferenceService" in ended.out
        assert "AWS_SECRET_ACCESS_KEY: (hidden)" in ended.out
        assert proxy.writes() == []

    def test_a_diff_shows_each_changed_field(
        self, kdeploy: Kdeploy, rolled_out: str, kube: Kube, namespace: str, proxy: Proxy
    ) -> None:
        resources = {"limits": {"memory": "2048Mi"}}
        spec = {"predictor": {"model": {"resources": resources}}}
        rewrite(kube, services(namespace), {"metadata": {"labels": {"their": "own"}}, "spec": spec})
        ended = kdeploy("diff")
        assert (ended.code, ended.out) == (0, "")
        rewrite(kube, secrets(namespace), {"data": {"AWS_SECRET_ACCESS_KEY": "b2xk"}})
        before = kube.get(services(namespace))
        proxy.requests.clear()
        changed = ("--set", "serving.cpu=3", "--set", 'serving.env={"A": "b"}')
        ended = kdeploy("diff", *changed)
        assert ended.code == 15
        lines = ended.out.splitlines()
        assert '-          cpu: "1"' in lines
        assert '+          cpu: "3"' in lines
        assert "+  AWS_SECRET_ACCESS_KEY: (changed)" in lines
        assert "b2xk" not in ended.out
        assert proxy.writes() == []
        assert {method for method, path in proxy.requests if "dryRun=All" in path} == {"PATCH"}
        assert kube.get(services(namespace)) == before
        found = json.loads(kdeploy("diff", *changed, "-o", "json").out)
        assert [one["kind"] for one in found] == ["Secret", "InferenceService"]
        fields = {change["path"]: change for change in found[1]["changes"]}
        assert fields["spec.predictor.model.resources.limits.cpu"]["after"] == "3"
        env = fields["spec.predictor.model.env"]
        assert [one for one in env["after"] if one not in env["before"]] == [{"name": "A", "value": "b"}]
        assert kdeploy("diff", *changed, "-o", "name").out.split()[-1] == "InferenceService/digits"
        edited = {"spec": {"predictor": {"maxReplicas": 5, "model": {"image": "theirs"}}}}
        kube.merge(f"{services(namespace)}?{EDIT}", edited)
        ended = kdeploy("diff")
        assert ended.code == 12
        assert "spec.predictor.model.image is managed by kubectl-edit" in ended.err
        ended = kdeploy("diff", "--force-conflicts")
        assert ended.code == 15
        assert "-      image: theirs" in ended.out

    def test_a_diff_needs_only_get_and_patch(
        self, kdeploy: Kdeploy, rolled_out: str, kube: Kube, proxy: Proxy, namespace: str, tmp_path: Path
    ) -> None:
        resources = ["inferenceservices", "servingruntimes", "serviceaccounts", "secrets"]
        rule = {"apiGroups": ["", "serving.kserve.io"], "resources": resources, "verbs": ["get", "patch"]}
        rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
        kube.create(f"{rbac}/roles", {"metadata": {"name": ACCOUNT}, "rules": [rule]})
        group = "rbac.authorization.k8s.io"
        binding = {
            "metadata": {"name": ACCOUNT},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": ACCOUNT},
            "subjects": [{"kind": "User", "apiGroup": group, "name": "ci"}],
        }
        kube.create(f"{rbac}/rolebindings", binding)
        path = tmp_path / "ci"
        path.write_text(yaml.safe_dump(kube.kubeconfig("ci-token", server=proxy.url, namespace=namespace)))
        assert kdeploy("diff", "--kubeconfig", str(path)).code == 0
        assert kdeploy("diff", "--kubeconfig", str(path), "--set", "serving.cpu=3").code == 15
        status = kdeploy("status", "--kubeconfig", str(path))
        assert status.code == 0
        assert "warning: cannot read the journal, so drift is unknown" in status.err


class TestStatus:
    def test_status_shows_the_service_and_changes_by_others(
        self, kdeploy: Kdeploy, rolled_out: str, kube: Kube, namespace: str
    ) -> None:
        lines = [line.split() for line in kdeploy("status").out.splitlines()]
        told = {line[0]: " ".join(line[1:]) for line in lines}
        assert told["release"] == rolled_out
        assert told["revision"].startswith("digits-predictor-")
        assert told["traffic"] == f"100% {rolled_out}"
        assert told["wanted"] == f"traffic 100% {rolled_out}"
        assert told["replicas"] == "1 of 1 ready; 1 to 1"
        assert told["runtime"] == RUNTIME
        assert told["image"] == "pytorch/torchserve-kfs:0.12.0"
        assert ["condition", "Ready", "True"] in lines
        assert told["last"].startswith(f"rollout Ready: {rolled_out} by {getpass.getuser()}@")
        assert "changed" not in told
        document = json.loads(kdeploy("status", "-o", "json").out)
        assert document["drift"] == []
        assert document["replicas"] == [1, 1]
        finalized = {"metadata": {"finalizers": ["example.org/f"]}}
        kube.merge(f"{services(namespace)}?fieldManager=manager", finalized)
        edited = {
            "metadata": {"annotations": {"their": "own"}},
            "spec": {"predictor": {"maxReplicas": 5, "serviceAccountName": None}},
        }
        try:
            kube.merge(f"{services(namespace)}?{EDIT}", edited)
            ended = kdeploy("status")
            assert "spec.predictor.maxReplicas changed by kubectl-edit at 20" in ended.out
            assert "spec.predictor.serviceAccountName removed" in ended.out
            found = json.loads(kdeploy("status", "-o", "json").out)["drift"]
            assert [one["field"] for one in found] == [
                "spec.predictor.maxReplicas",
                "spec.predictor.serviceAccountName",
            ]
        finally:
            kube.merge(services(namespace), {"metadata": {"finalizers": []}})


def test_replicas_that_others_manage_are_not_a_difference(
    kdeploy: Kdeploy, rolled_out: str, kube: Kube, namespace: str, proxy: Proxy
) -> None:
    scaled = {"spec": {"predictor": {"minReplicas": 2, "maxReplicas": 7}}}
    kube.merge(f"{services(namespace)}?fieldManager=keda-operator", scaled)
    proxy.requests.clear()
    assert "is Ready with release" in kdeploy("rollout").err
    assert proxy.writes() == []
    assert kdeploy("diff").code == 0
    assert kdeploy("rollout", "--no-wait", "--force-conflicts").code == 0
    assert kube.get(services(namespace))["spec"]["predictor"]["maxReplicas"] == 1


def test_status_works_without_a_complete_project(
    kdeploy: Kdeploy, play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kdeploy("rollout", "--no-wait").code == 0
    become_ready(play)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    text = '[model]\nname = "other"\nversion = "1"\nhandler = "h.py"\n[targets.production]\nkind = "kserve"\n'
    (elsewhere / "kdeploy.toml").write_text(text)
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert [entry.split()[0] for entry in kdeploy("rollout", "history", "digits").out.splitlines()] == [
        "NUMBER",
        "1",
    ]
    assert kdeploy("rollout", "history").out.splitlines()[1:] == []
    assert SECRET not in kdeploy("status", "digits", "-o", "json").out
