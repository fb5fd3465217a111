"""A store seen from outside: what its operator, or an attacker, can read and change."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import obstore

from deployer.release import Release
from deployer.store import ModelStore
from deployer.store.folder import FolderStore
from deployer.store.objects import ObjectStore
from deployer.store.pvc import ClaimStore


class Side(Protocol):
    scheme: str
    staging: Path

    def names(self, release: Release) -> set[str]: ...
    def read(self, release: Release, name: str) -> bytes: ...
    def write(self, release: Release, name: str, content: bytes) -> None: ...
    def remove(self, release: Release, name: str) -> None: ...
    def rename(self, release: Release, release_id: str) -> None: ...
    def versions(self, release: Release) -> dict[str, object]: ...
    def make_old(self, release: Release) -> None: ...


class FolderSide:
    scheme = "file"

    def __init__(self, store: FolderStore) -> None:
        self.folder = store.folder
        self.staging = store.folder / ".staging"
        self._aged = 0

    def names(self, release: Release) -> set[str]:
        place = self._place(release)
        return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}

    def read(self, release: Release, name: str) -> bytes:
        return (self._place(release) / name).read_bytes()

    def write(self, release: Release, name: str, content: bytes) -> None:
        (self._place(release) / name).write_bytes(content)

    def remove(self, release: Release, name: str) -> None:
        (self._place(release) / name).unlink()

    def rename(self, release: Release, release_id: str) -> None:
        self._place(release).rename(self._place(release).with_name(release_id))

    def versions(self, release: Release) -> dict[str, object]:
        return {name: (self._place(release) / name).stat().st_mtime_ns for name in self.names(release)}

    def make_old(self, release: Release) -> None:
        self._aged += 1
        os.utime(self._place(release) / "release.json", (self._aged, self._aged))

    def _place(self, release: Release) -> Path:
        return self.folder / release.name / release.id


class ClaimSide(FolderSide):
    scheme = "pvc"

    def __init__(self, store: ClaimStore) -> None:
        self.folder = store._shell.folder / store.claim.path
        self.staging = store._staging
        self._aged = 0


class ObjectSide:
    def __init__(self, store: ObjectStore) -> None:
        self.scheme = store.location.uri.partition("://")[0]
        self.staging = store._staging
        self._objects = store._objects

    def names(self, release: Release) -> set[str]:
        return set(self.versions(release))

    def read(self, release: Release, name: str) -> bytes:
        return bytes(obstore.get(self._objects, self._path(release, name)).bytes())

    def write(self, release: Release, name: str, content: bytes) -> None:
        obstore.put(self._objects, self._path(release, name), content)

    def remove(self, release: Release, name: str) -> None:
        obstore.delete(self._objects, self._path(release, name))

    def rename(self, release: Release, release_id: str) -> None:
        for name in self.names(release):
            path = self._path(release, name)
            obstore.rename(self._objects, path, path.replace(release.id, release_id))

    def versions(self, release: Release) -> dict[str, object]:
        prefix = self._path(release, "")
        found = [meta for chunk in obstore.list(self._objects, prefix) for meta in chunk]
        return {meta["path"].removeprefix(prefix): (meta["e_tag"], meta["last_modified"]) for meta in found}

    def make_old(self, release: Release) -> None:
        """Wait until the next second: a bucket stores times in seconds."""
        pushed = self.versions(release)["release.json"][1].timestamp()
        while time.time() < pushed + 1:
            time.sleep(0.01)

    def _path(self, release: Release, name: str) -> str:
        return f"{release.name}/{release.id}/{name}"


def side_of(store: ModelStore) -> Side:
    sides: dict[type, Callable[..., Side]] = {
        FolderStore: FolderSide,
        ClaimStore: ClaimSide,
        ObjectStore: ObjectSide,
    }
    return sides[type(store)](store)
