"""Which run of kdeploy wrote something, and whether that run is still alive."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

running: set[str] = set()  # the runs of this process that apply something right now


def name_run() -> str:
    """Name one run of this process, unlike any other on any machine."""
    return f"{_place()} {os.getpid()} {secrets.token_hex(8)}"


def is_alive(run: str) -> bool | None:
    """Return whether the process of a run still applies something; None where it is of another machine."""
    place, _, rest = run.partition(" ")
    pid, _, _token = rest.partition(" ")
    if place != _place() or not pid.isdigit():
        return None
    if int(pid) == os.getpid():
        return run in running
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _place() -> str:
    """Name where process ids are unique: this boot of this machine, and on Linux this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        import socket

        return socket.gethostname()
