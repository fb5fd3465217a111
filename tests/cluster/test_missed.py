"""What happens while a watch does not see it: it is found out afterwards, and told rightly."""

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
    """A release that is waited for."""
    roll(cluster, documents(namespace))
    one = Waiting(cluster, play, A, 30)
    one.until(lambda status: True)
    yield one
    cluster.services.delete(play.reference)
    one.future.exception(20)


@contextmanager
def unseen(proxy: Proxy, plural: str, *, gone: bool = True) -> Iterator[None]:
    """Let what happens within be unseen by the watch of one kind, which cannot be gone on with if `gone`."""
    watch = f"/{plural}\\?watch=true"
    deaf = Fault(watch, hold=True)
    with proxy.failing(deaf):
        proxy.drop()
        assert deaf.held.wait(10)
        yield
        old = Fault(watch, gone=True, times=int(gone))
        with proxy.failing(old):
            deaf.over.set()
            assert not gone or old.held.wait(10)


def ready(play: Play) -> None:
    play.replica_set(A, available=1)
    play.ready()


@pytest.mark.parametrize("gone", [True, False], ids=["too old", "broken off"])
@pytest.mark.parametrize("plural", ["inferenceservices", "replicasets"])
def test_ready_is_seen_afterwards(
    waiting: Waiting, play: Play, proxy: Proxy, plural: str, gone: bool
) -> None:
    with unseen(proxy, plural, gone=gone):
        ready(play)
    waiting.end()


@pytest.mark.parametrize(
    ("plural", "happens"),
    [("pods", crash), ("events", no_gpu_by_event), ("deployments", too_late)],
    ids=["pods", "events", "deployments"],
)
def test_a_failure_is_seen_afterwards(
    waiting: Waiting, play: Play, proxy: Proxy, plural: str, happens: Callable[[Play], None]
) -> None:
    with unseen(proxy, plural):
        happens(play)
    with pytest.raises(RolloutFailedError):
        waiting.end()


@pytest.mark.parametrize("gone", [True, False], ids=["too old", "broken off"])
def test_a_service_that_was_deleted_and_made_anew_is_another(
    waiting: Waiting, cluster: Cluster, play: Play, proxy: Proxy, namespace: str, gone: bool
) -> None:
    with unseen(proxy, "inferenceservices", gone=gone):
        cluster.services.delete(play.reference)
        roll(cluster, documents(namespace))
        ready(play)
    with pytest.raises(NotFoundError, match="digits was deleted") as caught:
        waiting.end()
    assert not gone or "another one of its name was created" in caught.value.what
    assert "https://" in str(caught.value.where)
    assert "kdeploy rollout" in str(caught.value.hint)


def test_another_release_that_was_applied_is_seen_afterwards(
    waiting: Waiting, cluster: Cluster, proxy: Proxy, namespace: str
) -> None:
    with unseen(proxy, "inferenceservices"):
        roll(cluster, documents(namespace, B))
    with pytest.raises(ConflictError, match=f"applied release {B}"):
        waiting.end()


def test_a_bookmark_is_where_a_watch_goes_on(waiting: Waiting, play: Play, proxy: Proxy, kube: Kube) -> None:
    play.status(deploymentMode="Standard")  # so that there is a version after the one of the list
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
