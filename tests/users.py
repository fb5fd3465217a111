"""Runs a program as a user that the system does not know, as OpenShift does."""

from __future__ import annotations

from collections.abc import Sequence

USER = 1_000_650_000  # the first one of a namespace's range


def as_unknown_user(command: Sequence[str]) -> list[str]:
    """Return a command that runs another one as an unknown user in group 0, without privileges.

    In a user namespace, which needs no root. Files of this user belong to the unknown one, so make a folder
    that it must not write to read-only.
    """
    return ["unshare", "--user", f"--map-user={USER}", "--map-group=0", *command]
