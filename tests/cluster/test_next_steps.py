"""The commands that `kdeploy status` prints for a service on a cluster send a request as printed."""

from __future__ import annotations

import json
import selectors
import shlex
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployer.cli import next_steps
from deployer.cli.main import main
from deployer.config import KServeTarget
from deployer.observed import Reference
from deployer.targets.kserve import Cluster
from tests.cluster.calls import roll
from tests.cluster.kube import Kube
from tests.cluster.play import A, Play, documents
from tests.cluster.port_forward_kubelet import NODE, Kubelet
from tests.unit.predict.loopback import Asked, Reply, Server

HOST = "digits.team.example.com"
SECRET = "planted-s3cr3t"
Status = Callable[..., list[str]]


@pytest.fixture
def cluster(straight: Path) -> Iterator[Cluster]:
    """A cluster reached directly: the tests' proxy has no WebSockets."""
    with Cluster(KServeTarget(kubeconfig=str(straight))) as target:
        yield target


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    running.answering = answer
    yield running
    running.close()


def answer(asked: Asked) -> Reply:
    body = json.loads(asked.body)
    return Reply(200, json.dumps({"predictions": [asked.headers["host"], asked.path, list(body)]}).encode())


@pytest.fixture
def status(
    cluster: Cluster,
    kube: Kube,
    namespace: str,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Status:
    """Run `kdeploy status` and return the shell commands that it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(straight))
    monkeypatch.setenv("KDEPLOY_TOKEN", SECRET)
    play = Play(kube, namespace)

    def run(*arguments: str, protocol: str = "v1") -> list[str]:
        roll(cluster, documents(namespace, protocol_version=protocol))
        play.replica_set(A, available=1)
        play.ready(url=f"http://{HOST}/serving/digits")
        with pytest.raises(SystemExit) as ended:
            main(["status", "digits", *arguments])
        out, err = capfd.readouterr()
        assert (ended.value.code, err) == (0, "")
        assert SECRET not in out
        return [line for line in out.splitlines() if line.startswith("  ")]

    return run


@pytest.mark.parametrize(
    ("protocol", "path", "key"),
    [("v1", "/v1/models/digits:predict", "instances"), ("v2", "/v2/models/digits/infer", "inputs")],
)
def test_curl_through_the_address_of_the_ingress(
    status: Status, server: Server, protocol: str, path: str, key: str
) -> None:
    (curl,) = status("--set", f"targets.cluster.ingress={server.url}", protocol=protocol)
    assert send(curl) == [HOST, f"/serving/digits{path}", [key]]


def send(line: str) -> list[object]:
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    predictions: list[object] = json.loads(ended.stdout)["predictions"]
    return predictions


@pytest.fixture
def gateway(kube: Kube, server: Server) -> Iterator[str]:
    """A pod of Istio's ingress, which has no address outside the cluster: NAMESPACE/POD:PORT."""
    labels, core = {"istio": "ingressgateway"}, "/api/v1/namespaces/istio-system"
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": "istio-system"}})
    with Kubelet(kube) as kubelet:
        kubelet.ports[8081] = int(server.url.rpartition(":")[2])
        ports = [{"name": "http2", "port": 80, "targetPort": 8081}]
        service = {"metadata": {"name": "istio-ingressgateway"}, "spec": {"selector": labels, "ports": ports}}
        kube.create(f"{core}/services", service)
        spec = {"nodeName": NODE, "containers": [{"name": "gateway", "image": "i"}]}
        kube.create(f"{core}/pods", {"metadata": {"name": "gateway", "labels": labels}, "spec": spec})
        conditions = [{"type": "Ready", "status": "True"}]
        ready = {"status": {"phase": "Running", "conditions": conditions}}
        kube.merge(f"{core}/pods/gateway/status", ready)
        yield "istio-system/gateway:8081"
        kube.delete(f"{core}/services/istio-ingressgateway")
        kube.delete(f"{core}/pods/gateway?gracePeriodSeconds=0")


def test_curl_through_a_port_forward_to_the_ingress(
    status: Status,
    cluster: Cluster,
    gateway: str,
    namespace: str,
    straight: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(next_steps, "LOCAL_PORT", port)
        forward, curl = status("--kubeconfig", str(straight))
        assert shlex.split(forward) == [
            "kubectl",
            f"--kubeconfig={straight}",
            "port-forward",
            "--namespace=istio-system",
            "pod/gateway",
            f"{port}:8081",
        ]
        tunnel = cluster.reach.endpoint(Reference(namespace, "digits")).tunnel
        assert tunnel
        assert "{}/{}:{}".format(*tunnel.pod) == gateway
        with ThreadPoolExecutor(1) as kubectl:  # the test's kubelet knows only WebSockets, kubectl only SPDY
            kubectl.submit(forward_one, listener, tunnel.open)
            assert send(curl) == [HOST, "/serving/digits/v1/models/digits:predict", ["instances"]]


def forward_one(listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
    """Forward one connection, as `kubectl port-forward` does."""
    near, _ = listener.accept()
    with near, connect() as far, selectors.DefaultSelector() as selector:
        selector.register(near, selectors.EVENT_READ, far)
        selector.register(far, selectors.EVENT_READ, near)
        while True:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(65536)
                if not data:
                    return
                key.data.sendall(data)


def test_without_an_ingress_no_command_is_printed(status: Status, server: Server) -> None:
    assert status() == []
