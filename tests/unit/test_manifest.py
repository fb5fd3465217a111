"""Rendered documents: golden files, escaping, and the choice of runtime, image and account."""

from __future__ import annotations

import base64
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from deployer.config import KServeTarget, Scaling, Serving, VariableSource, overlays_of
from deployer.manifest import (
    _environment,
    _quote,
    encode_yaml,
    first_process,
    render,
    render_runtime,
    render_secret,
    runtime_name,
)
from deployer.observed import Capabilities, Document, Reference
from deployer.release import ArchiveRecord, Release, Traffic
from deployer.storage_access import StorageAccess

GOLDEN = Path(__file__).parents[1] / "golden"
KNATIVE = Capabilities(deployment_mode="Knative", canary=True)
STANDARD = Capabilities(deployment_mode="Standard", canary=False)
ONE = Scaling()  # one replica
RUNTIME_NAME = runtime_name(render_runtime())


def release(**serving: object) -> Release:
    return Release(
        id="1.0-0123456789ab",
        name="digits",
        version="1.0",
        archive=ArchiveRecord("digits.mar", "sha256:0", ()),
        serving=Serving(**serving),
        config_properties="",
    )


def documents(
    made: Release,
    percent: int = 100,
    uri: str = "file:///store/digits/1.0-0123456789ab/",
    access: StorageAccess | None = None,
    capabilities: Capabilities = KNATIVE,
    scaling: Scaling = ONE,
    overlays: Sequence[Document] = (),
) -> list[Document]:
    made_of = render(
        made,
        storage_uri=uri,
        namespace="team",
        capabilities=capabilities,
        scaling=scaling,
        traffic=Traffic(percent),
        access=access,
        overlays=overlays,
    )
    return list(made_of.documents)


def without_programs(made: list[Document]) -> str:
    """Encode documents like the golden files, without programs and the runtime's digest."""
    made = copy.deepcopy(made)
    for container in made[0]["spec"]["containers"]:
        for command in (container["command"], container["readinessProbe"]["exec"]["command"]):
            command[2] = "PROGRAM"
    return encode_yaml(made).replace(RUNTIME_NAME, "kdeploy-torchserve-DIGEST")


@pytest.mark.parametrize(
    ("name", "made", "percent", "capabilities", "scaling"),
    [
        ("default", release(), 100, KNATIVE, ONE),
        ("canary", release(protocol_version="v2"), 10, KNATIVE, Scaling(min_replicas=0, max_replicas=3)),
        (
            "gpu",
            release(gpu=2, cpu="4", memory="16Gi", env={"B": "2", "A": 'it\'s: "1"\n'}),
            100,
            STANDARD,
            ONE,
        ),
    ],
)
def test_golden(name: str, made: Release, percent: int, capabilities: Capabilities, scaling: Scaling) -> None:
    rendered = without_programs(documents(made, percent, capabilities=capabilities, scaling=scaling))
    assert rendered == (GOLDEN / f"{name}.yaml").read_text("utf-8")


POOL: Document = {
    "metadata": {"labels": {"team": "vision"}, "annotations": {"prometheus.io/scrape": "true"}},
    "spec": {
        "predictor": {
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "model": {"resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": None}}},
        }
    },
}
REGISTRY: Document = {
    "spec": {
        "predictor": {
            "imagePullSecrets": [{"name": "registry"}],
            "serviceAccountName": "robot",
            "securityContext": {"fsGroup": 1000},
        }
    }
}
SIDECAR: Document = {
    "spec": {
        "predictor": {
            "containers": [{"name": "tunnel", "image": "tunnel:1", "resources": {"limits": {"cpu": "100m"}}}],
            "initContainers": [{"name": "wait", "image": "wait:1"}],
            "volumes": [{"name": "cache", "emptyDir": {}}],
            "model": {
                "env": [{"name": "HF_HOME", "value": "/cache"}],
                "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
            },
        }
    }
}


@pytest.mark.parametrize(
    ("name", "serving", "overlays", "capabilities"),
    [
        ("overlay-pool", {}, [POOL], STANDARD),
        ("overlay-registry", {"patches": (POOL,)}, [REGISTRY], KNATIVE),
        ("overlay-sidecar", {"overlay": SIDECAR, "env": {"HF_HOME": "/x", "A": "1"}}, [], STANDARD),
    ],
)
def test_golden_overlays(
    name: str, serving: dict[str, Any], overlays: list[Document], capabilities: Capabilities
) -> None:
    access = StorageAccess(account_annotations={"role": "x"})
    made = documents(release(**serving), access=access, capabilities=capabilities, overlays=overlays)
    kinds = [one["kind"] for one in made]
    assert ("ServiceAccount" in kinds) == (REGISTRY not in overlays)
    assert encode_yaml(made[-1:]).replace(RUNTIME_NAME, "kdeploy-torchserve-DIGEST") == (
        (GOLDEN / f"{name}.yaml").read_text("utf-8")
    )


def test_a_variable_from_a_secret_or_a_config_map_is_a_reference() -> None:
    env = {
        "B": VariableSource(secret="hf", key='"k'),
        "A": VariableSource(config_map="c", key="k"),
        "C": "{{ x }}",
    }
    model = documents(release(env=env))[1]["spec"]["predictor"]["model"]
    assert [one for one in model["env"] if not one["name"].startswith("KDEPLOY_")] == [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "hf", "key": '"k'}}},
        {"name": "C", "value": "{{ x }}"},
    ]


def user_of(capabilities: Capabilities, serving: dict[str, Any], *overlays: Document) -> int | None:
    model = documents(release(**serving), capabilities=capabilities, overlays=overlays)[-1]["spec"][
        "predictor"
    ]["model"]
    user: int | None = model.get("securityContext", {}).get("runAsUser")
    return user


def test_the_user_is_the_images_unless_the_namespace_or_the_target_chooses_it() -> None:
    assigned = structs.replace(STANDARD, assigns_user=True)
    chosen = overlays_of(KServeTarget(run_as_user=2000))
    left = overlays_of(KServeTarget(run_as_user="namespace"))
    assert user_of(STANDARD, {}) == 1000
    assert user_of(assigned, {}) is None
    assert user_of(assigned, {}, *chosen) == 2000
    assert user_of(STANDARD, {}, *chosen) == 2000
    assert user_of(STANDARD, {}, *left) is None
    assert user_of(STANDARD, {"runtime": "theirs"}) is None
    assert "runAsUser" not in str(render_runtime()["containers"][0]["securityContext"])


def test_a_disruption_budget_protects_several_replicas() -> None:
    def budgets(scaling: Scaling, capabilities: Capabilities = STANDARD) -> list[Document]:
        made = documents(release(), scaling=scaling, capabilities=capabilities)
        return [one for one in made if one["kind"] == "PodDisruptionBudget"]

    assert budgets(ONE) == []
    assert budgets(Scaling(min_replicas=0, max_replicas=1)) == []
    [budget] = budgets(Scaling(min_replicas=2, max_replicas=2))
    assert budgets(Scaling(max_replicas=2), KNATIVE) == [budget]
    assert budget["spec"]["maxUnavailable"] == 1
    local = structs.replace(STANDARD, local_storage_only=True)
    assert budgets(Scaling(max_replicas=2), local) == []


def test_the_number_of_replicas_changes_no_pod() -> None:
    def predictor(scaling: Scaling) -> Document:
        rendered: Document = documents(release(), scaling=scaling, capabilities=STANDARD)[-1]["spec"]
        return {key: value for key, value in rendered["predictor"].items() if "Replicas" not in key}

    one, many = predictor(ONE), predictor(Scaling(min_replicas=3, max_replicas=9))
    assert one == many
    assert [spread["topologyKey"] for spread in one["topologySpreadConstraints"]] == [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    ]
    # Knative rejects the field unless a feature flag allows it.
    knative = documents(release(), capabilities=KNATIVE)[-1]["spec"]["predictor"]
    assert "topologySpreadConstraints" not in knative


def test_a_container_starts_the_first_process() -> None:
    [container] = documents(release())[0]["spec"]["containers"]
    assert container["command"] == ["python", "-c", first_process()]


def test_a_release_keeps_the_runtime_that_it_was_pushed_with() -> None:
    older = {**render_runtime(), "protocolVersions": ["v1"]}
    runtime, service = documents(structs.replace(release(), runtime=older))
    assert runtime["spec"] == older
    assert runtime["metadata"]["name"] == runtime_name(older) != RUNTIME_NAME
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime_name(older)


def test_timeouts_cover_the_longest_request_and_the_drain() -> None:
    made = release(drain_seconds=7, response_timeout=300)
    for capabilities, timeout, grace in ((KNATIVE, 317, None), (STANDARD, 310, 317)):
        predictor = documents(made, capabilities=capabilities)[1]["spec"]["predictor"]
        assert predictor["timeout"] == timeout
        assert predictor.get("terminationGracePeriodSeconds") == grace
        told = {one["name"]: one["value"] for one in predictor["model"]["env"]}
        assert told == {"KDEPLOY_DRAIN_SECONDS": "7", "KDEPLOY_GRACE_SECONDS": "307"}
    # A runtime of the cluster can ignore SIGTERM.
    (service,) = documents(release(runtime="theirs"), capabilities=STANDARD)
    assert service["spec"]["predictor"]["timeout"] == 130
    assert "terminationGracePeriodSeconds" not in service["spec"]["predictor"]
    assert "env" not in service["spec"]["predictor"]["model"]


def test_a_runtime_of_the_cluster_is_not_rendered() -> None:
    (service,) = documents(release(runtime="kserve-torchserve"))
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == "kserve-torchserve"
    assert "image" not in model
    for own in ({"image": "own:1"}, {"gpu": 1, "gpu_image": "own:1"}):
        (service,) = documents(release(runtime="kserve-torchserve", **own))
        assert service["spec"]["predictor"]["model"]["image"] == "own:1"


def test_the_local_target_only_uses_kdeploys_runtime() -> None:
    here = Capabilities(deployment_mode="Knative", canary=True, local_storage_only=True)
    made = release(runtime="kserve-torchserve")
    runtime, service = documents(made, uri="file:///s/", capabilities=here)
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"] == RUNTIME_NAME
    assert service["spec"]["predictor"]["model"]["image"] == made.serving.image


def test_a_service_runs_as_the_account_that_can_read_the_store() -> None:
    access = StorageAccess(data={"KEY": 'it\'s: "1"\n'}, annotations={"place": "here"})
    account, _, service = documents(release(), access=access)
    sealed = render_secret(access, Reference("team", "digits"))
    assert sealed is not None
    secret = sealed.document
    assert base64.b64decode(secret["data"]["KEY"]).decode() == access.data["KEY"]
    assert secret["metadata"]["annotations"] == {"place": "here"}
    assert account["secrets"] == [{"name": secret["metadata"]["name"]}]
    assert "annotations" not in account["metadata"]
    assert service["spec"]["predictor"]["serviceAccountName"] == account["metadata"]["name"]
    assert {d["metadata"]["namespace"] for d in (account, secret, service)} == {"team"}
    assert access.data["KEY"] not in repr(access)


def test_an_account_with_a_cloud_role_needs_no_secret() -> None:
    access = StorageAccess(account_annotations={"role": "x"}, annotations={"place": "here"})
    account = documents(release(), access=access)[0]
    assert account["metadata"]["annotations"] == {"role": "x", "place": "here"}
    assert "secrets" not in account
    assert render_secret(access, Reference("team", "digits")) is None


def test_an_existing_account_or_secret_is_named() -> None:
    kinds = [d["kind"] for d in documents(release(), access=StorageAccess(account="readers"))]
    assert kinds == ["ServingRuntime", "InferenceService"]
    service = documents(release(), access=StorageAccess(account="readers"))[1]
    assert service["spec"]["predictor"]["serviceAccountName"] == "readers"
    account = documents(release(), access=StorageAccess(secret="keys"))[0]
    assert account["secrets"] == [{"name": "keys"}]


def test_every_release_has_the_same_runtime() -> None:
    plain, other = documents(release())[0], documents(release(gpu=1, image="x", env={"A": "b"}))[0]
    assert plain == other
    assert plain["metadata"]["name"] == RUNTIME_NAME


def test_with_gpus_limits_equal_requests_and_the_gpu_image_is_used() -> None:
    model = documents(release(gpu=1, gpu_image="mine:gpu"))[1]["spec"]["predictor"]["model"]
    assert model["resources"]["limits"] == model["resources"]["requests"]
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert model["image"] == "mine:gpu"


def test_only_a_canary_has_a_traffic_percentage() -> None:
    assert "canaryTrafficPercent" not in documents(release())[1]["spec"]["predictor"]
    assert documents(release(), 0)[1]["spec"]["predictor"]["canaryTrafficPercent"] == 0


@given(value=st.text(st.characters(exclude_categories=["Cs"])), name=st.text("abAB_", min_size=1, max_size=5))
def test_no_value_becomes_structure(value: str, name: str) -> None:
    model = documents(release(env={name: value}, image=value or "x"), uri=value)[1]["spec"]["predictor"][
        "model"
    ]
    assert {"name": name, "value": value} in model["env"]
    assert model["image"] == (value or "x")
    assert model["storageUri"] == value


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_printed_yaml_equals_the_applied_documents(value: str) -> None:
    runtime = {"containers": [{"args": [value]}]}  # shorter than the rendered one
    made = documents(structs.replace(release(env={"A": value}), runtime=runtime))
    assert list(yaml.safe_load_all(encode_yaml(made))) == made


@pytest.mark.parametrize(
    "value", ["1e5", "0x1F", "0o17", "1_000", "12e03", "y", "N", "on", "~", "-.inf", "1:30"]
)
def test_texts_that_look_like_numbers_are_quoted(value: str) -> None:
    text = encode_yaml(documents(release(env={"A": value})))
    assert f'value: "{value}"' in text or f"value: '{value}'" in text


def test_a_template_with_a_missing_value_fails() -> None:
    values = {"name": "a", "namespace": "b"}  # without a release
    with pytest.raises(jinja2.UndefinedError, match="release"):
        _environment().get_template("inferenceservice.yaml.j2").render(values)


def test_the_filter_accepts_only_texts() -> None:
    with pytest.raises(TypeError):
        _quote(1)


@pytest.mark.parametrize(("capabilities", "name"), [(KNATIVE, "h2c"), (STANDARD, "grpc")])
def test_grpc_has_its_own_runtime_with_one_port(capabilities: Capabilities, name: str) -> None:
    made = documents(release(protocol_version="grpc-v2"), capabilities=capabilities)
    runtime, service = (
        next(d for d in made if d["kind"] == k) for k in ("ServingRuntime", "InferenceService")
    )
    assert runtime["metadata"]["name"] != RUNTIME_NAME
    assert runtime["spec"]["protocolVersions"] == ["grpc-v2"]
    [container] = runtime["spec"]["containers"]
    assert container["ports"] == [{"containerPort": 9000, "protocol": "TCP"}]
    assert {"name": "KDEPLOY_GRPC_ADDRESS", "value": "0.0.0.0:9000"} in container["env"]
    model = service["spec"]["predictor"]["model"]
    # Kubernetes merges ports by containerPort, so the container has one.
    assert model["ports"] == [{"containerPort": 9000, "name": name, "protocol": "TCP"}]
    assert model["protocolVersion"] == "grpc-v2"


def test_a_runtime_of_the_cluster_keeps_its_ports() -> None:
    [service] = documents(release(protocol_version="grpc-v2", runtime="theirs"))
    assert "ports" not in service["spec"]["predictor"]["model"]
