"""Requests to one S3 bucket, signed with Signature Version 4.

For what obstore has no call for: multipart uploads that another process goes on with. A body's SHA-256 is
part of its signature, so what was changed on the way is refused by the server.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import ssl
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, cast
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from msgspec import Struct

from deployer.errors import StoreError
from deployer.store.credentials import Credentials
from deployer.store.faults import cloud_error, scrubbed
from deployer.store.location import Location

CONNECTIONS = 8
_BLOCK = 1 << 20
_TRIES = 5
_EMPTY = hashlib.sha256(b"").hexdigest()


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


class Bucket:
    """One bucket, and the keys that open it."""

    def __init__(self, location: Location, credentials: Credentials, ca_bundle: Path | None) -> None:
        self._location = location
        self._credentials = credentials
        self._pool = _pool(location.bucket_url, ca_bundle)

    def ask(
        self,
        method: str,
        key: str = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | Slice = b"",
    ) -> Answer:
        """Ask and return the answer, whatever its status; try again what may be better then.

        Raises StoreError where the server cannot be reached, or has no time.
        """
        url, sent = self._signed(method, key, dict(query or {}), dict(headers or {}), body)
        for left in reversed(range(_TRIES)):
            if isinstance(body, Slice):
                body.rewind()
            try:
                answer = self._pool.request(
                    method,
                    url,
                    body=cast("IO[bytes] | bytes", body),
                    headers=sent,
                    retries=False,
                    redirect=False,
                    preload_content=True,
                )
            except urllib3.exceptions.HTTPError as error:
                if not left or isinstance(error, urllib3.exceptions.SSLError):
                    text = scrubbed(str(error), self._credentials.secrets)
                    raise cloud_error("the upload stopped", self._location.uri, text) from None
            else:
                if not left or (answer.status < 500 and answer.status != 429):
                    return Answer(answer.status, answer.headers.get("ETag", "").strip('"'), answer.data)
            time.sleep(random.uniform(0.5, 1) * 0.2 * 2 ** (_TRIES - left))  # noqa: S311 - spreads, hides nothing
        raise AssertionError

    def refused(self, what: str, key: str, answer: Answer) -> StoreError:
        """Return the error that an answer stands for."""
        text = f"HTTP {answer.status} " + answer.content[:4096].decode("utf-8", "replace")
        return cloud_error(
            what, f"s3://{self._location.bucket}/{key}", scrubbed(text, self._credentials.secrets)
        )

    def _signed(
        self, method: str, key: str, query: dict[str, str], headers: dict[str, str], body: bytes | Slice
    ) -> tuple[str, dict[str, str]]:
        url = urlsplit(self._location.bucket_url)
        path = quote(f"{url.path}/{key}" if key else url.path or "/", safe="/-_.~")
        parameters = "&".join(
            f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted(query.items())
        )
        digest = body.digest("sha256") if isinstance(body, Slice) else hashlib.sha256(body).hexdigest()
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        headers = {
            "host": url.netloc,
            "x-amz-content-sha256": digest,
            "x-amz-date": now,
            **(
                {"x-amz-security-token": token}
                if (token := self._credentials.data.get("AWS_SESSION_TOKEN"))
                else {}
            ),
            **{name.lower(): value for name, value in headers.items()},
        }
        names = ";".join(sorted(headers))
        canonical = "\n".join(
            [
                method,
                path,
                parameters,
                *(f"{name}:{headers[name]}" for name in sorted(headers)),
                "",
                names,
                digest,
            ]
        )
        scope = f"{now[:8]}/{self._location.region}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        signature = hmac.new(self._signing_key(scope), text.encode(), "sha256").hexdigest()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._credentials.data['AWS_ACCESS_KEY_ID']}/{scope},"
            f"SignedHeaders={names},Signature={signature}"
        )
        headers["content-length"] = str(body.size if isinstance(body, Slice) else len(body))
        whole = f"{url.scheme}://{url.netloc}{path}" + (f"?{parameters}" if parameters else "")
        return whole, headers

    def _signing_key(self, scope: str) -> bytes:
        key = ("AWS4" + self._credentials.data["AWS_SECRET_ACCESS_KEY"]).encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), "sha256").digest()
        return key


def _pool(url: str, ca_bundle: Path | None) -> urllib3.PoolManager:
    """Return connections that go the way the environment names, as obstore's do."""
    context = ssl.create_default_context(cafile=None)
    if ca_bundle:
        context.load_verify_locations(ca_bundle)
    options = {
        "maxsize": CONNECTIONS,
        "block": True,
        "blocksize": _BLOCK,
        "timeout": urllib3.Timeout(connect=10, read=120),
        "ssl_context": context,
    }
    parts = urlsplit(url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if proxy:
        return urllib3.ProxyManager(proxy, **options)  # type: ignore[arg-type]
    return urllib3.PoolManager(**options)  # type: ignore[arg-type]
