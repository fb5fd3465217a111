"""Injects every fault into every request of every command.

A command must succeed despite a temporary fault. With a permanent fault it must end with one clear error, and
succeed the next time. The requests are recorded, not listed: each request fails temporarily in every way, and
permanently in two ways in one of the commands that send it. `make faults` injects every permanent fault into
all commands.
"""

from __future__ import annotations

import itertools
import os
import random
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import yaml

from deployer.config import Store
from deployer.patience import Retry
from deployer.targets.kserve import Cluster
from tests.clocks import patience
from tests.cluster.faults import (
    S3_KEYS,
    SERVICES_OF,
    Controller,
    Ended,
    kdeploy,
    new_namespace,
    objects,
    shown,
    steps,
    wrong,
)
from tests.cluster.kube import ADMIN, Kube
from tests.cluster.play import Play, documents
from tests.cluster.project import write_project
from tests.cluster.proxy import Fault, Proxy
from tests.stores.swift import Swift

ALL = "KDEPLOY_TESTS_FULL" in os.environ
pytestmark = [pytest.mark.long, pytest.mark.timeout(3600 if ALL else 120, func_only=True)]


@pytest.fixture(scope="module")
def matrix(kube: Kube, swift: Swift, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    folder = tmp_path_factory.mktemp("faults")
    write_project(
        folder / "project", Store(uri=f"s3://models/{uuid.uuid4().hex}", endpoint=swift.url), window=0.05
    )
    with Proxy(kube) as proxy, Controller(kube), pytest.MonkeyPatch.context() as patch:
        (folder / "kubeconfig").write_text(yaml.safe_dump(kube.kubeconfig(ADMIN, server=proxy.url)))
        patch.chdir(folder / "project")
        for name, value in {**S3_KEYS, "HOME": str(folder)}.items():
            patch.setenv(name, value)
        patch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
        hasty = patience(answer=0.3, watch=0.3, retry=Retry(longest=0.05))
        patch.setattr("deployer.targets.kserve.Cluster", partial(Cluster, patience=hasty))
        yield Matrix(kube, proxy)


Step = tuple[str, int]
Case = tuple[Step, str]

_HTML = {"Content-Type": "text/html; charset=utf-8"}
_SAID = "Operation cannot be fulfilled: the object has been modified"
TEMPORARY: dict[str, dict[str, Any]] = {  # temporary: a retry succeeds
    "409": {"status": 409, "reason": "Conflict", "message": _SAID},
    "410": {"status": 410, "reason": "Expired"},
    "410 in a watch": {"gone": True},
    "429": {"status": 429, "headers": {"Retry-After": "1"}},
    "500": {"status": 500},
    "503": {"status": 503, "body": "<html><h1>upstream connect error</h1></html>", "headers": _HTML},
    "reset": {"reset": True},
    "reset in mid-body": {"cut": 40},
    "answer lost": {"lost": True},
    "silence": {"hold": True},
    "slow": {"slow": 0.02},
    "no JSON": {"status": 200, "body": "\x00<garbage"},
}
PERMANENT: dict[str, dict[str, Any]] = {  # permanent: a retry fails
    "422": {"status": 422, "reason": "Invalid", "message": "spec: Invalid value"},
    "login page": {"status": 200, "body": "<!DOCTYPE html><title>Sign in</title>", "headers": _HTML},
}
KINDS = TEMPORARY | PERMANENT


def applies(kind: str, step: Step) -> bool:
    """Return whether an API server, or a proxy before it, can answer a request with this fault."""
    pattern, _ = step
    watch, listed = "watch=true" in pattern, "limit=" in pattern
    if kind == "410 in a watch":
        return watch
    if kind == "410":
        return watch or listed
    if kind in ("500", "no JSON") and "/log" in pattern:  # a node's failure, and valid content of a log
        return False
    return kind not in ("409", "422") or not pattern.startswith("^GET")


def fault(kind: str, step: Step, times: int) -> Fault:
    pattern, before = step
    return Fault(pattern, times=times, skip=before, **KINDS[kind])


class Command:
    """A read-only command in the matrix's namespace."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.steps: list[Step] = []

    def prepare(self, matrix: Matrix) -> None:
        """Bring the cluster into the state before the command."""

    def run(self, matrix: Matrix, *more: str) -> Ended:
        return kdeploy(*self.arguments, *in_namespace(matrix.read), *more)

    def record(self, matrix: Matrix) -> None:
        """Run the command without faults, and record its requests and its result."""
        self.prepare(matrix)
        matrix.proxy.requests.clear()
        self.clean = self.run(matrix)
        self.steps = list(steps(matrix.proxy.requests))

    def wrong(self, matrix: Matrix, ended: Ended) -> str | None:
        """Return the difference from the result without faults."""
        same = (ended.code, ended.out) == (self.clean.code, self.clean.out)
        return None if same else f"a different result: {ended.code} {ended.out}{ended.err}"


class Rollout(Command):
    """A rollout: of a new release, of the same release, or each time in a new namespace."""

    def __init__(self, *, first: bool = False, changed: bool = False) -> None:
        super().__init__("rollout")
        self._first, self._changed = first, changed
        self._namespace = ""
        self._release = 0

    def prepare(self, matrix: Matrix) -> None:
        if self._first or not self._namespace:
            self._namespace = new_namespace(matrix.kube)
        if not self._first and not matrix.has_service(self._namespace):
            assert self.run(matrix).code == 0
        self._release = (self._release + self._changed) % 2

    def run(self, matrix: Matrix, *more: str) -> Ended:
        flags = (*in_namespace(self._namespace), "--set", of_release(self._release))
        return kdeploy(*self.arguments, *flags, *more)

    def wrong(self, matrix: Matrix, ended: Ended) -> str | None:
        if ended.code:
            return f"exit code {ended.code}"
        return wrong(matrix.kube, self._namespace, matrix.releases[self._release], matrix.clean)


class Delete(Command):
    def __init__(self) -> None:
        super().__init__("delete", "--yes")

    def prepare(self, matrix: Matrix) -> None:
        self._namespace = new_namespace(matrix.kube)
        service = documents(self._namespace).service
        matrix.kube.create(f"{SERVICES_OF.format(self._namespace)}", service)

    def run(self, matrix: Matrix, *more: str) -> Ended:
        return kdeploy(*self.arguments, *in_namespace(self._namespace), *more)

    def wrong(self, matrix: Matrix, ended: Ended) -> str | None:
        left = matrix.has_service(self._namespace)
        return f"exit code {ended.code}, service left: {left}" if ended.code or left else None


COMMANDS = {
    "the first rollout": Rollout(first=True),
    "the next rollout": Rollout(changed=True),
    "an unchanged rollout": Rollout(),
    "render": Command("render"),
    "status": Command("status"),
    "list": Command("list"),
    "logs": Command("logs"),
    "doctor": Command("doctor", "--set", "serving.gpu=1"),
    "predict": Command("predict", "--kserve", "handler.py"),
    "delete": Delete(),
}


class Matrix:
    """One project, one cluster, a namespace to read, and the faults of each command."""

    def __init__(self, kube: Kube, proxy: Proxy) -> None:
        self.kube, self.proxy = kube, proxy
        self.releases = [kdeploy("push", "--set", of_release(n)).out.strip() for n in range(2)]
        self.read = new_namespace(kube)
        Play(kube, self.read).pod(self.releases[0], main={"running": {}})
        assert kdeploy("rollout", *in_namespace(self.read)).code == 0
        self.clean = set(objects(kube, self.read))
        for command in COMMANDS.values():
            command.record(self)
            assert command.wrong(self, command.clean) is None, command.clean.err
        self._choose()

    def has_service(self, namespace: str) -> bool:
        return self.kube.request("GET", f"{SERVICES_OF.format(namespace)}/digits")[0] == 200

    def _choose(self) -> None:
        """Choose a fault for each step, and the command to inject it into."""
        dice = random.Random(3)
        self.once: dict[str, list[Case]] = {name: [] for name in COMMANDS}
        self.ever: dict[str, list[Case]] = {name: [] for name in COMMANDS}
        passing, lasting = itertools.cycle(TEMPORARY), itertools.cycle(PERMANENT)
        for step in dict.fromkeys(step for command in COMMANDS.values() for step in command.steps):
            having = [name for name, command in COMMANDS.items() if step in command.steps]
            kinds = [kind for kind in KINDS if applies(kind, step)]
            two = [next(kind for kind in some if kind in kinds) for some in (passing, lasting)]
            for name in having:
                self.once[name] += ((step, kind) for kind in kinds if kind in TEMPORARY)
            for kind in kinds if ALL else two:
                for name in having if ALL else [dice.choice(having)]:
                    self.ever[name].append((step, kind))

    def rows(self, name: str) -> list[list[Case]]:
        """Return the temporary faults of a command in rows, with one fault per step in each row."""
        rows: list[dict[Step, str]] = []
        for step, kind in self.once[name]:
            row = next((row for row in rows if step not in row), None)
            if row is None:
                rows.append(row := {})
            row[step] = kind
        return [list(row.items()) for row in rows]


def in_namespace(name: str) -> tuple[str, str]:
    return "--set", f"targets.production.namespace={name}"


def of_release(number: int) -> str:
    return f"serving.max-batch-delay={60 + number}"


def describe(name: str, cases: list[Case], ended: Ended) -> str:
    failed = "".join(f"\n  {kind} at {shown(step)}" for step, kind in cases)
    return f"{name}, {ended.seconds:.1f} s:{failed}\n{ended.code} {ended.out}{ended.err}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_temporary_fault_at_any_step_is_overcome(matrix: Matrix, name: str) -> None:
    command = COMMANDS[name]
    for cases in matrix.rows(name):
        command.prepare(matrix)
        with matrix.proxy.failing(*(fault(kind, step, 1) for step, kind in cases)):
            ended = command.run(matrix)
        assert command.wrong(matrix, ended) is None, describe(name, cases, ended)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_permanent_fault_is_one_error_and_the_next_run_succeeds(matrix: Matrix, name: str) -> None:
    command = COMMANDS[name]
    patience = ["--timeout", "300ms"] if isinstance(command, Rollout) else []
    for step, kind in matrix.ever[name]:
        command.prepare(matrix)
        one = fault(kind, step, 1_000_000)
        with matrix.proxy.failing(one):
            ended = command.run(matrix, *patience)
        assert ended.fault() is None, describe(name, [(step, kind)], ended)
        assert ended.seconds < 20, describe(name, [(step, kind)], ended)
        again = command.run(matrix)
        assert command.wrong(matrix, again) is None, describe(name, [(step, kind)], again)
