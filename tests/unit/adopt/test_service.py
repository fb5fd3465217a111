"""A live InferenceService becomes settings; each field is taken over, stays, or is left out with a reason."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.adopt.found import Found
from deployer.adopt.service import read_service
from deployer.errors import ConfigError


def service(model: Any = None, *, kind: str = "model", **predictor: Any) -> dict[str, Any]:
    described = {"modelFormat": {"name": "pytorch"}} | (model or {}) if kind == "model" else model or {}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "cats", "namespace": "vision"},
        "spec": {"predictor": {kind: described, **predictor}},
        "status": {"url": "http://cats"},
    }


def fates(found: Found) -> dict[str, str]:
    return {line.field: line.fate for line in found.lines}


def reason(found: Found, field: str) -> str:
    (line,) = (line for line in found.lines if line.field == field)
    return line.becomes


class TestTaken:
    def test_the_name_and_the_namespace(self) -> None:
        found = read_service(service())
        assert found.tables == {
            "service": {"name": "cats"},
            "targets": {"cluster": {"kind": "kserve", "namespace": "vision"}},
        }

    def test_a_document_without_a_namespace(self) -> None:
        document = service()
        del document["metadata"]["namespace"]
        assert read_service(document).tables["targets"]["cluster"] == {"kind": "kserve"}

    def test_the_predictor_of_old_manifests(self) -> None:
        model = {"storageUri": "s3://models/cats", "protocolVersion": "v2", "runtimeVersion": "0.9.0"}
        found = read_service(service(model, kind="pytorch", serviceAccountName="reader"))
        assert found.tables["store"] == {"service-account": "reader", "uri": "s3://models/kdeploy"}
        assert found.tables["serving"] == {"protocol-version": "v2"}
        assert fates(found)["spec.predictor.pytorch.runtimeVersion"] == "taken over"

    @pytest.mark.parametrize(
        ("predictor", "scaling"),
        [
            ({"minReplicas": 2}, {"min-replicas": 2, "max-replicas": 2}),
            ({"minReplicas": 2, "maxReplicas": 5}, {"min-replicas": 2, "max-replicas": 5}),
            ({"minReplicas": 0, "maxReplicas": 3}, {"min-replicas": 0, "max-replicas": 3}),
            ({"maxReplicas": 0}, None),
            ({"minReplicas": "x"}, {"min-replicas": "x"}),
            (
                {"maxReplicas": 4, "scaleMetric": "concurrency", "scaleTarget": 8},
                {"max-replicas": 4, "metric": "concurrency", "target": 8},
            ),
        ],
    )
    def test_replicas(self, predictor: dict[str, int], scaling: dict[str, int] | None) -> None:
        assert read_service(service(**predictor)).tables.get("scaling") == scaling

    @pytest.mark.parametrize(("mode", "ours"), [("RawDeployment", "Standard"), ("Knative", "Knative")])
    def test_the_deployment_mode(self, mode: str, ours: str) -> None:
        document = service()
        document["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": mode}
        assert read_service(document).tables["targets"]["cluster"]["deployment-mode"] == ours

    @pytest.mark.parametrize(
        ("resources", "serving"),
        [
            ({"limits": {"cpu": 2, "memory": "4Gi"}}, {"cpu": "2", "memory": "4Gi"}),
            ({"requests": {"cpu": "500m"}}, {"cpu": "500m"}),
            ({"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}, {"gpu": 1}),
        ],
    )
    def test_resources(self, resources: dict[str, Any], serving: dict[str, Any]) -> None:
        assert read_service(service({"resources": resources})).tables["serving"] == serving

    def test_requests_apart_from_limits_and_other_resources_stay(self) -> None:
        limits, requests = {"cpu": "2", "example.com/fpga": 1}, {"cpu": "1"}
        found = read_service(service({"resources": {"limits": limits, "requests": requests}}))
        overlay = {"limits": {"example.com/fpga": "1"}, "requests": {"cpu": "1"}}
        assert found.tables["serving"]["cpu"] == "2"
        assert found.tables["serving"]["overlay"]["spec"]["predictor"]["model"]["resources"] == overlay

    @pytest.mark.parametrize(("gpu", "key"), [("1", "gpu-image"), (None, "image")])
    def test_the_image(self, gpu: str | None, key: str) -> None:
        limits = {"limits": {"nvidia.com/gpu": gpu}} if gpu else {}
        found = read_service(service({"image": "registry/cats:1", "resources": limits}))
        assert found.tables["serving"][key] == "registry/cats:1"

    def test_variables(self) -> None:
        secret = {"secretKeyRef": {"name": "hf", "key": "token"}}
        config = {"configMapKeyRef": {"name": "settings", "key": "level"}}
        pod = {"fieldRef": {"fieldPath": "metadata.name"}}
        optional = {"secretKeyRef": {"name": "maybe", "key": "x", "optional": True}}
        env = [
            {"name": "PLAIN", "value": "1"},
            {"name": "EMPTY"},
            {"name": "TOKEN", "valueFrom": secret},
            {"name": "LEVEL", "valueFrom": config},
            {"name": "POD", "valueFrom": pod},
            {"name": "MAYBE", "valueFrom": optional},
            {"name": "HF_TOKEN", "value": "hf_abcdefghijklmnopqrstuv"},
            {"name": "KDEPLOY_X", "value": "1"},
        ]
        found = read_service(service({"env": env}))
        assert found.tables["serving"]["env"] == {
            "PLAIN": "1",
            "EMPTY": "",
            "TOKEN": {"secret": "hf", "key": "token"},
            "LEVEL": {"config-map": "settings", "key": "level"},
        }
        kept = found.tables["serving"]["overlay"]["spec"]["predictor"]["model"]["env"]
        assert kept == [{"name": "POD", "valueFrom": pod}, {"name": "MAYBE", "valueFrom": optional}]
        assert fates(found)["spec.predictor.model.env.POD"] == "stays"
        assert "looks like a token" in reason(found, "spec.predictor.model.env.HF_TOKEN")
        assert "hf_" not in str(found.lines)
        assert fates(found)["spec.predictor.model.env.KDEPLOY_X"] == "left out"

    def test_variables_of_another_form_are_ignored(self) -> None:
        assert "serving" not in read_service(service({"env": {"A": "b"}})).tables

    @pytest.mark.parametrize("uri", ["https://example.com/cats.zip", "hf://org/cats", "/mnt/models", "s3://"])
    def test_a_place_that_cannot_be_a_store_is_left_out(self, uri: str) -> None:
        found = read_service(service({"storageUri": uri}))
        assert "store" not in found.tables
        assert "set store.uri" in reason(found, "spec.predictor.model.storageUri")

    def test_a_release_of_kdeploy_names_its_store(self) -> None:
        found = read_service(service({"storageUri": "s3://models/team/cats/1.0-0123456789ab/"}))
        assert found.tables["store"]["uri"] == "s3://models/team"

    def test_an_unknown_protocol_is_left_out(self) -> None:
        found = read_service(service({"protocolVersion": "seldon"}))
        assert "serving" not in found.tables


class TestStays:
    def test_what_kdeploy_does_not_own_goes_to_the_overlay(self) -> None:
        tolerations = [{"key": "gpu", "operator": "Exists"}]
        found = read_service(
            service(
                {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
                tolerations=tolerations,
                nodeSelector={"pool": "gpu"},
                volumes=[{"name": "data", "emptyDir": {}}],
                containers=[],
                imagePullSecrets=[{"name": "registry"}],
            )
        )
        predictor = found.tables["serving"]["overlay"]["spec"]["predictor"]
        assert predictor["tolerations"] == tolerations
        assert predictor["model"]["volumeMounts"][0]["mountPath"] == "/data"
        assert set(predictor) == {"tolerations", "nodeSelector", "volumes", "imagePullSecrets", "model"}
        assert fates(found)["spec.predictor.nodeSelector"] == "stays"

    def test_labels_and_annotations_of_users_stay(self) -> None:
        document = service()
        document["metadata"] |= {
            "labels": {"team": "vision", "kdeploy.dev/release": "x", "serviceEnvelope": "kserve"},
            "annotations": {
                "sidecar.istio.io/inject": "false",
                "kubectl.kubernetes.io/last-applied-configuration": "{}",
                "internal.serving.kserve.io/x": "y",
                "serving.kserve.io/enable-tag-routing": "true",
            },
        }
        found = read_service(document)
        assert found.tables["serving"]["overlay"]["metadata"] == {
            "labels": {"team": "vision"},
            "annotations": {"sidecar.istio.io/inject": "false"},
        }
        assert fates(found)["metadata.labels.kdeploy.dev/release"] == "taken over"
        assert "adapter" in reason(found, "metadata.labels.serviceEnvelope")
        assert fates(found)["metadata.annotations.serving.kserve.io/enable-tag-routing"] == "left out"

    def test_other_components_stay(self) -> None:
        document = service()
        document["spec"]["transformer"] = {"containers": [{"name": "x"}]}
        assert fates(read_service(document))["spec.transformer"] == "stays"


class TestLeftOut:
    @pytest.mark.parametrize("field", ["args", "command", "readinessProbe"])
    def test_what_would_break_the_container_is_named(self, field: str) -> None:
        found = read_service(service({field: ["--x"], "name": "x", "ports": []}))
        assert "remove this field before the rollout" in reason(found, f"spec.predictor.model.{field}")
        assert "serving" not in found.tables

    @pytest.mark.parametrize("field", ["canaryTrafficPercent", "timeout", "deploymentStrategy"])
    def test_what_kdeploy_sets_has_a_reason(self, field: str) -> None:
        assert fates(read_service(service(**{field: 10})))[f"spec.predictor.{field}"] == "taken over"

    def test_the_runtime_is_replaced(self) -> None:
        found = read_service(service({"runtime": "kserve-torchserve"}))
        assert "to keep kserve-torchserve, set serving.runtime" in reason(
            found, "spec.predictor.model.runtime"
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["resources", "env", "image", "storageUri", "protocolVersion", "runtime", "args", "volumeMounts"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON), JSON, JSON, JSON)
def test_any_document_is_read_or_refused(
    model: dict[str, Any], predictor: Any, metadata: Any, name: Any
) -> None:
    document = service(model)
    document["metadata"] = {"name": name, "labels": metadata, "annotations": metadata}
    if isinstance(predictor, dict):
        document["spec"]["predictor"] |= predictor
    read_service(document)
    for broken in (metadata, predictor):
        with contextlib.suppress(ConfigError):
            read_service({"metadata": broken, "spec": broken})


@pytest.mark.parametrize(
    ("predictor", "what"),
    [
        ({"sklearn": {"storageUri": "s3://x"}}, "no model of the format pytorch"),
        ({"containers": [{"name": "kserve-container"}]}, "no model of the format pytorch"),
        ({"model": {"modelFormat": {"name": "sklearn"}}}, "has the format sklearn"),
        ({}, "no model of the format pytorch"),
    ],
)
def test_a_service_of_another_kind_is_refused(predictor: dict[str, Any], what: str) -> None:
    document = service() | {"spec": {"predictor": predictor}}
    with pytest.raises(ConfigError, match=what) as caught:
        read_service(document)
    assert caught.value.where == "InferenceService cats: spec.predictor"
