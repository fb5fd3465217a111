"""A project on disk: the release that its config makes, and how that gets into the model store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployer.archive import Archive, DigestCache, digest_archive, plan_archive, write_archive
from deployer.config import Settings
from deployer.errors import ArchiveError, ConfigError, NotFoundError
from deployer.events import Archiving, Emit, Progressed, Pushed, Warned
from deployer.files import exists
from deployer.manifest import render_runtime
from deployer.release import Release, check_release_id, plan_release
from deployer.store import ModelStore, Stored

DIGESTS = Path(".kdeploy", "digests.json")  # the digests of files that have not changed since


class Project:
    """A folder with a config. With `strict`, what is warned of is an error."""

    def __init__(
        self, settings: Settings, emit: Emit, *, strict: bool = False, digests: DigestCache | None = None
    ) -> None:
        self.settings = settings
        self._emit = emit
        self._strict = strict
        self._digests = digests or DigestCache(settings.root / DIGESTS)
        self._archive: Archive | None = None  # what was planned and not pushed yet
        self._told: set[str] = set()

    def plan(self) -> Release:
        """Name the release that the config makes. Reads the model files, writes nothing."""
        self._archive = digest_archive(self._plan_archive(), self._digests)
        return self._release(self._archive)

    def push(self, store: ModelStore) -> Release:
        """Build the model archive and bring it to a model store, unless it is there."""
        archive, self._archive = self._archive or self._plan_archive(), None
        if archive.sealed:
            # Every file is as it was when its digest was taken: the id is known without reading them.
            release = self._release(archive)
            if store.find(release.name, release.id):
                return self._pushed(release, Stored(store.uri(release), 0))
        with store.stage() as staging:
            self._emit(Archiving(name=archive.file_name, files=len(archive.members), size=archive.size))
            written = write_archive(
                archive,
                staging.archive_path(archive.file_name),
                self._digests,
                progress=lambda size: self._emit(Progressed(size)),
            )
            release = self._release(written)
            if store.find(release.name, release.id):
                return self._pushed(release, Stored(store.uri(release), 0))
            return self._pushed(release, store.put(release, staging))

    def export(self, folder: Path, *, force: bool = False) -> Path:
        """Write the model archive to a folder, in whatever format the config names."""
        archive = self._planned()
        path = folder / archive.file_name
        if exists(path) and not force:
            raise ArchiveError("it is there already", where=str(path), hint="--force replaces it")
        self._emit(Archiving(name=archive.file_name, files=len(archive.members), size=archive.size))
        write_archive(archive, path, self._digests, progress=lambda size: self._emit(Progressed(size)))
        return path

    def find(self, release_id: str, store: ModelStore) -> Release:
        """Return a release of this model from a model store. Raises NotFoundError."""
        name = self.settings.config.model.name
        release = store.find(name, check_release_id(release_id))
        if release is None:
            raise NotFoundError(
                f"release {release_id} of {name} not found in the model store",
                hint="`kdeploy releases` lists them; `kdeploy push` makes a new one",
            )
        return release

    def _plan_archive(self) -> Archive:
        model = self.settings.config.model
        if model.archive_format not in ("zip-store", "default"):
            raise ConfigError(
                f"a model store takes a .mar, not {model.archive_format}",
                where="model.archive-format",
                hint="`kdeploy archive` writes the other formats",
            )
        return self._planned()

    def _planned(self) -> Archive:
        """Plan the archive of the files as they are now, and warn once of what may go wrong with it."""
        with _located(self.settings):
            archive = plan_archive(self.settings.config.model, self.settings.root, self._digests)
        for warning in archive.warnings:
            if warning not in self._told:
                self._told.add(warning)
                self._emit(Warned(warning))
        if archive.warnings and self._strict:
            raise ArchiveError(
                f"{len(archive.warnings)} warning(s), and --strict makes them errors",
                hint="fix them, or leave --strict out",
            )
        return archive

    def _release(self, archive: Archive) -> Release:
        with _located(self.settings):
            return plan_release(self.settings.config, archive, render_runtime())

    def _pushed(self, release: Release, stored: Stored) -> Release:
        self._emit(Pushed(release=release.id, uri=stored.uri, bytes_written=stored.bytes_written))
        return release


@contextmanager
def _located(settings: Settings) -> Iterator[None]:
    """Let an error about a key name the file, variable or flag that set it."""
    try:
        yield
    except (ArchiveError, ConfigError) as error:
        error.where = error.where and settings.located(error.where)
        raise
