"""Requests to an object store for what obstore has no call for: uploads that another process goes on with.

Whoever asks signs; here is how it gets there: connections, proxies, TLS, patience, and files read in ranges.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar, cast

import urllib3
from msgspec import Struct

from deployer.proxies import address_of, find_proxy, tls_context
from deployer.store.faults import cloud_error, scrubbed

CONNECTIONS = 8
_BLOCK = 1 << 20
_TRIES = 5

Result = TypeVar("Result")


class Answer(Struct, frozen=True):
    """What the server said; `etag` is without its quotes."""

    status: int
    etag: str
    content: bytes


class Slice:
    """A range of an open file, read in small blocks, as often as a request is tried. Thread-safe."""

    def __init__(self, file: IO[bytes], start: int, size: int, stopped: threading.Event) -> None:
        self.size = size
        self._descriptor = file.fileno()
        self._start = start
        self._at = 0
        self._stopped = stopped

    def rewind(self) -> None:
        """Go back to the first byte."""
        self._at = 0

    def read(self, at_most: int = _BLOCK) -> bytes:
        """Read on; empty at the end. Raises InterruptedError once the whole upload is given up."""
        if self._stopped.is_set():
            raise InterruptedError
        content = os.pread(self._descriptor, min(at_most, self.size - self._at), self._start + self._at)
        self._at += len(content)
        return content

    def digest(self, algorithm: str) -> str:
        """Return the digest of all of it, in hex."""
        self.rewind()
        sum_ = hashlib.new(algorithm, usedforsecurity=False)
        while block := self.read():
            sum_.update(block)
        self.rewind()
        return sum_.hexdigest()


class Transport:
    """Connections to the server of one URL; `where` names the store, and no error quotes one of `secrets`."""

    def __init__(self, url: str, where: str, secrets: Collection[str], ca_bundle: Path | None) -> None:
        self._where = where
        self._secrets = secrets
        self._pool = _pool(url, ca_bundle)

    def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | Slice) -> Answer:
        """Send a request and return the answer, whatever its status; try again what may be better then.

        Raises StoreError where the server cannot be reached, or has no time.
        """
        for left in reversed(range(_TRIES)):
            if isinstance(body, Slice):
                body.rewind()
            try:
                answer = self._pool.request(
                    method,
                    url,
                    body=cast("IO[bytes] | bytes", body),
                    headers=headers,
                    retries=False,
                    redirect=False,
                    preload_content=True,
                )
            except urllib3.exceptions.HTTPError as error:
                if not left or isinstance(error, urllib3.exceptions.SSLError):
                    text = scrubbed(str(error), self._secrets)
                    raise cloud_error("the upload stopped", self._where, text) from None
            else:
                if not left or (answer.status < 500 and answer.status != 429):
                    return Answer(answer.status, answer.headers.get("ETag", "").strip('"'), answer.data)
            time.sleep(random.uniform(0.5, 1) * 0.2 * 2 ** (_TRIES - left))  # noqa: S311 - spreads, hides nothing
        raise AssertionError


def in_parallel(
    numbers: Collection[int], send: Callable[[int], Result], stopped: threading.Event
) -> list[Result]:
    """Send parts, some at a time, and return what came of each; once one fails, `stopped` ends the others."""
    pool = ThreadPoolExecutor(CONNECTIONS)
    try:
        return list(pool.map(send, numbers))
    except BaseException:
        stopped.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(url: str, ca_bundle: Path | None) -> urllib3.PoolManager:
    """Return connections that go through the environment's proxy, as obstore's do."""
    context = tls_context()
    if ca_bundle:
        context.load_verify_locations(ca_bundle)
    options = {
        "maxsize": CONNECTIONS,
        "block": True,
        "blocksize": _BLOCK,
        "timeout": urllib3.Timeout(connect=10, read=120),
        "ssl_context": context,
    }
    if proxy := find_proxy(url):
        address, headers = address_of(proxy)
        return urllib3.ProxyManager(address, proxy_headers=headers, **options)  # type: ignore[arg-type]
    return urllib3.PoolManager(**options)  # type: ignore[arg-type]
