"""Finds the supervisor's processes by a mark in their environment, and ends them.

The JVM, its Python workers and pip inherit the mark, also in another process group. Names and pids are not
used: another process can have them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

STATE_MARK = "KDEPLOY_LOCAL_STATE"  # the state folder
INSTANCE_MARK = "KDEPLOY_LOCAL_INSTANCE"  # one supervisor process
START_MARK = "KDEPLOY_LOCAL_START"  # one start of one TorchServe

_OPEN_FILES = 65_536


def find_marked(mark: Mapping[str, str]) -> list[psutil.Process]:
    """Return this user's processes that have the mark in their environment."""
    import psutil

    found = []
    for process in psutil.process_iter():
        # Another user's process, a zombie, or one that has ended does not have our mark.
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if process.pid != os.getpid() and all(environment.get(k) == v for k, v in mark.items()):
                found.append(process)
    return found


def end_marked(mark: Mapping[str, str], *, grace: float = 0.0) -> int:
    """End every process with the mark, by SIGKILL after `grace` seconds. Return how many there were."""
    import psutil

    found = find_marked(mark)
    ended = len(found)
    if grace and found:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        psutil.wait_procs(found, timeout=grace)
        found = find_marked(mark)
    deadline = time.monotonic() + 10.0
    # Repeat until none is left: a process can start another one during the search.
    while found and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1.0)
        found = find_marked(mark)
    return ended


def raise_open_files() -> None:
    """Raise this process's limit of open files to its hard limit, at most 65,536.

    Its children inherit the limit; the JVM raises its own to the hard limit in any case.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
