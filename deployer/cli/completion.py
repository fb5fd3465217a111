"""Completes the names of targets, services and releases in the shell.

A completion takes at most `SECONDS`, never asks for anything, and is empty if anything fails.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from deployer.workspace import Workspace

SECONDS = 2.0

_WHERE = ("config", "target", "sets", "namespace", "context", "kubeconfig", "store")


def target_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the targets in kdeploy.toml."""
    return _names(context, incomplete, lambda work: work.settings.config.targets)


def service_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the services in the namespace of the target."""

    def find(work: Workspace) -> list[str]:
        services = work.target.services
        return [one.reference.name for one in services.list_all(services.namespace)]

    return _names(context, incomplete, find)


def release_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Return the IDs of the model's releases in the model store, if reading that creates no Pod."""

    def find(work: Workspace) -> list[str]:
        if work.settings.config.store.uri.startswith("pvc://"):
            return []
        return [release.id for release in work.store.releases(work.settings.config.model.name)]

    return _names(context, incomplete, find)


def _names(context: typer.Context, incomplete: str, find: Callable[[Workspace], Iterable[str]]) -> list[str]:
    """Return the names that start with the incomplete word; none if finding them fails or takes too long."""
    found: list[str] = []

    def run() -> None:
        from deployer.cli import deps

        with suppress(Exception):
            where = {key: context.params.get(key) for key in _WHERE}
            work = deps.workspace(allow_no_project=True, **where)  # type: ignore[arg-type]
            found.extend(name for name in find(work) if name.startswith(incomplete))

    # Programs that ask for credentials do so only on a terminal.
    given, sys.stdin = sys.stdin, Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    try:
        with redirect_stderr(io.StringIO()):
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            thread.join(SECONDS)
    finally:
        sys.stdin = given
    return list(found)
