"""Prepares a project's working folder for TorchServe, again after each change of its files.

A change is found by the times and sizes of the files, which also works on network file systems. Nothing is
written outside the given folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from msgspec import Struct, structs

from deployer.archive import Archive, Member
from deployer.archive.mirror import Mirror
from deployer.archive.plan import MANIFEST
from deployer.bundle import Bundle
from deployer.config import Config, Settings
from deployer.errors import ConfigError
from deployer.events import Emit, Event
from deployer.manifest import render, render_runtime
from deployer.observed import Capabilities
from deployer.project import Project
from deployer.properties import METRICS_CONFIG, MODELS_MOUNT
from deployer.release import Release, plan_release
from deployer.shipped import shipped

ENTRY_POINT = "kdeploy_dev.py"
FAILURE = "kdeploy_dev.error"  # why the handler cannot be loaded; in the model's folder

_UNKNOWN = "0" * 64  # the digest of a file that is not read: the release is not stored
_ON_THIS_MACHINE = Capabilities(deployment_mode="Knative", canary=True, local_storage_only=True)

_Stamps = dict[Path, tuple[int, int, int] | None]


class Change(Struct, frozen=True):
    """What to serve: its documents, and the names of the files that changed; none the first time.

    `restart`: TorchServe has to start again, because it reads these files only then.
    """

    bundle: Bundle
    names: tuple[str, ...]
    restart: bool


class WorkingFolder:
    """The files that a project's model archive would contain, in a folder that TorchServe can load."""

    def __init__(self, load: Callable[[], Settings], folder: Path, namespace: str, emit: Emit) -> None:
        """`load` reads the settings. The first `look` empties the model's folder in `folder`."""
        self._load = load
        self._folder = folder
        self._namespace = namespace
        self._emit = emit
        self._emitted: list[Event] = []
        self._settings = load()
        self.name = self._settings.config.model.name
        self._mirror = Mirror(folder / "model-store" / f"{self.name}.mar")
        self._sources: dict[str, Path] = {}  # the user's files, by their names in the archive
        self._handled: _Stamps | None = None
        self._seen: _Stamps = {}
        self._served: tuple[Bundle, str] | None = None
        self._failed = False

    def look(self) -> Change | None:
        """Return what to serve if files have changed and are the same as at the call before, else None.

        Raises a KdeployError for files that cannot be served, once per change.
        """
        stamps = {path: _stamp(path) for path in self._watched()}
        settled, self._seen = stamps == self._seen, stamps
        if stamps == self._handled or not settled:
            return None
        self._handled = stamps
        failed, self._failed = self._failed, True
        self._settings = settings = self._load()
        # The settings can name other files. Those are not a further change.
        self._handled = {path: stamps[path] if path in stamps else _stamp(path) for path in self._watched()}
        if settings.config.model.name != self.name:
            raise ConfigError(
                "cannot change the name of a model that is served",
                where="model.name",
                hint="Stop `kdeploy dev` and start it again.",
            )
        archive = _with_entry_point(Project(settings, self._once).contents())
        self._sources = {m.name: m.source for m in archive.members if isinstance(m.source, Path)}
        config = _for_one_worker(settings.config)
        release = plan_release(config, _with_all_digests(archive), render_runtime(config.serving))
        bundle = self._render(release, config)
        names = self._mirror.update(archive)
        before, self._served = self._served, (bundle, release.config_properties)
        restart = self._served != before or any(_is_read_at_start(name, config) for name in names)
        if restart:
            self._write_properties(release.config_properties)
        self._failed = False
        shown = tuple(sorted(names)) if before else ()
        return Change(bundle, shown, restart) if names or restart or failed else None

    def failure(self) -> str:
        """Return why the handler that was loaded last cannot be loaded; empty if it can."""
        with suppress(OSError):
            return (self._mirror.folder / FAILURE).read_text("utf-8")
        return ""

    def shown(self, text: str) -> str:
        """Return a text of the log with the paths of the user's own files."""
        prefix = f"{self._mirror.folder}/"
        if prefix in text:
            for name in sorted(self._sources, key=len, reverse=True):
                text = text.replace(prefix + name, self._relative(self._sources[name]))
        return text

    def _relative(self, path: Path) -> str:
        root = self._settings.root
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    def _render(self, release: Release, config: Config) -> Bundle:
        return render(
            structs.replace(release, id=f"{release.version}-dev"),
            storage_uri=self._folder.as_uri(),
            namespace=self._namespace,
            capabilities=_ON_THIS_MACHINE,
            scaling=config.scaling,
            service=config.service.name,
        )

    def _write_properties(self, text: str) -> None:
        path = self._folder / "config" / "config.properties"
        path.parent.mkdir(exist_ok=True)
        # The first process unpacks this file from an archive, but the model's folder is one already.
        place = f"{MODELS_MOUNT}/{self._mirror.folder.relative_to(self._folder)}/{METRICS_CONFIG}"
        path.write_text(
            text.replace(f"metrics_config={METRICS_CONFIG}\n", f"metrics_config={place}\n"), "utf-8"
        )

    def _once(self, event: Event) -> None:
        """Emit each warning and each note once, not at every change."""
        if event not in self._emitted:
            self._emitted.append(event)
            self._emit(event)

    def _watched(self) -> set[Path]:
        """Return the files, and the folders in which files can appear."""
        settings, model = self._settings, self._settings.config.model
        given = [model.handler.partition(":")[0], *model.extra_files]
        given += [
            file
            for file in (model.model_file, model.serialized_file, model.requirements_file, model.config_file)
            if file
        ]
        files = {settings.root / file for file in given} | set(self._sources.values())
        files |= {settings.path} if settings.path else set()
        return files | {file.parent for file in files}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with suppress(OSError, ValueError):
        status = path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino
    return None


def _for_one_worker(config: Config) -> Config:
    """Return a config with one worker, which starts fastest."""
    return structs.replace(config, serving=structs.replace(config.serving, min_workers=1, max_workers=1))


def _with_entry_point(archive: Archive) -> Archive:
    """Return an archive whose worker stays if the handler cannot be loaded."""
    entry_point = shipped("handler") / "dev" / ENTRY_POINT
    members = {member.name: member for member in archive.members}
    planned = members[MANIFEST].source
    assert isinstance(planned, bytes)
    manifest = json.loads(planned)
    manifest["model"]["handler"] = ENTRY_POINT
    for name, content in ((ENTRY_POINT, entry_point.read_bytes()), (MANIFEST, json.dumps(manifest).encode())):
        members[name] = Member(name, len(content), sha256(content).hexdigest(), content)
    return structs.replace(archive, members=tuple(members.values()))


def _with_all_digests(archive: Archive) -> Archive:
    members = (structs.replace(member, sha256=member.sha256 or _UNKNOWN) for member in archive.members)
    return structs.replace(archive, members=tuple(members))


def _is_read_at_start(name: str, config: Config) -> bool:
    """Return whether TorchServe reads a file only when it registers the model: to set it up, and for pip."""
    for_pip = config.model.requirements_file is not None and name.endswith((".txt", ".whl"))
    return for_pip or name in (
        MANIFEST,
        METRICS_CONFIG,
        "model-config.yaml",
        Path(config.model.config_file or "").name,
    )
