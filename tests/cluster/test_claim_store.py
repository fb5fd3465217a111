"""A model store in a claim, from the command through the API server to a simulated kubelet."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from deployer.cli.main import main
from deployer.config import KServeTarget, Store
from deployer.targets.kserve import Cluster
from tests.cluster.kube import ADMIN, Kube
from tests.cluster.kubelet import Kubelet
from tests.cluster.proxy import Proxy
from tests.stores.azurite import Tunnel

CONFIG = """
[model]
name = "digits"
version = "1.0"
handler = "handler.py"
serialized-file = "weights.pt"

[store]
uri = "pvc://models/a/b"

[targets.production]
kind = "kserve"
deployment-mode = "Standard"
"""
SIZE = 24_000_000  # bytes of the weights: between one and two segments of an upload
SEGMENT = 16 << 20
CLAIM = {
    "metadata": {"name": "models"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}


class Ended:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Kdeploy = Callable[..., Ended]


@pytest.fixture
def kubelet(kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Kubelet]:
    with Kubelet(kube, namespace, tmp_path) as running:
        yield running


@pytest.fixture
def claim(kube: Kube, namespace: str) -> None:
    kube.create(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", CLAIM)


@pytest.fixture
def kdeploy(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Kdeploy:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "kdeploy.toml").write_text(CONFIG)
    (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
    (folder / "weights.pt").write_bytes(os.urandom(100_000))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert ADMIN not in out + err
        return Ended(int(caught.value.code or 0), out, err)

    return run


@pytest.fixture
def large(kdeploy: Kdeploy) -> None:
    """Write weights larger than one segment of an upload."""
    Path("weights.pt").write_bytes(os.urandom(SIZE))


def pods(kube: Kube, namespace: str) -> list[str]:
    found = kube.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    return [pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]]


def test_releases_are_pushed_listed_verified_and_pruned(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, large: None, kube: Kube, namespace: str
) -> None:
    pushed = kdeploy("push")
    assert pushed.code == 0, pushed.err
    release = pushed.out.strip()
    place = kubelet.path("models") / "a/b/digits" / release
    assert json.loads((place / "release.json").read_text())["id"] == release
    assert f"to pvc://models/a/b/digits/{release}/" in pushed.err
    kubelet.commands.clear()
    again = kdeploy("push", "--set", "targets.laptop.kind=local")  # the claim is on the only cluster
    assert (again.out, "unchanged" in again.err) == (pushed.out, True)
    assert len(kubelet.commands) == 1
    assert kdeploy("releases", "-o", "name").out == pushed.out
    assert kdeploy("verify").code == 0
    other = kdeploy("push", "--set", "serving.batch-size=2").out
    assert "younger than" in kdeploy("prune", "--keep", "1", "--yes").err
    assert kdeploy("prune", "--keep", "1", "--yes", "--min-age", "0s").out == pushed.out
    assert kdeploy("releases", "-o", "name").out == other
    assert pods(kube, namespace) == []
    assert len(kubelet.pods) == 8  # one for each command


def test_flags_choose_the_cluster_of_the_claim(
    kdeploy: Kdeploy,
    kubelet: Kubelet,
    claim: None,
    kubeconfig: Path,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/no/such/file")
    two = ("--set", "targets.other.kind=kserve", "--target", "production", "-n", namespace)
    where = (*two, "--kubeconfig", str(kubeconfig), "--context", "test")
    prune = ("prune", "--keep", "1", "--yes", "--ignore-target", "other")
    for command in (("push",), ("releases",), ("verify",), prune):
        ended = kdeploy(*command, *where)
        assert ended.code == 0, ended.err


def test_the_pod_satisfies_restricted_pod_security(kdeploy: Kdeploy, kubelet: Kubelet, claim: None) -> None:
    assert kdeploy("releases", "--set", "store.helper-image=busybox").code == 0
    (pod,) = kubelet.pods
    spec = pod["spec"]
    (container,) = spec["containers"]
    assert container["image"] == "busybox"
    assert (spec["automountServiceAccountToken"], spec["activeDeadlineSeconds"]) == (False, 3600)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_pod_has_the_user_of_the_namespace_or_of_the_target(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, kube: Kube, namespace: str
) -> None:
    assert kdeploy("releases").code == 0
    annotations = {"openshift.io/sa.scc.uid-range": "1000650000/10000"}
    kube.merge(f"/api/v1/namespaces/{namespace}", {"metadata": {"annotations": annotations}})
    assert kdeploy("releases").code == 0
    assert kdeploy("releases", "--set", "targets.production.run-as-user=2000").code == 0
    keys = ("runAsUser", "runAsGroup", "fsGroup")
    contexts = [pod["spec"]["securityContext"] for pod in kubelet.pods]
    assert [[one.get(key) for key in keys] for one in contexts] == [[1000] * 3, [None] * 3, [2000] * 3]
    assert all(one["runAsNonRoot"] for one in contexts)


def test_a_plan_creates_no_pod(kdeploy: Kdeploy, claim: None, proxy: Proxy) -> None:
    assert "unless the release is in the model store" in kdeploy("plan").out
    documents = json.loads(kdeploy("render", "-o", "json").out)
    assert [document["kind"] for document in documents] == ["ServingRuntime", "InferenceService"]
    predictor = documents[-1]["spec"]["predictor"]
    assert predictor["model"]["storageUri"].startswith("pvc://models/a/b/digits/1.0-")
    assert predictor["serviceAccountName"] == "default"
    assert kdeploy("rollout", "--dry-run", "server").code == 0
    assert [path for _, path in proxy.writes() if "dryRun=All" not in path] == []


def test_the_pod_is_deleted_before_the_service_is_created(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, proxy: Proxy
) -> None:
    """Otherwise a ReadWriteOnce volume could keep the service's pods from mounting it."""
    assert kdeploy("rollout", "--no-wait").code == 0
    wrote = [f"{method} {path}" for method, path in proxy.writes() if "/pods" in path or "inference" in path]
    assert [line.split("/")[0] for line in wrote] == ["POST ", "DELETE ", "PATCH "]


@pytest.mark.parametrize("seed", range(2))
def test_a_broken_stream_is_resumed(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, large: None, proxy: Proxy, seed: int
) -> None:
    moments = random.Random(seed)
    with contextlib.ExitStack() as faults:
        for _ in range(4):
            cut = int(10 ** moments.uniform(0, 7.5))
            faults.enter_context(proxy.fault("GET .*/exec", cut=cut))
        assert kdeploy("push").code == 0
        assert len(kubelet.pods) == 1
    assert kdeploy("verify").code == 0


def test_a_failing_api_server_is_retried(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, proxy: Proxy
) -> None:
    with (
        proxy.fault("GET .*/exec", status=500),
        proxy.fault("GET .*/exec", status=503),
        proxy.fault("POST .*/pods", lost=True),
        proxy.fault("DELETE .*/pods", lost=True),
    ):
        assert kdeploy("push").code == 0
    assert len(kubelet.pods) == 1
    assert len(kubelet.commands) > 1


def test_a_stream_that_keeps_breaking_is_an_error(
    kdeploy: Kdeploy,
    kubelet: Kubelet,
    claim: None,
    proxy: Proxy,
    kube: Kube,
    namespace: str,
) -> None:
    with proxy.fault("GET .*/exec", cut=1, times=99):
        ended = kdeploy("releases")
    assert (ended.code, "broke" in ended.err) == (5, True)
    assert pods(kube, namespace) == []


def test_the_end_of_stdin_that_exec_loses_is_sent_again(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, large: None
) -> None:
    kubelet.loses = [0, 50_000]
    assert kdeploy("push").code == 0
    assert kdeploy("verify").code == 0
    assert SIZE < kubelet.received < SIZE + SEGMENT


def test_a_stalled_stream_is_resumed(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, large: None, be_patient: Callable[..., None]
) -> None:
    be_patient(stream=0.7)
    kubelet.stalls = 1
    assert kdeploy("push").code == 0
    assert kubelet.stalls == 0


def test_an_image_without_a_shell_is_an_error(kdeploy: Kdeploy, kubelet: Kubelet, claim: None) -> None:
    kubelet.refuses = 'error executing command in container: exec: "sh": executable file not found in $PATH'
    ended = kdeploy("push")
    assert ended.code == 5
    assert "lacks a program" in ended.err
    assert "store.helper-image" in ended.err


def test_a_pod_that_ended_is_replaced(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, large: None, kube: Kube, namespace: str
) -> None:
    def end_it() -> None:
        assert kubelet.executing.wait(20)
        kube.delete(f"/api/v1/namespaces/{namespace}/pods/{kubelet.pods[0]['metadata']['name']}")

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end_it)
        assert kdeploy("push").code == 0
        ending.result()
    assert len(kubelet.pods) == 2
    assert pods(kube, namespace) == []


@pytest.fixture
def start(kdeploy: Kdeploy) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    children = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[2])
        command = [sys.executable, "-m", "deployer", *arguments]
        children.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root}))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_deletes_its_pod(
    start: Callable[..., subprocess.Popen[bytes]],
    kubelet: Kubelet,
    claim: None,
    large: None,
    kube: Kube,
    namespace: str,
    by: signal.Signals,
    code: int,
) -> None:
    child = start("push")
    assert kubelet.executing.wait(20)
    child.send_signal(by)
    assert child.wait(20) == code
    assert pods(kube, namespace) == []


def test_the_next_push_resumes_a_killed_one_and_deletes_its_ended_pod(
    kdeploy: Kdeploy,
    start: Callable[..., subprocess.Popen[bytes]],
    kubelet: Kubelet,
    claim: None,
    large: None,
    kube: Kube,
    namespace: str,
) -> None:
    child = start("push")
    assert kubelet.wait_for(SEGMENT + (2 << 20))
    child.kill()
    child.wait()
    kubelet.settle()
    (left,) = pods(kube, namespace)
    kubelet.received = 0
    assert kdeploy("push").code == 0
    assert kubelet.received < SIZE - SEGMENT + 200_000  # the adapter and the ends of files
    assert pods(kube, namespace) == [left]  # another command can still use it
    kubelet.set_status(left, {"phase": "Failed", "reason": "DeadlineExceeded"})
    assert kdeploy("verify").code == 0
    assert pods(kube, namespace) == []


def test_a_claim_is_created_on_request(
    kdeploy: Kdeploy, kubelet: Kubelet, kube: Kube, namespace: str
) -> None:
    ended = kdeploy("push")
    assert ended.code == 5
    assert f"PersistentVolumeClaim models not found in namespace {namespace}" in ended.err
    assert 'create-claim = "10Gi"' in ended.err
    assert kubelet.pods == []
    assert kdeploy("push", "--set", "store.create-claim=10Gi").code == 0
    made = kube.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/models")["spec"]
    assert made["accessModes"] == ["ReadWriteMany"]
    assert made["resources"]["requests"]["storage"] == "10Gi"


def test_a_pod_that_cannot_run_fails_immediately(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, kube: Kube, namespace: str
) -> None:
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
    container = {"name": "shell", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    kubelet.status = {"containerStatuses": [{**container, "state": waiting}]}
    ended = kdeploy("push")
    assert ended.code == 5
    assert "ErrImagePull: cannot pull the image of container shell" in ended.err
    assert "no such image" in ended.err
    assert pods(kube, namespace) == []


def test_a_pod_that_ends_before_it_runs_is_an_error(kdeploy: Kdeploy, kubelet: Kubelet, claim: None) -> None:
    ended_so = {"terminated": {"exitCode": 128, "reason": "StartError", "message": "no sleep in this image"}}
    container = {"name": "shell", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    kubelet.status = {"phase": "Failed", "containerStatuses": [{**container, "state": ended_so}]}
    ended = kdeploy("push")
    assert ended.code == 5
    assert "ended before it ran: StartError: no sleep in this image" in ended.err


def test_the_reason_for_waiting_is_a_warning(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, be_patient: Callable[..., None]
) -> None:
    message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    kubelet.status = {"conditions": [condition]}
    be_patient(start=1.5)
    ended = kdeploy("push")
    assert (ended.code, ended.err.count(message)) == (5, 2)
    assert "warning: the pod that mounts claim models is waiting: Unschedulable" in ended.err
    assert "describe pvc models" in ended.err


@pytest.mark.parametrize("named", [True, False], ids=["proxy-url", "HTTPS_PROXY"])
def test_a_push_goes_through_a_proxy(
    kube: Kube,
    kubelet: Kubelet,
    claim: None,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    named: bool,
) -> None:
    tunnel = Tunnel("cluster.example", kube.port)
    url = tunnel.url.replace("//", "//me:p%40ss@")
    config = kube.kubeconfig(ADMIN, server="https://cluster.example", namespace=namespace)
    config["clusters"][0]["cluster"]["tls-server-name"] = "localhost"
    if named:
        config["clusters"][0]["cluster"]["proxy-url"] = url
        monkeypatch.setenv("NO_PROXY", "*")  # names the environment's proxy
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9" if named else url)
    (tmp_path / "proxied").write_text(yaml.safe_dump(config))
    assert run_there(tmp_path / "proxied") == "hello wörld\n".encode()
    account = b64encode(b"me:p@ss")
    assert len(tunnel.heads) > 1  # requests, and a WebSocket
    assert [head for head in tunnel.heads if account not in head] == []
    tunnel.close()


def test_the_environments_proxy_is_not_used_for_loopback(
    kubelet: Kubelet, claim: None, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert run_there(straight) == "hello wörld\n".encode()


def run_there(kubeconfig: Path) -> bytes:
    with Cluster(KServeTarget(kubeconfig=str(kubeconfig)), Store(uri="pvc://models")) as cluster:
        shell = cluster.shell("image", print)
        text = b"".join(shell.run('head -c 5; echo "$1"', " wörld", source=[b"hello"]))
        shell.close()
        return text


def test_a_quota_that_rejects_the_pod_is_an_error(
    kdeploy: Kdeploy, kubelet: Kubelet, claim: None, proxy: Proxy
) -> None:
    text = 'pods "x" is forbidden: exceeded quota: team, requested: pods=1, used: pods=5, limited: pods=5'
    with proxy.fault("POST .*/pods", status=403, message=text):
        ended = kdeploy("push")
    assert ended.code == 5
    assert "exceeded quota: team" in ended.err


def test_the_local_target_cannot_read_a_claim(kdeploy: Kdeploy, proxy: Proxy) -> None:
    ended = kdeploy("rollout", "--set", 'targets={"l": {"kind": "local"}}')
    assert ended.code == 3
    assert "not from pvc://" in ended.err
    assert proxy.requests == []


def test_the_doctor_checks_the_claim(kdeploy: Kdeploy, kube: Kube, namespace: str) -> None:
    def finding(*flags: str) -> tuple[str, str]:
        found = json.loads(kdeploy("doctor", "-o", "json", *flags).out)
        (one,) = [each for each in found if each["name"] == "claim"]
        return one["status"], one["detail"]

    assert finding() == ("failure", f"PersistentVolumeClaim models not found in namespace {namespace}")
    assert finding("--set", "store.create-claim=1Gi")[0] == "ok"
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    kube.create(path, {**CLAIM, "spec": {**CLAIM["spec"], "accessModes": ["ReadWriteOnce"]}})
    assert finding() == ("ok", "models, Pending")
    several = finding("--set", "scaling.max-replicas=2")
    assert several == ("warning", "claim models is ReadWriteOnce: replicas on other nodes cannot start")


def test_the_role_includes_claims_only_if_the_store_is_one(kdeploy: Kdeploy, kubeconfig: Path) -> None:
    role = json.loads(kdeploy("render", "--rbac", "-o", "json").out)[1]
    rules = {rule["resources"][0]: rule["verbs"] for rule in role["rules"]}
    assert rules["persistentvolumeclaims"] == ["get"]
    assert rules["pods/exec"] == ["get", "create"]
    assert rules["pods"] == ["list", "watch", "get", "create", "delete"]
    other = kdeploy("render", "--rbac", "-o", "json", "--store", "s3://models").out
    assert "persistentvolumeclaims" not in other
    assert "pods/exec" not in other
