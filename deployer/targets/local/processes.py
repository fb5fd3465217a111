"""Processes of ours: found by a mark in their environment, and ended with all they have started.

A mark is inherited by the JVM, its Python workers and pip, whatever group they put themselves in;
a name or a pid alone never makes a process ours.
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
INSTANCE_MARK = "KDEPLOY_LOCAL_INSTANCE"  # one life of its supervisor
START_MARK = "KDEPLOY_LOCAL_START"  # one start of one TorchServe

_OPEN_FILES = 65_536


def find_marked(mark: Mapping[str, str]) -> list[psutil.Process]:
    """Return the living processes of this user that carry all of a mark in their environment."""
    import psutil

    found = []
    for process in psutil.process_iter():
        # Of another user, a zombie, or gone by now: not one that carries our mark.
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if process.pid != os.getpid() and all(environment.get(k) == v for k, v in mark.items()):
                found.append(process)
    return found


def end_marked(mark: Mapping[str, str], *, grace: float = 0.0) -> int:
    """End every process with a mark, giving it `grace` seconds to do so itself; returns how many."""
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
    # Again until there is none: one may have been starting another while it was looked for.
    while found and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=1.0)
        found = find_marked(mark)
    return ended


def raise_open_files() -> None:
    """Raise this process's limit of open files as far as it may, to 65,536 at most.

    What it starts inherits that. TorchServe's JVM and workers have the highest limit anyway: the JVM
    takes it for itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
