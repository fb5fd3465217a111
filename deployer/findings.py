"""The result of a check, and the error for all failed checks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from deployer.errors import ConfigError, RefusedError

PERMISSIONS = "permissions"  # the name of the finding about the user's permissions


class Finding(Struct, frozen=True, kw_only=True):
    """The result of one check: what was found, where it is set, and how to fix it."""

    name: str
    status: Literal["ok", "warning", "failure"]
    detail: str
    where: str = ""
    remedy: str = ""


def ok(name: str, detail: str) -> Finding:
    """Return the finding of a check that passed."""
    return Finding(name=name, status="ok", detail=detail)


def warning(name: str, detail: str, where: str, remedy: str) -> Finding:
    """Return the finding of a check that a rollout can fail on."""
    return Finding(name=name, status="warning", detail=detail, where=where, remedy=remedy)


def failure(name: str, detail: str, where: str, remedy: str) -> Finding:
    """Return the finding of a check that a rollout will fail on."""
    return Finding(name=name, status="failure", detail=detail, where=where, remedy=remedy)


def refuse(findings: Sequence[Finding]) -> list[str]:
    """Raise one error for all failures; return the warnings as text.

    Raises RefusedError if a permission is missing, ConfigError for any other failure.
    """
    broken = [one for one in findings if one.status == "failure"]
    if not broken:
        return [f"{one.detail}: {one.remedy}" for one in findings if one.status == "warning"]
    kind = RefusedError if any(one.name == PERMISSIONS for one in broken) else ConfigError
    if len(broken) == 1:
        raise kind(broken[0].detail, where=broken[0].where, hint=broken[0].remedy)
    lines = [f"\n- {one.where}: {one.detail} ({one.remedy})" for one in broken]
    raise kind(
        f"{len(broken)} checks failed{''.join(lines)}",
        hint="Nothing was written. Run `kdeploy doctor` to check again.",
    )
