"""What the model stores share: a release is compared with its record file by file."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from deployer.archive import outline_size
from deployer.config import NAME_PATTERN
from deployer.release import ID_PATTERN, Release
from deployer.store.contents import Contents, archive_name
from deployer.store.interface import PROPERTIES, ModelStore, Staging
from deployer.store.staging import STAGING, require_room, staged


class FileStore(ModelStore):
    """A model store whose files are listed and read one by one."""

    def dated(self, name: str | None = None) -> list[tuple[float, Release]]:
        """Return the releases of one model, or of all, the oldest first, each with the time of its push."""
        return sorted(self._dated(name), key=lambda pair: (pair[0], pair[1].label))

    def check(self, release: Release) -> None:
        """Compare names, sizes and the stored digest with the record; without a digest, every byte."""
        contents, size = self._compare_files(release)
        tail, digest = self._outline(release, min(outline_size(release.archive.members), size), size)
        contents.compare_outline(tail, size)
        if digest is None:
            self._compare_archive(release, contents, size)
        elif digest != release.archive.digest:
            raise contents.damaged(f"{archive_name(release)} was replaced")

    def verify(self, release: Release) -> None:
        """Compare every stored byte with the release. Raises IntegrityError."""
        self._compare_archive(release, *self._compare_files(release))

    def close(self) -> None:
        """Do nothing: nothing is held open."""

    def _compare_files(self, release: Release) -> tuple[Contents, int]:
        """Compare all but the archive, and return the archive's size. Raises IntegrityError."""
        contents = Contents(release, where=self.uri(release))
        found = self._files(release)
        contents.compare_names(found)
        contents.compare_properties(self._read_file(release, str(PROPERTIES)))
        return contents, found[archive_name(release)]

    @abstractmethod
    def _dated(self, name: str | None) -> Iterator[tuple[float, Release]]:
        """Yield what `dated` returns, in any order."""

    @abstractmethod
    def _files(self, release: Release) -> dict[str, int]:
        """Return the size in bytes of every file of a release, by its name below the release."""

    @abstractmethod
    def _read_file(self, release: Release, name: str) -> bytes:
        """Return the bytes of a small file."""

    @abstractmethod
    def _outline(self, release: Release, count: int, size: int) -> tuple[bytes, str | None]:
        """Return the last `count` of an archive's `size` bytes, and its digest, None if that is not known."""

    @abstractmethod
    def _compare_archive(self, release: Release, contents: Contents, size: int) -> None:
        """Compare every byte of the archive. Raises IntegrityError."""


class RemoteStore(FileStore):
    """A model store behind a network: releases are built and compared in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._staging = root / STAGING

    def stage(self) -> AbstractContextManager[Staging]:
        """Open a local folder to build a release in; it is removed at the end."""
        return staged(self._staging, str(self._staging))

    def _compare_archive(self, release: Release, contents: Contents, size: int) -> None:
        with self.stage() as staging:
            copy = staging.archive_path(release.archive.file_name)
            require_room(copy.parent, size)
            self._download(release, archive_name(release), copy, size)
            contents.compare_archive(copy)

    @abstractmethod
    def _download(self, release: Release, name: str, copy: Path, size: int) -> None:
        """Write the `size` bytes of a file to a local copy."""


def is_release(name: str, release_id: str) -> bool:
    """Whether these can be the name and the ID of a release."""
    return bool(re.match(NAME_PATTERN, name) and re.match(ID_PATTERN, release_id))
