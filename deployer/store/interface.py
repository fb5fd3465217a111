"""What a model store is: a place for releases, never overwritten, visible whole or not at all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from deployer.release import Release
from deployer.storage_access import StorageAccess

RECORD = "release.json"
RECORD_MAX = 64 << 20  # bytes; of some 200,000 members
PROPERTIES = Path("config", "config.properties")


class Stored(Struct, frozen=True):
    """Where a release is, and how many bytes were written to have it there."""

    uri: str
    bytes_written: int


class Staging(Struct, frozen=True):
    """A private folder of the store in which one release is being built."""

    folder: Path

    def archive_path(self, file_name: str) -> Path:
        """Return the path that the model archive is to be written to."""
        return self.folder / "model-store" / file_name


class ModelStore(Protocol):
    """A place for releases. Every method may raise StoreError."""

    lookup_is_side_effect_free: bool  # whether a look creates nothing anywhere, not even for a moment

    def uri(self, release: Release) -> str:
        """Return the storage URI of a release; it ends in `/`."""

    def access(self) -> StorageAccess | None:
        """Return what a cluster needs to read the store; None where no cluster can read it."""

    def find(self, name: str, release_id: str) -> Release | None:
        """Return a release that is there in whole, or None."""

    def releases(self, name: str | None = None) -> list[Release]:
        """Return the releases of one model, or of all, the oldest push first."""
        return [release for _, release in self.dated(name)]

    def dated(self, name: str | None = None) -> list[tuple[float, Release]]:
        """Return the same, each with the time of its push by the store's clock: seconds since the epoch.

        Buckets and claims know that time to the second; releases of one second are ordered by name and ID.
        """

    def stage(self) -> AbstractContextManager[Staging]:
        """Open a folder to build a release in; what was not `put` at its end is removed."""

    def put(self, release: Release, staging: Staging) -> Stored:
        """Publish a staged release. Idempotent; IntegrityError where another holds its place.

        `bytes_written` is what this call sent, so 0 where all of it was there.
        """

    def check(self, release: Release) -> None:
        """Compare the names, sizes and stored digests of a release with its record. Raises IntegrityError.

        Of the archive only the directory at its end is read; all of it where the store has no digest of it,
        or where it was written after the record.
        """

    def verify(self, release: Release) -> None:
        """Compare every stored byte with the release. Raises IntegrityError."""

    def delete(self, release: Release) -> int:
        """Remove a release and return the bytes that this freed."""

    def close(self) -> None:
        """Release what was opened to reach the store, so that it cannot block the service."""
