"""Model stores: where releases live, never overwritten, visible whole or not at all."""

from __future__ import annotations

import builtins
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from deployer.access import Access
from deployer.config import Store
from deployer.release import Release

if TYPE_CHECKING:
    from deployer.store.shell import Shell

__all__ = ["PROPERTIES", "RECORD", "RECORD_MAX", "ModelStore", "Staging", "Stored", "open_store"]

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

    passive: bool  # whether looking at it makes nothing anywhere, not even for a moment

    def uri(self, release: Release) -> str:
        """Return the storage URI of a release; it ends in `/`."""

    def access(self) -> Access | None:
        """Return what a cluster needs to read it; None where it is no cluster that can read it."""

    def find(self, name: str, release_id: str) -> Release | None:
        """Return a release that is there in whole, or None."""

    def list(self, name: str | None = None) -> list[Release]:
        """Return the releases of one model, or of all, the oldest push first."""

    def dated(self, name: str | None = None) -> builtins.list[tuple[float, Release]]:
        """Return the same, each with the time of its push by the store's clock: seconds since the epoch."""

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
        """Let go of what was opened to reach it, which must not be in the way of what serves."""


def open_store(config: Store, root: Path, shell: Shell | None = None) -> ModelStore:
    """Open the model store that a config names; a relative folder is relative to `root`.

    Credentials of an object store are looked for where its cloud keeps them. A claim is reached by the
    `shell` that mounts it. Raises ConfigError.
    """
    scheme, separator, rest = config.uri.partition("://")
    if not separator or scheme == "file":
        from deployer.store.folder import FolderStore

        return FolderStore(root / (rest if separator else config.uri))
    if scheme == "pvc" and shell:
        from deployer.store.pvc import ClaimStore

        return ClaimStore(config, shell, root)
    from deployer.store.objects import open_objects

    return open_objects(config, root)
