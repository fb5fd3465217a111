"""Opens the workspace and the targets that the flags of a command name."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from deployer.cli.terminal import DeclinedError, StoppedError, plain, tell
from deployer.errors import ConfigError

if TYPE_CHECKING:
    from deployer.cli.options import Unpack, Where, WhereProject, WhereStored
    from deployer.config import Settings
    from deployer.events import Emit
    from deployer.observed import Reference
    from deployer.targets.protocols import Target
    from deployer.workspace import Workspace

DURATIONS = "Write a duration such as 90s, 5m, 1h or 7d."
DECADE = 10 * 365 * 86400.0  # seconds
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

opened = ExitStack()  # closed at the end of the command


def workspace(
    emit: Emit | None = None,
    *,
    strict: bool = False,
    force_conflicts: bool = False,
    wait_window: str | None = None,
    history_limit: int | None = None,
    ingress: str | None = None,
    search: bool = True,
    allow_no_project: bool = False,
    **where: Unpack[WhereProject],
) -> Workspace:
    """Open what the flags of a command name; a flag such as --store is short for `--set` of its key.

    `emit` gets the events; by default they are printed. Without `search`, kdeploy.toml is read only if its
    path is given. With `allow_no_project`, the target is kubeconfig's cluster if there is no kdeploy.toml.
    """
    from deployer.cli.printers import Viewer
    from deployer.config import LocalTarget, find_file, load_settings
    from deployer.events import Noted
    from deployer.workspace import Workspace, choose_target, open_mar

    flags: dict[str, str] = {}
    for item in where.get("sets") or []:
        key, separator, value = item.partition("=")
        if not separator:
            raise ConfigError(
                f"expected KEY=VALUE, got {item!r}",
                where="--set",
                hint="Write `--set serving.batch-size=4`, for example.",
            )
        flags[key.strip()] = value
    if (store := where.get("store")) is not None:
        flags["store.uri"] = store
    here = _here()
    path = where.get("config") or (find_file(here) if search else None)
    ready = open_mar(mar, path, here) if (mar := where.get("mar")) else None

    def load() -> Settings:
        return load_settings(
            path,
            environment=os.environ,
            flags=flags,
            folder=here,
            service=where.get("service"),
            ready=ready,
            allow_no_project=allow_no_project,
        )

    loaded, named = load(), where.get("target")
    window = None if wait_window is None else f"{duration(wait_window, '--wait-window', longest=600):g}"
    of_target: dict[str, object] = {
        "namespace": where.get("namespace"),
        "context": where.get("context"),
        "kubeconfig": where.get("kubeconfig"),
        "ingress": ingress,
        "wait-window": window,
        "history-limit": history_limit,
    }
    given = {key: str(value) for key, value in of_target.items() if value is not None}
    if given:
        name, chosen = choose_target(loaded, named)
        if isinstance(chosen, LocalTarget):  # it has its own ingress; KDEPLOY_INGRESS is for clusters
            given.pop("ingress", None)
        flags |= {f"targets.{name}.{key}": value for key, value in given.items()}
        loaded = load()
    emit = emit or Viewer()
    for note in loaded.notes:
        emit(Noted(note))
    work = Workspace(loaded, named, emit, strict=strict, force_conflicts=force_conflicts)
    return opened.enter_context(work)


def _here() -> Path:
    """Return the current folder. Raises ConfigError if it was removed."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"cannot use the current folder: {error.strerror}", hint="Change to a folder that exists."
        ) from error


def open_targets(ignored: Collection[str] = (), **where: Unpack[WhereStored]) -> dict[str, Target]:
    """Open every target in kdeploy.toml by name, except those ignored; `namespace` adds one more.

    Raises ConfigError for an unknown name.
    """
    from deployer.workspace import Workspace, unknown_target

    namespace = where.pop("namespace", None)
    every = workspace(**where)
    names = every.settings.config.targets
    if unknown := sorted(set(ignored) - set(names)):
        raise unknown_target(unknown[0], "--ignore-target", names)
    found = {
        name: opened.enter_context(Workspace(every.settings, name)).target
        for name in names
        if name not in ignored
    }
    if namespace is not None and (name := every.chosen[0]) not in ignored:
        where["namespace"] = namespace
        found[f"{name} in {namespace}"] = workspace(**where).target
    return found


def locate(name: str | None, **where: Unpack[Where]) -> tuple[Target, Reference]:
    """Open a target and name a service on it. With a service name, no kdeploy.toml is needed."""
    work = workspace(allow_no_project=True, **where)
    return work.target, work.reference(name)


def this_machine(**where: Unpack[Where]) -> Target | None:
    """Return this machine as a target if there is no kdeploy.toml and no flag that replaces it."""
    from deployer.config import LocalTarget, find_file
    from deployer.workspace import open_node

    if where.get("config") or where.get("sets") or find_file(_here()):
        return None
    return open_node(LocalTarget(), _here()).target


def duration(text: str, option: str, *, longest: float = 24 * 3600.0, zero: bool = True) -> float:
    """Read a duration, such as 90s, 5m, 1h or 7d, in seconds. Raises ConfigError, which names the option.

    `longest` is in seconds; without `zero`, the duration must be longer than that.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?", text)
    if not match:
        raise ConfigError(f"invalid duration {text!r}", where=option, hint=DURATIONS)
    seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if seconds > longest:
        what = f"invalid duration {text!r}: more than {longest:g}s"
        raise ConfigError(what, where=option, hint=f"Write {longest:g}s or less.")
    if not seconds and not zero:
        raise ConfigError(f"invalid duration {text!r}: must not be 0", where=option, hint=DURATIONS)
    return seconds


def confirm(action: str) -> None:
    """Ask for confirmation, and end the command without it. Raises ConfigError if stdin is not a terminal."""
    if not sys.stdin.isatty():
        raise ConfigError(
            f"cannot ask whether to {action}: stdin is not a terminal",
            where="--yes",
            hint="Confirm with `--yes`.",
        )
    try:
        confirmed = typer.confirm(plain(f"Do you want to {action}?"), err=True)
    except typer.Abort as error:  # Ctrl-C, or the end of stdin
        raise StoppedError("nothing was changed") from error
    if not confirmed:
        tell("canceled: nothing was changed")
        raise DeclinedError
