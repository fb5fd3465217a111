"""A model store in a bucket of S3, Google or Azure: the same layout as a folder's, below a prefix.

Every object has its digest as metadata, so one that is there is not sent again; `release.json` comes last and
goes first, so a release is visible whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from deployer.config import Store
from deployer.errors import IntegrityError, StoreError
from deployer.release import Release, encode_release
from deployer.storage_access import StorageAccess
from deployer.store.base import RemoteStore, is_release
from deployer.store.contents import archive_name, read_record
from deployer.store.credentials import Credentials, find_credentials
from deployer.store.grants import plan_access
from deployer.store.interface import PROPERTIES, RECORD, Staging, Stored
from deployer.store.location import Location, locate
from deployer.store.store_errors import cloud_error, disk_error, missing_bucket, scrubbed

_DIGEST = "kdeploydigest"  # Azure takes no - in such a name, and some proxies no _
_BLOCK = 1 << 20  # bytes read at a time
_PART = 8 << 20  # bytes; S3 takes no less than 5 MiB, and fewer parts are less work for a server
_IN_FLIGHT = 5 * _PART  # bytes that are sent at a time, and so held in memory
_MOST_PARTS = 10_000  # that S3 takes for one object
_READERS = 8
_READING = "the model store cannot be read"

Result = TypeVar("Result")


class AbsentError(StoreError):
    """An object is not there."""


def open_objects(config: Store, root: Path) -> ObjectStore:
    """Open the object store that a config names; sends no request. Raises ConfigError."""
    credentials = find_credentials(config.uri.partition("://")[0], os.environ, config.region or "")
    location = locate(config, os.environ, credentials.region)
    return ObjectStore(config, location, credentials, root)


class ObjectStore(RemoteStore):
    """A model store in a bucket. Implements deployer.store.ModelStore."""

    lookup_is_side_effect_free = True

    def __init__(self, config: Store, location: Location, credentials: Credentials, root: Path) -> None:
        from deployer.store.clouds import connect

        super().__init__(root)
        self.location = location
        self._config = config
        self._credentials = credentials
        ca_bundle = root / config.ca_bundle if config.ca_bundle else None
        self._objects = self._ask(
            "the model store cannot be opened", "", lambda: connect(location, credentials, ca_bundle)
        )

    def uri(self, release: Release) -> str:
        """Return the storage URI of a release, as KServe reads it; it ends in `/`."""
        return f"{self._uri(_place(release))}/"

    def access(self) -> StorageAccess:
        """Return what a cluster needs to read this store. Raises ConfigError."""
        return plan_access(self._config, self.location, self._credentials)

    def find(self, name: str, release_id: str) -> Release | None:
        """Return a release that is there in whole, or None; one small request."""
        found = self._find(name, release_id)
        return found[1] if found else None

    def _dated(self, name: str | None) -> Iterator[tuple[float, Release]]:
        split = (path.split("/") for path, _ in self._paths(name or ""))
        places = [p[:2] for p in split if len(p) == 3 and p[2] == RECORD and is_release(p[0], p[1])]
        with ThreadPoolExecutor(_READERS) as pool:
            yield from (pair for pair in pool.map(lambda place: self._find(*place), places) if pair)

    def put(self, release: Release, staging: Staging) -> Stored:
        """Publish a staged release: what is there is skipped, `release.json` comes last. Idempotent."""
        place = _place(release)
        properties = release.config_properties.encode()
        written = self._put(f"{place}/{PROPERTIES}", properties, len(properties), release.id)
        archive = staging.archive_path(release.archive.file_name)
        written += self._put_file(f"{place}/{archive_name(release)}", archive, release.archive.digest)
        return Stored(self.uri(release), written + self._put_record(release))

    def delete(self, release: Release) -> int:
        """Remove a release, `release.json` first, and return the bytes that this freed."""
        import obstore

        place = _place(release)
        what = "the release cannot be removed"
        found = self._paths(place)
        if not found:
            raise StoreError(f"{what}: it is not there", where=self.uri(release))
        record = f"{place}/{RECORD}"
        paths = sorted((path for path, _ in found), key=lambda path: path != record)
        self._ask(what, place, lambda: obstore.delete(self._objects, paths[0]))
        if rest := paths[1:]:
            self._ask(what, place, lambda: obstore.delete(self._objects, rest))
        return sum(size for _, size in found)

    def _put_file(self, path: str, file: Path, digest: str) -> int:
        """Upload a file unless it is there; return the bytes sent.

        An upload that fails or is interrupted leaves no parts; one that is killed may.
        """
        size = file.stat().st_size
        return self._put(path, file.read_bytes() if size <= _PART else _blocks(file), size, digest)

    def _put(self, path: str, content: bytes | Iterator[bytes], size: int, digest: str) -> int:
        if self._holds(path, size, digest):
            return 0
        import obstore

        part = max(_PART, -(-size // _MOST_PARTS))
        options: dict[str, Any] = {
            "attributes": {_DIGEST: digest},
            "chunk_size": part,
            "max_concurrency": max(_IN_FLIGHT // part, 1),
        }
        try:
            self._ask("the upload failed", path, lambda: obstore.put(self._objects, path, content, **options))
        except StoreError as error:
            # In Azure, another push that completes the blob discards the blocks of this one.
            if "InvalidBlockList" not in error.what or not self._holds(path, size, digest):
                raise
        if not self._holds(path, size, digest):
            raise IntegrityError(
                "what arrived is not what was sent",
                where=self._uri(path),
                hint="push again; if that does not help, something on the way changes what passes",
            )
        return size

    def _put_record(self, release: Release) -> int:
        """Make the release visible; 0 where another push of the same inputs has."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        path, content = f"{_place(release)}/{RECORD}", encode_release(release)

        def create() -> bool:
            try:
                obstore.put(self._objects, path, content, attributes={_DIGEST: release.id}, mode="create")
            except AlreadyExistsError:
                return False
            return True

        made = self._ask("the release cannot be stored", path, create)
        if not made and self.find(release.name, release.id) is None:
            return self._put_record(release)  # it was removed in this moment
        return len(content) if made else 0

    def _find(self, name: str, release_id: str) -> tuple[float, Release] | None:
        path = f"{name}/{release_id}/{RECORD}"
        try:
            changed, content = self._read(path)
        except AbsentError:
            return None
        return changed, read_record(content, name, release_id, where=self._uri(path))

    def _holds(self, path: str, size: int, digest: str) -> bool:
        """Whether an object is there in whole: its metadata came with its last byte."""
        return self._head(path) == (size, digest)

    def _head(self, path: str) -> tuple[int, str | None] | None:
        import obstore

        try:
            options: Any = {"head": True}
            found = self._ask(_READING, path, lambda: obstore.get(self._objects, path, options=options))
        except AbsentError:
            return None
        return found.meta["size"], found.attributes.get(_DIGEST)

    def _read(self, path: str) -> tuple[float, bytes]:
        import obstore

        def read() -> tuple[float, bytes]:
            found = obstore.get(self._objects, path)
            return found.meta["last_modified"].timestamp(), bytes(found.bytes())

        return self._ask(_READING, path, read)

    def _paths(self, prefix: str) -> list[tuple[str, int]]:
        """Return path and size of every object below a path."""
        import obstore

        def collect() -> list[tuple[str, int]]:
            chunks = obstore.list(self._objects, prefix or None)
            return [(meta["path"], meta["size"]) for chunk in chunks for meta in chunk]

        return self._ask("the model store cannot be listed", prefix, collect)

    def _files(self, release: Release) -> dict[str, int]:
        place = _place(release)
        return {path.removeprefix(f"{place}/"): size for path, size in self._paths(place)}

    def _read_file(self, release: Release, name: str) -> bytes:
        return self._read(f"{_place(release)}/{name}")[1]

    def _outline(self, release: Release, count: int, size: int) -> tuple[bytes, str | None]:
        import obstore

        path = f"{_place(release)}/{archive_name(release)}"

        def read() -> bytes:
            return bytes(obstore.get_range(self._objects, path, start=size - count, end=size))

        tail = self._ask(_READING, path, read) if count else b""
        found = self._head(path)
        return tail, found and found[1]  # without a digest, another program wrote it

    def _download(self, release: Release, name: str, copy: Path, _size: int) -> None:
        import obstore

        path = f"{_place(release)}/{name}"

        def write() -> None:
            with copy.open("wb") as file:
                for block in obstore.get(self._objects, path).stream(min_chunk_size=_BLOCK):
                    file.write(block)

        self._ask("the release cannot be read", path, write)

    def _ask(self, what: str, path: str, call: Callable[[], Result]) -> Result:
        """Call obstore; turn what it refuses into our errors, with every secret out of them."""
        from obstore.exceptions import BaseError

        try:
            return call()
        except (BaseError, FileNotFoundError) as error:
            if self._credentials.failure:
                raise self._credentials.failure from None
            text = scrubbed(str(error), self._credentials.secrets)
            error.args = (text,)  # the error is chained, and shown when debugging
            if isinstance(error, FileNotFoundError) and not missing_bucket(text):
                raise AbsentError(f"{what}: it is not there", where=self._uri(path)) from error
            raise cloud_error(what, self._uri(path), text) from error
        except OSError as error:
            raise disk_error(what, str(error.filename or self._staging), error) from error

    def _uri(self, path: str) -> str:
        return f"{self.location.uri}{path}"


def _place(release: Release) -> str:
    return f"{release.name}/{release.id}"


def _blocks(file: Path) -> Iterator[bytes]:
    """Yield a file's bytes. Python runs between two blocks, so Ctrl-C ends an upload."""
    with file.open("rb", buffering=0) as source:
        while block := source.read(_BLOCK):
            yield block
