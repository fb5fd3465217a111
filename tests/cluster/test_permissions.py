"""The account that `kdeploy render --rbac` prints has all necessary permissions and no others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from deployer.bundle import Bundle
from deployer.config import KServeTarget, Store, load_settings
from deployer.errors import KdeployError, RefusedError, TargetError
from deployer.journal import Outcome
from deployer.observed import Phase, Reference
from deployer.project import Project
from deployer.rollouts import Rollouts
from deployer.storage_access import StorageAccess
from deployer.store import ModelStore
from deployer.store.open import open_store
from deployer.store.pvc import ClaimStore
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.client.resources import (
    CONTROLLER_REVISION,
    DISRUPTION_BUDGET,
    SECRET,
    SERVICE_ACCOUNT,
)
from deployer.targets.kserve.preflight.permissions import Permission, needed, needed_for_store, render_role
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, WRITTEN
from deployer.targets.kserve.target.apply import is_applied
from tests.cluster.calls import doctor, note, outcomes, roll, warned, watch_rollout
from tests.cluster.kube import Kube
from tests.cluster.kubelet import Kubelet
from tests.cluster.play import A, Play, documents
from tests.cluster.proxy import Proxy

RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/{}"
MODES = ("Standard", "Knative")
DELETE = Permission("delete", INFERENCE_SERVICE)
CLAIM_STORE = Store(uri="pvc://models/a", create_claim="1Gi")
EVERY = list(dict.fromkeys(one for mode in MODES for one in needed(mode)))

CiAccount = Callable[..., Cluster]


def applied(namespace: str, mode: str) -> Bundle:
    """Render a release with the Secret and ServiceAccount for its model store."""
    return documents(namespace, mode=mode, access=StorageAccess(data={"AWS_ACCESS_KEY_ID": "key"}))


def rollouts(cluster: Cluster, store: ModelStore, folder: Path) -> Rollouts:
    (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
    flags = {"model.name": "digits", "model.version": "1.0", "model.handler": "handler.py"}
    settings = load_settings(None, environment={}, flags=flags, folder=folder)
    return Rollouts(Project(settings, lambda _: None), store, cluster.target, lambda _: None)


@pytest.fixture
def ci(kube: Kube, proxy: Proxy, namespace: str, tmp_path: Path) -> CiAccount:
    """Bind the rendered Role to a user, optionally without one permission, and connect as that user."""

    def bind(mode: str, without: Permission | None = None, store: Store | None = None) -> Cluster:
        _, role, binding = render_role(namespace, WRITTEN, mode, needed_for_store(store or Store()))
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
        cluster = Cluster(KServeTarget(kubeconfig=str(path), deployment_mode=mode, wait_window=0.1), store)
        granted = next(one for one in needed(mode) if one != without)
        end = time.monotonic() + 10
        while not cluster.api.allowed(granted.verb, granted.resource, namespace):
            assert time.monotonic() < end
            time.sleep(0.02)
        proxy.requests.clear()
        return cluster

    return bind


@pytest.mark.parametrize("mode", MODES)
def test_the_role_is_sufficient(ci: CiAccount, kube: Kube, namespace: str, mode: str) -> None:
    cluster = ci(mode)
    cluster.services.capabilities()
    assert warned(cluster, applied(namespace, mode)) == []
    reference = roll(cluster, applied(namespace, mode))
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
    assert cluster.services.get(reference)
    assert list(cluster.reach.logs(reference)) == []
    note(cluster, reference, Outcome.READY)
    assert outcomes(cluster, reference) == [Outcome.READY]
    assert [one.reference.name for one in cluster.services.list_all(namespace)] == ["digits"]
    assert cluster.services.releases_in_use() == {f"digits/{A}"}
    wanted = documents(namespace, mode=mode, gpu=1)
    assert [one.status for one in doctor(cluster, wanted)].count("failure") == 0
    assert cluster.services.delete(reference) is not None


@pytest.mark.parametrize("verb", ["get", "create", "patch", "delete"])
def test_without_a_permission_for_disruption_budgets_a_rollout_warns_and_continues(
    ci: CiAccount, namespace: str, verb: str
) -> None:
    cluster = ci("Standard", without=Permission(verb, DISRUPTION_BUDGET))
    several, one = documents(namespace, max_replicas=2), documents(namespace)
    [warning] = warned(cluster, several)
    assert f"there will be no PodDisruptionBudget: this user cannot {verb}" in warning
    assert warned(cluster, one) == []
    reference = roll(cluster, several)
    assert is_applied(cluster, several, cluster.get(reference))  # what this user can do is done
    roll(cluster, one)


def test_the_role_is_sufficient_to_delete_the_remains_of_a_rollout(
    ci: CiAccount, kube: Kube, namespace: str, proxy: Proxy
) -> None:
    cluster = ci("Standard")
    with proxy.fault("PATCH .*/inferenceservices", status=422), pytest.raises(KdeployError):
        roll(cluster, applied(namespace, "Standard"))
    (entry,) = kube.get(CONTROLLER_REVISION.path(namespace))["items"]
    with proxy.fault("DELETE .*/controllerrevisions", status=403), pytest.raises(KdeployError):
        cluster.services.delete(Reference(namespace, "digits"))
    for kind in (SECRET, SERVICE_ACCOUNT):
        (owner,) = kube.get(kind.path(namespace, "digits-model-store"))["metadata"]["ownerReferences"]
        assert owner["uid"] == entry["metadata"]["uid"]
    assert cluster.services.delete(Reference(namespace, "digits")) is None


@pytest.mark.parametrize("lacking", EVERY, ids=str)
def test_each_missing_permission_is_named_before_the_first_write(
    ci: CiAccount,
    namespace: str,
    proxy: Proxy,
    lacking: Permission,
    s3_config: Store,
    tmp_path: Path,
) -> None:
    mode = next(mode for mode in MODES if lacking in needed(mode))
    cluster = ci(mode, without=lacking)
    store = open_store(s3_config, tmp_path)
    with pytest.raises(RefusedError, match=f"{lacking.verb} {lacking.resource.full_name}") as caught:
        if lacking == DELETE:
            cluster.services.delete(Reference(namespace, "digits"))
        rollouts(cluster, store, tmp_path).rollout(timeout=9)
    assert not caught.value.retryable
    assert store.releases() == []
    assert {method for method, _ in proxy.writes()} <= {"DELETE"}
    (found,) = [one for one in doctor(cluster, applied(namespace, mode)) if one.name == "permissions"]
    assert str(lacking) in found.detail


@pytest.mark.parametrize("needless", [DELETE, *(one for one in EVERY if one.verb == "watch")], ids=str)
def test_a_command_needs_no_permission_that_it_does_not_use(
    ci: CiAccount, namespace: str, needless: Permission
) -> None:
    mode = next(mode for mode in MODES if needless in needed(mode))
    assert warned(ci(mode, needless), applied(namespace, mode), wait=needless == DELETE) == []


def test_a_rollout_without_credentials_needs_no_permission_for_secrets(ci: CiAccount, namespace: str) -> None:
    cluster = ci("Standard", without=Permission("create", SECRET))
    assert warned(cluster, documents(namespace)) == []


def test_the_role_is_sufficient_for_a_claim(
    ci: CiAccount, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    with Kubelet(kube, namespace, tmp_path / "claims") as kubelet:
        shell = ci("Standard", store=CLAIM_STORE).shell("image", print)
        assert ClaimStore(CLAIM_STORE, shell, tmp_path).releases() == []
        shell.close()
        assert len(kubelet.pods) == 1


@pytest.mark.parametrize("lacking", needed_for_store(CLAIM_STORE), ids=str)
def test_each_missing_permission_for_a_claim_is_named_before_the_first_write(
    ci: CiAccount, namespace: str, proxy: Proxy, lacking: Permission
) -> None:
    shell = ci("Standard", lacking, CLAIM_STORE).shell("image", print)
    with pytest.raises(RefusedError, match=f"{lacking.verb} {lacking.resource.full_name}"):
        list(shell.run("true"))
    assert proxy.writes() == []


def test_another_namespace_is_refused(ci: CiAccount) -> None:
    with pytest.raises(TargetError, match="user ci cannot list inferenceservices"):
        ci("Standard").services.list_all("default")
