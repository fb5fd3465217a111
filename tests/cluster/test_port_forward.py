"""Predictions without an ingress address: through the real API server to a simulated kubelet."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from deployer.config import KServeTarget
from deployer.errors import ConfigError, NotFoundError, RefusedError, TargetError
from deployer.observed import Reference
from deployer.predict import Client, Failure, Prediction
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE
from deployer.targets.protocols import Via
from tests.cluster.calls import roll
from tests.cluster.kube import Kube
from tests.cluster.play import A, B, Play, documents
from tests.cluster.port_forward_kubelet import NODE, Kubelet
from tests.cluster.proxy import Proxy

HOST = "digits.team.example.com"
KOURIER = "/api/v1/namespaces/kourier-system"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


class Ingress:
    """An HTTP server that answers V1 predictions and records the requests and their Host headers."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[tuple[str, str, int]] = []
        self.connections = 0
        self.together = threading.Barrier(1)
        ours = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                ours.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                ours.together.wait(20)
                ours.asked.append((self.headers["Host"], self.path, len(body)))
                data = json.dumps({"predictions": [[len(body)] * 50_000]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the tests break connections

        self._server = Quiet(("127.0.0.1", 0), Handler)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def ingress() -> Iterator[Ingress]:
    running = Ingress()
    yield running
    running.close()


@pytest.fixture
def kubelet(kube: Kube, ingress: Ingress) -> Iterator[Kubelet]:
    with Kubelet(kube) as running:
        running.ports[8081] = ingress.port
        yield running


@pytest.fixture
def cluster(straight: Path) -> Iterator[Cluster]:
    """A cluster without the tests' proxy."""
    with Cluster(KServeTarget(kubeconfig=str(straight))) as target:
        yield target


def straight_as(token: str, kube: Kube, namespace: str, folder: Path) -> str:
    """A kubeconfig of the API server, for the user of a token."""
    path = folder / f"{token}.yaml"
    path.write_text(yaml.safe_dump(kube.kubeconfig(token, namespace=namespace)))
    return str(path)


@pytest.fixture
def reference(cluster: Cluster, kube: Kube, namespace: str) -> Reference:
    made = roll(cluster, documents(namespace))
    Play(kube, namespace).ready(url=f"http://{HOST}/serving/digits")
    return made


def pod(kube: Kube, namespace: str, name: str, labels: dict[str, str], *, ready: bool = True) -> str:
    """Create a pod on the simulated kubelet's node."""
    ports = [{"name": "http8081", "containerPort": 8081}]
    spec = {"nodeName": NODE, "containers": [{"name": "gateway", "image": "i", "ports": ports}]}
    path = f"/api/v1/namespaces/{namespace}/pods"
    kube.create(path, {"metadata": {"name": name, "labels": labels}, "spec": spec})
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    kube.merge(f"{path}/{name}/status", {"status": {"phase": "Running", "conditions": conditions}})
    return f"{path}/{name}?gracePeriodSeconds=0"


def service(kube: Kube, namespace: str, name: str, labels: dict[str, str], port: str | int) -> str:
    path = f"/api/v1/namespaces/{namespace}/services"
    ports = [
        {"name": "http2", "port": 80, "targetPort": port},
        {"name": "https", "port": 443, "targetPort": 8443},
    ]
    spec = {"selector": labels, "ports": ports}
    kube.create(path, {"metadata": {"name": name}, "spec": spec})
    return f"{path}/{name}"


@pytest.fixture
def kourier(kube: Kube, kubelet: Kubelet) -> Iterator[str]:
    """Kourier with one ready pod, and without an address of its Service."""
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": "kourier-system"}})
    labels = {"app": "3scale-kourier-gateway"}
    made = [
        service(kube, "kourier-system", "kourier", labels, "http8081"),
        pod(kube, "kourier-system", "gateway-a", labels, ready=False),
        pod(kube, "kourier-system", "gateway-b", labels),
    ]
    yield "kourier-system/gateway-b:8081"
    for path in made:
        kube.delete(path)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.json" for number in range(8)]
    for number, path in enumerate(paths):
        path.write_text(json.dumps({"instances": [[number] * 100_000]}))
    return paths


def ask(cluster: Cluster, reference: Reference, files: list[Path]) -> list[Prediction | Failure]:
    with Client(cluster.reach.endpoint(reference), "digits", timeout=20) as client:
        return list(client.predict(files, "v1"))


def test_several_files_are_predicted_through_a_pod_of_the_ingress(
    cluster: Cluster,
    reference: Reference,
    kourier: str,
    kubelet: Kubelet,
    ingress: Ingress,
    files: list[Path],
) -> None:
    ingress.together = threading.Barrier(4)  # no request is answered before the fourth arrives
    answers = ask(cluster, reference, files)
    assert [answer.error for answer in answers if isinstance(answer, Failure)] == []
    assert {(host, path) for host, path, _ in ingress.asked} == {
        (HOST, "/serving/digits/v1/models/digits:predict")
    }
    assert [answer.value for answer in answers if isinstance(answer, Prediction)] == [
        [[size] * 50_000] for size in (path.stat().st_size for path in files)
    ]
    assert set(kubelet.opened) == {kourier}
    assert len(kubelet.opened) == ingress.connections <= 8  # connections are reused


def test_the_threads_end_with_the_client(
    cluster: Cluster, reference: Reference, kourier: str, files: list[Path]
) -> None:
    ask(cluster, reference, files)
    for thread in threading.enumerate():
        if thread.name == "port-forward":
            thread.join(10)
            assert not thread.is_alive()


def test_port_forward_can_be_named_as_the_ingress(
    kube: Kube,
    reference: Reference,
    kourier: str,
    kubelet: Kubelet,
    files: list[Path],
    straight: Path,
) -> None:
    address = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}
    kube.merge("/api/v1/namespaces/kourier-system/services/kourier/status", address)
    with Cluster(KServeTarget(kubeconfig=str(straight))) as cluster:
        assert cluster.reach.endpoint(reference).url == "http://203.0.113.9:80/serving/digits"
    with Cluster(KServeTarget(kubeconfig=str(straight), ingress="port-forward")) as cluster:
        assert isinstance(ask(cluster, reference, files[:1])[0], Prediction)
    assert kubelet.opened == [kourier]


def test_tls_ends_at_the_host(
    kube: Kube,
    cluster: Cluster,
    reference: Reference,
    kourier: str,
    kubelet: Kubelet,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(tls)
    secure = Ingress(tls)
    kubelet.ports[8443] = secure.port
    Play(kube, reference.namespace).ready(url=f"https://{HOST}")
    try:
        (untrusted,) = ask(cluster, reference, files[:1])
        assert isinstance(untrusted, Failure)
        assert "TLS failed" in untrusted.error.what
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        (answer,) = ask(cluster, reference, files[:1])
        assert isinstance(answer, Prediction), answer.error
    finally:
        secure.close()


def test_a_service_of_the_gateway_is_the_ingress(
    kube: Kube, cluster: Cluster, reference: Reference, kubelet: Kubelet, files: list[Path]
) -> None:
    """Its address is a cluster IP, which is not reachable from outside."""
    namespace = reference.namespace
    labels = {"gateway.networking.k8s.io/gateway-name": "main"}
    made = service(kube, namespace, "main-istio", labels, 8081)
    kube.merge(made, {"metadata": {"labels": labels}})
    pod(kube, namespace, "main-istio-a", labels)
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": "kserve"}})
    ingress = json.dumps({"enableGatewayApi": True, "kserveIngressGateway": f"{namespace}/main"})
    config = "/api/v1/namespaces/kserve/configmaps"
    kube.create(config, {"metadata": {"name": "inferenceservice-config"}, "data": {"ingress": ingress}})
    addresses = [
        {"type": "Hostname", "value": f"main-istio.{namespace}.svc.cluster.local"},
        {"type": "IPAddress", "value": kube.get(made)["spec"]["clusterIP"]},
    ]
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "main"},
        "status": {"addresses": addresses},
    }
    try:
        kube.create(f"/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/gateways", gateway)
        assert isinstance(ask(cluster, reference, files[:1])[0], Prediction)
    finally:
        kube.delete(f"{config}/inferenceservice-config")
    assert kubelet.opened == [f"{namespace}/main-istio-a:8081"]


def test_without_an_ingress_a_pod_of_the_service_answers(
    kube: Kube, cluster: Cluster, reference: Reference, kubelet: Kubelet, files: list[Path]
) -> None:
    labels = {"app": "isvc.digits-predictor"}
    service(kube, reference.namespace, "digits-predictor", labels, 8081)
    with pytest.raises(TargetError, match=r"no pod of Service test-\d+/digits-predictor is ready"):
        cluster.reach.endpoint(reference)
    pod(kube, reference.namespace, "digits-predictor-a", labels)
    assert isinstance(ask(cluster, reference, files[:1])[0], Prediction)


def test_a_cluster_local_service_is_reached_through_the_inner_ingress(
    kube: Kube, cluster: Cluster, reference: Reference, kourier: str, kubelet: Kubelet, files: list[Path]
) -> None:
    local = f"digits.{reference.namespace}.svc.cluster.local"
    Play(kube, reference.namespace).ready(url=f"http://{local}")
    labels = {"app": "kourier-internal"}
    made = [
        service(kube, "kourier-system", "kourier-internal", labels, 8081),
        pod(kube, "kourier-system", "internal", labels),
    ]
    try:
        assert cluster.reach.endpoint(reference).host == local
        assert isinstance(ask(cluster, reference, files[:1])[0], Prediction)
    finally:
        for path in made:
            kube.delete(path)
    assert kubelet.opened == ["kourier-system/internal:8081"]


class TestRefusals:
    def test_a_port_on_which_nothing_listens(
        self, cluster: Cluster, reference: Reference, kourier: str, kubelet: Kubelet, files: list[Path]
    ) -> None:
        kubelet.ports.clear()
        (answer,) = ask(cluster, reference, files[:1])
        assert isinstance(answer, Failure)
        assert "nothing listens on port 8081 of the pod" in answer.error.what
        assert answer.error.where == "pod kourier-system/gateway-b"

    def test_an_ingress_that_closes_the_connection(
        self,
        cluster: Cluster,
        reference: Reference,
        kourier: str,
        ingress: Ingress,
        files: list[Path],
    ) -> None:
        ingress.together.abort()  # its handler ends with the connection
        (answer,) = ask(cluster, reference, files[:1])
        assert isinstance(answer, Failure)
        assert "the connection was closed before the response was complete" in answer.error.what

    def test_a_forward_that_breaks(
        self,
        cluster: Cluster,
        reference: Reference,
        kourier: str,
        kubelet: Kubelet,
        ingress: Ingress,
        files: list[Path],
    ) -> None:
        ingress.together = threading.Barrier(2)  # the request arrived and is never answered
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, cluster, reference, files[:1])
            while not ingress.together.n_waiting:
                time.sleep(0.01)
            kubelet.reset()
            (answer,) = asked.result(20)
        ingress.together.abort()
        assert isinstance(answer, Failure)
        assert "the connection to the API server broke" in answer.error.what

    def test_credentials_do_not_follow_a_redirect(
        self, kubeconfig: Path, proxy: Proxy, reference: Reference, kourier: str, files: list[Path]
    ) -> None:
        elsewhere = {"Location": f"{proxy.url}/elsewhere".replace("https", "wss")}
        with (
            Cluster(KServeTarget(kubeconfig=str(kubeconfig))) as cluster,
            proxy.fault("/portforward", status=302, headers=elsewhere),
            pytest.raises(TargetError, match="the connection to the API server broke"),
        ):
            ask(cluster, reference, files[:1])
        assert [path for _, path in proxy.requests if "elsewhere" in path] == []

    def test_a_node_that_is_not_reachable(
        self, cluster: Cluster, reference: Reference, kourier: str, kubelet: Kubelet, files: list[Path]
    ) -> None:
        kubelet.stop()
        with pytest.raises(TargetError, match="cannot reach the pod's node"):
            ask(cluster, reference, files[:2])

    @pytest.mark.parametrize("lacking", ["services", "pods", "pods/portforward"])
    def test_a_missing_permission_is_named(
        self,
        kube: Kube,
        reference: Reference,
        kourier: str,
        files: list[Path],
        tmp_path: Path,
        lacking: str,
    ) -> None:
        granted = {"services": ["get"], "pods": ["list"], "pods/portforward": ["get"], "nodes": ["list"]}
        rules = [
            {"apiGroups": [""], "resources": [resource], "verbs": verbs}
            for resource, verbs in granted.items()
            if resource != lacking
        ]
        services = {"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": ["get"]}
        metadata = {"name": f"{reference.namespace}-reader"}
        kube.create(f"{RBAC}/clusterroles", {"metadata": metadata, "rules": [*rules, services]})
        binding = {
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", **metadata},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "ci"}],
        }
        kube.create(f"{RBAC}/clusterrolebindings", binding)
        config = straight_as("ci-token", kube, reference.namespace, tmp_path)
        try:
            with Cluster(KServeTarget(kubeconfig=config)) as cluster:
                wait_until_granted(cluster)
                with pytest.raises(RefusedError, match=f"user ci cannot .* {lacking}") as caught:
                    ask(cluster, reference, files[:1])
        finally:
            kube.delete(f"{RBAC}/clusterrolebindings/{metadata['name']}")
            kube.delete(f"{RBAC}/clusterroles/{metadata['name']}")
        assert "--ingress" in (caught.value.hint or "")


def wait_until_granted(cluster: Cluster) -> None:
    end = time.monotonic() + 10
    while not cluster.api.allowed("get", INFERENCE_SERVICE, cluster.services.namespace):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_one_release_is_reached_at_its_ready_pod(
    cluster: Cluster,
    reference: Reference,
    kube: Kube,
    kubelet: Kubelet,
    ingress: Ingress,
    namespace: str,
    files: list[Path],
) -> None:
    labels = Play(kube, namespace).labels
    kubelet.ports[8080] = kubelet.ports[8082] = ingress.port
    pod(kube, namespace, "digits-a", labels(A))
    pod(kube, namespace, "digits-b0", labels(B), ready=False)
    pod(kube, namespace, "digits-b1", labels(B))
    pod(kube, namespace, "digits-c", {**labels(B), "app": "isvc.digits-canary-predictor"})
    for via in (Via.INGRESS, Via.DIRECT):
        with Client(cluster.reach.endpoint(reference, via, release=B), "digits", timeout=20) as client:
            (answer,) = client.predict(files[:1], "v1")
            assert isinstance(answer, Prediction)
    assert set(kubelet.opened) == {f"{namespace}/digits-b1:8080"}
    metrics = cluster.reach.endpoint(reference, Via.METRICS, release=A)
    assert (metrics.url, metrics.host) == ("http://digits-a:8082", None)
    with pytest.raises(NotFoundError, match=r"no pod of release 1\.2-cccccccccccc is ready"):
        cluster.reach.endpoint(reference, Via.METRICS, release="1.2-cccccccccccc")
    for via in (Via.DIRECT, Via.MANAGEMENT):
        with pytest.raises(ConfigError, match="cannot reach TorchServe's own ports"):
            cluster.reach.endpoint(reference, via)
