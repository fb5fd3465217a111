"""Starting and stopping the supervisor, seen from a command: one per state folder, alive or not."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import msgspec

from deployer.errors import TargetError
from deployer.targets.local.connection import NotRunningError, ask, error_of
from deployer.targets.local.launch import INSTALL_HINT
from deployer.targets.local.protocol import ALREADY_RUNNING, Failure, Info
from deployer.targets.local.state import State

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 45.0  # longer than TorchServe gets, and requests in flight
_LOG_MAX = 4 << 20

_children: list[subprocess.Popen[bytes]] = []  # kept, since they outlive the command that started them


def read_info(state: State) -> Info | None:
    """Ask the supervisor about itself; None where none runs."""
    if state.holder() is None:
        return None
    try:
        return msgspec.convert(ask(state.socket, "GET", "/info"), Info)
    except NotRunningError:
        return None


def start(state: State, host: str, port: int) -> Info:
    """Start the supervisor, unless there is one; return when it answers. Raises TargetError."""
    state.create()
    end = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < end:
        info = read_info(state)
        if info:
            return info
        if state.holder() is not None:
            time.sleep(0.05)  # another command is starting one, or one is ending
        else:
            _spawn(state, host, port, end)
    raise TargetError(
        f"the supervisor (pid {state.holder()}) has not answered for {_START_TIMEOUT:g} s",
        where=str(state.supervisor_log),
        hint="`kdeploy local stop` ends it, `kdeploy local logs` shows what it says",
    )


def stop(state: State) -> bool:
    """Stop the supervisor and everything that it started, dead or alive; False if nothing ran."""
    if not state.root.is_dir():
        return False
    holder = state.holder()
    if holder is not None:
        with contextlib.suppress(NotRunningError):
            ask(state.socket, "POST", "/stop", timeout=5.0)
        _await_end(state, holder)
    lock = state.acquire()
    if lock is None:
        return True  # another command has started one again
    try:
        try:
            from deployer.targets.local.supervisor import sweep
        except ImportError as error:
            raise TargetError(f"{error.name} is not installed", hint=INSTALL_HINT) from error
        ended = sweep(state)
        state.remove_alias()
        return ended > 0 or holder is not None
    finally:
        os.close(lock)


def _spawn(state: State, host: str, port: int, end: float) -> None:
    """Start the daemon and wait for the line in which it says that it is ready."""
    with contextlib.suppress(OSError):
        if state.supervisor_log.stat().st_size > _LOG_MAX:
            state.supervisor_log.unlink()
    with state.supervisor_log.open("ab") as log:
        position = log.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "deployer.targets.local", str(state.root.parent), host, str(port)],
            cwd=state.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    _children.append(child)
    assert child.stdout is not None
    with child.stdout:
        readable, _, _ = select.select([child.stdout], [], [], max(end - time.monotonic(), 0.0))
        line = child.stdout.readline() if readable else b""
    if line:
        failure = msgspec.json.decode(line, type=Failure)
        if failure.kind:
            raise error_of(failure)
    elif readable and child.wait() != ALREADY_RUNNING:
        raise TargetError(
            f"the supervisor ended at once: {_last_words(state, position)}", where=str(state.supervisor_log)
        )


def _last_words(state: State, position: int) -> str:
    with state.supervisor_log.open("rb") as log:
        log.seek(position)
        lines = log.read().decode("utf-8", "replace").split("\n")
    return " | ".join([line.strip() for line in lines if line.strip()][-3:]) or "it said nothing"


def _await_end(state: State, holder: int) -> None:
    """Wait until the lock is free; after a while, without asking."""
    end = time.monotonic() + _STOP_TIMEOUT
    while state.holder() == holder:
        if time.monotonic() > end:
            if holder:
                os.kill(holder, signal.SIGKILL)
            end += _STOP_TIMEOUT
        time.sleep(0.05)
