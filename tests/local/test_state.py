"""The state folder: its lock, and errors of the operating system."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployer.errors import DiskFullError, TargetError
from deployer.observed import Reference
from deployer.targets.local import OneNode
from deployer.targets.local.connection import NotAnsweringError, NotRunningError, call
from deployer.targets.local.logs import RateLimit, read_logs
from deployer.targets.local.state import State, explained

DEMO = Reference("default", "demo")
OTHER_USER = 65_534


@pytest.fixture
def state(tmp_path: Path) -> State:
    state = State(tmp_path / ".kdeploy")
    state.create()
    return state


def open_node(state: State) -> OneNode:
    return OneNode(state=state.root.parent, namespace="default", ingress_host="127.0.0.1", ingress_port=0)


LOOK = """
import sys, time
from pathlib import Path
from deployer.targets.local.state import State

state, end, seen = State(Path(sys.argv[1])), time.monotonic() + 60, set()
print("ready", flush=True)
while time.monotonic() < end and state.lock_path.exists():
    seen.add(state.holder())
print(sorted(seen, key=str))
"""


def test_processes_that_test_the_lock_do_not_prevent_taking_it(state: State) -> None:
    state.lock_path.touch()
    command = [sys.executable, "-c", LOOK, str(state.root.parent)]
    lookers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for looker in lookers:
        assert looker.stdout
        assert looker.stdout.readline() == "ready\n"
    for _ in range(1000):
        lock = state.acquire()
        assert lock is not None
        assert State(state.root.parent).acquire() is None
        os.close(lock)
    assert state.holder() is None
    state.lock_path.unlink()
    for looker in lookers:
        assert str(os.getpid()) in looker.communicate(timeout=30)[0]


def test_a_supervisor_that_does_not_answer_differs_from_none(state: State) -> None:
    with pytest.raises(NotRunningError, match="not running"):
        call(state, "GET", "/info", timeout=0.3)
    lock = state.acquire()
    assert lock is not None
    try:
        with pytest.raises(NotAnsweringError, match=rf"pid {os.getpid()}\) has not answered") as caught:
            call(state, "GET", "/info", timeout=0.3)  # nothing listens: the supervisor is starting or ending
        assert caught.value.where == str(state.supervisor_log)
        assert "kdeploy local stop" in (caught.value.hint or "")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(state.socket))
            server.listen(1)
            with pytest.raises(NotAnsweringError):  # it listens and does not answer
                call(state, "GET", "/info", timeout=0.3)
            with pytest.raises(NotAnsweringError):
                call(state, "GET", "/info", timeout=0.3)
            with pytest.raises(NotAnsweringError):  # the backlog is full
                call(state, "GET", "/info", timeout=0.3)
    finally:
        os.close(lock)


@contextlib.contextmanager
def unreadable(state: State) -> Iterator[None]:
    """Make a state folder belong to another user, as `sudo kdeploy rollout` does, or unreadable."""
    if os.geteuid() == 0:
        os.seteuid(OTHER_USER)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        state.root.chmod(0)
        try:
            yield
        finally:
            state.root.chmod(0o700)


READING: dict[str, Callable[[OneNode], object]] = {
    "info": lambda node: node.info(),
    "get": lambda node: node.target.services.get(DEMO),
    "list": lambda node: node.target.services.list_all(),
    "watch": lambda node: list(node.target.services.watch(DEMO, 1.0)),
    "journal": lambda node: node.target.journal.entries(DEMO),
    "logs": lambda node: list(node.target.reach.logs(DEMO)),
    "supervisor log": lambda node: list(node.supervisor_log()),
    "releases in use": lambda node: node.target.services.releases_in_use(),
    "delete": lambda node: node.target.services.delete(DEMO),
    "start": lambda node: node.start(),
    "stop": lambda node: node.stop(),
}


@pytest.mark.parametrize("operation", READING)
def test_another_users_state_folder_is_an_error_with_its_owner(state: State, operation: str) -> None:
    lock = state.acquire()
    assert lock is not None
    (state.services / "default.demo.json").write_text("{}")
    state.supervisor_log.write_text("a line\n")
    try:
        with unreadable(state), pytest.raises(TargetError, match=r"denied|not permitted") as caught:
            READING[operation](open_node(state))
    finally:
        os.close(lock)
    assert (caught.value.where or "").startswith(str(state.root))
    owner = "root" if os.geteuid() == 0 else "yourself"
    assert owner in (caught.value.hint or "")
    assert "targets.local.state" in (caught.value.hint or "")


MISPLACED: dict[str, Callable[[Path], object]] = {
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", MISPLACED)
def test_a_lock_that_is_not_a_file_is_an_error_and_blocks_no_command(state: State, kind: str) -> None:
    MISPLACED[kind](state.lock_path)
    for operation in (state.holder, state.acquire):
        with pytest.raises(TargetError) as caught:
            operation()
        assert caught.value.where == str(state.lock_path)
        assert caught.value.hint


@pytest.mark.parametrize("name", ["", "local", "local/services", "local/run", "local/supervisor.log"])
def test_a_file_instead_of_a_folder_is_an_error(tmp_path: Path, name: str) -> None:
    place = tmp_path / ".kdeploy" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir() if name.endswith(".log") else place.write_text("")
    with pytest.raises(TargetError) as caught:
        open_node(State(tmp_path / ".kdeploy")).start()
    assert (
        str(place) in (caught.value.where or "") or place in (tmp_path / ".kdeploy" / "local" / "run").parents
    )
    assert caught.value.hint


def test_an_unreadable_log_is_an_error_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    assert list(read_logs(lambda: [("demo", tmp_path / "none.log")], follow=False)) == []
    (tmp_path / "demo.log").mkdir()
    with pytest.raises(TargetError, match="cannot read a log"):
        list(read_logs(lambda: [("demo", tmp_path / "demo.log")], follow=False))


@pytest.mark.parametrize(
    ("number", "kind", "remedy"),
    [
        (errno.ENOSPC, DiskFullError, "Free some space"),
        (errno.EDQUOT, DiskFullError, "Free some space"),
        (errno.EROFS, TargetError, "Mount the file system writable"),
        (errno.EACCES, TargetError, "Give yourself permission to read and write there"),
        (errno.EISDIR, TargetError, "out of the way"),
    ],
)
def test_an_error_of_the_system_has_a_hint(
    tmp_path: Path, number: int, kind: type[TargetError], remedy: str
) -> None:
    with pytest.raises(kind) as caught, explained(tmp_path, "cannot write"):
        raise OSError(number, os.strerror(number))
    assert caught.value.what == f"cannot write: {os.strerror(number)}"
    assert remedy in (caught.value.hint or "")
    assert "another folder" in (caught.value.hint or "")


def test_each_place_logs_a_limited_number_of_records_and_counts_the_rest() -> None:
    now = 0.0
    limit, lines = RateLimit(3, 60.0, lambda: now), []

    def log(place: int) -> None:
        record = logging.LogRecord("x", logging.WARNING, "x.py", place, "bad %s", ("request",), None)
        if limit.filter(record):
            lines.append(record.getMessage())

    for _ in range(10):
        log(1)
    log(2)
    assert lines == [
        "bad request",
        "bad request",
        "bad request (more of these are not logged for 60 s)",
        "bad request",
    ]
    now = 61.0
    log(1)
    log(2)
    assert lines[4:] == ["bad request (7 more were not logged)", "bad request"]
