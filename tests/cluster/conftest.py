"""One API server for the session, a namespace and a proxy for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from deployer.config import KServeTarget
from deployer.targets.kserve import Cluster
from tests.cluster.kube import ADMIN, Kube
from tests.cluster.play import A, Play, documents
from tests.cluster.proxy import Proxy
from tests.cluster.waiting import Waiting

_numbers = itertools.count(1)
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count a test's own time only: the first of them may have to wait until an API server is built."""
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
    """A namespace that no other test knows. The server and all of it end with the session."""
    name = f"test-{next(_numbers)}"
    kube.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest.fixture
def proxy(kube: Kube) -> Iterator[Proxy]:
    with Proxy(kube) as running:
        yield running


@pytest.fixture
def kubeconfig(kube: Kube, proxy: Proxy, namespace: str, tmp_path: Path) -> Path:
    """A kubeconfig whose server is the proxy and whose user may do everything."""
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(kube.kubeconfig(ADMIN, server=proxy.url, namespace=namespace)))
    return path


@pytest.fixture
def straight(kube: Kube, namespace: str, tmp_path: Path) -> Path:
    """A kubeconfig whose server is the API server itself."""
    path = tmp_path / "kubeconfig-straight"
    path.write_text(yaml.safe_dump(kube.kubeconfig(ADMIN, namespace=namespace)))
    return path


@pytest.fixture
def cluster(kubeconfig: Path) -> Iterator[Cluster]:
    with Cluster(KServeTarget(kubeconfig=str(kubeconfig), wait_window=0.3)) as target:
        yield target


@pytest.fixture
def play(kube: Kube, namespace: str) -> Play:
    return Play(kube, namespace)


@pytest.fixture
def waiting(cluster: Cluster, play: Play, namespace: str) -> Iterator[Callable[..., Waiting]]:
    """Apply a release and wait for it; what still waits at the end is deleted and ends by that."""
    started: list[Waiting] = []

    def start(
        release: str = A, *, mode: str = "Standard", timeout: float = 30, percent: int = 100
    ) -> Waiting:
        cluster.apply(documents(namespace, release, mode=mode, percent=percent))
        one = Waiting(cluster, play, release, timeout)
        started.append(one)
        one.until(lambda status: True)
        return one

    yield start
    cluster.delete(play.reference)
    for one in started:
        one.future.exception(20)
