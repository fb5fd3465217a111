"""Requests to one S3 bucket, signed with Signature Version 4.

A body's SHA-256 is part of its signature, so what was changed on the way is refused by the server.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote, urlsplit

from deployer.errors import StoreError
from deployer.store.credentials import Credentials
from deployer.store.faults import cloud_error, scrubbed
from deployer.store.location import Location
from deployer.store.transport import Answer, Slice, Transport


class Bucket:
    """One bucket, and the keys that open it."""

    def __init__(self, location: Location, credentials: Credentials, ca_bundle: Path | None) -> None:
        self._location = location
        self._credentials = credentials
        self._transport = Transport(location.bucket_url, location.uri, credentials.secrets, ca_bundle)

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
        return self._transport.send(method, url, sent, body)

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
