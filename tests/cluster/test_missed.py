"""Changes that a watch misses are found and reported afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from deployer.errors import ConflictError, NotFoundError, RolloutFailedError
from deployer.targets.kserve import Cluster
from tests.cluster.calls import roll
from tests.cluster.faults import SERVICES_OF
from tests.cluster.kube import Kube
from tests.cluster.play import A, B, Play, documents
from tests.cluster.proxy import Fault, Proxy
from tests.cluster.test_watch import Waiting, crash, no_gpu_by_event, too_late


@pytest.fixture
def play(kube: Kube, namespace: str) -> Play:
    return Play(kube, namespace)


@pytest.fixture
def waiting(cluster: Cluster, play: Play, namespace: str) -> Iterator[Waiting]:
    """A wait for a release."""
    roll(cluster, documents(namespace))
    one = Waiting(cluster, play, A, 30)
    one.until(lambda status: True)
    yield one
    cluster.services.delete(play.reference)
    one.future.exception(20)


@contextmanager
def hidden(proxy: Proxy, plural: str, *, gone: bool = True) -> Iterator[None]:
    """Hide changes from the watch of one kind while the `with` lasts; with `gone`, it cannot resume."""
    watch = f"/{plural}\\?watch=true"
    held_watch = Fault(watch, hold=True)
    with proxy.failing(held_watch):
        proxy.drop()
        assert held_watch.held.wait(10)
        yield
        old = Fault(watch, gone=True, times=int(gone))
        with proxy.failing(old):
            held_watch.over.set()
            assert not gone or old.held.wait(10)


def ready(play: Play) -> None:
    play.replica_set(A, available=1)
    play.ready()


@pytest.mark.parametrize("gone", [True, False], ids=["too old", "broken off"])
@pytest.mark.parametrize("plural", ["inferenceservices", "replicasets"])
def test_a_missed_ready_is_seen_afterwards(
    waiting: Waiting, play: Play, proxy: Proxy, plural: str, gone: bool
) -> None:
    with hidden(proxy, plural, gone=gone):
        ready(play)
    waiting.end()


@pytest.mark.parametrize(
    ("plural", "fail"),
    [("pods", crash), ("events", no_gpu_by_event), ("deployments", too_late)],
    ids=["pods", "events", "deployments"],
)
def test_a_missed_failure_is_seen_afterwards(
    waiting: Waiting, play: Play, proxy: Proxy, plural: str, fail: Callable[[Play], None]
) -> None:
    with hidden(proxy, plural):
        fail(play)
    with pytest.raises(RolloutFailedError):
        waiting.end()


@pytest.mark.parametrize("gone", [True, False], ids=["too old", "broken off"])
def test_a_recreated_service_is_another_service(
    waiting: Waiting, cluster: Cluster, play: Play, proxy: Proxy, namespace: str, gone: bool
) -> None:
    with hidden(proxy, "inferenceservices", gone=gone):
        cluster.services.delete(play.reference)
        roll(cluster, documents(namespace))
        ready(play)
    with pytest.raises(NotFoundError, match="service digits was deleted") as caught:
        waiting.end()
    assert not gone or "another service of this name was created" in caught.value.what
    assert "https://" in str(caught.value.where)
    assert "kdeploy rollout" in str(caught.value.hint)


def test_another_applied_release_is_seen_afterwards(
    waiting: Waiting, cluster: Cluster, proxy: Proxy, namespace: str
) -> None:
    with hidden(proxy, "inferenceservices"):
        roll(cluster, documents(namespace, B))
    with pytest.raises(ConflictError, match=f"applied release {B}"):
        waiting.end()


def test_a_watch_resumes_at_a_bookmark(waiting: Waiting, play: Play, proxy: Proxy, kube: Kube) -> None:
    play.status(deploymentMode="Standard")  # so that there is a newer version than the list's
    version = kube.get(SERVICES_OF.format(play.namespace))["metadata"]["resourceVersion"]
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}
    watch = "/inferenceservices\\?watch=true"
    with proxy.fault(watch, status=200, body=json.dumps(bookmark) + "\n"):
        proxy.requests.clear()
        proxy.drop()
        ready(play)
        waiting.end()
    versions = [
        re.findall(r"resourceVersion=(\d+)", path)[0] for _, path in proxy.requests if re.search(watch, path)
    ]
    assert versions[1] == version
