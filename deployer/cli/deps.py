"""The composition root: the one place that picks implementations and puts them together."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typing_extensions import Unpack

from deployer.cli.options import Where, WhereStored
from deployer.cli.terminal import plain
from deployer.errors import ConfigError

if TYPE_CHECKING:
    from deployer.config import LocalTarget, Settings, TargetConfig
    from deployer.events import Emit
    from deployer.observed import Reference
    from deployer.rollouts import Rollouts
    from deployer.store import ModelStore
    from deployer.targets.kserve import Cluster
    from deployer.targets.local import OneNode
    from deployer.targets.protocols import Target

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

opened = ExitStack()  # what a command opens; its end closes it


class Workspace:
    """The settings, the model store and the target of one command. Opening them sends nothing."""

    def __init__(self, settings: Settings, target: str | None = None) -> None:
        self.settings = settings
        self._named = target

    @cached_property
    def chosen(self) -> tuple[str, TargetConfig]:
        """The name and config of the target. Raises ConfigError if there are several and none is named."""
        return choose_target(self.settings, self._named)

    @cached_property
    def target(self) -> Target:
        """The target."""
        return self.open_target()

    @property
    def node(self) -> OneNode:
        """The local target. Raises ConfigError for another kind."""
        from deployer.config import LocalTarget

        name, config = self.chosen
        if not isinstance(config, LocalTarget):
            raise ConfigError(
                "this command needs a local target",
                where=f"targets.{name}",
                hint='choose one of kind = "local": --target NAME',
            )
        return open_node(config, self.settings.root, gpus=self.settings.config.serving.gpu)

    def open_target(self, *, force_conflicts: bool = False) -> Target:
        """Open the target."""
        from deployer.config import KServeTarget

        if isinstance(self.chosen[1], KServeTarget):
            return self._cluster(force_conflicts=force_conflicts).target
        return self.node.target

    def _cluster(self, *, force_conflicts: bool = False) -> Cluster:
        """Open the target's cluster; for a local target, kubeconfig's current one."""
        from deployer.config import KServeTarget
        from deployer.targets.kserve import Cluster

        _, config = self.chosen
        config = config if isinstance(config, KServeTarget) else KServeTarget()
        cluster = Cluster(config, self.settings.config.store, force_conflicts=force_conflicts)
        return opened.enter_context(cluster)

    def model_store(self, emit: Emit) -> ModelStore:
        """Open the model store."""
        from deployer.events import Warned
        from deployer.store.open import open_store

        config, shell = self.settings.config, None
        if config.store.uri.startswith("pvc://"):
            image = config.store.helper_image or config.serving.image
            shell = self._cluster().shell(image, lambda text: emit(Warned(text)))
        store = open_store(config.store, self.settings.root, shell)
        opened.callback(store.close)
        return store

    def rollouts(self, emit: Emit, *, strict: bool = False, force_conflicts: bool = False) -> Rollouts:
        """Open the model store and the target for the project's rollouts."""
        from deployer.project import Project
        from deployer.rollouts import Rollouts

        store = self.model_store(emit)
        target = self.open_target(force_conflicts=force_conflicts)
        return Rollouts(Project(self.settings, emit, strict=strict), store, target, emit)

    def reference(self, name: str | None = None) -> Reference:
        """Name the project's service, or another one in the target's namespace."""
        from deployer.observed import Reference

        return Reference(self.target.services.namespace, self.settings.service(name))


def workspace(
    *,
    wait_window: str | None = None,
    history_limit: int | None = None,
    ingress: str | None = None,
    search: bool = True,
    allow_no_project: bool = False,
    **where: Unpack[WhereStored],
) -> Workspace:
    """Load the settings; a flag such as --store is short for `--set` of its key.

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
    if not given:
        return Workspace(loaded, named)
    name, chosen = choose_target(loaded, named)
    if isinstance(chosen, LocalTarget):  # it knows its own; KDEPLOY_INGRESS is about another target
        given.pop("ingress", None)
    flags |= {f"targets.{name}.{key}": value for key, value in given.items()}
    return Workspace(load(), named)


def _here() -> Path:
    """Return the current folder. Raises ConfigError if it was removed."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be used: {error.strerror}", hint="change to a folder that exists"
        ) from error


def choose_target(loaded: Settings, name: str | None) -> tuple[str, TargetConfig]:
    """Return the name and config of the target of that name, or of the only one."""
    targets = loaded.config.targets
    named_by = "--target" if name else "KDEPLOY_TARGET"
    name = name or os.environ.get("KDEPLOY_TARGET")
    if name is None and len(targets) != 1:
        raise ConfigError(
            f"kdeploy.toml has several targets: {', '.join(targets)}",
            where="targets",
            hint="add --target NAME",
        )
    name = name or next(iter(targets))
    if name not in targets:
        raise _unknown_target(name, named_by, targets)
    return name, targets[name]


def _unknown_target(name: str, where: str, known: Collection[str]) -> ConfigError:
    return ConfigError(f"unknown target {name}", where=where, hint=f"known: {', '.join(known)}")


def open_node(config: LocalTarget, folder: Path, *, gpus: int = 0) -> OneNode:
    """Open a local target; this starts nothing."""
    from deployer.targets.local import OneNode

    return OneNode(
        state=folder / config.state,
        namespace=config.namespace,
        ingress_host=config.ingress_host,
        ingress_port=config.ingress_port,
        gpus=gpus,
    )


def open_targets(ignored: Collection[str] = (), **where: Unpack[WhereStored]) -> dict[str, Target]:
    """Open every target of the config except those ignored, by name; a given namespace is one more.

    Raises ConfigError for an unknown name.
    """
    named = where.pop("namespace", None)
    every = workspace(**where)
    names = every.settings.config.targets
    if unknown := sorted(set(ignored) - set(names)):
        raise _unknown_target(unknown[0], "--ignore-target", names)
    found = {name: Workspace(every.settings, name).target for name in names if name not in ignored}
    if named is not None and (name := every.chosen[0]) not in ignored:
        where["namespace"] = named
        found[f"{name} in {named}"] = workspace(**where).target
    return found


def locate(name: str | None, **where: Unpack[Where]) -> tuple[Target, Reference]:
    """Open a target and name a service on it. The service's name may take the place of a project."""
    work = workspace(allow_no_project=True, **where)
    return work.target, work.reference(name)


def this_machine(**where: Unpack[Where]) -> Target | None:
    """Return this machine as a target if there is no kdeploy.toml, and no flags in its place."""
    from deployer.config import LocalTarget, find_file

    if where.get("config") or where.get("sets") or find_file(_here()):
        return None
    return open_node(LocalTarget(), _here()).target


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
