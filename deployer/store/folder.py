"""A model store in a folder.

    STORE/NAME/RELEASE-ID/config/config.properties
                          model-store/NAME.mar
                          release.json

A release is built in `STORE/.staging/`, `release.json` last, and moved to its place by one rename. So a
release is visible whole or not at all, even if its process is killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from deployer.config import NAME_PATTERN
from deployer.files import read_bytes, sync, walk, write_durably
from deployer.release import ID_PATTERN, Release, encode_release
from deployer.storage_access import StorageAccess
from deployer.store.file_store import FileStore, archive_name, read_record
from deployer.store.interface import PROPERTIES, RECORD, RECORD_MAX, Staging, Stored
from deployer.store.staging import staged
from deployer.store.store_errors import disk_error, disk_errors

_READING = "cannot read the release"


class FolderStore(FileStore):
    """A model store in a folder of this machine, or of a mounted volume."""

    lookup_is_side_effect_free = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def uri(self, release: Release) -> str:
        """Return the release's folder as a `file://` URL; it ends in `/`."""
        return self._place(release).as_uri() + "/"

    def access(self) -> StorageAccess | None:
        """Return None: no cluster reads a folder of this machine."""
        return None

    def find(self, name: str, release_id: str) -> Release | None:
        """Return a complete release, or None."""
        path = self.folder / name / release_id / RECORD
        with disk_errors(_READING, path):
            try:
                data = read_bytes(path, RECORD_MAX)
            except FileNotFoundError:
                return None
        return read_record(data, name, release_id, where=str(path))

    def stage(self) -> AbstractContextManager[Staging]:
        """Open a folder to build a release in, which is removed at the end unless it was `put`."""
        return staged(self.folder / ".staging", str(self.folder))

    def check_writable(self) -> None:
        """Create a folder for a moment, in the store or where the store would be. Raises StoreError."""
        place = next(one for one in (self.folder, *self.folder.parents) if os.path.lexists(one))
        with disk_errors("cannot write to the model store", self.folder):
            Path(tempfile.mkdtemp(prefix=".kdeploy-", dir=place)).rmdir()

    def put(self, release: Release, staging: Staging) -> Stored:
        """Publish a staged release by one rename. Idempotent."""
        place = self._place(release)
        try:
            (staging.folder / PROPERTIES).parent.mkdir(exist_ok=True)
            write_durably(staging.folder / PROPERTIES, release.config_properties.encode())
            sync(staging.archive_path(release.archive.file_name))
            write_durably(staging.folder / RECORD, encode_release(release))
            written = _size(staging.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            self._remove_debris(release)
            staging.folder.rename(place)
            sync(place.parent)
        except OSError as error:
            # Another push of the same inputs was faster. Its release is the same.
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and self.find(release.name, release.id):
                return Stored(self.uri(release), 0)
            raise disk_error("cannot store the release", place, error) from error
        return Stored(self.uri(release), written)

    def delete(self, release: Release) -> int:
        """Remove a release and return the bytes that this freed."""
        place = self._place(release)
        with disk_errors("cannot remove the release", place):
            freed = _size(place)
            self._discard(place)
        return freed

    def _dated(self, name: str | None) -> Iterator[tuple[float, Release]]:
        names = [name] if name else [n for n in self._names(self.folder) if re.match(NAME_PATTERN, n)]
        for model in names:
            for release_id in self._names(self.folder / model):
                release = self.find(model, release_id) if re.match(ID_PATTERN, release_id) else None
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    if release:
                        yield (self._place(release) / RECORD).stat().st_mtime, release

    def _files(self, release: Release) -> dict[str, int]:
        place = self._place(release)
        with disk_errors(_READING, place):
            return {os.path.relpath(entry.path, place): entry.stat().st_size for entry in walk(place)}

    def _read_file(self, release: Release, name: str) -> bytes:
        place = self._place(release)
        with disk_errors(_READING, place):
            return read_bytes(place / name)

    def _outline(self, release: Release, count: int, size: int) -> tuple[bytes, str | None]:
        place = self._place(release)
        with disk_errors(_READING, place), (place / archive_name(release)).open("rb") as archive:
            archive.seek(size - count)
            # The record is written last, and no program can set a ctime.
            written = os.fstat(archive.fileno()).st_ctime_ns
            unchanged = written <= (place / RECORD).stat().st_ctime_ns
            return archive.read(), release.archive.digest if unchanged else None

    def _local_archive(self, release: Release, size: int) -> AbstractContextManager[Path]:  # noqa: ARG002
        return contextlib.nullcontext(self._place(release) / archive_name(release))

    def _place(self, release: Release) -> Path:
        return self.folder / release.name / release.id

    def _names(self, folder: Path) -> list[str]:
        with disk_errors("cannot read the model store", folder), contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in folder.iterdir() if path.is_dir())
        return []

    def _remove_debris(self, release: Release) -> None:
        """Remove a folder that has a release's place and is not a release."""
        place = self._place(release)
        if place.is_dir() and not self.find(release.name, release.id) and any(place.iterdir()):
            self._discard(place)

    def _discard(self, place: Path) -> None:
        """Remove a folder, by one rename first: no process sees a part of it."""
        with self.stage() as trash:
            place.rename(trash.folder / "removed")


def _size(folder: Path) -> int:
    return sum(entry.stat(follow_symlinks=False).st_size for entry in walk(folder))
