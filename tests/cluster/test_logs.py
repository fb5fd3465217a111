"""Logs of every container of every pod; the kubelet's part is answered by the proxy."""

from __future__ import annotations

import pytest

from deployer.errors import NotFoundError
from deployer.targets.kserve import Cluster
from tests.cluster.kube import Kube
from tests.cluster.play import A, B, Play, documents
from tests.cluster.proxy import Proxy

RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


@pytest.fixture
def play(cluster: Cluster, kube: Kube, namespace: str) -> Play:
    cluster.apply(documents(namespace))
    return Play(kube, namespace)


def test_every_container_of_every_pod(cluster: Cluster, play: Play, proxy: Proxy) -> None:
    pod = play.pod(A, init={"terminated": {"exitCode": 0}}, main=RUNNING)["metadata"]["name"]
    with (
        proxy.fault("/log.*container=storage-initializer", status=200, body="fetched\n"),
        proxy.fault("/log.*container=kserve-container.*previous=false", status=200, body="a\n\nb"),
    ):
        lines = list(cluster.logs(play.reference))
    assert lines == [
        f"{pod} storage-initializer: fetched",
        f"{pod} kserve-container: a",
        f"{pod} kserve-container: ",
        f"{pod} kserve-container: b",
    ]


def test_what_comes_later_is_followed_until_the_service_is_deleted(
    cluster: Cluster, play: Play, proxy: Proxy
) -> None:
    first = play.pod(A, main=RUNNING)["metadata"]["name"]
    with proxy.fault("/log.*follow=true", status=200, body="said\n", times=9):
        lines = cluster.logs(play.reference, follow=True)
        assert next(lines) == f"{first} kserve-container: said"
        second = play.pod(B, main=RUNNING)["metadata"]["name"]
        assert next(lines) == f"{second} kserve-container: said"
        play.restart(second)
        assert next(lines) == f"{second} kserve-container: said"
        cluster.delete(play.reference)
        assert list(lines) == []
    asked = [path for _, path in proxy.requests if "/log?" in path]
    assert len(asked) == 3


def test_of_the_run_before(cluster: Cluster, play: Play, proxy: Proxy) -> None:
    once = play.pod(A, init={"terminated": {"exitCode": 0}}, main=RUNNING)["metadata"]["name"]
    again = play.pod(B, main={"waiting": {"reason": "CrashLoopBackOff"}, "last": {"exitCode": 1}})
    with proxy.fault("/log.*previous=true", status=200, body="ModuleNotFoundError\n"):
        lines = list(cluster.logs(play.reference, previous=True))
    assert sorted(lines) == sorted(
        [
            f"{once} storage-initializer: there was no run before this one",
            f"{once} kserve-container: there was no run before this one",
            f"{again['metadata']['name']} kserve-container: ModuleNotFoundError",
        ]
    )


def test_a_container_that_never_started_has_none(cluster: Cluster, play: Play, proxy: Proxy) -> None:
    play.pod(A, init={"waiting": {"reason": "PodInitializing"}})
    assert list(cluster.logs(play.reference)) == []
    assert [path for _, path in proxy.requests if path.endswith("/log")] == []


def test_a_log_that_cannot_be_had_is_said_and_no_failure(cluster: Cluster, play: Play, proxy: Proxy) -> None:
    play.pod(A, main=RUNNING)
    with proxy.fault("/log", status=500, message="its node is gone"):
        (line,) = cluster.logs(play.reference)
    assert "kserve-container: no log: " in line
    assert "its node is gone" in line


def test_no_service(cluster: Cluster, play: Play) -> None:
    cluster.delete(play.reference)
    with pytest.raises(NotFoundError, match="no service"):
        list(cluster.logs(play.reference))
