"""What stores behind a network share: releases are built and compared in a folder of this machine."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path

from deployer.release import Release
from deployer.store.contents import Contents, archive_name
from deployer.store.interface import PROPERTIES, ModelStore, Staging
from deployer.store.staging import STAGING, require_room, staged


class RemoteStore(ModelStore):
    """A model store whose files are listed, read and downloaded one by one."""

    def __init__(self, root: Path) -> None:
        self._staging = root / STAGING

    def stage(self) -> AbstractContextManager[Staging]:
        """Open a local folder to build a release in; nothing of it stays."""
        return staged(self._staging, str(self._staging))

    def verify(self, release: Release) -> None:
        """Compare every stored byte with the release, by downloading it. Raises IntegrityError."""
        contents, size = self._compare_files(release)
        with self.stage() as staging:
            copy = staging.archive_path(release.archive.file_name)
            require_room(copy.parent, size)
            self._download(release, archive_name(release), copy, size)
            contents.compare_archive(copy)

    def _compare_files(self, release: Release) -> tuple[Contents, int]:
        """Compare all but the archive, and return the archive's size. Raises IntegrityError."""
        contents = Contents(release, where=self.uri(release))
        found = self._files(release)
        contents.compare_names(found)
        contents.compare_properties(self._read_file(release, str(PROPERTIES)))
        return contents, found[archive_name(release)]

    @abstractmethod
    def _files(self, release: Release) -> dict[str, int]:
        """Return the size in bytes of every file of a release, by its name below the release."""

    @abstractmethod
    def _read_file(self, release: Release, name: str) -> bytes:
        """Return the bytes of a small file."""

    @abstractmethod
    def _download(self, release: Release, name: str, copy: Path, size: int) -> None:
        """Write the `size` bytes of a file to a local copy."""
