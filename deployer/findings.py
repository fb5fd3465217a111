"""What a check found: one type for every check, and the refusal that they add up to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from deployer.errors import ConfigError, RefusedError

PERMISSIONS = "permissions"  # the name of the finding about what the user may do


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was checked, what was found, where that is set, and what to do about it."""

    name: str
    status: Literal["ok", "warning", "failure"]
    detail: str
    where: str = ""
    remedy: str = ""


def ok(name: str, detail: str) -> Finding:
    """Say that a rule holds."""
    return Finding(name=name, status="ok", detail=detail)


def warning(name: str, detail: str, where: str, remedy: str) -> Finding:
    """Say that a rollout may fail."""
    return Finding(name=name, status="warning", detail=detail, where=where, remedy=remedy)


def failure(name: str, detail: str, where: str, remedy: str) -> Finding:
    """Say that a rollout would fail."""
    return Finding(name=name, status="failure", detail=detail, where=where, remedy=remedy)


def refuse(findings: Sequence[Finding]) -> list[str]:
    """Raise one error for all failures; return the warnings, one sentence each.

    Raises RefusedError where a permission is among what is missing, else ConfigError.
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
        hint="nothing was written; `kdeploy doctor` checks again",
    )
