"""What the model stores share: a release is compared with its record, file by file."""

from __future__ import annotations

import re
import shutil
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from deployer.archive import check_outline, outline_size, verify_archive
from deployer.config import NAME_PATTERN
from deployer.errors import DiskFullError, IntegrityError, StoreError
from deployer.release import ID_PATTERN, Release, decode_release
from deployer.store.interface import PROPERTIES, RECORD, ModelStore, Staging
from deployer.store.staging import staged


class FileStore(ModelStore):
    """A model store whose files are listed and read one by one."""

    def dated(self, name: str | None = None) -> list[tuple[float, Release]]:
        """Return the releases of one model, or of all, oldest first, each with the time of its push."""
        return sorted(self._dated(name), key=lambda pair: (pair[0], pair[1].label))

    def check(self, release: Release) -> None:
        """Compare names, sizes and the stored digest with the record; without a digest, every byte."""
        size = self._compare_files(release)
        tail, digest = self._outline(release, min(outline_size(release.archive.members), size), size)
        with self._damage(release):
            check_outline(tail, size, release.archive.members)
        if digest is None:
            with self._local_archive(release, size) as path:
                self._compare_archive(release, path)
        elif digest != release.archive.digest:
            raise self._damaged(release, f"{archive_name(release)} was replaced")

    def verify(self, release: Release) -> None:
        """Compare every stored byte with the release. Raises IntegrityError."""
        with self.archive(release):
            pass

    @contextmanager
    def archive(self, release: Release) -> Iterator[Path]:
        """Provide the archive as a file on this machine, after comparing every stored byte."""
        size = self._compare_files(release)
        with self._local_archive(release, size) as path:
            self._compare_archive(release, path)
            yield path

    def close(self) -> None:
        """Do nothing: a store without a connection needs no closing."""

    def _compare_files(self, release: Release) -> int:
        """Compare everything but the archive; return the archive's size. Raises IntegrityError."""
        found = self._files(release)
        expected = {str(PROPERTIES), archive_name(release), RECORD}
        for name in sorted(expected ^ set(found)):
            what = "is missing" if name in expected else "does not belong to the release"
            raise self._damaged(release, f"{name} {what}")
        if self._read_file(release, str(PROPERTIES)) != release.config_properties.encode():
            raise self._damaged(release, "config.properties was changed")
        return found[archive_name(release)]

    def _compare_archive(self, release: Release, path: Path) -> None:
        """Compare every byte of the archive. Raises IntegrityError."""
        with self._damage(release):
            verify_archive(path, release.archive.members)

    @contextmanager
    def _damage(self, release: Release) -> Iterator[None]:
        """Name the release in an error about its archive."""
        try:
            yield
        except IntegrityError as error:
            raise self._damaged(release, f"{archive_name(release)}: {error.what}") from error

    def _damaged(self, release: Release, what: str) -> IntegrityError:
        where = self.uri(release)
        return IntegrityError(what, where=where, hint=f"Remove `{where}` and push the release again.")

    @abstractmethod
    def _dated(self, name: str | None) -> Iterator[tuple[float, Release]]:
        """Yield what `dated` returns, in any order."""

    @abstractmethod
    def _files(self, release: Release) -> dict[str, int]:
        """Return the size in bytes of every file of a release, by its path in the release."""

    @abstractmethod
    def _read_file(self, release: Release, name: str) -> bytes:
        """Return the bytes of a small file."""

    @abstractmethod
    def _outline(self, release: Release, count: int, size: int) -> tuple[bytes, str | None]:
        """Return the last `count` of an archive's `size` bytes, and its digest if the store knows it."""

    @abstractmethod
    def _local_archive(self, release: Release, size: int) -> AbstractContextManager[Path]:
        """Provide the archive, of `size` bytes, as a file on this machine."""


class RemoteStore(FileStore):
    """A model store behind a network: releases are built and compared in a folder on this machine."""

    def __init__(self, root: Path) -> None:
        self._staging = root / ".kdeploy" / "staging"

    def stage(self) -> AbstractContextManager[Staging]:
        """Open a local folder to build a release in, which is removed at the end."""
        return staged(self._staging, str(self._staging))

    def delete(self, release: Release) -> int:
        """Remove a release and return the bytes that this freed."""
        found = self._files(release)
        if not found:
            raise StoreError("cannot remove the release: not found", where=self.uri(release))
        self._remove(release, found)
        return sum(found.values())

    @contextmanager
    def _local_archive(self, release: Release, size: int) -> Iterator[Path]:
        with self.stage() as staging:
            copy = staging.archive_path(release.archive.file_name)
            free = shutil.disk_usage(copy.parent).free
            if free < size:
                raise DiskFullError(
                    f"cannot download the archive: it has {size:,} bytes, {free:,} are free",
                    where=str(copy.parent),
                    hint="Free some disk space, then retry.",
                )
            self._download(release, archive_name(release), copy, size)
            yield copy

    @abstractmethod
    def _remove(self, release: Release, names: Iterable[str]) -> None:
        """Remove the files of a release, so that no reader sees a part of it."""

    @abstractmethod
    def _download(self, release: Release, name: str, copy: Path, size: int) -> None:
        """Write the `size` bytes of a file to a local copy."""


def archive_name(release: Release) -> str:
    """Return the path of the model archive in the release."""
    return f"model-store/{release.archive.file_name}"


def read_record(content: bytes, name: str, release_id: str, *, where: str) -> Release:
    """Decode a `release.json`. Raises IntegrityError if it is damaged or another release's."""
    release = decode_release(content, where=where)
    if (release.name, release.id) != (name, release_id):
        raise IntegrityError(
            f"release.json belongs to {release.label}, not to {name}/{release_id}",
            where=where,
            hint="Move the release back: its folder was moved or copied under another name.",
        )
    return release


def is_release(name: str, release_id: str) -> bool:
    """Whether these can be the name and the ID of a release."""
    return bool(re.match(NAME_PATTERN, name) and re.match(ID_PATTERN, release_id))
