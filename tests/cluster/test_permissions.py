"""The account that `kdeploy render --rbac` prints: it is enough, and every part of it is needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from deployer.config import KServeTarget
from deployer.errors import TargetError
from deployer.rollout import watch_rollout
from deployer.target import Phase
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.permissions import Permission, needed, render_role
from deployer.targets.kserve.refusals import RefusedError
from tests.cluster.kube import Kube
from tests.cluster.play import A, Play, documents
from tests.cluster.proxy import Proxy

RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/{}"
MODES = ("Standard", "Knative")
EVERY = list(dict.fromkeys(one for mode in MODES for one in needed(mode)))

CiAccount = Callable[..., Cluster]


@pytest.fixture
def ci(kube: Kube, proxy: Proxy, namespace: str, tmp_path: Path) -> CiAccount:
    """Bind the rendered Role to a user, without one of its permissions if so asked, and be that user."""

    def bind(mode: str, without: Permission | None = None) -> Cluster:
        _, role, binding = render_role(namespace, mode)
        if without:
            for rule in role["rules"]:
                if (rule["resources"], rule["apiGroups"]) == (
                    [without.resource.plural],
                    [without.resource.group],
                ):
                    rule["verbs"].remove(without.verb)
            role["rules"] = [rule for rule in role["rules"] if rule["verbs"]]
        kube.create(RBAC.format(namespace, "roles"), role)
        user = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "ci"}
        kube.create(RBAC.format(namespace, "rolebindings"), {**binding, "subjects": [user]})
        path = tmp_path / "ci"
        path.write_text(yaml.safe_dump(kube.kubeconfig("ci-token", server=proxy.url, namespace=namespace)))
        cluster = Cluster(KServeTarget(kubeconfig=str(path), deployment_mode=mode, wait_window=0.1))
        granted = next(one for one in needed(mode) if one != without)
        end = time.monotonic() + 10
        while not cluster.api.allowed(granted.verb, granted.resource, namespace):
            assert time.monotonic() < end
            time.sleep(0.02)
        proxy.requests.clear()
        return cluster

    return bind


@pytest.mark.parametrize("mode", MODES)
def test_it_is_enough(ci: CiAccount, kube: Kube, namespace: str, mode: str) -> None:
    cluster = ci(mode)
    cluster.capabilities()
    reference = cluster.apply(documents(namespace, mode=mode))
    play = Play(kube, namespace)
    if mode == "Standard":
        play.replica_set(A, available=1)
        play.ready()
    else:
        play.revision(A)
        play.ready_knative("digits-predictor-00001")
    *_, last = watch_rollout(cluster, reference, A, 20)
    assert last.phase is Phase.READY
    assert last.traffic[0].release == A
    assert cluster.get(reference)
    assert list(cluster.logs(reference)) == []
    assert [one["metadata"]["name"] for one in cluster.list(namespace)] == ["digits"]
    assert cluster.releases_in_use() == {f"digits/{A}"}
    assert [one.status for one in cluster.examine("digits", gpu=1)].count("failure") == 0
    assert cluster.delete(reference)


@pytest.mark.parametrize("lacking", EVERY, ids=str)
def test_every_part_of_it_is_needed_and_named_before_anything_is_written(
    ci: CiAccount, kube: Kube, namespace: str, proxy: Proxy, lacking: Permission
) -> None:
    mode = next(mode for mode in MODES if lacking in needed(mode))
    cluster = ci(mode, without=lacking)
    with pytest.raises(RefusedError, match=f"may not {lacking.verb} {lacking.resource.full_name}") as caught:
        cluster.apply(documents(namespace, mode=mode))
    assert not caught.value.retryable
    assert proxy.writes() == []
    if (lacking.verb, lacking.resource.plural) != ("get", "inferenceservices"):
        (found,) = [one for one in cluster.examine("digits", gpu=0) if one.name == "permissions"]
        assert str(lacking) in found.detail


def test_another_namespace_is_out_of_reach(ci: CiAccount) -> None:
    with pytest.raises(TargetError, match="user ci may not list inferenceservices"):
        ci("Standard").list("default")
