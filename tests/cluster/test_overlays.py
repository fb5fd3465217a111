"""Overlays and variables of Secrets on a real API server: applied, compared, awaited and refused."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from deployer.config import VariableSource
from deployer.errors import ConfigError, RolloutFailedError
from deployer.managed_fields import agrees
from deployer.observed import Document
from deployer.overlay import overlay_of
from deployer.targets.kserve import Cluster
from tests.cluster.calls import roll, warned
from tests.cluster.commands import Ended, Kdeploy
from tests.cluster.kube import Kube
from tests.cluster.play import Play, documents
from tests.cluster.test_apply import live, lost

OVERLAY: Document = {
    "metadata": {"labels": {"team": "vision"}, "annotations": {"prometheus.io/scrape": "true"}},
    "spec": {
        "predictor": {
            "labels": {"tier": "gold"},
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "affinity": {"nodeAffinity": {}},
            "imagePullSecrets": [{"name": "registry"}],
            "securityContext": {"fsGroup": 1000},
            "serviceAccountName": "robot",
            "containers": [{"name": "proxy", "image": "proxy:1", "resources": {"limits": {"cpu": "100m"}}}],
            "initContainers": [{"name": "wait", "image": "wait:1"}],
            "volumes": [{"name": "cache", "emptyDir": {}}],
            "model": {
                "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
                "readinessProbe": {"periodSeconds": 2},
                "resources": {"requests": {"cpu": "0.5"}, "limits": {"cpu": None}},
            },
        }
    },
}
PRODUCTION = "targets.production.overlay.spec.predictor"


def put_secret(kube: Kube, namespace: str, name: str, **data: str) -> None:
    body = {"metadata": {"name": name}, "stringData": data}
    kube.create(f"/api/v1/namespaces/{namespace}/secrets", body)


def become_ready(play: Play, digest_before: str = "") -> str:
    """Wait for a service with another overlay, and make its pods ready as KServe would."""
    end = time.monotonic() + 20
    while True:
        status, service = play.kube.request("GET", play._service)
        if status == 200 and overlay_of(service) != digest_before:
            break
        assert time.monotonic() < end
        time.sleep(0.02)
    release = service["metadata"]["labels"]["kdeploy.dev/release"]
    time.sleep(0.5)  # the old pods are Ready, and must not count
    if digest_before:
        play.replica_set(release, available=0, replicas=0, number=1)
    play.overlay = overlay_of(service)
    play.replica_set(release, available=1, number=2 if digest_before else 1)
    play.ready()
    return str(release)


def rollout(kdeploy: Kdeploy, play: Play, *flags: str, before: str = "") -> tuple[Ended, str]:
    with ThreadPoolExecutor(1) as pool:
        release = pool.submit(become_ready, play, before)
        return kdeploy("rollout", "--timeout", "30s", *flags), release.result()


@pytest.mark.parametrize("place", ["release", "target"])
def test_every_field_is_stored_and_there_is_no_drift(
    cluster: Cluster, kube: Kube, namespace: str, place: str
) -> None:
    more: dict[str, Any] = {"overlay": OVERLAY} if place == "release" else {"overlays": [OVERLAY]}
    sent = documents(namespace, env={"A": VariableSource(secret="s", key="k"), "B": "1"}, **more)
    roll(cluster, sent)
    stored = live(kube, namespace)
    assert lost(sent.service, stored) == []
    assert agrees(stored, sent.service)
    plain = documents(namespace)
    assert not agrees(stored, plain.service)
    roll(cluster, plain)
    without = live(kube, namespace)
    assert agrees(without, plain.service)
    assert not {"nodeSelector", "containers", "volumes", "labels"} & without["spec"]["predictor"].keys()
    assert not {"team", "kdeploy.dev/overlay"} & without["metadata"]["labels"].keys()


@pytest.mark.parametrize(
    ("predictor", "what"),
    [
        ({"nodeSelectr": {"pool": "gpu"}}, "nodeSelectr"),
        ({"model": {"resourcs": {"cpu": "1"}}}, r"model\.resourcs"),
        ({"nodeSelector": "gpu"}, "nodeSelector"),
    ],
)
def test_an_unknown_or_invalid_field_is_refused_by_name(
    cluster: Cluster, namespace: str, predictor: Document, what: str
) -> None:
    bundle = documents(namespace, overlays=[{"spec": {"predictor": predictor}}])
    with pytest.raises(RolloutFailedError, match=what):
        cluster.services.preview(bundle)


def test_a_missing_account_is_found_before_the_first_write(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    bundle = documents(namespace, overlays=[{"spec": {"predictor": {"serviceAccountName": "robot"}}}])
    with pytest.raises(ConfigError, match=f"ServiceAccount robot not found in namespace {namespace}"):
        warned(cluster, bundle)
    kube.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "robot"}})
    assert warned(cluster, bundle) == []


def test_missing_secrets_are_found_before_the_first_write(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    bundle = documents(namespace, env={"HF_TOKEN": VariableSource(secret="hf", key="token")})
    with pytest.raises(ConfigError, match=f"Secret hf not found in namespace {namespace}"):
        warned(cluster, bundle)
    put_secret(kube, namespace, "hf", other="x")
    with pytest.raises(ConfigError, match="has no key token"):
        warned(cluster, bundle)
    kube.merge(f"/api/v1/namespaces/{namespace}/secrets/hf", {"stringData": {"token": "planted"}})
    assert warned(cluster, bundle) == []
    roll(cluster, bundle)
    (variable,) = (
        one for one in live(kube, namespace)["spec"]["predictor"]["model"]["env"] if one["name"] == "HF_TOKEN"
    )
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "hf", "key": "token"}}


def test_the_targets_overlay_is_rolled_out_with_the_same_release(
    kdeploy: Kdeploy, kube: Kube, play: Play, namespace: str
) -> None:
    put_secret(kube, namespace, "hf", token="x")
    variable = ("--set", 'serving.env={"HF_TOKEN": {"secret": "hf", "key": "token"}}')
    ended, release = rollout(kdeploy, play, *variable, "--set", f"{PRODUCTION}.nodeSelector.pool=a")
    assert (ended.code, ended.out) == (0, f"{release}\n"), ended.err
    digest = overlay_of(live(kube, namespace))
    same = (*variable, "--set", f"{PRODUCTION}.nodeSelector.pool=a")
    assert kdeploy("diff", *same).code == 0
    assert "unchanged" in kdeploy("rollout", *same).err

    changed = (*variable, "--set", f"{PRODUCTION}.nodeSelector.pool=b")
    different = kdeploy("diff", *changed)
    assert different.code == 15
    assert "pool: b" in different.out
    assert json.loads(kdeploy("plan", *changed, "-o", "json").out)["unchanged"] is False
    started = time.monotonic()
    ended, again = rollout(kdeploy, play, *changed, before=digest)
    assert (ended.code, again) == (0, release), ended.err
    assert "without the target's current overlay" in ended.err
    assert time.monotonic() - started >= 0.5
    assert kdeploy("diff", *changed).code == 0
    # The release that was tested is rolled out by its ID, with this target's overlay.
    assert "unchanged" in kdeploy("rollout", "--release", release, *changed).err
    told = kdeploy("rollout", "history", "-o", "json")
    assert told.code == 0, told.err
    history = json.loads(told.out)
    assert [one["release"] for one in history] == [release, release]


def test_a_refused_overlay_ends_the_command_before_anything_is_written(
    kdeploy: Kdeploy, kube: Kube, play: Play
) -> None:
    for command in ("rollout", "plan"):
        ended = kdeploy(command, "--set", f"{PRODUCTION}.nodeSelectr.pool=a")
        assert ended.code == 3
        assert "nodeSelectr" in ended.err
    assert kube.request("GET", play._service)[0] == 404
    assert kdeploy("releases", "-o", "name").out == ""
