"""A model store in a bucket of S3, Google or Azure: the layout of a folder's, below a prefix.

The metadata of every object contains its digest, so a complete object is not sent again. `release.json` is
written last and removed first, so a release is visible whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from deployer.config import Store
from deployer.errors import ConfigError, IntegrityError, StoreError
from deployer.files import read_bytes
from deployer.proxies import find_proxy, is_loopback
from deployer.release import Release, encode_release
from deployer.storage_access import StorageAccess
from deployer.store.credentials import Credentials, find_credentials
from deployer.store.file_store import RemoteStore, archive_name, is_release, read_record
from deployer.store.grants import plan_access
from deployer.store.interface import PROPERTIES, RECORD, Staging, Stored
from deployer.store.location import Location, locate
from deployer.store.store_errors import cloud_error, disk_error, missing_bucket, scrubbed

_DIGEST = "kdeploydigest"  # Azure allows no - in such a name, and some proxies no _
_BLOCK = 1 << 20  # bytes read at a time
_PART = 8 << 20  # bytes; S3 requires 5 MiB, and fewer parts are less work for a server
_IN_FLIGHT = 5 * _PART  # bytes sent at a time, and so held in memory
_MOST_PARTS = 10_000  # S3's limit for one object
_READERS = 8
_READING = "cannot read the model store"
# A transfer can take a day, but not pause for a minute.
_CLIENT = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "24h"}
_RETRY = {"max_retries": 4, "retry_timeout": timedelta(seconds=90)}


class AbsentError(StoreError):
    """An object does not exist."""


class ObjectStore(RemoteStore):
    """A model store in a bucket. Implements deployer.store.ModelStore. Opening it sends no request."""

    lookup_is_side_effect_free = True

    def __init__(self, config: Store, root: Path) -> None:
        super().__init__(root)
        self._config = config
        scheme = config.uri.partition("://")[0]
        self._credentials = find_credentials(scheme, os.environ, config.region or "")
        self.location = locate(config, os.environ, self._credentials.region)
        ca_bundle = root / config.ca_bundle if config.ca_bundle else None
        with self._errors("cannot open the model store"):
            self._objects = _connect(self.location, self._credentials, ca_bundle)

    def uri(self, release: Release) -> str:
        """Return the storage URI of a release, as KServe reads it; it ends in `/`."""
        return f"{self._uri(release.label)}/"

    def access(self) -> StorageAccess:
        """Return what a cluster needs to read this store. Raises ConfigError."""
        return plan_access(self._config, self.location, self._credentials)

    def find(self, name: str, release_id: str) -> Release | None:
        """Return a complete release, or None; this is one small request."""
        found = self._find(name, release_id)
        return found[1] if found else None

    def put(self, release: Release, staging: Staging) -> Stored:
        """Publish a staged release: complete objects are skipped, `release.json` is last. Idempotent."""
        place = release.label
        properties = release.config_properties.encode()
        written = self._put(f"{place}/{PROPERTIES}", properties, len(properties), release.id)
        archive = staging.archive_path(release.archive.file_name)
        written += self._put_file(f"{place}/{archive_name(release)}", archive, release.archive.digest)
        return Stored(self.uri(release), written + self._put_record(release))

    def _put_file(self, path: str, file: Path, digest: str) -> int:
        size = file.stat().st_size
        return self._put(path, file.read_bytes() if size <= _PART else _blocks(file), size, digest)

    def _put(self, path: str, content: bytes | Iterator[bytes], size: int, digest: str) -> int:
        """Upload an object unless it is complete; return the bytes sent.

        An upload that fails or is interrupted leaves no parts; one that is killed can leave some.
        """
        if self._holds(path, size, digest):
            return 0
        part = max(_PART, -(-size // _MOST_PARTS))
        options: dict[str, Any] = {
            "attributes": {_DIGEST: digest},
            "chunk_size": part,
            "max_concurrency": max(_IN_FLIGHT // part, 1),
        }
        try:
            with self._errors("the upload failed", path):
                obstore.put(self._objects, path, content, **options)
        except StoreError as error:
            # In Azure, another push that completes the blob discards the blocks of this one.
            if "InvalidBlockList" not in error.what or not self._holds(path, size, digest):
                raise
        if not self._holds(path, size, digest):
            raise IntegrityError(
                "the stored bytes differ from the ones that were sent",
                where=self._uri(path),
                hint="Push again. If that does not help, look for a proxy that changes the content.",
            )
        return size

    def _put_record(self, release: Release) -> int:
        """Make the release visible; return 0 if another push of the same inputs was faster."""
        path, content = f"{release.label}/{RECORD}", encode_release(release)
        with self._errors("cannot store the release", path):
            try:
                obstore.put(self._objects, path, content, attributes={_DIGEST: release.id}, mode="create")
                return len(content)
            except AlreadyExistsError:
                pass
        if self.find(release.name, release.id) is None:
            return self._put_record(release)  # another process removed it
        return 0

    def _remove(self, release: Release, names: Iterable[str]) -> None:
        first, *rest = sorted(names, key=lambda name: name != RECORD)
        place = release.label
        with self._errors("cannot remove the release", place):
            obstore.delete(self._objects, f"{place}/{first}")
            if rest:
                obstore.delete(self._objects, [f"{place}/{name}" for name in rest])

    def _dated(self, name: str | None) -> Iterator[tuple[float, Release]]:
        split = (path.split("/") for path, _ in self._paths(name or ""))
        places = [p[:2] for p in split if len(p) == 3 and p[2] == RECORD and is_release(p[0], p[1])]
        with ThreadPoolExecutor(_READERS) as pool:
            yield from (pair for pair in pool.map(lambda place: self._find(*place), places) if pair)

    def _find(self, name: str, release_id: str) -> tuple[float, Release] | None:
        path = f"{name}/{release_id}/{RECORD}"
        try:
            changed, content = self._read(path)
        except AbsentError:
            return None
        return changed, read_record(content, name, release_id, where=self._uri(path))

    def _holds(self, path: str, size: int, digest: str) -> bool:
        """Whether an object is complete: its metadata is stored with its last byte."""
        return self._head(path) == (size, digest)

    def _head(self, path: str) -> tuple[int, str | None] | None:
        try:
            with self._errors(_READING, path):
                found = obstore.get(self._objects, path, options={"head": True})
        except AbsentError:
            return None
        return found.meta["size"], found.attributes.get(_DIGEST)

    def _read(self, path: str) -> tuple[float, bytes]:
        with self._errors(_READING, path):
            found = obstore.get(self._objects, path)
            return found.meta["last_modified"].timestamp(), bytes(found.bytes())

    def _paths(self, prefix: str) -> list[tuple[str, int]]:
        """Return path and size of every object below a path."""
        with self._errors("cannot list the model store", prefix):
            chunks = obstore.list(self._objects, prefix or None)
            return [(meta["path"], meta["size"]) for chunk in chunks for meta in chunk]

    def _files(self, release: Release) -> dict[str, int]:
        place = release.label
        return {path.removeprefix(f"{place}/"): size for path, size in self._paths(place)}

    def _read_file(self, release: Release, name: str) -> bytes:
        return self._read(f"{release.label}/{name}")[1]

    def _outline(self, release: Release, count: int, size: int) -> tuple[bytes, str | None]:
        path = f"{release.label}/{archive_name(release)}"
        tail = b""
        if count:
            with self._errors(_READING, path):
                tail = bytes(obstore.get_range(self._objects, path, start=size - count, end=size))
        found = self._head(path)
        return tail, found and found[1]  # None if another program wrote it

    def _download(self, release: Release, name: str, copy: Path, _size: int) -> None:
        path = f"{release.label}/{name}"
        with self._errors("cannot download the release", path), copy.open("wb") as file:
            for block in obstore.get(self._objects, path).stream(min_chunk_size=_BLOCK):
                file.write(block)

    @contextmanager
    def _errors(self, what: str, path: str = "") -> Iterator[None]:
        """Turn the errors of obstore and of the disk into ours, without any secret."""
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            if self._credentials.failure:
                raise self._credentials.failure from None
            text = scrubbed(str(error), self._credentials.secrets)
            error.args = (text,)  # `--debug` prints the chained error
            if isinstance(error, FileNotFoundError) and not missing_bucket(text):
                raise AbsentError(f"{what}: not found", where=self._uri(path)) from error
            raise cloud_error(what, self._uri(path), text) from error
        except OSError as error:
            raise disk_error(what, str(error.filename or self._staging), error) from error

    def _uri(self, path: str) -> str:
        return f"{self.location.uri}{path}"


def _blocks(file: Path) -> Iterator[bytes]:
    """Yield a file's bytes. Python runs between two blocks, so Ctrl-C stops an upload."""
    with file.open("rb", buffering=0) as source:
        while block := source.read(_BLOCK):
            yield block


def _connect(location: Location, credentials: Credentials, ca_bundle: Path | None) -> Any:
    """Return obstore's store of a location, whose paths are below the prefix. Sends no request.

    Raises ConfigError if the CA bundle cannot be read, and obstore's errors.
    """
    client: dict[str, Any] = {**_CLIENT, **_loopback_options(location.endpoint)}
    client["allow_http"] = not location.secure
    if ca_bundle:
        try:
            client["root_certificate"] = read_bytes(ca_bundle, 16 << 20)
        except OSError as error:
            raise ConfigError(
                f"cannot read the CA bundle: {error.strerror}", where=f"store.ca-bundle: {ca_bundle}"
            ) from error
    options: dict[str, Any] = {
        "prefix": location.prefix or None,
        "client_options": client,
        "retry_config": _RETRY,
        **credentials.options,
    }
    if location.endpoint:
        options["base_url" if location.scheme == "gs" else "endpoint"] = location.server_url
    if location.scheme == "gs":
        return GCSStore(location.bucket, **options)
    if location.scheme == "az":
        return AzureStore(location.bucket, account_name=location.account, **options)
    return S3Store(
        location.bucket,
        region=location.region,
        virtual_hosted_style_request=location.virtual_hosted,
        unsigned_payload=location.secure,  # without TLS, the signature has to cover the bytes
        **options,
    )


def _loopback_options(endpoint: str) -> dict[str, str]:
    """Exclude a loopback endpoint from the environment's proxy, which obstore would use for it."""
    parts = urlsplit(endpoint)
    proxy = find_proxy(f"{parts.scheme}://elsewhere.invalid")
    if not proxy or not is_loopback(parts.hostname or ""):
        return {}
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return {"proxy_url": proxy, "proxy_excludes": f"{parts.hostname},{excepted}"}
