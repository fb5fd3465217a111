"""Fixtures: one API server for the session, a namespace and a proxy for each test."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployer.cli.main import main
from deployer.config import KServeTarget, Store
from deployer.patience import Patience
from deployer.targets.kserve import Cluster
from tests.clocks import patience
from tests.cluster.calls import roll
from tests.cluster.commands import Ended, Kdeploy, become_ready
from tests.cluster.kube import ADMIN, Kube
from tests.cluster.play import A, Play, documents
from tests.cluster.project import write_project
from tests.cluster.proxy import Proxy
from tests.cluster.waiting import Waiting
from tests.outputs import check_output
from tests.stores.swift import SECRET

CONFIG_MAPS = "/api/v1/namespaces/{}/configmaps"
Put = Callable[..., None]

_numbers = itertools.count(1)
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Apply the timeout to the test only, because the first fixture can have to build an API server."""
    for item in items:
        if _HERE in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(120, func_only=True))


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    try:
        server = Kube(tmp_path_factory.mktemp("kube"))
        with server:
            yield server
    except LookupError as error:
        pytest.skip(str(error))


@pytest.fixture
def namespace(kube: Kube) -> str:
    """A namespace for this test. It is removed with the server at the end of the session."""
    name = f"test-{next(_numbers)}"
    kube.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest.fixture
def proxy(kube: Kube) -> Iterator[Proxy]:
    with Proxy(kube) as running:
        yield running


@pytest.fixture
def kubeconfig(kube: Kube, proxy: Proxy, namespace: str, tmp_path: Path) -> Path:
    """A kubeconfig whose server is the proxy and whose user has every permission."""
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(kube.kubeconfig(ADMIN, server=proxy.url, namespace=namespace)))
    return path


@pytest.fixture
def straight(kube: Kube, namespace: str, tmp_path: Path) -> Path:
    """A kubeconfig whose server is the API server, without the proxy."""
    path = tmp_path / "kubeconfig-straight"
    path.write_text(yaml.safe_dump(kube.kubeconfig(ADMIN, namespace=namespace)))
    return path


@pytest.fixture
def cluster(kubeconfig: Path) -> Iterator[Cluster]:
    with Cluster(KServeTarget(kubeconfig=str(kubeconfig), wait_window=0.3)) as target:
        yield target


@pytest.fixture
def quick(kubeconfig: Path) -> Iterator[Cluster]:
    """The same cluster, without pauses between attempts."""
    with Cluster(KServeTarget(kubeconfig=str(kubeconfig), wait_window=0.3), patience=patience()) as target:
        yield target


@pytest.fixture
def be_patient(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let commands in this process open clusters with the test's time limits."""

    def set_limits(**limits: Any) -> None:
        monkeypatch.setattr("deployer.targets.kserve.Cluster", partial(Cluster, patience=Patience(**limits)))

    return set_limits


@pytest.fixture
def play(kube: Kube, namespace: str) -> Play:
    return Play(kube, namespace)


@pytest.fixture
def waiting(cluster: Cluster, play: Play, namespace: str) -> Iterator[Callable[..., Waiting]]:
    """Apply a release and wait for it; at the end, the service is deleted to end the wait."""
    started: list[Waiting] = []

    def start(
        release: str = A, *, mode: str = "Standard", timeout: float = 30, percent: int = 100
    ) -> Waiting:
        roll(cluster, documents(namespace, release, mode=mode, percent=percent))
        one = Waiting(cluster, play, release, timeout, percent)
        started.append(one)
        one.until(lambda status: True)
        return one

    yield start
    cluster.services.delete(play.reference)
    for one in started:
        one.future.exception(20)


@pytest.fixture
def kdeploy(
    kubeconfig: Path,
    s3_config: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Kdeploy:
    folder = write_project(tmp_path / "project", s3_config)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert ADMIN not in out + err  # the token is never printed
        assert SECRET not in out + err  # neither is the model store's key
        check_output(arguments, out, err)
        return Ended(int(caught.value.code or 0), out, err)

    return run


@pytest.fixture
def rolled_out(kdeploy: Kdeploy, play: Play) -> str:
    with ThreadPoolExecutor(1) as pool:
        release: Future[str] = pool.submit(become_ready, play)
        ended = kdeploy("rollout")
    assert ended.code == 0, ended.err
    assert ended.out == f"{release.result()}\n"
    assert "Ready" in ended.err
    return release.result()


@pytest.fixture
def put(kube: Kube) -> Iterator[Put]:
    """Create objects outside of the test's namespace, and delete them after the test."""
    with ExitStack() as after:

        def create(path: str, name: str, **document: Any) -> None:
            kube.create(path, {"metadata": {"name": name}, **document})
            after.callback(kube.delete, f"{path}/{name}")

        yield create


@pytest.fixture
def kserve(kube: Kube, put: Put) -> Callable[..., None]:
    """Create KServe's ConfigMap and controller: the ingress, the default mode, the version."""

    def configure(
        *, mode: str = "Standard", version: str = "0.20.0", running: int = 1, **ingress: Any
    ) -> None:
        for name in ("kserve", "knative-serving"):
            kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        deploy = json.dumps({"defaultDeploymentMode": mode})
        data = {"deploy": deploy, "ingress": json.dumps(ingress)}
        put(CONFIG_MAPS.format("kserve"), "inferenceservice-config", data=data)
        labels = {"app": "kserve"}
        containers = [{"name": "manager", "image": f"kserve/kserve-controller:v{version}"}]
        pod = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
        spec = {"selector": {"matchLabels": labels}, "template": pod}
        deployments = "/apis/apps/v1/namespaces/kserve/deployments"
        put(deployments, "kserve-controller-manager", spec=spec)
        available = {"status": {"replicas": 1, "readyReplicas": 1, "availableReplicas": running}}
        kube.merge(f"{deployments}/kserve-controller-manager/status", available)

    return configure
