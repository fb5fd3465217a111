"""The rules about a cluster, before the first write."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.bundle import Bundle
from deployer.errors import ConfigError, RefusedError
from deployer.findings import Finding, refuse
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.cluster import check
from deployer.targets.kserve.preflight.rules.inputs import GPU, ClusterFacts
from deployer.targets.kserve.state.settings import KServeConfig
from tests.unit.kserve.test_rules import rendered

GOOD = ClusterFacts()
CLAIM = "pvc://models/digits/"


def named(name: str, namespace: str = "team", mode: str = "Standard") -> Bundle:
    made = rendered(name=name, mode=mode)
    made.service["metadata"]["namespace"] = namespace
    return made


def node(count: str) -> Document:
    return {
        "metadata": {"name": f"n{count}"},
        "status": {"allocatable": {GPU: count, "cpu": "8", "memory": "32Gi"}},
    }


def claim(phase: str = "Bound", *modes: str) -> Document:
    return {"spec": {"accessModes": list(modes or ["ReadWriteOnce"])}, "status": {"phase": phase}}


def runtime(**spec: Any) -> Document:
    return {"spec": {"supportedModelFormats": [{"name": "pytorch"}], "containers": [], **spec}}


def on_theirs(mode: str = "Standard") -> Bundle:
    """Render a service on a runtime of the cluster."""
    return rendered(mode=mode, runtime="theirs")


@pytest.mark.parametrize(
    ("good", "facts"),
    [
        (rendered(), GOOD),
        (rendered(mode="Knative"), GOOD),
        (rendered(), ClusterFacts(namespace={"metadata": {"labels": {"team": "vision"}}})),
        (rendered(), ClusterFacts(live=rendered().service)),
        (rendered(), ClusterFacts(config=KServeConfig(deployment_mode="Knative"), version="0.16.0-rc1")),
        (rendered(), ClusterFacts(config=KServeConfig(deployment_mode="Standard"), version="0.15.2")),
        (rendered(), ClusterFacts(config=KServeConfig(gateway="kserve/gateway"), gateway={"metadata": {}})),
        (rendered(), ClusterFacts(config=KServeConfig(gateway="kserve/gateway"))),
        (rendered(mode="Knative"), ClusterFacts(config=KServeConfig(gateway="kserve/gateway"), gateway=None)),
        (named("a" * 46, mode="Knative"), GOOD),
        (named("a" * 26, "b" * 26), GOOD),
        (
            named("a" * 40, "b" * 60),
            ClusterFacts(domain_template="{{.Name}}.{{.Namespace}}.{{.IngressDomain}}"),
        ),
        (named("a" * 40, "b" * 60), ClusterFacts(config=KServeConfig(domain_template="{{.Labels.team}}.x"))),
        (
            named("a" * 40, "b" * 60),
            ClusterFacts(live={**rendered().service, "status": {"url": "http://digits"}}),
        ),
        (rendered(gpu=2), ClusterFacts(nodes=[node("1"), {}, node("2")])),
        (rendered(gpu=2), GOOD),
        (rendered(uri=CLAIM), ClusterFacts(claim=claim())),
        (rendered(uri=CLAIM), ClusterFacts(claim=None, makes_claim=True)),
        (
            rendered(mode="Knative", response_timeout=600),
            ClusterFacts(defaults={"data": {"max-revision-timeout-seconds": "3600"}}),
        ),
        (rendered(uri=CLAIM), GOOD),
        (rendered(uri=CLAIM), ClusterFacts(claim=claim("Pending"))),
        (
            rendered(uri=CLAIM),
            ClusterFacts(claim=claim("Pending"), storage_class={"volumeBindingMode": "WaitForFirstConsumer"}),
        ),
        (rendered(uri=CLAIM, max_replicas=2), ClusterFacts(claim=claim("Bound", "ReadOnlyMany"))),
        (on_theirs(), ClusterFacts(runtime=runtime(protocolVersions=["v1", "v2"]))),
        (on_theirs(), ClusterFacts(runtime=runtime())),
        (on_theirs(), GOOD),
        (on_theirs(), ClusterFacts(runtime=runtime(tolerations=[{}]), features=None)),
        (
            on_theirs("Knative"),
            ClusterFacts(
                runtime=runtime(tolerations=[{}], volumes=[{"name": "a", "emptyDir": {}}]),
                features={"data": {"kubernetes.podspec-tolerations": "Enabled"}},
            ),
        ),
    ],
)
def test_a_valid_release_is_accepted(good: Bundle, facts: ClusterFacts) -> None:
    assert refuse(check(good, facts)) == []


@pytest.mark.parametrize(
    ("bad", "facts", "what"),
    [
        (rendered(), ClusterFacts(namespace=None), "namespace team not found"),
        (named("digits", "kserve"), GOOD, "namespace kserve belongs to a control plane"),
        (
            rendered(),
            ClusterFacts(namespace={"metadata": {"labels": {"control-plane": "x"}}}),
            "belongs to a control plane",
        ),
        (
            rendered(),
            ClusterFacts(namespace={"metadata": {}, "status": {"phase": "Terminating"}}),
            "is being deleted",
        ),
        (
            rendered(mode="Knative"),
            ClusterFacts(live=rendered().service),
            "uses Standard mode, and KServe cannot",
        ),
        (rendered(mode="Knative"), ClusterFacts(knative=False), "Knative is not installed"),
        (rendered(mode="Knative", response_timeout=600), GOOD, "but Knative allows 600 s"),
        (
            rendered(),
            ClusterFacts(config=KServeConfig(deployment_mode="Knative"), version="0.15.2"),
            "KServe 0.15.2 does not know mode Standard, and would choose Knative",
        ),
        (named("a" * 47, mode="Knative"), GOOD, "has 64 characters"),
        (named("a" * 27, "b" * 26), GOOD, "has 64 characters"),
        (
            named("a" * 40, "b" * 60),
            ClusterFacts(
                config=KServeConfig(
                    domain="c" * 63 + "." + "d" * 63 + "." + "e" * 30,
                    domain_template=("{{ .Name }}.{{ .Namespace }}.{{ .IngressDomain }}"),
                )
            ),
            "has 270 characters, but DNS allows 253",
        ),
        (
            rendered(),
            ClusterFacts(config=KServeConfig(gateway="kserve/gateway"), gateway=None),
            "Gateway kserve/gateway not found",
        ),
        (
            rendered(uri=CLAIM),
            ClusterFacts(claim=None),
            "PersistentVolumeClaim models not found in namespace team",
        ),
        (rendered(uri=CLAIM), ClusterFacts(claim=claim("Lost")), "models is Lost"),
        (rendered(uri=CLAIM), ClusterFacts(claim=claim("Pending"), storage_class=None), "models is Pending"),
        (
            rendered(uri=CLAIM),
            ClusterFacts(claim=claim("Pending"), storage_class={"volumeBindingMode": "Immediate"}),
            "models is Pending",
        ),
        (
            on_theirs(),
            ClusterFacts(runtime=None),
            "ServingRuntime or ClusterServingRuntime theirs not found",
        ),
        (on_theirs(), ClusterFacts(runtime=runtime(disabled=True)), "theirs is disabled"),
        (on_theirs(), ClusterFacts(runtime=runtime(multiModel=True)), "theirs is for ModelMesh"),
        (
            on_theirs(),
            ClusterFacts(runtime=runtime(supportedModelFormats=[{"name": "onnx"}])),
            "theirs supports onnx, not pytorch",
        ),
        (
            on_theirs(),
            ClusterFacts(runtime=runtime(protocolVersions=["v2"])),
            "theirs supports protocol v2, not v1",
        ),
        (
            on_theirs("Knative"),
            ClusterFacts(runtime=runtime(nodeSelector={"gpu": "a100"}), features=None),
            "Knative rejects nodeSelector while its feature kubernetes.podspec-nodeselector is off",
        ),
        (
            on_theirs("Knative"),
            ClusterFacts(
                runtime=runtime(volumes=[{"name": "a", "emptyDir": {}}]),
                features={"data": {"kubernetes.podspec-volumes-emptydir": "Disabled"}},
            ),
            "Knative rejects volumes.emptyDir",
        ),
        (
            on_theirs("Knative"),
            ClusterFacts(
                runtime=runtime(containers=[{"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]),
                features={"data": {}},
            ),
            "Knative rejects capabilities.add",
        ),
        (
            on_theirs("Knative"),
            ClusterFacts(
                runtime=runtime(containers=[{"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}]),
                features={"data": None},
            ),
            "Knative rejects env.valueFrom.fieldRef",
        ),
    ],
)
def test_an_invalid_release_is_rejected(bad: Bundle, facts: ClusterFacts, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        refuse(check(bad, facts))
    assert caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize(
    ("doubtful", "facts", "what"),
    [
        (
            rendered(gpu=2),
            ClusterFacts(nodes=[node("1"), {}]),
            "no node has 2 nvidia.com/gpu now: ",
        ),
        (rendered(min_replicas=0), GOOD, "min-replicas = 0 does not scale to zero in Standard mode"),
        (
            rendered(uri=CLAIM, max_replicas=2),
            ClusterFacts(claim=claim()),
            "claim models is ReadWriteOnce: ",
        ),
        (
            rendered(uri=CLAIM, mode="Knative", percent=10),
            ClusterFacts(claim=claim("Bound", "ReadWriteOncePod")),
            "claim models is ReadWriteOncePod: replicas",
        ),
    ],
)
def test_a_doubtful_release_gets_a_warning(doubtful: Bundle, facts: ClusterFacts, what: str) -> None:
    (warning,) = refuse(check(doubtful, facts))
    assert warning.startswith(what)


def test_kdeploys_own_runtime_needs_no_knative_features() -> None:
    findings = check(rendered(mode="Knative", gpu=1, env={"A": "1"}), ClusterFacts(features=None))
    assert [one for one in findings if one.name == "Knative features"] == []


def test_one_error_names_every_failure() -> None:
    findings = check(rendered(percent=10, uri="file:///x/y"), ClusterFacts(namespace=None))
    with pytest.raises(ConfigError) as caught:
        refuse(findings)
    lines = caught.value.what.splitlines()
    assert lines[0] == "3 checks failed"
    assert lines[1].startswith("- namespace: namespace team not found (Create it with `kubectl create")
    assert [line.partition(":")[0] for line in lines[2:]] == ["- --canary", "- store.uri"]


def test_a_missing_permission_has_its_own_exit_code() -> None:
    lacking = Finding(name="permissions", status="failure", detail="cannot list pods", where="namespace team")
    with pytest.raises(RefusedError, match="cannot list pods"):
        refuse([lacking])
    with pytest.raises(RefusedError, match="2 checks failed"):
        refuse([lacking, *check(rendered(percent=10), GOOD)])
