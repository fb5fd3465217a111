"""A project on disk: plans the release of its config, and pushes it to the model store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployer.archive import Archive, DigestCache, digest_archive, plan_archive, write_archive
from deployer.archive.plan import Packed
from deployer.archive.ready import files_of
from deployer.config import LocalTarget, Settings
from deployer.errors import ArchiveError, ConfigError, NotFoundError
from deployer.events import Archiving, Emit, Noted, Progressed, Pushed, Warned
from deployer.files import exists
from deployer.manifest import render_runtime
from deployer.release import Release, is_complete_id, match_ids, plan_release
from deployer.store import ModelStore, Stored

DIGESTS = Path(".kdeploy", "digests.json")  # the digests of unchanged files
UNPACKED = Path(".kdeploy", "unpacked")  # the files of finished archives


class Project:
    """A folder with a config. With `strict`, a warning is an error."""

    def __init__(
        self, settings: Settings, emit: Emit, *, strict: bool = False, digests: DigestCache | None = None
    ) -> None:
        self.settings = settings
        self._emit, self._strict = emit, strict
        self._digests = digests or DigestCache(settings.root / DIGESTS)
        self._archive: Archive | None = None  # planned, and not pushed yet
        self._warned: set[str] = set()

    def plan(self) -> Release:
        """Return the release of the config. Reads the model files, writes nothing."""
        self._archive = digest_archive(self._plan_archive(), self._digests)
        return self._release(self._archive)

    def push(self, store: ModelStore) -> Release:
        """Build the model archive and write it to a model store, unless the release is stored already."""
        archive, self._archive = self._archive or self._plan_archive(), None
        if archive.sealed:  # all digests are known: the id needs no reading
            release = self._release(archive)
            if store.find(release.name, release.id):
                return self._pushed(release, Stored(store.uri(release), 0))
        with store.stage() as staging:
            release = self._release(self._write(archive, staging.archive_path(archive.file_name)))
            if store.find(release.name, release.id):
                return self._pushed(release, Stored(store.uri(release), 0))
            return self._pushed(release, store.put(release, staging))

    def contents(self) -> Archive:
        """Return the planned model archive of the config. Reads only small files, writes nothing."""
        return self._planned()

    def export(self, folder: Path, *, force: bool = False) -> Path:
        """Write the model archive to a folder, in the format of the config, and return its path."""
        archive = self._planned()
        path = folder / archive.file_name
        if exists(path) and not force:
            raise ArchiveError(
                "the archive exists already", where=str(path), hint="Add `--force` to replace it."
            )
        self._write(archive, path)
        return path

    def find(self, release_id: str, store: ModelStore) -> Release:
        """Return a release of this model from a model store, by its ID or the start of the ID or its digits.

        Raises NotFoundError, and ConfigError if there are several.
        """
        name = self.settings.config.model.name
        if is_complete_id(release_id):
            release = store.find(name, release_id)
        else:
            known = {release.id: release for release in store.releases(name)}
            matching = match_ids(release_id, known)
            if len(matching) > 1:
                raise ConfigError(
                    f"ambiguous release ID {release_id!r}", hint=f"Use one of: {', '.join(matching)}."
                )
            release = known[matching[0]] if matching else None
        if release is None:
            raise NotFoundError(
                f"release {release_id} of {name} not found in the model store",
                hint="Run `kdeploy releases` to list them, or `kdeploy push` to create a release.",
            )
        return release

    def _plan_archive(self) -> Archive:
        model = self.settings.config.model
        if model.archive_format not in ("zip-store", "default"):
            raise ConfigError(
                f"cannot store {model.archive_format}: a model store takes a .mar file",
                where="model.archive-format",
                hint="Run `kdeploy archive` to write the other formats.",
            )
        return self._planned()

    def _planned(self) -> Archive:
        """Plan the archive of the current files, and emit each warning once."""
        with _located(self.settings):
            ready = self.settings.ready
            archive = plan_archive(
                self.settings.config.model,
                self.settings.root,
                self._digests,
                serving=self.settings.config.serving,
                outputs=_outputs(self.settings),
                packed=Packed(ready.folder, tuple(files_of(ready.folder)), ready.manifest) if ready else None,
            )
        warnings = (*self.settings.warnings, *archive.warnings)
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._emit(Warned(warning))
        for note in archive.notes:
            if note not in self._warned:
                self._warned.add(note)
                self._emit(Noted(note))
        if warnings and self._strict:
            raise ArchiveError(
                f"{len(warnings)} warning(s), and --strict makes them errors",
                hint="Fix them, or leave out `--strict`.",
            )
        return archive

    def _write(self, archive: Archive, path: Path) -> Archive:
        self._emit(Archiving(name=archive.file_name, files=len(archive.members), size=archive.size))
        return write_archive(archive, path, self._digests, progress=lambda size: self._emit(Progressed(size)))

    def _release(self, archive: Archive) -> Release:
        with _located(self.settings):
            return plan_release(self.settings.config, archive, render_runtime(self.settings.config.serving))

    def _pushed(self, release: Release, stored: Stored) -> Release:
        self._emit(Pushed(release=release.id, uri=stored.uri, bytes_written=stored.bytes_written))
        return release


def _outputs(settings: Settings) -> list[Path]:
    """Return the paths that kdeploy writes to: the model store and the state of local targets."""
    config = settings.config
    store = config.store.uri.removeprefix("file://")
    states = [target.state for target in config.targets.values() if isinstance(target, LocalTarget)]
    names = [] if "://" in store else [store]
    return [settings.root / name for name in (*names, *states)]


@contextmanager
def _located(settings: Settings) -> Iterator[None]:
    """Let an error about a key name the file, variable or flag that set it."""
    try:
        yield
    except (ArchiveError, ConfigError) as error:
        error.where = error.where and settings.located(error.where)
        raise
