"""Starting and stopping the supervisor, seen from a command: one per state folder, alive or not."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import msgspec

from deployer.errors import TargetError
from deployer.targets.local.connection import NotAnsweringError, NotRunningError, ask
from deployer.targets.local.launch import INSTALL_HINT
from deployer.targets.local.protocol import ALREADY_RUNNING, Failure, Info
from deployer.targets.local.state import State, explained

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 45.0  # longer than TorchServe gets, and requests in flight
_STOP_ANSWER_TIMEOUT = 5.0
_SILENT_STOP_TIMEOUT = 10.0  # it may be ending already

_children: list[subprocess.Popen[bytes]] = []  # kept, since they outlive the command that started them


def read_info(state: State) -> Info | None:
    """Ask the supervisor about itself; None where none runs. Raises TargetError where it does not answer."""
    try:
        return msgspec.convert(ask(state, "GET", "/info"), Info)
    except NotRunningError:
        return None


def start(state: State, host: str, port: int) -> Info:
    """Start the supervisor, unless there is one; return when it answers. Raises TargetError."""
    state.create()
    end = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            # Another command may be starting one, or one may be ending.
            left = max(end - time.monotonic(), 1.0)
            return msgspec.convert(ask(state, "GET", "/info", timeout=left), Info)
        except NotRunningError:
            if time.monotonic() > end:
                raise
        _spawn(state, host, port, end)


def stop(state: State) -> bool:
    """Stop the supervisor and everything that it started, dead or alive; False if nothing ran.

    Raises TargetError.
    """
    with explained(state.root, "the supervisor's state folder cannot be read"):
        if not state.root.is_dir():
            return False
    holder = state.holder()
    if holder is not None:
        patience = _STOP_TIMEOUT
        try:
            ask(state, "POST", "/stop", timeout=_STOP_ANSWER_TIMEOUT)
        except NotRunningError:
            pass
        except NotAnsweringError:
            patience = _SILENT_STOP_TIMEOUT
        _await_end(state, holder, patience)
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
    with explained(state.supervisor_log, "the supervisor's log cannot be written"):
        log = state.supervisor_log.open("ab")
    with log:
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
            raise failure.error()
    elif readable and child.wait() != ALREADY_RUNNING:
        raise TargetError(
            f"the supervisor ended at once: {_last_words(state, position)}", where=str(state.supervisor_log)
        )


def _last_words(state: State, position: int) -> str:
    with state.supervisor_log.open("rb") as log:
        log.seek(position)
        lines = log.read().decode("utf-8", "replace").split("\n")
    return " | ".join([line.strip() for line in lines if line.strip()][-3:]) or "its log is empty"


def _await_end(state: State, holder: int, patience: float) -> None:
    """Wait `patience` seconds for the lock to be free, then kill its holder. Raises TargetError."""
    end, killed = time.monotonic() + patience, False
    while state.holder() == holder:
        if time.monotonic() > end:
            if killed or not holder:
                raise TargetError(
                    f"process {holder or 'unknown'} cannot be ended", where=str(state.lock_path)
                )
            with explained(state.lock_path, f"process {holder}, the supervisor, cannot be ended"):
                os.kill(holder, signal.SIGKILL)
            end, killed = time.monotonic() + _STOP_TIMEOUT, True
        time.sleep(0.05)
