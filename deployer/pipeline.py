"""Decide, then do, then watch: the one path from a config to a release that serves.

Everything up to the end of `plan` is decided without a write. Each step after it is idempotent, so
a command that died is simply run again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from msgspec import Struct

from deployer.archive import Archive, DigestCache, digest_archive, plan_archive, write_archive
from deployer.config import Settings, check_root
from deployer.differences import Difference, compare
from deployer.errors import (
    ArchiveError,
    ConfigError,
    KdeployError,
    NotFoundError,
    RolloutFailedError,
    RolloutTimeoutError,
)
from deployer.events import (
    Applied,
    Archiving,
    Emit,
    Noted,
    Progressed,
    Pushed,
    StatusChanged,
    Unchanged,
    Warned,
)
from deployer.files import exists
from deployer.history import APPLYING, INTERRUPTED, READY, last_ready
from deployer.manifest import render, render_runtime, render_secret
from deployer.origin import find_origin
from deployer.ownership import Outside, changed_outside
from deployer.release import Release, Traffic, check_release_id, plan_release
from deployer.rollout import decide_recreate, decide_traffic, read_outcome, watch_rollout
from deployer.store import ModelStore, Stored
from deployer.target import Document, Entry, Live, Phase, Reference, Status, Target

DIGESTS = Path(".kdeploy", "digests.json")  # the digests of files that have not changed since


class Plan(Struct, frozen=True, kw_only=True):
    """What a rollout would do: nothing of it has been done."""

    release: Release
    stored: bool | None  # None where looking would make something
    archive_size: int
    documents: list[Document]
    serving: str | None  # the release that answers requests now
    wanted: str | None  # the release that was applied last
    percent: int


class Pipeline:
    """One project's way from its config to its target."""

    def __init__(
        self, settings: Settings, store: ModelStore, target: Target, emit: Emit, *, strict: bool = False
    ) -> None:
        self.settings = settings
        self.store = store
        self.target = target
        self._emit = emit
        self._strict = strict
        self._digests = DigestCache(settings.root / DIGESTS)

    def plan(self, percent: int, strategy: str | None = None) -> Plan:
        """Decide everything that a rollout would do. Reads the model files, writes nothing."""
        archive = self._digest()
        release = self._plan_release(archive)
        live = self.target.get(Reference(self.target.namespace, release.name))
        traffic = self._traffic(percent, release, live)
        recreate, note = self._recreate(strategy, release, live)
        documents = self.render(release, traffic, recreate=recreate)
        self.check(self.with_secret(documents))
        if note:
            self._emit(Warned(note))
        look = self.store.lookup_is_side_effect_free
        return Plan(
            release=release,
            stored=self.store.find(release.name, release.id) is not None if look else None,
            archive_size=archive.size,
            documents=documents,
            serving=live.status.serving if live else None,
            wanted=live.status.release if live else None,
            percent=traffic.percent,
        )

    def documents(self, release_id: str | None, percent: int, strategy: str | None = None) -> list[Document]:
        """Render what a rollout would apply now, but the Secret. Reads the target once, writes nothing."""
        release = self.release(release_id)
        live = self.target.get(Reference(self.target.namespace, release.name))
        traffic, (recreate, _) = (
            self._traffic(percent, release, live),
            self._recreate(strategy, release, live),
        )
        return self.render(release, traffic, recreate=recreate)

    def _traffic(self, percent: int, release: Release, live: Live | None) -> Traffic:
        traffic, note = decide_traffic(percent, release.id, live)
        if note:
            self._emit(Noted(note))
        return traffic

    def _recreate(self, strategy: str | None, release: Release, live: Live | None) -> tuple[bool, str]:
        standard = self.target.capabilities().deployment_mode == "Standard"
        return decide_recreate(strategy, release.id, live, standard=standard)

    def render(self, release: Release, traffic: Traffic, *, recreate: bool = False) -> list[Document]:
        """Render a release's documents for this target; none of them holds credentials."""
        capabilities = self.target.capabilities()
        access = None if capabilities.own_disk else self.store.access()
        if access and access.caution:
            self._emit(Warned(access.caution))
        return render(
            release,
            storage_uri=self.store.uri(release),
            namespace=self.target.namespace,
            capabilities=capabilities,
            traffic=traffic,
            access=access,
            recreate=recreate,
        )

    def secret(self) -> Document | None:
        """Render the Secret that this project's service reads its model store with, if it needs one.

        It holds credentials: it is to be applied and never to be shown or kept.
        """
        access = None if self.target.capabilities().own_disk else self.store.access()
        if access is None:
            return None
        name = self.settings.config.model.name
        return render_secret(access, service=name, namespace=self.target.namespace)

    def with_secret(self, documents: list[Document]) -> list[Document]:
        """Return what is to be applied: documents, and the Secret first where there is one."""
        secret = self.secret()
        return [secret, *documents] if secret else documents

    def push(self) -> Release:
        """Build the model archive and bring it to the model store, unless it is there."""
        return self._push(self._plan_archive())

    def _push(self, archive: Archive) -> Release:
        if archive.sealed:
            # Every file is as it was when its digest was taken: the id is known without reading them.
            release = self._plan_release(archive)
            if self.store.find(release.name, release.id):
                return self._pushed(release, Stored(self.store.uri(release), 0))
        with self.store.stage() as staging:
            self._emit(Archiving(name=archive.file_name, files=len(archive.members), size=archive.size))
            written = write_archive(
                archive,
                staging.archive_path(archive.file_name),
                self._digests,
                progress=lambda size: self._emit(Progressed(size)),
            )
            release = self._plan_release(written)
            if self.store.find(release.name, release.id):
                return self._pushed(release, Stored(self.store.uri(release), 0))
            return self._pushed(release, self.store.put(release, staging))

    def release(self, release_id: str | None) -> Release:
        """Return a release of the model store, or name the one that the config makes. Writes nothing."""
        return self.find(release_id) if release_id else self._plan_release(self._digest())

    def find(self, release_id: str) -> Release:
        """Return a release of this model from the model store. Raises NotFoundError."""
        name = self.settings.config.model.name
        release = self.store.find(name, check_release_id(release_id))
        if release is None:
            raise NotFoundError(
                f"there is no release {release_id} of {name} in the model store",
                hint="`kdeploy releases` lists them; `kdeploy push` makes a new one",
            )
        return release

    def rollout(
        self,
        release_id: str | None,
        percent: int = 100,
        *,
        timeout: float | None,
        strategy: str | None = None,
        rollback: bool = False,
    ) -> Release:
        """Roll a release out, or what the config makes; wait `timeout` seconds, or not at all.

        With `rollback`, a release that does not become ready is replaced by the last one that was.
        """
        archive = None if release_id else self._digest()
        release = self._plan_release(archive) if archive else self.release(release_id)
        reference = Reference(self.target.namespace, release.name)
        live = self.target.get(reference)
        traffic = self._traffic(percent, release, live)
        recreate, note = self._recreate(strategy, release, live)
        documents = self.with_secret(self.render(release, traffic, recreate=recreate))
        unchanged = live is not None and self.target.serves(documents, live)
        if not unchanged:
            self.check(documents, wait=timeout is not None)
            if note:
                self._emit(Warned(note))
        if archive:
            self._push(archive)
        if unchanged:
            self._correct(reference, release.id)
            self._emit(Unchanged(service=str(reference), release=release.id))
            return release
        if release_id:
            self.store.check(release)
        self.store.close()
        self._apply(documents, release.id, traffic, release.archive.digest)
        if timeout is not None:
            try:
                self._wait(reference, release.id, timeout, traffic.stable)
            except (RolloutFailedError, RolloutTimeoutError) as error:
                if not rollback:
                    raise
                self._roll_back(error, reference, release.id, timeout)
        return release

    def _apply(self, documents: list[Document], release_id: str, traffic: Traffic, archive: str) -> None:
        origin = find_origin(self.settings.root, archive=archive)
        reference = self.target.apply(documents, origin, traffic)
        self._emit(Applied(service=str(reference), release=release_id))

    def _roll_back(self, error: KdeployError, reference: Reference, failed: str, timeout: float) -> NoReturn:
        """Restore the last release that was Ready, wait for it, and raise the error with what came of it."""
        entry = last_ready(self.target.history(reference), failed)
        if entry is None:
            error.hint = f"nothing to roll back to: no release of {reference} was Ready before. {error.hint}"
            raise error
        self._emit(Noted(f"rolling back to release {entry.release}"))
        documents = self.with_secret(list(entry.documents))
        self._apply(documents, entry.release, Traffic(), entry.archive)
        try:
            self._wait(reference, entry.release, timeout, None)
        except KdeployError as again:
            error.what += f"; rolling back to {entry.release} failed, too: {again.what}"
            raise error from again
        error.hint = f"fix the cause, then run `kdeploy rollout` again. {entry.release} is restored and Ready"
        raise error

    def _correct(self, reference: Reference, release_id: str) -> None:
        """Note that a release is Ready after all, where its entry says that the wait for it failed."""
        with contextlib.suppress(KdeployError):
            newest = self.target.history(reference)[-1:]
            for entry in newest:
                if entry.release == release_id and entry.outcome not in (READY, APPLYING):
                    self.target.note_outcome(reference, READY, entry.number)

    def check(self, documents: list[Document], *, wait: bool = True) -> None:
        """Refuse documents that could not come to serve. Writes nothing.

        Raises ConfigError, TargetError, for all that stands in the way at once.
        """
        if self.target.capabilities().own_disk:
            check_root(self.settings.root)
        if fault := self._unreadable():
            raise ConfigError(fault, where="store.uri", hint="--store model-store keeps releases in a folder")
        for caution in self.target.check(documents, wait=wait):
            self._emit(Warned(caution))

    def diff(self, release_id: str | None, percent: int) -> list[Difference]:
        """Return what a rollout would change of what is live. Changes nothing."""
        compared = self.target.preview(self.with_secret(self.documents(release_id, percent)))
        return [found for live, after in compared if (found := compare(live, after))]

    def history(self, live: Live) -> list[Entry]:
        """Return what was rolled out to a live service; a warning where that cannot be read.

        An entry whose release has become Ready since is corrected.
        """
        reference = live.status.reference
        if live.status.phase is Phase.READY and live.status.release:
            self._correct(reference, live.status.release)
        try:
            return self.target.history(reference)
        except KdeployError as error:  # a user who may only read services sees all the rest
            self._emit(Warned(f"cannot read the history, so changes by others are unknown: {error}"))
            return []

    def changed_outside(self, document: Document, entries: Sequence[Entry]) -> list[Outside]:
        """Return what others have changed of a live InferenceService since the last of its rollouts."""
        applied = [entry for entry in entries if entry.outcome not in (APPLYING, INTERRUPTED)]
        services = [d for entry in applied[-1:] for d in entry.documents if d["kind"] == "InferenceService"]
        return [found for service in services for found in changed_outside(document, service)]

    def status(self, name: str | None = None) -> Live:
        """Return a live service, and why it is not ready. Raises NotFoundError."""
        reference = self.reference(name)
        live = self.target.inspect(reference)
        if live is None:
            raise NotFoundError(
                f"service {reference} not found",
                hint="`kdeploy list` shows what exists; `kdeploy rollout` creates it",
            )
        return live

    def reference(self, name: str | None = None) -> Reference:
        """Return the name of this project's service, or of another one in its namespace."""
        service = self.settings.service(name)
        return Reference(self.target.namespace, service)

    def _digest(self) -> Archive:
        return digest_archive(self._plan_archive(), self._digests)

    def _plan_archive(self) -> Archive:
        model = self.settings.config.model
        if model.archive_format not in ("zip-store", "default"):
            raise ConfigError(
                f"a model store takes a .mar, not {model.archive_format}",
                where="model.archive-format",
                hint="`kdeploy archive` writes the other formats",
            )
        return _planned(self.settings, self._digests, self._emit, strict=self._strict)

    def _plan_release(self, archive: Archive) -> Release:
        with _located(self.settings):
            return plan_release(self.settings.config, archive, render_runtime())

    def _unreadable(self) -> str | None:
        """Say why the target could not read this model store; None where it can."""
        scheme, separator, _ = self.settings.config.store.uri.partition("://")
        if not self.target.capabilities().own_disk or not separator or scheme == "file":
            return None
        return f"this target reads models from this machine's disk, not from {scheme}://"

    def _pushed(self, release: Release, stored: Stored) -> Release:
        self._emit(Pushed(release=release.id, uri=stored.uri, bytes_written=stored.bytes_written))
        return release

    def _wait(self, reference: Reference, release_id: str, timeout: float, stable: str | None) -> None:
        status: Status | None = None
        try:
            for status in watch_rollout(self.target, reference, release_id, timeout, stable):
                self._emit(StatusChanged(status))
        except KdeployError as error:
            self._note(reference, read_outcome(error, status))
            raise
        self._note(reference, READY)
        if status and status.holding:
            self._emit(Noted(f"still terminating: {', '.join(status.holding)}"))

    def _note(self, reference: Reference, outcome: str | None) -> None:
        """Note how it ended; that this cannot be noted does not change how it ended."""
        try:
            if outcome:
                self.target.note_outcome(reference, outcome)
        except KdeployError as error:
            self._emit(Warned(f"cannot note in the history how the rollout ended: {error}"))


def export_archive(settings: Settings, folder: Path, emit: Emit, *, force: bool, strict: bool) -> Path:
    """Write a project's model archive to a folder, in whatever format the config names."""
    digests = DigestCache(settings.root / DIGESTS)
    archive = _planned(settings, digests, emit, strict=strict)
    path = folder / archive.file_name
    if exists(path) and not force:
        raise ArchiveError("it is there already", where=str(path), hint="--force replaces it")
    emit(Archiving(name=archive.file_name, files=len(archive.members), size=archive.size))
    write_archive(archive, path, digests, progress=lambda size: emit(Progressed(size)))
    return path


@contextmanager
def _located(settings: Settings) -> Iterator[None]:
    """Let an error about a key name the file, variable or flag that set it."""
    try:
        yield
    except (ArchiveError, ConfigError) as error:
        error.where = error.where and settings.located(error.where)
        raise


def _planned(settings: Settings, digests: DigestCache, emit: Emit, *, strict: bool) -> Archive:
    with _located(settings):
        archive = plan_archive(settings.config.model, settings.root, digests)
    for warning in archive.warnings:
        emit(Warned(warning))
    if archive.warnings and strict:
        raise ArchiveError(
            f"{len(archive.warnings)} warning(s), and --strict makes them errors",
            hint="mend them, or leave --strict out",
        )
    return archive
