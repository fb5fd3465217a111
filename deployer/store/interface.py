"""A model store: a place for releases, which are never overwritten and are visible whole or not at all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from deployer.release import Release
from deployer.storage_access import StorageAccess

RECORD = "release.json"
RECORD_MAX = 64 << 20  # bytes, for some 200,000 members
PROPERTIES = Path("config", "config.properties")


class Stored(Struct, frozen=True):
    """The storage URI of a release, and the bytes that a push wrote."""

    uri: str
    bytes_written: int


class Staging(Struct, frozen=True):
    """A private folder of the store to build one release in."""

    folder: Path

    def archive_path(self, file_name: str) -> Path:
        """Return the path to write the model archive to."""
        return self.folder / "model-store" / file_name


class ModelStore(Protocol):
    """A place for releases. Every method can raise StoreError."""

    lookup_is_side_effect_free: bool  # whether reading creates nothing, not even a Pod for a moment

    def uri(self, release: Release) -> str:
        """Return the storage URI of a release; it ends in `/`."""

    def access(self) -> StorageAccess | None:
        """Return what a cluster needs to read the store, or None if no cluster can read it."""

    def find(self, name: str, release_id: str) -> Release | None:
        """Return a complete release, or None."""

    def releases(self, name: str | None = None) -> list[Release]:
        """Return the releases of one model, or of all, oldest push first."""
        return [release for _, release in self.dated(name)]

    def dated(self, name: str | None = None) -> list[tuple[float, Release]]:
        """Return the same, each with the time of its push by the store's clock: seconds since the epoch.

        Buckets and claims store whole seconds; releases of one second are sorted by name and ID.
        """

    def stage(self) -> AbstractContextManager[Staging]:
        """Open a folder to build a release in, which is removed at the end unless it was `put`."""

    def check_writable(self) -> None:
        """Raise StoreError if it is certain that nothing can be written. Nothing that it writes stays."""
        return

    def put(self, release: Release, staging: Staging) -> Stored:
        """Publish a staged release. Idempotent. Raises IntegrityError if another release has its place.

        `bytes_written` is 0 if the store had the whole release.
        """

    def check(self, release: Release) -> None:
        """Compare the names, sizes and stored digests of a release with its record. Raises IntegrityError.

        This reads only the directory at the end of the archive, or all of the archive if the store has no
        digest of it or wrote it after the record.
        """

    def verify(self, release: Release) -> None:
        """Compare every stored byte with the release. Raises IntegrityError."""

    def archive(self, release: Release) -> AbstractContextManager[Path]:
        """Provide the archive of a release as a file on this machine, after comparing every stored byte.

        The file is only read. Raises IntegrityError.
        """

    def delete(self, release: Release) -> int:
        """Remove a release and return the bytes that this freed."""

    def close(self) -> None:
        """Release the store's resources, such as a Pod that would keep the service off a volume."""
