"""`kdeploy` commands on a cluster."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from deployer.config import Store
from deployer.store.open import open_store
from tests.cluster.commands import Kdeploy, become_ready
from tests.cluster.kube import Kube
from tests.cluster.play import RUNTIME, Play
from tests.cluster.proxy import Proxy
from tests.contract.sides import side_of


def test_a_second_rollout_of_a_release_writes_nothing(
    kdeploy: Kdeploy, rolled_out: str, proxy: Proxy, namespace: str
) -> None:
    proxy.requests.clear()
    ended = kdeploy("rollout")
    assert (ended.code, ended.out) == (0, f"{rolled_out}\n")
    assert f"unchanged: {namespace}/digits is Ready with release {rolled_out}" in ended.err
    assert proxy.writes() == []
    assert len(proxy.requests) <= 6


def test_pods_have_the_user_of_the_namespace_if_it_assigns_one(
    kdeploy: Kdeploy, kube: Kube, namespace: str
) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    services = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/digits"

    def rolled_out_as(*more: str) -> tuple[int | None, str]:
        ended = kdeploy("rollout", "--no-wait", *more)
        assert ended.code == 0, ended.err
        model = kube.get(services)["spec"]["predictor"]["model"]
        return model.get("securityContext", {}).get("runAsUser"), ended.out

    _, release = first = rolled_out_as()
    assert first == (1000, release)
    annotations = {"openshift.io/sa.scc.uid-range": "1000650000/10000"}
    kube.merge(path, {"metadata": {"annotations": annotations}})
    assert rolled_out_as() == (None, release)  # the release is the same
    chosen = ("--set", "targets.production.run-as-user=2000")
    assert rolled_out_as(*chosen) == (2000, release)
    assert "assigns 1000650000/10000" in kdeploy("plan", *chosen).err


def test_a_disruption_budget_comes_with_a_second_replica_and_goes_with_it(
    kdeploy: Kdeploy, rolled_out: str, kube: Kube, play: Play, namespace: str, proxy: Proxy
) -> None:
    budgets = f"/apis/policy/v1beta1/namespaces/{namespace}/poddisruptionbudgets"
    foreign = {"metadata": {"name": "theirs"}, "spec": {"maxUnavailable": 1, "selector": {}}}
    kube.create(budgets, foreign)
    scaled = ("--set", "scaling.max-replicas=2", "--set", "scaling.metric=cpu", "--set", "scaling.target=60")
    assert "PodDisruptionBudget/digits-kdeploy" in kdeploy("diff", *scaled).out
    ended = kdeploy("rollout", *scaled)
    assert (ended.code, ended.out) == (0, f"{rolled_out}\n")  # the same release
    [budget, _] = kube.get(budgets)["items"]
    assert budget["spec"]["maxUnavailable"] == 1
    services = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/digits"
    live = kube.get(services)
    assert live["spec"]["predictor"]["scaleMetric"] == "cpu"
    assert [owner["uid"] for owner in budget["metadata"]["ownerReferences"]] == [live["metadata"]["uid"]]
    proxy.requests.clear()
    assert "unchanged" in kdeploy("rollout", *scaled).err
    assert proxy.writes() == []
    assert kdeploy("diff", *scaled).code == 0
    kube.delete(f"{budgets}/digits-kdeploy")
    assert kdeploy("rollout", *scaled).code == 0
    assert len(kube.get(budgets)["items"]) == 2  # made again
    assert kdeploy("rollout").code == 0
    assert [one["metadata"]["name"] for one in kube.get(budgets)["items"]] == ["theirs"]


def test_status_list_plan_and_delete_work_on_a_cluster(
    kdeploy: Kdeploy, rolled_out: str, namespace: str, play: Play
) -> None:
    status = kdeploy("status").out
    assert "Ready" in status
    assert f"100% {rolled_out}" in status
    assert f"digits-{namespace}.example.com" in status
    listed = json.loads(kdeploy("list", "-o", "json").out)
    assert [one["reference"]["name"] for one in listed] == ["digits"]
    assert f"100% {rolled_out}" in kdeploy("list").out
    assert ["serving", "now", rolled_out] in [line.split() for line in kdeploy("plan").out.splitlines()]
    assert kdeploy("releases").out.split()[-1] == "yes"
    assert "nothing to delete" in kdeploy("prune", "--keep", "1").err
    assert "no logs found for" in kdeploy("logs").err
    assert kdeploy("delete", "--yes").code == 0
    assert kdeploy("status").code == 11


def test_commands_work_without_a_project(
    kdeploy: Kdeploy,
    rolled_out: str,
    play: Play,
    kubeconfig: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without kdeploy.toml, the kubeconfig's cluster is the target, and a command needs a service name."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert f"100% {rolled_out}" in kdeploy("status", "digits").out
    assert kdeploy("list", "-o", "name").out == "digits\n"
    assert rolled_out in kdeploy("rollout", "history", "digits").out
    assert kdeploy("logs", "digits").code == 0
    named = kdeploy("status", "letters", "-n", "default", "--kubeconfig", str(kubeconfig))
    assert (named.code, "service default/letters not found" in named.err) == (11, True)
    asked = kdeploy("predict", "--kserve", "--ingress", "http://127.0.0.1:9", "--service", "digits", "f.json")
    assert "f.json" in asked.err
    for command in (("status",), ("logs",), ("delete", "--yes"), ("rollout", "history")):
        ended = kdeploy(*command)
        assert (ended.code, "no service name" in ended.err) == (3, True)
    assert kdeploy("status", "digits", "-c", "kdeploy.toml").code == 3
    assert kdeploy("rollout").code == 3
    assert kdeploy("delete", "digits", "--yes").code == 0
    assert kdeploy("status", "digits").code == 11
    assert list(Path().iterdir()) == []


def test_a_failed_rollout_exits_with_8_and_names_the_reason(kdeploy: Kdeploy, play: Play) -> None:
    assert kdeploy("rollout", "--no-wait").code == 0
    release = play.service()["metadata"]["labels"]["kdeploy.dev/release"]
    play.pod(release, main={"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
    ended = kdeploy("rollout")
    assert ended.code == 8
    assert "ImagePullBackOff: cannot pull the image of container kserve-container" in ended.err


def test_a_timed_out_rollout_exits_with_9(kdeploy: Kdeploy) -> None:
    ended = kdeploy("rollout", "--timeout", "300ms")
    assert ended.code == 9
    assert "waiting for KServe to write a status" in ended.err


def test_a_dry_run_on_the_server_changes_nothing(
    kdeploy: Kdeploy, proxy: Proxy, namespace: str, kube: Kube
) -> None:
    ended = kdeploy("rollout", "--dry-run", "server", "-o", "name")
    assert ended.out.split() == [
        "ServiceAccount/digits-model-store",
        f"ServingRuntime/{RUNTIME}",
        "InferenceService/digits",
    ]
    assert [path for _, path in proxy.writes() if "dryRun=All" not in path] == []
    assert kdeploy("list").out.splitlines()[1:] == []
    ended = kdeploy("rollout", "--dry-run", "client", "-o", "name", "--set", "serving.gpu=1")
    assert (ended.code, "warning: no node has 1 nvidia.com/gpu now" in ended.err) == (0, True)


def test_a_rollout_that_cannot_work_is_refused(kdeploy: Kdeploy, rolled_out: str, proxy: Proxy) -> None:
    proxy.requests.clear()
    ended = kdeploy("rollout", "--canary", "10", "--set", "model.version=2.0")
    assert ended.code == 3
    assert "a canary has no effect in Standard mode" in ended.err
    assert proxy.writes() == []
    assert kdeploy("models", "list").code == 3
    assert kdeploy("local", "start").code == 3


BROKEN = ("--namespace", "missing", "--set", "serving.runtime=theirs")


@pytest.mark.parametrize(
    "command",
    [
        ("rollout",),
        ("rollout", "--no-wait"),
        ("rollout", "--dry-run", "client"),
        ("rollout", "--dry-run", "server"),
        ("plan",),
    ],
    ids=" ".join,
)
def test_all_failed_checks_are_printed_before_the_first_write(
    kdeploy: Kdeploy, proxy: Proxy, command: tuple[str, ...]
) -> None:
    ended = kdeploy(*command, *BROKEN)
    assert ended.code == 3
    assert "error: 2 checks failed" in ended.err
    assert "- serving.runtime: ServingRuntime or ClusterServingRuntime theirs not found" in ended.err
    assert "- namespace: namespace missing not found" in ended.err
    assert proxy.writes() == []
    assert kdeploy("releases").out.splitlines()[1:] == []
    # `render` works: with GitOps, another account applies the documents.
    assert kdeploy("render", *BROKEN).code == 0


def test_a_release_is_checked_before_its_archive_is_read(
    kdeploy: Kdeploy, proxy: Proxy, s3_config: Store, tmp_path: Path
) -> None:
    release = kdeploy("push").out.strip()
    store = open_store(s3_config, tmp_path)
    pushed = store.find("digits", release)
    assert pushed
    side_of(store).write(pushed, "model-store/digits.mar", b"damaged: a read would fail")
    assert kdeploy("rollout", "--release", release, "--namespace", "missing").code == 3
    assert kdeploy("rollout", "--release", release).code == 6
    assert proxy.writes() == []


def test_flags_choose_cluster_and_namespace(kdeploy: Kdeploy, kubeconfig: Path, namespace: str) -> None:
    assert kdeploy("list", "--context", "test", "--kubeconfig", str(kubeconfig), "-n", "default").code == 0
    ended = kdeploy("list", "--context", "missing")
    assert (ended.code, "missing" in ended.err) == (3, True)
    assert kdeploy("list", "--kubeconfig", "/no/such/file").code == 3


def test_an_interrupted_wait_keeps_the_release_and_can_be_run_again(
    kdeploy: Kdeploy, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deployer.targets.kserve.client.watch.Watching.wait", interrupted)
        assert kdeploy("rollout").code == 130
    assert [one for one in threading.enumerate() if one.name.startswith("watch ")] == []
    become_ready(play)
    assert kdeploy("rollout").code == 0


def test_each_target_has_its_own_ingress(kdeploy: Kdeploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDEPLOY_INGRESS", "http://127.0.0.1:9")
    on_cluster = kdeploy("predict", "--kserve", "handler.py")
    assert (on_cluster.code, "not found" in on_cluster.err) == (11, True)
    here = kdeploy("predict", "--kserve", "handler.py", "--set", 'targets={"l": {"kind": "local"}}')
    assert "supervisor is not running" in here.err


def test_the_doctor_checks_cluster_and_store(kdeploy: Kdeploy) -> None:
    ended = kdeploy("doctor", "-o", "json")
    assert "(context test)" in ended.out  # it names the cluster
    found = {one["name"]: one["status"] for one in json.loads(ended.out)}
    of_cluster = ["cluster", "KServe", "Knative", "ingress", "permissions", "admission"]
    of_release = ["namespace", "deployment mode", "host name", "runtime", "model store"]
    assert found == dict.fromkeys([*of_cluster, *of_release], "ok")
    ended = kdeploy("doctor", "--set", "serving.gpu=1")
    assert "no node has 1 nvidia.com/gpu" in ended.out
    assert ended.code == 0


def test_the_doctor_checks_the_documents_of_the_next_rollout(kdeploy: Kdeploy, proxy: Proxy) -> None:
    ended = kdeploy("doctor", "-o", "json", "--set", "serving.runtime=theirs")
    failed = {one["name"]: one["where"] for one in json.loads(ended.out) if one["status"] == "failure"}
    assert (ended.code, failed) == (14, {"runtime": "serving.runtime"})
    ended = kdeploy("doctor", "-o", "json", "--set", "model.serialized-file=none.pt")
    failed = {one["name"]: one["detail"] for one in json.loads(ended.out) if one["status"] == "failure"}
    assert ended.code == 14
    assert failed.keys() == {"release"}
    ended = kdeploy("doctor", "-o", "json", "--set", "store.uri=s3://no-such-bucket/x")
    failed = {one["name"]: one["detail"] for one in json.loads(ended.out) if one["status"] == "failure"}
    assert failed.keys() == {"model store"}
    assert "the bucket does not exist" in failed["model store"]
    forwarded = ("--set", "store.cluster-endpoint=http://localhost:9000")
    ended = kdeploy("doctor", "-o", "json", *forwarded)
    failed = {one["where"]: one["detail"] for one in json.loads(ended.out) if one["status"] == "failure"}
    assert (ended.code, *failed) == (14, "store.cluster-endpoint")
    for command in ("plan", "rollout"):
        ended = kdeploy(command, *forwarded)
        assert (ended.code, "a cluster cannot reach localhost:9000" in ended.err) == (3, True)
    assert proxy.writes() == []


def test_the_doctor_reports_a_cluster_that_it_cannot_use(kdeploy: Kdeploy, proxy: Proxy) -> None:
    with proxy.fault("GET", status=401, times=99):
        ended = kdeploy("doctor")
    assert ended.code == 14
    assert "Log in to the cluster again" in ended.err


def test_render_rbac_prints_the_role(kdeploy: Kdeploy, namespace: str) -> None:
    ended = kdeploy("render", "--rbac", "-o", "json")
    account, role, binding = json.loads(ended.out)
    assert [account["kind"], role["kind"], binding["kind"]] == ["ServiceAccount", "Role", "RoleBinding"]
    assert role["metadata"]["namespace"] == namespace
    assert "*" not in json.dumps(role["rules"])
