"""A model store in a bucket of S3, Google or Azure: the same layout as a folder's, below a prefix.

Every object has its digest as metadata, so one that is there is not sent again; `release.json` comes last and
goes first, so a release is visible whole or not at all.
"""

from __future__ import annotations

import builtins
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deployer.access import Access
from deployer.archive import outline_size, verify_archive
from deployer.config import NAME_PATTERN, Store
from deployer.errors import IntegrityError, StoreError
from deployer.release import ID_PATTERN, Release, decode_release, encode_release
from deployer.store import PROPERTIES, RECORD, Staging, Stored
from deployer.store.contents import Contents, archive_name
from deployer.store.credentials import Credentials, find_credentials
from deployer.store.faults import cloud_error, disk_error, missing_bucket, scrubbed
from deployer.store.grants import grant
from deployer.store.location import Location, locate
from deployer.store.staging import STAGING, require_room, staged

if TYPE_CHECKING:
    from deployer.store.s3_requests import Bucket

LARGE = 64 << 20  # from here on, an upload that is killed goes on where it stopped
_DIGEST = "kdeploydigest"  # Azure takes no - in such a name, and some proxies no _
_PART = 16 << 20
_READERS = 8

Result = TypeVar("Result")


class AbsentError(StoreError):
    """An object is not there."""


def open_objects(config: Store, root: Path) -> ObjectStore:
    """Open the object store that a config names; asks nobody yet. Raises ConfigError."""
    credentials = find_credentials(config.uri.partition("://")[0], os.environ)
    location = locate(config, os.environ, credentials.region)
    return ObjectStore(config, location, credentials, root)


class ObjectStore:
    """A model store in a bucket. Implements deployer.store.ModelStore."""

    passive = True

    def __init__(self, config: Store, location: Location, credentials: Credentials, root: Path) -> None:
        from deployer.store.clouds import connect

        self.location = location
        self._config = config
        self._credentials = credentials
        self._ca_bundle = root / config.ca_bundle if config.ca_bundle else None
        self._staging = root / STAGING
        self._objects = self._ask(
            "the model store cannot be opened", "", lambda: connect(location, credentials, self._ca_bundle)
        )

    def uri(self, release: Release) -> str:
        """Return the storage URI of a release, as KServe reads it; it ends in `/`."""
        return self._uri(_place(release))

    def access(self) -> Access:
        """Return what a cluster needs to read this store."""
        return grant(self._config, self.location, self._credentials)

    def find(self, name: str, release_id: str) -> Release | None:
        """Return a release that is there in whole, or None; one small request."""
        found = self._find(name, release_id)
        return found[1] if found else None

    def list(self, name: str | None = None) -> builtins.list[Release]:
        """Return the releases of one model, or of all, the oldest push first.

        Stores know the time of a push to the second; of two within one, the order is by name.
        """
        return [release for _, release in self.dated(name)]

    def dated(self, name: str | None = None) -> builtins.list[tuple[float, Release]]:
        """Return the same, each with the time of its push: seconds since the epoch."""
        pattern = re.compile(rf"(?P<name>[^/]+)/(?P<id>[^/]+)/{re.escape(RECORD)}")
        places = [
            (match["name"], match["id"])
            for path, _ in self._paths(name or "")
            if (match := pattern.fullmatch(path))
            and re.match(NAME_PATTERN, match["name"])
            and re.match(ID_PATTERN, match["id"])
        ]
        with ThreadPoolExecutor(_READERS) as pool:
            found = [pair for pair in pool.map(lambda place: self._find(*place), places) if pair]
        return sorted(found, key=lambda pair: (pair[0], pair[1].label))

    def stage(self) -> AbstractContextManager[Staging]:
        """Open a local folder to build a release in; nothing of it stays."""
        return staged(self._staging, str(self._staging))

    def put(self, release: Release, staging: Staging) -> Stored:
        """Publish a staged release: what is there is skipped, `release.json` comes last. Idempotent."""
        place = _place(release)
        archive = staging.archive_path(release.archive.file_name)
        properties = release.config_properties.encode()
        written = self._put_bytes(f"{place}/{PROPERTIES}", properties, release.id)
        written += self._put_file(f"{place}/model-store/{archive.name}", archive, release.archive.digest)
        return Stored(self.uri(release), written + self._put_record(release))

    def check(self, release: Release) -> None:
        """Compare names, sizes and stored digests with the record; without a digest, every byte."""
        contents, size = self._compare_files(release)
        archive = f"{_place(release)}/{archive_name(release)}"
        contents.compare_outline(self._tail(archive, size, outline_size(release.archive.members)), size)
        found = self._head(archive)
        digest = found and found[1]
        if digest is None:  # another program brought it there
            self.verify(release)
        elif digest != release.archive.digest:
            raise contents.damaged(f"{archive_name(release)} was replaced")

    def verify(self, release: Release) -> None:
        """Compare every stored byte with the release, by downloading it. Raises IntegrityError."""
        contents, size = self._compare_files(release)
        with self.stage() as staging:
            copy = staging.archive_path(release.archive.file_name)
            self._download(f"{_place(release)}/{archive_name(release)}", copy, size)
            try:
                verify_archive(copy, release.archive.members)
            except IntegrityError as error:
                raise contents.damaged(f"{archive_name(release)}: {error.what}") from error

    def _compare_files(self, release: Release) -> tuple[Contents, int]:
        """Compare all but the archive, and return the archive's size. Raises IntegrityError."""
        place = _place(release)
        contents = Contents(release, where=self.uri(release))
        found = {path.removeprefix(f"{place}/"): size for path, size in self._paths(place)}
        contents.compare_names(found)
        contents.compare_properties(self._read(f"{place}/{PROPERTIES}")[1])
        return contents, found[archive_name(release)]

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
        if bucket := self._bucket():
            from deployer.store.s3_multipart import abort_uploads

            abort_uploads(bucket, self.location.key(f"{place}/"))
        return sum(size for _, size in found)

    def close(self) -> None:
        """Do nothing: nothing is held open."""

    def _put_bytes(self, path: str, content: bytes, digest: str) -> int:
        import obstore

        if self._holds(path, len(content), digest):
            return 0
        self._ask(
            "the release cannot be stored",
            path,
            lambda: obstore.put(
                self._objects, path, content, attributes={_DIGEST: digest}, use_multipart=False
            ),
        )
        return len(content)

    def _put_file(self, path: str, file: Path, digest: str) -> int:
        """Bring a file there, unless it is there; return the bytes sent."""
        import obstore

        size = file.stat().st_size
        if self._holds(path, size, digest):
            return 0
        sent = self._put_parts(path, file, digest) if size >= LARGE else None
        if sent is None:
            self._ask(
                "the upload stopped",
                path,
                lambda: obstore.put(
                    self._objects,
                    path,
                    file,
                    attributes={_DIGEST: digest},
                    chunk_size=_PART,
                    max_concurrency=4,
                ),
            )
            sent = size
        if not self._holds(path, size, digest):
            raise IntegrityError(
                "what arrived is not what was sent",
                where=self._uri(path),
                hint="push again; if that does not help, something on the way changes what passes",
            )
        return sent

    def _bucket(self) -> Bucket | None:
        """Return the bucket for what obstore has no call for; it needs S3, and keys in our hands."""
        if self.location.scheme != "s3" or not self._credentials.data:
            return None
        from deployer.store.s3_requests import Bucket

        return Bucket(self.location, self._credentials, self._ca_bundle)

    def _put_parts(self, path: str, file: Path, digest: str) -> int | None:
        """Bring a file there in parts that another process can go on with; None where that cannot be.

        It needs a key in our hands, or a SAS token: what obstore finds by itself it keeps.
        """
        send: Callable[..., int]
        if bucket := self._bucket():
            from deployer.store import s3_multipart

            send = partial(s3_multipart.upload, bucket)
        elif self._credentials.sas or "AZURE_STORAGE_ACCESS_KEY" in self._credentials.data:
            from deployer.store import azure_blocks
            from deployer.store.azure_requests import Container

            send = partial(azure_blocks.upload, Container(self.location, self._credentials, self._ca_bundle))
        else:
            return None
        return send(
            self.location.key(path),
            file,
            {_DIGEST: digest},
            replace=self._head(path) is not None,
            there=lambda: self._holds(path, file.stat().st_size, digest),
        )

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
        release = decode_release(content, where=self._uri(path))
        if (release.name, release.id) != (name, release_id):
            raise IntegrityError(
                f"it tells of {release.label}",
                where=self._uri(path),
                hint="a release was copied to another name: undo that",
            )
        return changed, release

    def _holds(self, path: str, size: int, digest: str) -> bool:
        """Whether an object is there in whole: its metadata came with its last byte."""
        return self._head(path) == (size, digest)

    def _head(self, path: str) -> tuple[int, str | None] | None:
        import obstore

        try:
            found = self._ask(
                "the model store cannot be read",
                path,
                lambda: obstore.get(self._objects, path, options={"head": True}),
            )
        except AbsentError:
            return None
        return found.meta["size"], found.attributes.get(_DIGEST)

    def _read(self, path: str) -> tuple[float, bytes]:
        import obstore

        def read() -> tuple[float, bytes]:
            found = obstore.get(self._objects, path)
            return found.meta["last_modified"].timestamp(), bytes(found.bytes())

        return self._ask("the model store cannot be read", path, read)

    def _tail(self, path: str, size: int, at_most: int) -> bytes:
        """Return the last bytes of an object."""
        import obstore

        start = max(size - at_most, 0)
        if start == size:
            return b""
        what = "the model store cannot be read"
        return self._ask(
            what, path, lambda: bytes(obstore.get_range(self._objects, path, start=start, end=size))
        )

    def _paths(self, prefix: str) -> builtins.list[tuple[str, int]]:
        """Return path and size of every object below a path."""
        import obstore

        def collect() -> builtins.list[tuple[str, int]]:
            chunks = obstore.list(self._objects, prefix or None)
            return [(meta["path"], meta["size"]) for chunk in chunks for meta in chunk]

        return self._ask("the model store cannot be listed", prefix, collect)

    def _download(self, path: str, place: Path, size: int) -> None:
        import obstore

        require_room(place.parent, size)

        def write() -> None:
            with place.open("wb") as file:
                for block in obstore.get(self._objects, path).stream(min_chunk_size=1 << 20):
                    file.write(block)

        self._ask("the release cannot be read", path, write)

    def _ask(self, what: str, path: str, call: Callable[[], Result]) -> Result:
        """Call obstore; turn what it refuses into our errors, with every secret out of them."""
        from obstore.exceptions import BaseError

        try:
            return call()
        except (BaseError, FileNotFoundError) as error:
            text = scrubbed(str(error), self._credentials.secrets)
            error.args = (text,)  # the error is chained, and shown when debugging
            if isinstance(error, FileNotFoundError) and not missing_bucket(text):
                raise AbsentError(f"{what}: it is not there", where=self._uri(path)) from error
            raise cloud_error(what, self._uri(path), text) from error
        except OSError as error:
            raise disk_error(what, str(error.filename or self._staging), error) from error

    def _uri(self, path: str) -> str:
        return f"{self.location.uri}{path}" + ("" if path.endswith(RECORD) or not path else "/")


def _place(release: Release) -> str:
    return f"{release.name}/{release.id}"
