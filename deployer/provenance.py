"""Finds the provenance of a rollout: the user, the machine, and the commit of the project."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

from deployer.journal import Provenance
from deployer.processes import DEVNULL, EndlessError, ask_program

_PATIENCE = 5.0  # seconds; a rollout without a commit is better than a longer wait


def find_provenance(project: Path, *, archive: str) -> Provenance:
    """Return the provenance of a rollout of the archive with this digest from a project's folder."""
    return Provenance(who=_who(), archive=archive, commit=_commit(project))


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # the user of a container can lack a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _commit(project: Path) -> str:
    """Return the current commit, with -dirty if tracked files differ; "" if there is none."""
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        answer = ask_program(
            # Read-only: git takes no lock and runs no program that the checkout configures.
            ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *describe],
            seconds=_PATIENCE,
            cwd=project,
            stdin=DEVNULL,
            stderr=DEVNULL,
        )
    except (OSError, EndlessError):
        return ""
    return answer.output.decode(errors="replace").strip() if answer.code == 0 else ""
