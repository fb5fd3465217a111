"""Finds the ingress from the objects of a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.config import KServeTarget
from deployer.errors import NotFoundError, TargetError
from deployer.observed import Reference
from deployer.targets.kserve import Cluster
from deployer.targets.protocols import Endpoint
from tests.cluster.calls import roll
from tests.cluster.kube import Kube
from tests.cluster.play import A, B, Play, documents

ISTIO = "/api/v1/namespaces/istio-system/services"


@pytest.fixture
def reference(cluster: Cluster, kube: Kube, namespace: str) -> Reference:
    made = roll(cluster, documents(namespace))
    Play(kube, namespace).ready(url="http://digits.team.example.com/serving/digits")
    return made


@pytest.fixture
def istio(kube: Kube) -> Iterator[str]:
    """Istio's ingress Service, without an address."""
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": "istio-system"}})
    ports = [
        {"name": "status-port", "port": 15021, "nodePort": 31021},
        {"name": "http2", "port": 8080, "nodePort": 31380},
        {"name": "https", "port": 443, "nodePort": 31390},
    ]
    spec = {"type": "NodePort", "ports": ports, "selector": {"istio": "ingressgateway"}}
    kube.create(ISTIO, {"metadata": {"name": "istio-ingressgateway"}, "spec": spec})
    yield f"{ISTIO}/istio-ingressgateway"
    kube.delete(f"{ISTIO}/istio-ingressgateway")


def test_a_load_balancer_is_the_ingress(
    cluster: Cluster, kube: Kube, reference: Reference, istio: str
) -> None:
    kube.merge(f"{istio}/status", {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}})
    wanted = Endpoint("http://203.0.113.9:8080/serving/digits", "digits.team.example.com", model="digits")
    assert cluster.reach.endpoint(reference) == wanted
    kube.merge(f"{istio}/status", {"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}}})
    Play(kube, reference.namespace).ready(url="https://digits.example.com")
    assert cluster.reach.endpoint(reference) == Endpoint(
        "https://lb.example.com:443",
        "digits.example.com",
        server_name="digits.example.com",
        model="digits",
    )


def test_a_node_port_is_the_ingress(cluster: Cluster, kube: Kube, reference: Reference, istio: str) -> None:
    kube.create("/api/v1/nodes", {"metadata": {"name": "n1"}})
    addresses = [
        {"type": "InternalIP", "address": "10.1.2.3"},
        {"type": "ExternalIP", "address": "2001:db8::1"},
    ]
    kube.merge("/api/v1/nodes/n1/status", {"status": {"addresses": addresses}})
    try:
        assert cluster.reach.endpoint(reference).url == "http://[2001:db8::1]:31380/serving/digits"
    finally:
        kube.delete("/api/v1/nodes/n1")


def test_a_named_ingress_is_used(kubeconfig: Path, reference: Reference) -> None:
    with Cluster(KServeTarget(kubeconfig=str(kubeconfig), ingress="http://127.0.0.1:9/")) as cluster:
        assert cluster.reach.endpoint(reference).url == "http://127.0.0.1:9/serving/digits"


def test_a_gateways_address_is_the_ingress(cluster: Cluster, kube: Kube, reference: Reference) -> None:
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": "kserve"}})
    ingress = json.dumps({"enableGatewayApi": True, "kserveIngressGateway": f"{reference.namespace}/main"})
    path = "/api/v1/namespaces/kserve/configmaps"
    kube.create(path, {"metadata": {"name": "inferenceservice-config"}, "data": {"ingress": ingress}})
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "main"},
        "status": {"addresses": [{"type": "IPAddress", "value": "198.51.100.7"}]},
    }
    try:
        kube.create(f"/apis/gateway.networking.k8s.io/v1/namespaces/{reference.namespace}/gateways", gateway)
        assert cluster.reach.endpoint(reference).url == "http://198.51.100.7/serving/digits"
    finally:
        kube.delete(f"{path}/inferenceservice-config")


def test_a_missing_service_or_url_is_an_error(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(NotFoundError):
        cluster.reach.endpoint(Reference(namespace, "digits"))
    with pytest.raises(TargetError, match="no URL yet"):
        cluster.reach.endpoint(roll(cluster, documents(namespace)))


def test_a_cluster_without_an_ingress_is_an_error(cluster: Cluster, reference: Reference) -> None:
    with pytest.raises(TargetError, match="no ingress") as caught:
        cluster.reach.endpoint(reference)
    assert "--ingress" in (caught.value.hint or "")


def test_one_release_is_reached_by_the_url_of_its_tag(kubeconfig: Path, kube: Kube, namespace: str) -> None:
    new, old, domain = "digits-predictor-00002", "digits-predictor-00001", "digits-predictor.team.example.com"
    play = Play(kube, namespace)
    with Cluster(KServeTarget(kubeconfig=str(kubeconfig), ingress="http://127.0.0.1:9/")) as cluster:
        for number, (release, percent) in enumerate(((A, 100), (B, 10)), 1):
            reference = roll(cluster, documents(namespace, release, mode="Knative", percent=percent))
            play.revision(release, number)
        written = play.service()["metadata"]["annotations"]
        assert written["serving.kserve.io/enable-tag-routing"] == "true"
        traffic = [
            {"revisionName": new, "percent": 10, "tag": "latest", "url": f"http://latest-{domain}"},
            {"revisionName": old, "percent": 90, "tag": "prev", "url": f"http://prev-{domain}"},
        ]
        play.ready_knative(new, traffic)
        for release, tag in ((A, "prev"), (B, "latest")):
            one = cluster.reach.endpoint(reference, release=release)
            assert one == Endpoint("http://127.0.0.1:9", f"{tag}-{domain}", model="digits")
        with pytest.raises(NotFoundError, match=r"release 1\.2-cccccccccccc has no URL"):
            cluster.reach.endpoint(reference, release="1.2-cccccccccccc")
        # A release with all traffic is reached by the service's URL.
        play.ready_knative(new)
        assert cluster.reach.endpoint(reference, release=B) == cluster.reach.endpoint(reference)
