"""A model store in a folder.

    STORE/NAME/RELEASE-ID/config/config.properties
                          model-store/NAME.mar
                          release.json

A release is built in `STORE/.staging/` and comes to its place by one rename, `release.json` being
the last file written; so whatever dies, a release is there whole or not at all.
"""

from __future__ import annotations

import builtins
import errno
import os
import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from deployer.access import Access
from deployer.archive import verify_archive
from deployer.config import NAME_PATTERN
from deployer.errors import IntegrityError
from deployer.release import ID_PATTERN, Release, decode_release, encode_release
from deployer.store import PROPERTIES, RECORD, Staging, Stored
from deployer.store.faults import disk_error
from deployer.store.staging import debris_of, staged

_STAGING = ".staging"


class FolderStore:
    """A model store in a folder of this machine, or of a mounted volume."""

    passive = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def uri(self, release: Release) -> str:
        """Return the release's folder as a `file://` URL; it ends in `/`."""
        return self._place(release.name, release.id).as_uri() + "/"

    def access(self) -> Access | None:
        """Return nothing: no cluster reads a folder of this machine."""
        return None

    def find(self, name: str, release_id: str) -> Release | None:
        """Return a release that is there in whole, or None."""
        path = self._place(name, release_id) / RECORD
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise disk_error("a release cannot be read", str(path), error) from error
        release = decode_release(data, where=str(path))
        if (release.name, release.id) != (name, release_id):
            raise IntegrityError(
                f"it tells of {release.label}",
                where=str(path),
                hint="a release folder was renamed: undo that",
            )
        return release

    def list(self, name: str | None = None) -> builtins.list[Release]:
        """Return the releases of one model, or of all, the oldest push first."""
        names = [name] if name else [n for n in self._names(self.folder) if re.match(NAME_PATTERN, n)]
        found: list[tuple[int, Release]] = []
        for model in names:
            for release_id in self._names(self.folder / model):
                if not re.match(ID_PATTERN, release_id):
                    continue
                release = self.find(model, release_id)
                if release:
                    record = self._place(model, release_id) / RECORD
                    found.append((record.stat().st_mtime_ns, release))
        return [release for _, release in sorted(found, key=lambda pair: (pair[0], pair[1].label))]

    def stage(self) -> AbstractContextManager[Staging]:
        """Open a folder to build a release in; what was not `put` at its end is removed."""
        return staged(self.folder / _STAGING, str(self.folder))

    def put(self, release: Release, staging: Staging) -> Stored:
        """Publish a staged release by one rename. Idempotent."""
        place = self._place(release.name, release.id)
        try:
            (staging.folder / PROPERTIES).parent.mkdir(exist_ok=True)
            _write(staging.folder / PROPERTIES, release.config_properties.encode())
            _sync(staging.archive_path(release.archive.file_name))
            _write(staging.folder / RECORD, encode_release(release))
            written = sum(path.stat().st_size for path in staging.folder.rglob("*") if path.is_file())
            place.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(release, place, staging)
            staging.folder.rename(place)
            _sync(place.parent)
        except OSError as error:
            # Another push of the same inputs was faster: what it made is what this would have.
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and self.find(release.name, release.id):
                return Stored(self.uri(release), 0)
            raise disk_error("the release cannot be stored", str(place), error) from error
        return Stored(self.uri(release), written)

    def verify(self, release: Release) -> None:
        """Compare every stored byte with the release. Raises IntegrityError."""
        place = self._place(release.name, release.id)
        archive = Path("model-store", release.archive.file_name)
        expected = {PROPERTIES, archive, Path(RECORD)}
        try:
            found = {path.relative_to(place) for path in place.rglob("*") if not path.is_dir()}
            properties = (place / PROPERTIES).read_bytes() if PROPERTIES in found else b""
        except OSError as error:
            raise disk_error("the release cannot be read", str(place), error) from error
        hint = f"remove {place} and push again"
        for path in sorted(expected ^ found):
            what = "is missing" if path in expected else "does not belong to the release"
            raise IntegrityError(f"{path} {what}", where=str(place), hint=hint)
        if properties != release.config_properties.encode():
            raise IntegrityError("config.properties was changed", where=str(place / PROPERTIES), hint=hint)
        verify_archive(place / archive, release.archive.members)

    def delete(self, release: Release) -> int:
        """Remove a release and return the bytes that this freed."""
        place = self._place(release.name, release.id)
        try:
            freed = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            with self.stage() as staging:
                # Out of its place by one rename, so that no half of it is ever seen there.
                place.rename(staging.folder / "deleted")
        except OSError as error:
            raise disk_error("the release cannot be removed", str(place), error) from error
        return freed

    def close(self) -> None:
        """Do nothing: nothing is held open."""

    def _place(self, name: str, release_id: str) -> Path:
        return self.folder / name / release_id

    def _names(self, folder: Path) -> builtins.list[str]:
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
            shutil.rmtree(debris_of(staging), ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk: a rename must not outlive a power cut that its bytes do not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
