"""Requests to one container of Azure's blobs, signed with the account's key or let in by a SAS token."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from deployer.errors import StoreError
from deployer.store.credentials import Credentials
from deployer.store.faults import cloud_error, scrubbed
from deployer.store.location import Location
from deployer.store.transport import Answer, Slice, Transport

_VERSION = "2021-08-06"
_SIGNED = "content-encoding content-language content-length content-md5 content-type date if-modified-since"
_SIGNED += " if-match if-none-match if-unmodified-since range"


class Container:
    """One container, and what opens it: a key or a SAS token."""

    def __init__(self, location: Location, credentials: Credentials, ca_bundle: Path | None) -> None:
        self._location = location
        self._credentials = credentials
        self._transport = Transport(location.bucket_url, location.uri, credentials.secrets, ca_bundle)

    def ask(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        body: bytes | Slice = b"",
    ) -> Answer:
        """Ask and return the answer, whatever its status; try again what may be better then.

        Raises StoreError where the server cannot be reached, or has no time.
        """
        size = body.size if isinstance(body, Slice) else len(body)
        url = f"{self._location.bucket_url}/{quote(key, safe='/-_.~')}?{urlencode(query)}"
        sent = {
            "x-ms-date": formatdate(usegmt=True),
            "x-ms-version": _VERSION,
            "content-length": str(size),
            **(headers or {}),
        }
        if self._credentials.sas:
            return self._transport.send(method, f"{url}&{self._credentials.sas}", sent, body)
        sent["authorization"] = self._authorization(method, urlsplit(url).path, query, sent)
        return self._transport.send(method, url, sent, body)

    def refused(self, what: str, key: str, answer: Answer) -> StoreError:
        """Return the error that an answer stands for."""
        text = f"HTTP {answer.status} " + answer.content[:4096].decode("utf-8", "replace")
        where = f"az://{self._location.bucket}/{key}"
        return cloud_error(what, where, scrubbed(text, self._credentials.secrets))

    def _authorization(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> str:
        # An empty body has no length to be signed.
        plain = {**headers, "content-length": headers["content-length"].removeprefix("0")}
        text = "\n".join(
            [
                method,
                *(plain.get(name, "") for name in _SIGNED.split()),
                *(f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("x-ms-")),
                f"/{self._location.account}{path}",
                *(f"{name}:{query[name]}" for name in sorted(query)),
            ]
        )
        key = base64.b64decode(self._credentials.data["AZURE_STORAGE_ACCESS_KEY"])
        signature = base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()
        return f"SharedKey {self._location.account}:{signature}"
