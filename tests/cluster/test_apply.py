"""Applies documents on a real API server: no field is pruned, written twice or taken from others."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deployer.config import KServeTarget
from deployer.errors import ConfigError, ConflictError, KdeployError
from deployer.managed_fields import agrees
from deployer.observed import Document, Reference
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, SERVING_RUNTIME
from tests.cluster.calls import roll, warned
from tests.cluster.kube import Kube
from tests.cluster.play import A, B, Play, documents
from tests.cluster.proxy import Proxy

DIGITS = "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices/digits"


def live(kube: Kube, namespace: str, kind: str = "inferenceservices", name: str = "digits") -> Document:
    version = "v1beta1" if kind == "inferenceservices" else "v1alpha1"
    return kube.get(f"/apis/serving.kserve.io/{version}/namespaces/{namespace}/{kind}/{name}")


def lost(sent: Any, stored: Any, path: str = "") -> list[str]:
    """Return the paths of the fields that are not stored as sent."""
    if isinstance(sent, dict) and isinstance(stored, dict):
        return [x for key in sent for x in lost(sent[key], stored.get(key), f"{path}.{key}")]
    if isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        return [x for i, item in enumerate(sent) for x in lost(item, stored[i], f"{path}[{i}]")]
    return [] if sent == stored else [path]


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize(
    "serving",
    [
        {},
        {"gpu": 2, "cpu": "1500m", "memory": "16Gi", "env": {"A": "b", "OMP_NUM_THREADS": "1"}},
        {"protocol_version": "v2", "min_replicas": 0, "max_replicas": 3},
    ],
)
def test_no_field_is_pruned(
    cluster: Cluster, kube: Kube, namespace: str, mode: str, serving: dict[str, Any]
) -> None:
    sent = documents(namespace, mode=mode, percent=100 if mode == "Standard" else 10, **serving)
    assert roll(cluster, sent) == Reference(namespace, "digits")
    runtime, service = sent.runtime, sent.service
    assert lost(service, live(kube, namespace)) == []
    assert lost(runtime, live(kube, namespace, "servingruntimes", runtime["metadata"]["name"])) == []


def test_kserves_crds_are_used_if_given(kube: Kube) -> None:
    crd = kube.get(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferenceservices.serving.kserve.io"
    )
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    whole = "transformer" in schema["properties"]["spec"]["properties"]
    assert whole == bool(os.environ.get("KSERVE_CRDS"))


def test_a_live_service_agrees_with_the_applied_document(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    sent = documents(namespace, cpu="1500m", memory="2048Mi")
    roll(cluster, sent)
    assert agrees(live(kube, namespace), sent.service)
    # KServe's webhooks add fields and write quantities as Go does.
    kube.merge(
        f"{DIGITS.format(namespace)}?fieldManager=kserve",
        {
            "metadata": {"labels": {"added": "by-kserve"}},
            "spec": {"predictor": {"model": {"resources": {"limits": {"memory": "2Gi"}}}}},
        },
    )
    assert agrees(live(kube, namespace), sent.service)
    assert not agrees(live(kube, namespace), documents(namespace, B).service)


def test_promoting_a_canary_is_a_difference(cluster: Cluster, kube: Kube, namespace: str) -> None:
    roll(cluster, documents(namespace, mode="Knative", percent=10))
    promoted = documents(namespace, mode="Knative")
    assert not agrees(live(kube, namespace), promoted.service)
    roll(cluster, promoted)
    assert agrees(live(kube, namespace), promoted.service)
    assert "canaryTrafficPercent" not in live(kube, namespace)["spec"]["predictor"]


def test_applying_again_changes_nothing(cluster: Cluster, kube: Kube, namespace: str) -> None:
    roll(cluster, documents(namespace))
    before = live(kube, namespace)
    roll(cluster, documents(namespace))
    assert live(kube, namespace)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


class TestOthers:
    def test_a_conflict_names_the_field_and_its_manager(
        self, cluster: Cluster, kube: Kube, namespace: str
    ) -> None:
        roll(cluster, documents(namespace))
        kube.merge(
            f"{DIGITS.format(namespace)}?fieldManager=kubectl-edit",
            {"spec": {"predictor": {"model": {"image": "theirs"}}}},
        )
        with pytest.raises(ConflictError, match=r"spec\.predictor\.model\.image is managed by kubectl-edit"):
            roll(cluster, documents(namespace, image="ours"))
        assert live(kube, namespace)["spec"]["predictor"]["model"]["image"] == "theirs"

    def test_force_takes_over_the_field(self, kubeconfig: Path, kube: Kube, namespace: str) -> None:
        with Cluster(KServeTarget(kubeconfig=str(kubeconfig)), force_conflicts=True) as cluster:
            roll(cluster, documents(namespace))
            kube.merge(
                f"{DIGITS.format(namespace)}?fieldManager=kubectl-edit",
                {"spec": {"predictor": {"maxReplicas": 5}}},
            )
            roll(cluster, documents(namespace, max_replicas=2))
        assert live(kube, namespace)["spec"]["predictor"]["maxReplicas"] == 2

    def test_fields_added_by_others_stay(self, cluster: Cluster, kube: Kube, namespace: str) -> None:
        roll(cluster, documents(namespace))
        kube.merge(DIGITS.format(namespace), {"metadata": {"annotations": {"theirs": "kept"}}})
        roll(cluster, documents(namespace, B))
        assert live(kube, namespace)["metadata"]["annotations"]["theirs"] == "kept"

    @pytest.mark.parametrize("autoscaler", ["external", "keda", "hpa"])
    def test_replicas_that_an_autoscaler_manages_stay(
        self, cluster: Cluster, kube: Kube, namespace: str, autoscaler: str
    ) -> None:
        roll(cluster, documents(namespace))
        kube.merge(
            f"{DIGITS.format(namespace)}?fieldManager=scaler",
            {
                "metadata": {"annotations": {"serving.kserve.io/autoscalerClass": autoscaler}},
                "spec": {"predictor": {"minReplicas": 4, "maxReplicas": 9}},
            },
        )
        roll(cluster, documents(namespace, B))
        predictor = live(kube, namespace)["spec"]["predictor"]
        assert (predictor["minReplicas"], predictor["maxReplicas"]) == (4, 9)
        assert predictor["model"]["storageUri"].endswith(f"{B}/")

    def test_the_deployment_mode_cannot_be_changed(
        self, cluster: Cluster, kube: Kube, namespace: str
    ) -> None:
        roll(cluster, documents(namespace, mode="Standard"))
        with pytest.raises(ConfigError, match="uses Standard mode") as caught:
            warned(cluster, documents(namespace, mode="Knative"))
        assert 'deployment-mode = "Standard"' in (caught.value.hint or "")


WRITES = [
    "POST .*controllerrevisions",
    "PATCH .*servingruntimes.*force",
    "PATCH .*inferenceservices",
    "PATCH .*controllerrevisions.*fieldManager=kdeploy$",
    "PATCH .*servingruntimes.*fieldManager=kdeploy$",
]


class TestInterrupted:
    """A command that is killed between two writes can be run again."""

    @pytest.mark.parametrize("where", WRITES)
    def test_a_lost_answer_changes_nothing(
        self, cluster: Cluster, kube: Kube, namespace: str, proxy: Proxy, where: str
    ) -> None:
        with proxy.fault(where, lost=True) as fault:
            roll(cluster, documents(namespace))
        assert fault.seen == 1
        self.check_next_rollout(cluster, kube, namespace)

    @pytest.mark.parametrize("where", WRITES)
    @pytest.mark.parametrize("status", [403, 409, 422])
    def test_a_refusal_is_recovered_by_the_next_rollout(
        self, quick: Cluster, kube: Kube, namespace: str, proxy: Proxy, where: str, status: int
    ) -> None:
        with (
            proxy.fault(where, status=status, times=99),
            pytest.raises(KdeployError, match="a fault of the test"),
        ):
            roll(quick, documents(namespace))
        self.check_next_rollout(quick, kube, namespace)

    @staticmethod
    def check_next_rollout(cluster: Cluster, kube: Kube, namespace: str) -> None:
        sent = documents(namespace)
        roll(cluster, sent)
        service = live(kube, namespace)
        assert agrees(service, sent.service)
        runtime = live(kube, namespace, "servingruntimes", sent.runtime["metadata"]["name"])
        owners = [owner["uid"] for owner in runtime["metadata"]["ownerReferences"]]
        assert owners == [service["metadata"]["uid"]]


class TestDelete:
    def test_deleting_a_service_leaves_nothing(self, cluster: Cluster, kube: Kube, namespace: str) -> None:
        if not kube.collects_garbage:
            pytest.skip("kube-controller-manager not found; bash tests/cluster/build-kube.sh builds it")
        first = roll(cluster, documents(namespace))
        second = roll(cluster, documents(namespace, name="letters"))
        runtime = documents(namespace).runtime["metadata"]["name"]
        held = live(kube, namespace, "servingruntimes", runtime)["metadata"]["ownerReferences"]
        assert sorted(owner["name"] for owner in held) == ["digits", "letters"]
        assert cluster.services.delete(first) is not None
        assert cluster.services.delete(first) is None
        assert cluster.services.get(first) is None
        assert cluster.services.delete(second) is not None
        path = SERVING_RUNTIME.path(namespace, runtime)
        end = time.monotonic() + 60
        while (
            kube.request("GET", path)[0] != 404
            or cluster.journal.entries(first)
            or cluster.journal.entries(second)
        ):
            assert time.monotonic() < end, "the runtime or the journal still exists"
            time.sleep(0.1)

    def test_owners_added_at_the_same_time_are_all_kept(
        self, cluster: Cluster, kube: Kube, namespace: str
    ) -> None:
        names = [f"service-{number}" for number in range(5)]
        threads = [
            threading.Thread(
                target=roll,
                args=(
                    cluster,
                    documents(namespace, name=name),
                ),
            )
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        runtime = documents(namespace).runtime["metadata"]["name"]
        held = live(kube, namespace, "servingruntimes", runtime)["metadata"]["ownerReferences"]
        assert sorted(owner["name"] for owner in held) == names

    def test_a_delete_whose_answer_is_lost_reports_the_service(
        self, cluster: Cluster, namespace: str, proxy: Proxy
    ) -> None:
        reference = roll(cluster, documents(namespace))
        with proxy.fault("DELETE", lost=True):
            assert cluster.services.delete(reference) is not None

    def test_a_preview_changes_nothing(self, cluster: Cluster, kube: Kube, namespace: str) -> None:
        assert [before for before, _ in cluster.services.preview(documents(namespace))] == [None, None]
        assert cluster.services.list_all(namespace) == []
        roll(cluster, documents(namespace))
        (_, (before, after)) = cluster.services.preview(documents(namespace, B))
        assert [one["metadata"]["labels"]["kdeploy.dev/release"] for one in (before, after)] == [A, B]
        assert live(kube, namespace)["metadata"]["labels"]["kdeploy.dev/release"] == A


class TestList:
    def test_one_namespace_or_all_are_listed(self, cluster: Cluster, namespace: str) -> None:
        roll(cluster, documents(namespace))
        assert [one.reference.name for one in cluster.services.list_all(namespace)] == ["digits"]
        assert cluster.services.list_all("missing") == []
        assert namespace in {one.reference.namespace for one in cluster.services.list_all()}

    def test_a_thousand_services_take_two_requests_at_most(
        self, cluster: Cluster, kube: Kube, namespace: str, proxy: Proxy
    ) -> None:
        service = documents(namespace).service
        for number in range(1000):
            named = {**service, "metadata": {**service["metadata"], "name": f"s{number}"}}
            kube.create(INFERENCE_SERVICE.path(namespace), named)
        proxy.requests.clear()
        assert len(cluster.services.list_all(namespace)) == 1000
        assert proxy.count().keys() == {"GET"}
        assert proxy.count()["GET"] <= 2


class TestReleases:
    def test_releases_with_traffic_are_in_use(self, cluster: Cluster, kube: Kube, namespace: str) -> None:
        reference = roll(cluster, documents(namespace, A, mode="Knative"))
        play = Play(kube, namespace)
        play.revision(A, 1)
        roll(cluster, documents(namespace, B, mode="Knative", percent=10))
        play.revision(B, 2)
        new, old = "digits-predictor-00002", "digits-predictor-00001"
        traffic = [
            {"revisionName": new, "percent": 10, "latestRevision": True},
            {"revisionName": old, "percent": 90, "tag": "prev"},
        ]
        play.ready_knative(new, traffic)
        live = cluster.services.get(reference)
        assert live
        assert [(share.percent, share.release) for share in live.status.traffic] == [(10, B), (90, A)]
        assert {f"digits/{A}", f"digits/{B}"} <= cluster.services.releases_in_use()

    def test_the_deployment_mode_is_discovered(self, cluster: Cluster, kubeconfig: Path, kube: Kube) -> None:
        assert cluster.services.capabilities().deployment_mode == "Knative"  # its CRDs are installed
        kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": "kserve"}})
        deploy = '{"defaultDeploymentMode": "RawDeployment"}'
        config = {"metadata": {"name": "inferenceservice-config"}, "data": {"deploy": deploy}}
        kube.create("/api/v1/namespaces/kserve/configmaps", config)
        try:
            found = Cluster(KServeTarget(kubeconfig=str(kubeconfig))).services.capabilities()
        finally:
            kube.delete("/api/v1/namespaces/kserve/configmaps/inferenceservice-config")
        assert (found.deployment_mode, found.canary) == ("Standard", False)
