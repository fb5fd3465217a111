"""Opens a project with its model store and one of its targets: for the commands, and for Python programs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from deployer.config import (
    KServeTarget,
    LocalTarget,
    ReadyArchive,
    Settings,
    TargetConfig,
    find_file,
    load_settings,
    overlays_of,
)
from deployer.errors import ConfigError, use_one_of
from deployer.events import Emit, Event, Noted, Warned
from deployer.observed import Observed, Reference

if TYPE_CHECKING:  # each is imported when it is first used
    from deployer.journal import Entry
    from deployer.predict import Client, Failure, Prediction, Protocol
    from deployer.project import Project
    from deployer.release import Release
    from deployer.rollout.plan import Strategy
    from deployer.rollouts import Rollouts
    from deployer.store import ModelStore
    from deployer.targets.kserve import Cluster
    from deployer.targets.local import OneNode
    from deployer.targets.protocols import Target


def ignore(event: Event) -> None:
    """Ignore an event."""


def open_workspace(
    folder: str | Path = ".",
    *,
    target: str | None = None,
    service: str | None = None,
    mar: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
    emit: Emit = ignore,
    strict: bool = False,
) -> Workspace:
    """Open the project of the `kdeploy.toml` in a folder, or in the nearest folder above it.

    `target` is a target's name; it can be left out if there is only one, or a default. `service` is one of
    the project's services, `mar` a finished model archive in place of its files. `settings` overrides keys of
    `kdeploy.toml`, with values as after `--set`: `{"serving.batch-size": "4"}`. `emit` is called with every
    event. With `strict`, a warning about the model archive is an error. Raises ConfigError, and ArchiveError
    for `mar`.
    """
    folder = Path(folder).absolute()
    path = find_file(folder)
    loaded = load_settings(
        path,
        environment=os.environ,
        flags=dict(settings or {}),
        folder=folder,
        service=service,
        ready=open_mar(Path(mar), path, folder) if mar else None,
    )
    for note in loaded.notes:
        emit(Noted(note))
    return Workspace(loaded, target, emit, strict=strict)


def open_mar(mar: Path, path: Path | None, folder: Path) -> ReadyArchive:
    """Read a finished model archive for the project of the `kdeploy.toml` at `path`, or in `folder`.

    Raises ArchiveError.
    """
    from deployer.archive.ready import take_archive
    from deployer.project import UNPACKED

    return take_archive(mar, (path.resolve().parent if path else folder) / UNPACKED)


class Workspace:
    """A project, its model store and one target, each opened when it is first used.

    Close it, or use it in a `with`. Every method can raise a KdeployError.
    """

    def __init__(
        self,
        settings: Settings,
        target: str | None = None,
        emit: Emit = ignore,
        *,
        strict: bool = False,
        force_conflicts: bool = False,
    ) -> None:
        self.settings = settings
        self._named = target
        self._emit, self._strict, self._force_conflicts = emit, strict, force_conflicts
        self._opened = ExitStack()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the model store and the target."""
        self._opened.close()

    @cached_property
    def chosen(self) -> tuple[str, TargetConfig]:
        """The name and configuration of the target. Raises ConfigError if there are several."""
        return choose_target(self.settings, self._named)

    @cached_property
    def project(self) -> Project:
        """The project: plans, pushes and exports releases."""
        from deployer.project import Project

        return Project(self.settings, self._emit, strict=self._strict)

    @cached_property
    def store(self) -> ModelStore:
        """The model store."""
        from deployer.store.open import open_store

        config, shell = self.settings.config, None
        if config.store.uri.startswith("pvc://"):
            image = config.store.helper_image or config.serving.image
            shell = self._cluster.shell(image, lambda text: self._emit(Warned(text)))
        store = open_store(config.store, self.settings.root, shell)
        self._opened.callback(store.close)
        return store

    @cached_property
    def target(self) -> Target:
        """The target."""
        return self._cluster.target if isinstance(self.chosen[1], KServeTarget) else self.node.target

    @cached_property
    def rollouts(self) -> Rollouts:
        """The rollouts of the project to the target."""
        from deployer.rollouts import Rollouts

        overlays = overlays_of(self.chosen[1])
        return Rollouts(self.project, self.store, self.target, self._emit, overlays)

    def reference(self, name: str | None = None) -> Reference:
        """Return the namespace and name of a service. Default: the project's service."""
        return Reference(self.target.services.namespace, self.settings.service(name))

    def push(self) -> Release:
        """Build the model archive and upload it to the model store, unless the release is stored already."""
        self.settings.service(None)  # with several services, the release is the one of the chosen service
        return self.project.push(self.store)

    def rollout(
        self,
        release_id: str | None = None,
        *,
        percent: int = 100,
        strategy: Strategy | None = None,
        timeout: float | None = 300.0,
        rollback: bool = False,
    ) -> Release:
        """Roll out a release and wait until it is ready. Default: push and roll out the project as it is.

        `percent` is the release's share of the traffic. `timeout` is in seconds; with None, do not wait.
        With `rollback`, a release that does not become ready is replaced by the last one that was. Raises
        RolloutFailedError or RolloutTimeoutError if the release does not become ready.
        """
        return self.rollouts.rollout(
            release_id, percent=percent, strategy=strategy, timeout=timeout, rollback=rollback
        )

    def status(self) -> Observed:
        """Return the observed state of the service. Raises NotFoundError if there is no service."""
        from deployer.queries import inspect

        return inspect(self.target, self.reference()).status

    def history(self) -> list[Entry]:
        """Return the rollouts of the service, oldest first."""
        return self.target.journal.entries(self.reference())

    def client(self, *, headers: Mapping[str, str] | None = None, timeout: float = 60.0) -> Client:
        """Return a client that sends requests through the ingress. Close it, or use it in a `with`.

        `timeout` is in seconds, for a request and its whole response. Raises NotFoundError if there is no
        service.
        """
        from deployer.predict import Client

        reference = self.reference()
        endpoint = self.target.reach.endpoint(reference)
        return Client(
            endpoint,
            endpoint.model or reference.name,
            timeout=timeout,
            headers=headers,
            max_request_size=self.settings.config.serving.max_request_size,
        )

    def predict(
        self, files: Iterable[str | Path], protocol: Protocol | None = None
    ) -> list[Prediction | Failure]:
        """Send one request for each file, several at a time, and return the results in the files' order.

        Default: a V1 or V2 request is sent by its protocol, any other file by V1. A file without a
        prediction has a Failure, with the error.
        """
        with self.client() as client:
            paths = [Path(file) for file in files]
            return list(client.predict(paths, protocol or "v1", follow=protocol is None))

    @cached_property
    def node(self) -> OneNode:
        """The supervisor of the local target, by default of the only one. ConfigError for a cluster."""
        from deployer.archive.stock_handlers import needed_packages

        name, config = self.chosen
        local = [one for one in self.settings.config.targets.values() if isinstance(one, LocalTarget)]
        if not self._named and len(local) == 1:
            (config,) = local
        if not isinstance(config, LocalTarget):
            raise ConfigError(
                "this command needs a local target",
                where=f"targets.{name}",
                hint='Choose a target of `kind = "local"` with `--target`.',
            )
        packages = needed_packages(self.settings.config.model, self.settings.root)
        gpus = self.settings.config.serving.gpu
        return open_node(config, self.settings.root, gpus=gpus, packages=packages)

    def local_reference(self, name: str | None = None) -> Reference:
        """Return the namespace and name of a service of the local target."""
        return Reference(self.node.target.services.namespace, self.settings.service(name))

    @cached_property
    def _cluster(self) -> Cluster:
        """The cluster of the target, or of the store's claim: the only one of the targets.

        Without any, it is kubeconfig's current one.
        """
        from deployer.targets.kserve import Cluster

        clusters = [one for one in self.settings.config.targets.values() if isinstance(one, KServeTarget)]
        config = clusters[0] if len(clusters) == 1 else self.chosen[1]
        cluster = Cluster(
            config if isinstance(config, KServeTarget) else KServeTarget(),
            self.settings.config.store,
            force_conflicts=self._force_conflicts,
        )
        return self._opened.enter_context(cluster)


def choose_target(settings: Settings, name: str | None) -> tuple[str, TargetConfig]:
    """Return the name and configuration of a target.

    Default: KDEPLOY_TARGET, then `default-target`, then the only target.
    """
    targets = settings.config.targets
    named_by = "--target" if name else "KDEPLOY_TARGET"
    name = name or os.environ.get("KDEPLOY_TARGET") or settings.config.default_target
    if name is None and len(targets) != 1:
        raise ConfigError(
            f"several targets: {', '.join(targets)}",
            where="kdeploy.toml",
            hint="Choose one with `--target`, or set default-target.",
        )
    name = name or next(iter(targets))
    if name not in targets:
        raise unknown_target(name, named_by, targets)
    return name, targets[name]


def unknown_target(name: str, where: str, known: Collection[str]) -> ConfigError:
    """Return the error for a target that does not exist."""
    return ConfigError(f"unknown target {name!r}", where=where, hint=use_one_of(name, known))


def open_node(config: LocalTarget, folder: Path, *, gpus: int = 0, packages: Sequence[str] = ()) -> OneNode:
    """Open a local target, whose state folder is relative to `folder`. Starts nothing."""
    from deployer.targets.local import OneNode

    return OneNode(
        state=folder / config.state,
        namespace=config.namespace,
        ingress_host=config.ingress_host,
        ingress_port=config.ingress_port,
        torchserve_port=config.torchserve_port,
        gpus=gpus,
        packages=packages,
    )
