"""The composition root: the one place that picks implementations and puts them together."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typing_extensions import Unpack

from deployer.cli.options import Where, WhereStored
from deployer.cli.terminal import plain
from deployer.errors import ConfigError

if TYPE_CHECKING:
    from deployer.config import KServeTarget, LocalTarget, Settings, TargetConfig
    from deployer.events import Emit
    from deployer.observed import Reference
    from deployer.rollouts import Rollouts
    from deployer.store import ModelStore
    from deployer.store.volume_shell import Shell
    from deployer.targets.kserve import Cluster
    from deployer.targets.local import OneNode
    from deployer.targets.protocols import Target

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

opened = ExitStack()  # what a command opens; its end closes it


def settings(
    *,
    wait_window: str | None = None,
    history_limit: int | None = None,
    ingress: str | None = None,
    search: bool = True,
    allow_no_project: bool = False,
    **where: Unpack[WhereStored],
) -> Settings:
    """Load the settings; flags for one thing are short for `--set` of its key.

    Without `search`, only a kdeploy.toml that is named is read. With `allow_no_project` there may be none:
    then the target is kubeconfig's cluster.
    """
    from deployer.config import LocalTarget, find_file, load_settings

    flags: dict[str, str] = {}
    for item in where.get("sets") or []:
        key, separator, value = item.partition("=")
        if not separator:
            raise ConfigError(
                f"expected KEY=VALUE, got {item!r}", where="--set", hint="--set serving.batch-size=4"
            )
        flags[key.strip()] = value
    if (store := where.get("store")) is not None:
        flags["store.uri"] = store
    here = _here()
    path = where.get("config") or (find_file(here) if search else None)

    def load() -> Settings:
        return load_settings(
            path, environment=os.environ, flags=flags, folder=here, allow_no_project=allow_no_project
        )

    loaded = load()
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
    if not given:
        return loaded
    name, chosen = target_of(loaded, where.get("target"))
    if isinstance(chosen, LocalTarget):  # it knows its own; KDEPLOY_INGRESS is about another target
        given.pop("ingress", None)
    flags |= {f"targets.{name}.{key}": value for key, value in given.items()}
    return load()


def _here() -> Path:
    """Return the current folder. Raises ConfigError if it was removed."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be used: {error.strerror}", hint="change to a folder that exists"
        ) from error


def target_of(loaded: Settings, name: str | None) -> tuple[str, TargetConfig]:
    """Return the name and config of the target of that name, or of the only one."""
    targets = loaded.config.targets
    named_by = "--target" if name else "KDEPLOY_TARGET"
    name = name or os.environ.get("KDEPLOY_TARGET")
    if name is None and len(targets) == 1:
        name = next(iter(targets))
    if name is None:
        raise ConfigError(
            f"kdeploy.toml has several targets: {', '.join(targets)}",
            where="targets",
            hint="add --target NAME",
        )
    if name not in targets:
        raise ConfigError(f"unknown target {name}", where=named_by, hint=f"known: {', '.join(targets)}")
    return name, targets[name]


def open_target(loaded: Settings, name: str | None = None, *, force_conflicts: bool = False) -> Target:
    """Open a target; this starts nothing and sends nothing."""
    from deployer.config import KServeTarget

    _, config = target_of(loaded, name)
    if isinstance(config, KServeTarget):
        return _open_cluster(config, loaded, force_conflicts=force_conflicts).target
    return open_node(loaded, name).target


def _open_cluster(config: KServeTarget, loaded: Settings, *, force_conflicts: bool = False) -> Cluster:
    from deployer.targets.kserve import Cluster

    return opened.enter_context(Cluster(config, loaded.config.store, force_conflicts=force_conflicts))


def open_node(loaded: Settings, name: str | None = None) -> OneNode:
    """Open a local target; this starts nothing."""
    from deployer.config import LocalTarget

    name, config = target_of(loaded, name)
    if not isinstance(config, LocalTarget):
        raise ConfigError(
            "this command needs a local target",
            where=f"targets.{name}",
            hint='choose one of kind = "local": --target NAME',
        )
    return _one_node(config, loaded.root, gpus=loaded.config.serving.gpu)


def _one_node(config: LocalTarget, folder: Path, *, gpus: int = 0) -> OneNode:
    from deployer.targets.local import OneNode

    return OneNode(
        state=folder / config.state,
        namespace=config.namespace,
        ingress_host=config.ingress_host,
        ingress_port=config.ingress_port,
        gpus=gpus,
    )


def open_rollouts(
    loaded: Settings,
    target: str | None,
    emit: Emit,
    *,
    strict: bool = False,
    force_conflicts: bool = False,
) -> Rollouts:
    """Open the model store and the target for a project's rollouts."""
    from deployer.project import Project
    from deployer.rollouts import Rollouts

    store = open_model_store(loaded, target, emit)
    chosen = open_target(loaded, target, force_conflicts=force_conflicts)
    return Rollouts(Project(loaded, emit, strict=strict), store, chosen, emit)


def open_targets(ignored: Collection[str] = (), **where: Unpack[WhereStored]) -> dict[str, Target]:
    """Open every target of the config except those ignored, by name; a given namespace is one more.

    Raises ConfigError for an unknown name.
    """
    named = where.pop("namespace", None)
    every = settings(**where)
    names = every.config.targets
    if unknown := sorted(set(ignored) - set(names)):
        what, known = f"unknown target {unknown[0]}", f"known: {', '.join(names)}"
        raise ConfigError(what, where="--ignore-target", hint=known)
    found = {name: open_target(every, name) for name in names if name not in ignored}
    if named is not None:
        name, _ = target_of(every, where.get("target"))
        where["namespace"] = named
        if name not in ignored:
            found[f"{name} in {named}"] = open_target(settings(**where), name)
    return found


def open_model_store(loaded: Settings, target: str | None, emit: Emit) -> ModelStore:
    """Open the model store; it is closed when the command ends."""
    from deployer.store.open import open_store

    shell = _shell(loaded, target, emit) if loaded.config.store.uri.startswith("pvc://") else None
    store = open_store(loaded.config.store, loaded.root, shell)
    opened.callback(store.close)
    return store


def _shell(loaded: Settings, target: str | None, emit: Emit) -> Shell:
    """Return a shell in the model store's claim, on the target, else on kubeconfig's current cluster."""
    from deployer.config import KServeTarget
    from deployer.events import Warned

    _, config = target_of(loaded, target)
    store, serving = loaded.config.store, loaded.config.serving
    cluster = _open_cluster(config if isinstance(config, KServeTarget) else KServeTarget(), loaded)
    return cluster.shell(store.helper_image or serving.image, lambda text: emit(Warned(text)))


def reference(loaded: Settings, target: Target, name: str | None = None) -> Reference:
    """Name this project's service, or another one in the target's namespace."""
    from deployer.observed import Reference

    return Reference(target.services.namespace, loaded.service(name))


def locate(name: str | None, **where: Unpack[Where]) -> tuple[Target, Reference]:
    """Open a target and name a service on it. The service's name may take the place of a project."""
    loaded = settings(allow_no_project=True, **where)
    target = open_target(loaded, where.get("target"))
    return target, reference(loaded, target, name)


def has_project(**where: Unpack[Where]) -> bool:
    """Whether there is a kdeploy.toml, or flags in its place."""
    from deployer.config import find_file

    return bool(where.get("config") or where.get("sets") or find_file(_here()))


def this_machine() -> Target:
    """Return this machine as a target, without a kdeploy.toml."""
    from deployer.config import LocalTarget

    return _one_node(LocalTarget(), _here()).target


def duration(text: str, option: str, *, longest: float = 24 * 3600.0, zero: bool = True) -> float:
    """Read a duration, such as 90s, 5m, 1h or 7d, in seconds. Raises ConfigError, which names the option.

    `longest` is in seconds; without `zero`, the duration must be longer than that.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)?", text)
    if not match:
        raise ConfigError(f"invalid duration {text!r}", where=option, hint="write 90s, 5m, 1h or 7d")
    seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if seconds > longest:
        raise ConfigError(f"{text} is too long", where=option, hint=f"the maximum is {longest:g}s")
    if not seconds and not zero:
        raise ConfigError(f"{text} is too short", where=option, hint="write 90s, 5m, 1h or 7d")
    return seconds


def confirm(question: str) -> None:
    """Ask before what cannot be undone. Raises ConfigError if stdin is not a terminal."""
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{question[:-1]} needs confirmation, and stdin is not a terminal",
            where="--yes",
            hint="add --yes",
        )
    typer.confirm(plain(question), abort=True, err=True)
