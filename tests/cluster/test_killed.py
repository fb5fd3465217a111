"""Kills and interrupts `kdeploy rollout` at every step: the next rollout succeeds, and nothing is left."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import psutil
import pytest
import yaml

from deployer.config import Store
from tests.cluster.ahead import Ahead
from tests.cluster.faults import (
    S3_KEYS,
    Controller,
    kdeploy,
    new_namespace,
    objects,
    shown,
    steps,
    wrong,
)
from tests.cluster.kube import ADMIN, Kube
from tests.cluster.project import write_project
from tests.cluster.proxy import Proxy
from tests.stores.planted import contents, holders
from tests.stores.swift import KEY, SECRET, Swift

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
KILLS, STOPS = signal.SIGKILL, signal.SIGINT


class Case:
    """A rollout that gets a signal before a request, or before its answer."""

    def __init__(self, folder: Path, step: tuple[str, int], *, answered: bool, by: signal.Signals) -> None:
        self.folder, self.step, self.answered, self.by = folder, step, answered, by
        self.code, self.output = 0, ""

    def __str__(self) -> str:
        place = "after the answer to" if self.answered else "before"
        return f"{self.by.name} {place} {shown(self.step)}\n{self.code} {self.output}"


class Project:
    """A project, with a namespace for each of its rollouts."""

    def __init__(self, kube: Kube, ahead: Ahead, folder: Path) -> None:
        self.kube, self.ahead, self.folder = kube, ahead, folder

    def rollout(self, proxy: Proxy, namespace: str) -> list[str]:
        """Write a kubeconfig whose server is a proxy, and start a rollout with it."""
        config = self.kube.kubeconfig(ADMIN, server=proxy.url, namespace=namespace)
        cluster = config["clusters"][0]["cluster"]
        authority = Path(cluster.pop("certificate-authority")).read_bytes()
        cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
        path = self.folder / f"{namespace}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return ["rollout", "--kubeconfig", str(path)]

    def end(self, case: Case) -> str | None:
        """Start the rollout and send the signal at the case's step; return what is wrong with the result."""
        pattern, before = case.step
        temporary = case.folder / "temporary"
        temporary.mkdir(parents=True)
        with (
            Proxy(self.kube) as proxy,
            proxy.fault(pattern, skip=before, hold=True, lost=case.answered) as fault,
        ):
            arguments = self.rollout(proxy, case.folder.name)
            command = self.ahead.start(arguments, case.folder / "output", {"TMPDIR": str(temporary)})
            if not fault.held.wait(30):
                return f"the step was not reached: {command.err.read_text()}"
            os.kill(command.began.result(), case.by)
            try:  # a signal just before a read is handled when the read times out, after 20 s
                case.code, _ = command.ended.result(60)
            except futures.TimeoutError:
                return f"the command does not end: {command.err.read_text()}"
        case.output = command.err.read_text()
        if left := list(temporary.iterdir()):
            return f"files left: {left}"
        return None if case.by is KILLS else unclear_message(case)


def unclear_message(case: Case) -> str | None:
    """Return what is wrong with the message of a stopped command."""
    if case.code != 130 or "Traceback" in case.output:
        return "not stopped with the right exit code or message"
    starts = [line.split(": ")[:2] for line in case.output.splitlines()]
    hints = [start for start, *_ in starts].count("hint")
    clear = starts.count(["error", "interrupted"]) == hints == 1
    return None if clear else "the message lacks what was done or what to do"


@pytest.fixture(scope="module")
def project(kube: Kube, swift: Swift, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("killed")
    write_project(
        folder / "project", Store(uri=f"s3://models/{uuid.uuid4().hex}", endpoint=swift.url), window=0.05
    )
    with Controller(kube), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "project")
        for name, value in {**S3_KEYS, "HOME": str(folder)}.items():
            patch.setenv(name, value)
        with Ahead(folder / "project") as ahead:
            yield Project(kube, ahead, folder)


def plan(found: list[tuple[str, int]], by: signal.Signals) -> Iterator[tuple[tuple[str, int], bool]]:
    """Yield the cases: kill before and after each write, interrupt on one side of it, and some reads."""
    for number, step in enumerate(found):
        if not step[0].startswith("^GET") and "selfsubject" not in step[0]:
            yield from (
                (step, answered) for answered in (False, True) if by is KILLS or answered == number % 2
            )
        elif number % 4 == 2 * (by is KILLS):
            yield step, number % 8 < 4


@pytest.mark.parametrize("by", [KILLS, STOPS], ids=lambda by: by.name)
def test_the_next_rollout_succeeds_and_nothing_is_left(
    project: Project, kube: Kube, by: signal.Signals
) -> None:
    clean = new_namespace(kube)
    with Proxy(kube) as proxy:
        ended = kdeploy(*project.rollout(proxy, clean))
        assert ended.code == 0, ended.err
        asked = list(steps(proxy.requests))
    names, release = set(objects(kube, clean)), ended.out.strip()
    cases = [
        Case(project.folder / new_namespace(kube), step, answered=answered, by=by)
        for step, answered in plan(asked, by)
    ]
    with futures.ThreadPoolExecutor(4) as pool:
        faults = list(pool.map(project.end, cases))
    assert [f"{fault}: {case}" for fault, case in zip(faults, cases, strict=True) if fault] == []
    found = contents(project.folder)  # the output, and files left in TMPDIR, HOME and the project
    texts = {name: text for name, text in found.items() if not name.endswith(".kubeconfig")}
    assert holders(texts, KEY, SECRET, ADMIN) == []
    with Proxy(kube) as proxy:
        for case in cases:
            ended = kdeploy(*project.rollout(proxy, case.folder.name))
            assert ended.code == 0, f"{case}{ended.err}"
            assert wrong(kube, case.folder.name, release, names) is None, f"{case}{ended.err}"


def test_the_tests_servers_end_with_the_tests(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from tests.cluster.kube import Kube;"
        "kube = Kube(pathlib.Path(sys.argv[1])); kube._spawn(pathlib.Path('/bin/sleep'), '60');"
        "print(kube._children[0].pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    server.wait(10)
