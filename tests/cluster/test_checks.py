"""Checks on a cluster before the first write: they read each object once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployer.bundle import Bundle
from deployer.config import KServeTarget
from deployer.errors import ConfigError
from deployer.observed import Document
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.preflight.rules.documents import DOCUMENT_MAX
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE
from tests.cluster.calls import doctor, warned
from tests.cluster.conftest import CONFIG_MAPS, Put
from tests.cluster.kube import Kube
from tests.cluster.play import documents
from tests.cluster.proxy import Proxy

RUNTIMES = "/apis/serving.kserve.io/v1alpha1"
GATEWAYS = "/apis/gateway.networking.k8s.io/v1/namespaces/kserve/gateways"


def on_cluster_runtime(namespace: str, mode: str = "Standard") -> Bundle:
    """Render a release for a runtime of the cluster."""
    return documents(namespace, mode=mode, runtime="theirs")


def runtime(**spec: Any) -> Document:
    formats = [{"name": "pytorch", "version": "1"}]
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "spec": {"supportedModelFormats": formats, "containers": [{"name": "kserve-container"}], **spec},
    }


ROOM = {"cpu": "4", "memory": "16Gi"}


@contextmanager
def refused(*what: str) -> Iterator[None]:
    with pytest.raises(ConfigError) as caught:
        yield
    for one in what:
        assert one in caught.value.what


def test_each_object_is_read_once(
    cluster: Cluster, kserve: Callable[..., None], put: Put, namespace: str, proxy: Proxy
) -> None:
    kserve(mode="Knative", version="0.15.2", enableGatewayApi=True, kserveIngressGateway="kserve/gateway")
    put(GATEWAYS, "gateway", apiVersion="gateway.networking.k8s.io/v1", kind="Gateway")
    put(f"{RUNTIMES}/clusterservingruntimes", "theirs", kind="ClusterServingRuntime", **runtime())
    made = documents(namespace, gpu=1, runtime="theirs")
    made.service["spec"]["predictor"]["model"]["storageUri"] = "pvc://models/digits/"
    made.service["spec"]["predictor"]["canaryTrafficPercent"] = 10
    with refused(
        "3 checks", "a canary has no effect", "KServe 0.15.2 does not know", "PersistentVolumeClaim models"
    ):
        warned(cluster, made)
    asked = Counter(path.partition("?")[0] for method, path in proxy.requests if method == "GET")
    assert max(asked.values()) == 1
    assert len(asked) == 11
    assert proxy.writes() == []


def test_a_missing_namespace_is_a_failure(cluster: Cluster, kube: Kube) -> None:
    with refused("namespace missing not found"):
        warned(cluster, documents("missing"))
    control_plane = {"metadata": {"name": "plane", "labels": {"control-plane": "x"}}}
    kube.request("POST", "/api/v1/namespaces", control_plane)
    with refused("belongs to a control plane"):
        warned(cluster, documents("plane"))


def test_kserves_domain_template_is_used(
    cluster: Cluster, kserve: Callable[..., None], kube: Kube, kubeconfig: Path
) -> None:
    long = "n" * 50
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": long}})
    with refused("has 67 characters"):
        warned(cluster, documents(long))
    template = "{{ .Name }}.{{ .Namespace }}.{{ .IngressDomain }}"
    with Cluster(KServeTarget(kubeconfig=str(kubeconfig), domain_template=template)) as told:
        assert warned(told, documents(long)) == []
    kserve(domainTemplate=template, ingressDomain="models.example.org", urlScheme="https")
    with Cluster(KServeTarget(kubeconfig=str(kubeconfig))) as fresh:
        assert warned(fresh, documents(long)) == []
        details = {one.name: one.detail for one in doctor(fresh, documents(long))}
    assert details["host name"] == f"digits.{long}.models.example.org"
    assert details["ingress"] == f"ingress class istio, https://, {template}, domain models.example.org"
    assert details["KServe"] == "0.20.0, Standard mode by default"


def test_a_missing_gateway_is_a_failure(
    cluster: Cluster, kserve: Callable[..., None], put: Put, namespace: str
) -> None:
    kserve(enableGatewayApi=True, kserveIngressGateway="kserve/gateway")
    with refused("Gateway kserve/gateway not found"):
        warned(cluster, documents(namespace))
    put(GATEWAYS, "gateway", apiVersion="gateway.networking.k8s.io/v1", kind="Gateway")
    assert warned(cluster, documents(namespace)) == []


def test_a_runtime_of_the_cluster_is_checked(cluster: Cluster, kube: Kube, namespace: str, put: Put) -> None:
    with refused("ServingRuntime or ClusterServingRuntime theirs not found"):
        warned(cluster, on_cluster_runtime(namespace))
    put(f"{RUNTIMES}/clusterservingruntimes", "theirs", kind="ClusterServingRuntime", **runtime())
    assert warned(cluster, on_cluster_runtime(namespace)) == []
    # A ServingRuntime of the namespace wins over a ClusterServingRuntime.
    here = {"metadata": {"name": "theirs"}, "kind": "ServingRuntime", **runtime(protocolVersions=["v2"])}
    kube.create(f"{RUNTIMES}/namespaces/{namespace}/servingruntimes", here)
    with refused("theirs supports protocol v2, not v1"):
        warned(cluster, on_cluster_runtime(namespace))


def test_a_runtime_that_needs_a_knative_feature(
    cluster: Cluster, kserve: Callable[..., None], put: Put, namespace: str, proxy: Proxy
) -> None:
    kserve(mode="Knative")
    picky = runtime(nodeSelector={"gpu": "a100"})
    put(f"{RUNTIMES}/clusterservingruntimes", "theirs", kind="ClusterServingRuntime", **picky)
    with refused("Knative rejects nodeSelector while its feature kubernetes.podspec-nodeselector is off"):
        warned(cluster, on_cluster_runtime(namespace, "Knative"))
    flags = {"kubernetes.podspec-nodeselector": "enabled"}
    put(CONFIG_MAPS.format("knative-serving"), "config-features", data=flags)
    assert warned(cluster, on_cluster_runtime(namespace, "Knative")) == []
    assert warned(cluster, documents(namespace, mode="Knative")) == []
    assert [path for _, path in proxy.requests if "config-features" in path] == [
        "/api/v1/namespaces/knative-serving/configmaps/config-features"
    ] * 2


def test_a_claim_is_checked(cluster: Cluster, kube: Kube, namespace: str, put: Put) -> None:
    made = documents(namespace)
    made.service["spec"]["predictor"]["model"]["storageUri"] = "pvc://models/digits/"
    with refused("PersistentVolumeClaim models not found"):
        warned(cluster, made)
    kind = {"provisioner": "x.example.org", "volumeBindingMode": "Immediate"}
    put("/apis/storage.k8s.io/v1/storageclasses", f"at-once-{namespace}", **kind)
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    resources = {"requests": {"storage": "1Gi"}}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": resources}
    kube.create(
        path, {"metadata": {"name": "models"}, "spec": {**spec, "storageClassName": f"at-once-{namespace}"}}
    )
    with refused("models is Pending"):
        warned(cluster, made)
    kube.merge(f"{path}/models/status", {"status": {"phase": "Bound"}})
    assert warned(cluster, made) == []
    made.service["spec"]["predictor"]["maxReplicas"] = 2
    assert "claim models is ReadWriteOnce" in warned(cluster, made)[0]


def test_a_gpu_that_no_node_has_is_a_warning(cluster: Cluster, kube: Kube, namespace: str, put: Put) -> None:
    (text,) = warned(cluster, documents(namespace, gpu=2))
    assert text.startswith("no node has 2 nvidia.com/gpu now")
    put("/api/v1/nodes", f"node-{namespace}")
    kube.merge(f"/api/v1/nodes/node-{namespace}", {"spec": {"taints": None}})  # it is ready
    kube.merge(
        f"/api/v1/nodes/node-{namespace}/status", {"status": {"allocatable": ROOM | {"nvidia.com/gpu": "2"}}}
    )
    assert warned(cluster, documents(namespace, gpu=2)) == []


def test_a_document_larger_than_the_api_server_accepts(cluster: Cluster, kube: Kube, namespace: str) -> None:
    smaller, larger = (documents(namespace, env={"A": "x" * (DOCUMENT_MAX + by)}) for by in (-4096, 4096))
    assert warned(cluster, smaller) == []
    with refused("but the API server accepts 1,572,864"):
        warned(cluster, larger)
    made = [kube.request("POST", INFERENCE_SERVICE.path(namespace), one.service) for one in (larger, smaller)]
    assert [status for status, _ in made] == [500, 201]
    assert "too large" in made[0][1]["message"]


def test_a_cluster_without_kserve_is_refused(cluster: Cluster, proxy: Proxy, namespace: str) -> None:
    with proxy.fault("GET /apis/serving.kserve.io/v1beta1$", status=404, message="page not found", times=9):
        found = doctor(cluster, documents(namespace))
    assert [(one.name, one.status) for one in found] == [("cluster", "ok"), ("KServe", "failure")]


def test_the_doctor_names_the_checks_that_it_cannot_make(
    kube: Kube, proxy: Proxy, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "guest"
    path.write_text(yaml.safe_dump(kube.kubeconfig("guest-token", server=proxy.url, namespace=namespace)))
    rule = {"apiGroups": ["serving.kserve.io"], "resources": ["inferenceservices"], "verbs": ["get"]}
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    kube.create(f"{rbac}/roles", {"metadata": {"name": "guest"}, "rules": [rule]})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "guest"}
    user = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "guest"}
    kube.create(
        f"{rbac}/rolebindings", {"metadata": {"name": "guest"}, "roleRef": reference, "subjects": [user]}
    )
    made = documents(namespace, mode="Knative", gpu=1, runtime="theirs")
    made.service["spec"]["predictor"]["model"]["storageUri"] = "pvc://models/digits/"
    with Cluster(KServeTarget(kubeconfig=str(path))) as cluster:
        found = [*cluster.services.examine(), *cluster.services.check(made)]
    assert [one.name for one in found if one.status == "warning"] == ["deployment mode"]
    unread = {one.name for one in found if one.detail.startswith("not checked: ") and one.remedy}
    assert unread == {"GPU", "claim", "runtime"}
    assert {one.name for one in found if one.status == "failure"} == {"permissions"}
