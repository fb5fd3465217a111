"""The Secrets and ConfigMaps that pods name, and Knative's rules about the fields of pods."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from deployer.config import VariableSource
from deployer.findings import Finding
from deployer.targets.kserve.preflight.rules.cluster import check
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts
from deployer.targets.kserve.preflight.rules.references import named_objects, pull_secrets
from tests.cluster.play import documents

POD: dict[str, Any] = {
    "imagePullSecrets": [{"name": "registry"}, {}],
    "containers": [
        {
            "name": "proxy",
            "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "p", "key": "k", "optional": True}}}
            ],
            "envFrom": [{"secretRef": {"name": "all"}}, {"configMapRef": {"name": "flags"}}],
        }
    ],
    "initContainers": [{"name": "wait", "envFrom": [{"secretRef": {"name": "w", "optional": True}}]}],
    "volumes": [
        {"name": "ca", "configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"name": "tls", "secret": {"secretName": "tls"}},
        {"name": "both", "projected": {"sources": [{"secret": {"name": "part"}}, {"downwardAPI": {}}]}},
        {"name": "tmp", "emptyDir": {}},
    ],
}
ENV = {"HF_TOKEN": VariableSource(secret="hf", key="token"), "LEVEL": VariableSource(config_map="c", key="k")}


def references(pod: dict[str, Any] = {}, *, mode: str = "Standard", **facts: Any) -> list[Finding]:  # noqa: B006
    bundle = documents("team", mode=mode, env=ENV, overlay={"spec": {"predictor": pod}})
    return [one for one in check(bundle, ClusterFacts(**facts)) if one.name == "references"]


def test_every_object_that_a_pod_needs_is_found() -> None:
    service = documents("team", env=ENV, overlay={"spec": {"predictor": POD}}).service
    assert {
        (*one.object, one.key, one.field) for one in (*named_objects(service), *pull_secrets(service))
    } == {
        ("Secret", "hf", "token", "serving.env.HF_TOKEN"),
        ("ConfigMap", "c", "k", "serving.env.LEVEL"),
        ("Secret", "all", "", "containers.proxy.envFrom"),
        ("ConfigMap", "flags", "", "containers.proxy.envFrom"),
        ("ConfigMap", "ca", "ca.crt", "volumes.ca"),
        ("Secret", "tls", "", "volumes.tls"),
        ("Secret", "part", "", "volumes.both"),
        ("Secret", "registry", "", "imagePullSecrets"),
    }


def test_sources_that_the_api_server_would_reject_do_no_harm() -> None:
    pod = {
        "containers": [{"name": "a", "envFrom": [{"secretRef": {}}, {"configMapRef": "x"}]}],
        "volumes": [{"name": "v", "secret": "x"}],
        "model": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]},
    }
    service = documents("team", overlay={"spec": {"predictor": pod}}).service
    assert {one.object for one in named_objects(service)} == {("Secret", "None")}


def test_a_missing_object_or_key_is_a_failure() -> None:
    named = {("Secret", "hf"): None, ("ConfigMap", "c"): frozenset({"other"})}
    missing, without = references(named=named)[:2]
    assert (missing.status, missing.detail) == ("failure", "Secret hf not found in namespace team")
    assert missing.where == "serving.env.HF_TOKEN"
    assert "`kubectl -n team create secret generic hf --from-file=token=FILE`" in missing.remedy
    assert (without.status, without.detail) == ("failure", "ConfigMap c in namespace team has no key k")
    assert "create configmap c --from-file=k=FILE" in without.remedy


def test_a_missing_account_is_a_failure() -> None:
    pod = {"serviceAccountName": "robot"}
    [missing] = [one for one in references(pod, account=None) if one.status == "failure"]
    assert missing.detail == "ServiceAccount robot not found in namespace team"
    assert not [one for one in references(pod) if one.status == "failure"]


def test_missing_credentials_for_images_are_a_warning() -> None:
    named = {("Secret", "hf"): frozenset({"token"}), ("ConfigMap", "c"): frozenset({"k"})}
    pod = {"imagePullSecrets": [{"name": "registry"}]}
    found = references(pod, named={**named, ("Secret", "registry"): None})
    assert found[0].status == "warning"
    assert "create secret docker-registry registry" in found[0].remedy
    [fine] = references(pod, named={**named, ("Secret", "registry"): frozenset()})
    assert (fine.status, fine.detail) == ("ok", "ConfigMap c, Secret hf, Secret registry")


def test_what_the_user_cannot_read_is_not_checked() -> None:
    [one] = references(named={("Secret", "hf"): UNSET, ("ConfigMap", "c"): frozenset({"k"})})
    assert (one.status, one.detail) == ("ok", "not checked: this user cannot read Secrets")


@pytest.mark.parametrize(
    ("pod", "flag", "field"),
    [
        ({"nodeSelector": {"a": "b"}}, "kubernetes.podspec-nodeselector", "nodeSelector"),
        ({"tolerations": [{}]}, "kubernetes.podspec-tolerations", "tolerations"),
        (
            {"topologySpreadConstraints": [{}]},
            "kubernetes.podspec-topologyspreadconstraints",
            "topologySpread",
        ),
        ({"securityContext": {"fsGroup": 1}}, "kubernetes.podspec-securitycontext", "securityContext"),
        ({"initContainers": [{"name": "a"}]}, "kubernetes.podspec-init-containers", "initContainers"),
        ({"priorityClassName": "high"}, "kubernetes.podspec-priorityclassname", "priorityClassName"),
        ({"volumes": [{"name": "a", "csi": {}}]}, "kubernetes.podspec-volumes-csi", "volumes.csi"),
        (
            {"model": {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}},
            "kubernetes.podspec-fieldref",
            "fieldRef",
        ),
    ],
)
def test_a_field_of_an_overlay_can_need_a_feature_of_knative(
    pod: dict[str, Any], flag: str, field: str
) -> None:
    def found(mode: str, data: dict[str, str]) -> list[Finding]:
        bundle = documents("team", mode=mode, overlay={"spec": {"predictor": pod}})
        facts = ClusterFacts(features={"data": data})
        return [one for one in check(bundle, facts) if one.name == "Knative features"]

    [off] = found("Knative", {})
    assert off.status == "failure"
    assert f"rejects {field}" in off.detail or field in off.detail
    assert f'`{flag}: "enabled"`' in off.remedy
    assert off.where == "overlay"
    assert [one.status for one in found("Knative", {flag: "enabled"})] == ["ok"]
    assert found("Standard", {}) == []


def test_knative_rejects_some_fields_without_a_flag() -> None:
    bundle = documents("team", mode="Knative", overlay={"spec": {"predictor": {"hostname": "a"}}})
    [one] = [one for one in check(bundle, ClusterFacts()) if one.name == "Knative features"]
    assert (one.status, one.detail) == ("failure", "Knative rejects hostname of a pod")
    assert one.where == "spec.predictor.hostname of the overlay"
