"""How fast a `kdeploy rollout` process exits after Ready, and after a permanent failure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.config import Store
from tests.cluster.ahead import Ahead, Command
from tests.cluster.kube import Kube
from tests.cluster.play import Play
from tests.cluster.project import write_project

READY = 20
WINDOW = 0.05  # seconds


@pytest.fixture
def plays(kube: Kube, namespace: str) -> list[Play]:
    """A service in its own namespace for each command."""
    names = [f"{namespace}-{number}" for number in range(READY + len(FAILURES))]
    for name in names:
        kube.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return [Play(kube, name) for name in names]


@pytest.fixture
def commands(
    straight: Path, s3_config: Store, plays: list[Play], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Command]]:
    """Waiting rollouts, each in its own process."""
    folder = write_project(tmp_path / "project", s3_config)
    monkeypatch.setenv("KUBECONFIG", str(straight))
    flags = ["--wait-window", f"{WINDOW}s", "--timeout", "60s"]
    with Ahead(folder) as ahead:
        yield [
            ahead.start(["rollout", "--namespace", play.namespace, *flags], tmp_path / play.namespace)
            for play in plays
        ]


def wait_until_waiting(command: Command) -> None:
    end = time.monotonic() + 60
    while not (command.err.exists() and "Pending" in command.err.read_text()):
        assert time.monotonic() < end, command.err.read_text()
        time.sleep(0.02)


def crash(play: Play, release: str) -> None:
    back_off = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}
    play.pod(release, main={"waiting": back_off, "last": {"exitCode": 1, "message": "No module named 'x'"}})


def no_image(play: Play, release: str) -> None:
    play.pod(release, main={"waiting": {"reason": "ErrImagePull", "message": "not found"}})


def blocked(play: Play, release: str) -> None:
    play.invalid(reason="NoSupportingRuntime", message="out of memory")


FAILURES = (crash, no_image, blocked)


def test_it_exits_soon_after_ready_and_after_a_failure(commands: list[Command], plays: list[Play]) -> None:
    for command in commands:
        wait_until_waiting(command)
    release = plays[0].service()["metadata"]["labels"]["kdeploy.dev/release"]
    late = []
    for command, play in zip(commands[:READY], plays, strict=False):
        play.replica_set(release, available=1)
        play.ready()
        written = time.monotonic()
        code, ended = command.ended.result(60)
        assert code == 0, command.err.read_text()
        assert command.out.read_text() == f"{release}\n"
        late.append(ended - written - WINDOW)
    assert statistics.median(late) <= 0.5, late
    for command, play, fails in zip(commands[READY:], plays[READY:], FAILURES, strict=True):
        fails(play, release)
        written = time.monotonic()
        code, ended = command.ended.result(60)
        assert code == 8, command.err.read_text()
        assert ended - written <= 3
