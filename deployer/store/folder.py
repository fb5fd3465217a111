"""A model store in a folder.

    STORE/NAME/RELEASE-ID/config/config.properties
                          model-store/NAME.mar
                          release.json

A release is built in `STORE/.staging/` and comes to its place by one rename, `release.json` being
the last file written; so whatever dies, a release is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from deployer.config import NAME_PATTERN
from deployer.files import read_bytes, remove_tree, sync, walk, write_durably
from deployer.release import ID_PATTERN, Release, encode_release
from deployer.storage_access import StorageAccess
from deployer.store.base import FileStore
from deployer.store.contents import Contents, archive_name, read_record
from deployer.store.interface import PROPERTIES, RECORD, RECORD_MAX, Staging, Stored
from deployer.store.staging import debris_of, staged
from deployer.store.store_errors import disk_error

_STAGING = ".staging"
_READING = "the release cannot be read"


class FolderStore(FileStore):
    """A model store in a folder of this machine, or of a mounted volume."""

    lookup_is_side_effect_free = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def uri(self, release: Release) -> str:
        """Return the release's folder as a `file://` URL; it ends in `/`."""
        return self._place(release.name, release.id).as_uri() + "/"

    def access(self) -> StorageAccess | None:
        """Return nothing: no cluster reads a folder of this machine."""
        return None

    def find(self, name: str, release_id: str) -> Release | None:
        """Return a release that is there in whole, or None."""
        path = self._place(name, release_id) / RECORD
        try:
            data = read_bytes(path, RECORD_MAX)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise disk_error("a release cannot be read", str(path), error) from error
        return read_record(data, name, release_id, where=str(path))

    def _dated(self, name: str | None) -> Iterator[tuple[float, Release]]:
        names = [name] if name else [n for n in self._names(self.folder) if re.match(NAME_PATTERN, n)]
        for model in names:
            for release_id in self._names(self.folder / model):
                release = self.find(model, release_id) if re.match(ID_PATTERN, release_id) else None
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed in this moment
                    if release:
                        yield (self._place(model, release_id) / RECORD).stat().st_mtime, release

    def stage(self) -> AbstractContextManager[Staging]:
        """Open a folder to build a release in; what was not `put` at its end is removed."""
        return staged(self.folder / _STAGING, str(self.folder))

    def put(self, release: Release, staging: Staging) -> Stored:
        """Publish a staged release by one rename. Idempotent."""
        place = self._place(release.name, release.id)
        try:
            (staging.folder / PROPERTIES).parent.mkdir(exist_ok=True)
            write_durably(staging.folder / PROPERTIES, release.config_properties.encode())
            sync(staging.archive_path(release.archive.file_name))
            write_durably(staging.folder / RECORD, encode_release(release))
            written = _size(staging.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(release, place, staging)
            staging.folder.rename(place)
            sync(place.parent)
        except OSError as error:
            # Another push of the same inputs was faster: what it made is what this would have.
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and self.find(release.name, release.id):
                return Stored(self.uri(release), 0)
            raise disk_error("the release cannot be stored", str(place), error) from error
        return Stored(self.uri(release), written)

    def delete(self, release: Release) -> int:
        """Remove a release and return the bytes that this freed."""
        place = self._place(release.name, release.id)
        with _explained("the release cannot be removed", place):
            freed = _size(place)
            with self.stage() as staging:
                # Out of its place by one rename, so that no half of it is ever seen there.
                place.rename(staging.folder / "deleted")
        return freed

    def _files(self, release: Release) -> dict[str, int]:
        place = self._place(release.name, release.id)
        with _explained(_READING, place):
            return {os.path.relpath(entry.path, place): entry.stat().st_size for entry in walk(place)}

    def _read_file(self, release: Release, name: str) -> bytes:
        place = self._place(release.name, release.id)
        with _explained(_READING, place):
            return read_bytes(place / name)

    def _outline(self, release: Release, count: int, size: int) -> tuple[bytes, str | None]:
        place = self._place(release.name, release.id)
        with _explained(_READING, place), (place / archive_name(release)).open("rb") as archive:
            archive.seek(size - count)
            # The record is written last. No program can set this time.
            written = os.fstat(archive.fileno()).st_ctime_ns
            unchanged = written <= (place / RECORD).stat().st_ctime_ns
            return archive.read(), release.archive.digest if unchanged else None

    def _compare_archive(self, release: Release, contents: Contents, size: int) -> None:  # noqa: ARG002
        contents.compare_archive(self._place(release.name, release.id) / archive_name(release))

    def _place(self, name: str, release_id: str) -> Path:
        return self.folder / name / release_id

    def _names(self, folder: Path) -> list[str]:
        try:
            return sorted(path.name for path in folder.iterdir() if path.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise disk_error("the model store cannot be read", str(folder), error) from error

    def _make_room(self, release: Release, place: Path, staging: Staging) -> None:
        """Move away what stands in a release's place without being one."""
        if place.is_dir() and not self.find(release.name, release.id) and any(place.iterdir()):
            place.rename(debris_of(staging))
            remove_tree(debris_of(staging))


def _size(folder: Path) -> int:
    return sum(entry.stat(follow_symlinks=False).st_size for entry in walk(folder))


@contextlib.contextmanager
def _explained(what: str, where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(what, str(where), error) from error
