"""Logs of every container of every pod; the proxy answers for the kubelet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone

import pytest

from deployer.errors import NotFoundError, TargetError
from deployer.targets.kserve import Cluster
from deployer.targets.log_lines import Part
from tests.cluster.calls import roll
from tests.cluster.kube import Kube
from tests.cluster.log_kubelet import LogKubelet
from tests.cluster.play import A, B, Play, documents
from tests.cluster.proxy import Proxy

RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


@pytest.fixture
def play(cluster: Cluster, kube: Kube, namespace: str) -> Play:
    roll(cluster, documents(namespace))
    return Play(kube, namespace)


def test_the_logs_of_every_container_of_every_pod(cluster: Cluster, play: Play, proxy: Proxy) -> None:
    pod = play.pod(A, init={"terminated": {"exitCode": 0}}, main=RUNNING)["metadata"]["name"]
    with (
        proxy.fault("/log.*container=storage-initializer", status=200, body="fetched\n"),
        proxy.fault("/log.*container=kserve-container", status=200, body="a\n\nb"),
    ):
        lines = list(cluster.reach.logs(play.reference))
    assert lines == [
        f"{pod} storage-initializer: fetched",
        f"{pod} kserve-container: a",
        f"{pod} kserve-container: ",
        f"{pod} kserve-container: b",
    ]


def test_new_pods_are_followed_until_the_service_is_deleted(
    cluster: Cluster, play: Play, proxy: Proxy
) -> None:
    first = play.pod(A, main=RUNNING)["metadata"]["name"]
    said = "2026-01-01T00:00:0{}.000000000Z said\n"
    with (
        proxy.fault(f"{A[-6:]}.*/log.*follow=true", status=200, body=said.format(1), times=9),
        proxy.fault(f"{B[-6:]}.*/log.*follow=true", status=200, body=said.format(1)),
        proxy.fault(f"{B[-6:]}.*/log.*follow=true", status=200, body=said.format(2), times=9),
    ):
        lines = cluster.reach.logs(play.reference, follow=True)
        assert next(lines) == f"{first} kserve-container: said"
        second = play.pod(B, main=RUNNING)["metadata"]["name"]
        assert next(lines) == f"{second} kserve-container: said"
        play.restart(second)
        assert next(lines) == f"{second} kserve-container: said"
        cluster.services.delete(play.reference)
        assert list(lines) == []


def test_the_logs_of_the_previous_run(cluster: Cluster, play: Play, proxy: Proxy) -> None:
    once = play.pod(A, init={"terminated": {"exitCode": 0}}, main=RUNNING)["metadata"]["name"]
    again = play.pod(B, main={"waiting": {"reason": "CrashLoopBackOff"}, "last": {"exitCode": 1}})
    with proxy.fault("/log.*previous=true", status=200, body="ModuleNotFoundError\n"):
        lines = list(cluster.reach.logs(play.reference, previous=True))
    assert sorted(lines) == sorted(
        [
            f"{once} storage-initializer: the container has no previous run",
            f"{once} kserve-container: the container has no previous run",
            f"{again['metadata']['name']} kserve-container: ModuleNotFoundError",
        ]
    )


def test_a_container_that_never_started_has_no_log(cluster: Cluster, play: Play, proxy: Proxy) -> None:
    play.pod(A, init={"waiting": {"reason": "PodInitializing"}})
    assert list(cluster.reach.logs(play.reference)) == []
    assert [path for _, path in proxy.requests if path.endswith("/log")] == []


def test_an_unavailable_log_is_a_line_and_not_an_error(cluster: Cluster, play: Play, proxy: Proxy) -> None:
    play.pod(A, main=RUNNING)
    with proxy.fault("/log", status=500, message="its node is gone"):
        (line,) = cluster.reach.logs(play.reference)
    assert "kserve-container: no log: " in line
    assert "its node is gone" in line


def test_the_logs_of_a_missing_service(cluster: Cluster, play: Play) -> None:
    cluster.services.delete(play.reference)
    with pytest.raises(NotFoundError, match="not found"):
        list(cluster.reach.logs(play.reference))


@pytest.fixture
def kubelet(kube: Kube, namespace: str, play: Play) -> Iterator[LogKubelet]:
    with LogKubelet(kube, namespace) as running:
        play.pod(A, main=RUNNING, node=running.node)
        yield running


def stamped(second: int, count: int) -> list[str]:
    """Return lines, some of which have the same time and text."""
    return [f"2026-01-01T00:00:{second:02}.{n // 2:09}Z line {second} {n // 4}" for n in range(count)]


def texts(lines: list[str]) -> list[str]:
    return [line.partition(" ")[2] for line in lines]


@pytest.mark.parametrize("broken", [{"cut": 0}, {"cut": 700}, {"cut": 1000}, {"reset": True}])
@pytest.mark.parametrize("follow", [False, True])
def test_a_log_that_breaks_off_is_resumed(
    cluster: Cluster, play: Play, proxy: Proxy, kubelet: LogKubelet, broken: dict[str, int], follow: bool
) -> None:
    before, after = stamped(1, 5) + stamped(2, 20), stamped(2, 24)[20:] + stamped(3, 9)
    kubelet.say(*before)
    with proxy.fault("/log", times=3, **broken):
        lines = cluster.reach.logs(play.reference, follow=follow)
        if follow:
            shown = [next(lines) for _ in before]
            kubelet.say(*after)
            shown += [next(lines) for _ in after]
            kubelet.end()
            cluster.services.delete(play.reference)
        else:
            kubelet.say(*after)
            shown = []
        shown += lines
    assert [line.partition(": ")[2] for line in shown] == texts(before + after)
    assert "reset" in broken or len(kubelet.asked) > 1


def test_a_log_that_the_api_server_ends_is_resumed(
    cluster: Cluster, play: Play, proxy: Proxy, kubelet: LogKubelet
) -> None:
    first, second = stamped(1, 3), stamped(1, 6)[3:]
    kubelet.say(*first, *second)
    body = "".join(f"{line}\n" for line in first)
    with proxy.fault("/log.*follow=true", status=200, body=body):
        lines = cluster.reach.logs(play.reference, follow=True)
        shown = [next(lines) for _ in (*first, *second)]
        cluster.services.delete(play.reference)
        assert list(lines) == []
    assert [line.partition(": ")[2] for line in shown] == texts(first + second)


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("failure", [{"reset": True}, {"status": 503}, {"status": 401}, {"cut": 30}])
def test_an_api_server_that_keeps_failing_is_an_error(
    quick: Cluster, play: Play, proxy: Proxy, kubelet: LogKubelet, failure: dict[str, int], follow: bool
) -> None:
    kubelet.say(*stamped(1, 3))
    with proxy.fault("/log", times=1000, **failure), pytest.raises(TargetError) as caught:
        list(quick.reach.logs(play.reference, follow=follow))
    assert caught.value.where
    assert caught.value.hint


PROBE = '[INFO ] x ACCESS_LOG - /127.0.0.1:5 "GET /models/demo HTTP/1.1" 200 1'


def probed(count: int) -> list[str]:
    """Return lines of a handler, each before 200 requests of the probe."""
    return [
        f"2026-01-01T00:00:{n:02}.{m:09}Z {PROBE if m else f'line {n}'}"
        for n in range(count)
        for m in range(201)
    ]


@pytest.mark.parametrize(
    ("follow", "tail", "shown"),
    [(False, 0, []), (False, 1, [5]), (True, 1, [5]), (True, 4, [2, 3, 4, 5]), (False, 99, range(6))],
)
def test_the_last_lines_are_counted_without_those_of_the_probe(
    cluster: Cluster, play: Play, kubelet: LogKubelet, follow: bool, tail: int, shown: Iterable[int]
) -> None:
    kubelet.say(*probed(6))
    lines = cluster.reach.logs(play.reference, follow=follow, part=Part(tail=tail))
    found = [next(lines) for _ in shown]
    if follow:
        kubelet.say("2026-01-01T00:00:09.000000000Z new")
        assert next(lines).endswith(": new")
        kubelet.end()
        cluster.services.delete(play.reference)
    assert [line.partition(": ")[2] for line in found] == [f"line {n}" for n in shown]
    assert list(lines) == []


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("tail", [None, 9])
def test_older_lines_are_left_out(
    cluster: Cluster, play: Play, kubelet: LogKubelet, follow: bool, tail: int | None
) -> None:
    now = datetime.now(timezone.utc)
    ages = (7200, 3000, 10)
    kubelet.say(*(f"{now - timedelta(seconds=age):%Y-%m-%dT%H:%M:%S.000000000}Z {age}" for age in ages))
    lines = cluster.reach.logs(play.reference, follow=follow, part=Part(tail=tail, since=3600.0))
    assert [next(lines).partition(": ")[2] for _ in range(2)] == ["3000", "10"]
    if follow:
        kubelet.end()
        cluster.services.delete(play.reference)
    assert list(lines) == []
