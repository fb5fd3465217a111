"""Where a rollout comes from: who runs it, on which machine, and the commit of the project."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

from deployer.journal import Provenance
from deployer.processes import DEVNULL, EndlessError, ask_program

_PATIENCE = 5.0  # seconds: the commit is good to know and not worth more


def find_provenance(project: Path, *, archive: str) -> Provenance:
    """Return who rolls out an archive of this digest, from which commit of the project's folder."""
    return Provenance(who=_who(), archive=archive, commit=_commit(project))


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number that has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _commit(project: Path) -> str:
    """Return the commit that is checked out, with -dirty where tracked files differ; or nothing."""
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        told = ask_program(
            # A look only: no lock is taken, and no program that the checkout names is run.
            ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *describe],
            seconds=_PATIENCE,
            cwd=project,
            stdin=DEVNULL,
            stderr=DEVNULL,
        )
    except (OSError, EndlessError):
        return ""
    return told.output.decode(errors="replace").strip() if told.code == 0 else ""
