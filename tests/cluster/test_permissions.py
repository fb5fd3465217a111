"""The account that `kdeploy render --rbac` prints: it is enough, and every part of it is needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from deployer.config import KServeTarget, Store, load_settings
from deployer.errors import KdeployError, TargetError
from deployer.manifest import render_secret
from deployer.pipeline import Pipeline
from deployer.rollout import watch_rollout
from deployer.storage_access import StorageAccess
from deployer.store.open import open_store
from deployer.store.pvc import ClaimStore
from deployer.target import Document, Phase, Reference
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.permissions import Permission, needed, needed_for_store, render_role
from deployer.targets.kserve.refusals import RefusedError
from deployer.targets.kserve.resources import (
    CONTROLLER_REVISION,
    INFERENCE_SERVICE,
    SECRET,
    SERVICE_ACCOUNT,
)
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


def applied(namespace: str, mode: str) -> list[Document]:
    """Render a release, and the Secret and ServiceAccount that it reads its model store with."""
    access = StorageAccess(data={"AWS_ACCESS_KEY_ID": "key"})
    secret = render_secret(access, service="digits", namespace=namespace)
    assert secret
    return [secret, *documents(namespace, mode=mode, access=access)]


def pipeline(cluster: Cluster, config: Store, folder: Path) -> Pipeline:
    (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
    flags = {"model.name": "digits", "model.version": "1.0", "model.handler": "handler.py"}
    flags |= {"store.uri": config.uri, "store.endpoint": str(config.endpoint)}
    settings = load_settings(None, environment={}, flags=flags, folder=folder)
    return Pipeline(settings, open_store(settings.config.store, folder), cluster, lambda _: None)


@pytest.fixture
def ci(kube: Kube, proxy: Proxy, namespace: str, tmp_path: Path) -> CiAccount:
    """Bind the rendered Role to a user, without one of its permissions if so asked, and be that user."""

    def bind(mode: str, without: Permission | None = None, store: Store | None = None) -> Cluster:
        _, role, binding = render_role(namespace, mode, needed_for_store(store or Store()))
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
def test_it_is_enough(ci: CiAccount, kube: Kube, namespace: str, mode: str) -> None:
    cluster = ci(mode)
    cluster.capabilities()
    assert cluster.check(applied(namespace, mode)) == []
    reference = cluster.apply(applied(namespace, mode))
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
    cluster.note_outcome(reference, "Ready")
    assert [one.outcome for one in cluster.history(reference)] == ["Ready"]
    assert [one.reference.name for one in cluster.list(namespace)] == ["digits"]
    assert cluster.releases_in_use() == {f"digits/{A}"}
    wanted = documents(namespace, mode=mode, gpu=1)
    assert [one.status for one in cluster.examine(lambda: wanted)].count("failure") == 0
    assert cluster.delete(reference)


def test_it_is_enough_to_delete_what_a_rollout_left_behind(
    ci: CiAccount, kube: Kube, namespace: str, proxy: Proxy
) -> None:
    cluster = ci("Standard")
    with proxy.fault("PATCH .*/inferenceservices", status=422), pytest.raises(KdeployError):
        cluster.apply(applied(namespace, "Standard"))
    (entry,) = kube.get(CONTROLLER_REVISION.path(namespace))["items"]
    with proxy.fault("DELETE .*/controllerrevisions", status=403), pytest.raises(KdeployError):
        cluster.delete(Reference(namespace, "digits"))
    for kind in (SECRET, SERVICE_ACCOUNT):
        (owner,) = kube.get(kind.path(namespace, "digits-model-store"))["metadata"]["ownerReferences"]
        assert owner["uid"] == entry["metadata"]["uid"]
    assert not cluster.delete(Reference(namespace, "digits"))


@pytest.mark.parametrize("lacking", EVERY, ids=str)
def test_every_part_of_it_is_needed_and_named_before_anything_is_written(
    ci: CiAccount,
    namespace: str,
    proxy: Proxy,
    lacking: Permission,
    s3_config: Store,
    tmp_path: Path,
) -> None:
    mode = next(mode for mode in MODES if lacking in needed(mode))
    cluster = ci(mode, without=lacking)
    pipe = pipeline(cluster, s3_config, tmp_path)
    with pytest.raises(RefusedError, match=f"may not {lacking.verb} {lacking.resource.full_name}") as caught:
        pipe.target.delete(pipe.reference()) if lacking == DELETE else pipe.rollout(None, timeout=9)
    assert not caught.value.retryable
    assert pipe.store.releases() == []
    assert {method for method, _ in proxy.writes()} <= {"DELETE"}
    (found,) = [one for one in cluster.examine(lambda: applied(namespace, mode)) if one.name == "permissions"]
    assert str(lacking) in found.detail


@pytest.mark.parametrize("needless", [DELETE, *(one for one in EVERY if one.verb == "watch")], ids=str)
def test_what_a_command_does_not_do_is_not_asked_for(
    ci: CiAccount, namespace: str, needless: Permission
) -> None:
    mode = next(mode for mode in MODES if needless in needed(mode))
    assert ci(mode, without=needless).check(applied(namespace, mode), wait=needless == DELETE) == []


def test_a_rollout_without_credentials_of_ours_needs_no_secrets(ci: CiAccount, namespace: str) -> None:
    cluster = ci("Standard", without=Permission("create", SECRET))
    assert cluster.check(documents(namespace)) == []


def test_it_is_enough_for_a_model_store_in_a_claim(
    ci: CiAccount, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    with Kubelet(kube, namespace, tmp_path / "claims") as kubelet:
        shell = ci("Standard", store=CLAIM_STORE).shell("image", print)
        assert ClaimStore(CLAIM_STORE, shell, tmp_path).releases() == []
        shell.close()
        assert len(kubelet.pods) == 1


@pytest.mark.parametrize("lacking", needed_for_store(CLAIM_STORE), ids=str)
def test_every_part_of_that_is_needed_and_named_before_anything_is_written(
    ci: CiAccount, namespace: str, proxy: Proxy, lacking: Permission
) -> None:
    shell = ci("Standard", lacking, CLAIM_STORE).shell("image", print)
    with pytest.raises(RefusedError, match=f"may not {lacking.verb} {lacking.resource.full_name}"):
        list(shell.run("true"))
    assert proxy.writes() == []


def test_another_namespace_is_out_of_reach(ci: CiAccount) -> None:
    with pytest.raises(TargetError, match="user ci may not list inferenceservices"):
        ci("Standard").list("default")
