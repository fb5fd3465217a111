"""Starts and stops the supervisor for a command. There is at most one per state folder."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import msgspec

from deployer.errors import TargetError
from deployer.targets.local.connection import NotAnsweringError, NotRunningError, call
from deployer.targets.local.launch import INSTALL_HINT
from deployer.targets.local.protocol import ALREADY_RUNNING, Address, Failure, Info
from deployer.targets.local.state import State, explained

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 45.0  # longer than TorchServes and requests in flight get
_STOP_ANSWER_TIMEOUT = 5.0
_SILENT_STOP_TIMEOUT = 10.0  # a supervisor that does not answer can be about to end

_children: list[subprocess.Popen[bytes]] = []  # referenced, or Python warns about children that still run


def read_info(state: State) -> Info | None:
    """Return the supervisor's state, or None if none is running. Raises TargetError if it does not answer."""
    try:
        return msgspec.convert(call(state, "GET", "/info"), Info)
    except NotRunningError:
        return None


def start(state: State, address: Address) -> Info:
    """Start the supervisor unless it is running, and wait until it answers. Raises TargetError."""
    state.create()
    end = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            # Another command can be starting a supervisor, or one can be ending.
            left = max(end - time.monotonic(), 1.0)
            return msgspec.convert(call(state, "GET", "/info", timeout=left), Info)
        except NotRunningError:
            if time.monotonic() > end:
                raise
        _spawn(state, address, end)


def stop(state: State) -> bool:
    """Stop the supervisor, and every process that it or a killed supervisor started.

    Returns False if nothing was running. Raises TargetError.
    """
    with explained(state.root, "cannot read the supervisor's state folder"):
        if not state.root.is_dir():
            return False
    holder = state.holder()
    if holder is not None:
        patience = _STOP_TIMEOUT
        try:
            call(state, "POST", "/stop", timeout=_STOP_ANSWER_TIMEOUT)
        except NotRunningError:
            pass
        except NotAnsweringError:
            patience = _SILENT_STOP_TIMEOUT
        _await_end(state, holder, patience)
    lock = state.acquire()
    if lock is None:
        return True  # another command has started a supervisor again
    try:
        try:
            from deployer.targets.local.supervisor import sweep
        except ImportError as error:
            raise TargetError(f"package {error.name} not found", hint=INSTALL_HINT) from error
        ended = sweep(state)
        state.remove_alias()
        return ended > 0 or holder is not None
    finally:
        os.close(lock)


def _spawn(state: State, address: Address, end: float) -> None:
    """Start a supervisor, and wait for the line that says that it is ready."""
    with explained(state.supervisor_log, "cannot write the supervisor's log"):
        log = state.supervisor_log.open("ab")
    with log:
        position = log.tell()
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "deployer.targets.local",
                str(state.root.parent),
                msgspec.json.encode(address),
            ],
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
            f"the supervisor did not start: {_last_lines(state, position)}", where=str(state.supervisor_log)
        )


def _last_lines(state: State, position: int) -> str:
    with state.supervisor_log.open("rb") as log:
        log.seek(position)
        lines = log.read().decode("utf-8", "replace").split("\n")
    return " | ".join([line.strip() for line in lines if line.strip()][-3:]) or "the log is empty"


def _await_end(state: State, holder: int, patience: float) -> None:
    """Wait `patience` seconds for the lock to be free, then kill its holder. Raises TargetError."""
    end, killed = time.monotonic() + patience, False
    while state.holder() == holder:
        if time.monotonic() > end:
            if killed or not holder:
                raise TargetError(f"cannot end process {holder or 'unknown'}", where=str(state.lock_path))
            with explained(state.lock_path, f"cannot end the supervisor (pid {holder})"):
                os.kill(holder, signal.SIGKILL)
            end, killed = time.monotonic() + _STOP_TIMEOUT, True
        time.sleep(0.05)
