"""Google Cloud Storage at the level of HTTP: there is no server to install, so the tests read the requests.

The server here stores objects and responds as the documentation says. It checks no signature.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from deployer.archive import Archive, DigestCache, Member, write_archive
from deployer.config import Config, Model, Store
from deployer.errors import StoreError
from deployer.release import plan_release
from deployer.store.open import open_store

DATE = "Sun, 22 Nov 2026 10:00:00 GMT"


class Handler(BaseHTTPRequestHandler):
    """Stores objects by their path, as Google's XML API does."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, tuple[bytes, dict[str, str]]]
    uploads: dict[str, tuple[dict[str, str], dict[int, bytes]]]
    refused: list[int]  # the statuses for the next parts
    seen: list[tuple[str, str, dict[str, str]]]

    def answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen.append((self.command, self.path, headers))
        body = self.rfile.read(int(headers.get("content-length", 0)))
        query = parse_qs(parts.query, keep_blank_values=True)
        if "uploads" in query or "uploadId" in query:
            self.multipart(path, body, headers, query)
        elif self.command == "PUT":
            self.put(path, body, headers)
        elif "list-type" in query:
            self.list(query.get("prefix", [""])[0])
        elif path not in self.objects:
            self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif self.command == "DELETE":
            del self.objects[path]
            self.reply(204)
        else:
            content, metadata = self.objects[path]
            self.reply(200, content, metadata)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def multipart(self, path: str, body: bytes, headers: dict[str, str], query: dict[str, list[str]]) -> None:
        """Store an object in parts. It is visible when complete, with the metadata of the first request."""
        if "uploads" in query:
            name = str(len(self.uploads))
            metadata = {key: value for key, value in headers.items() if key.startswith("x-goog-meta-")}
            self.uploads[name] = (metadata, {})
            begun = f"<UploadId>{name}</UploadId>"
            answer = f"<InitiateMultipartUploadResult>{begun}</InitiateMultipartUploadResult>"
            return self.reply(200, answer.encode())
        metadata, parts = self.uploads[query["uploadId"][0]]
        if self.command == "DELETE":
            del self.uploads[query["uploadId"][0]]
            return self.reply(204)
        if self.command == "PUT":
            if self.refused:
                return self.reply(self.refused.pop(0))
            parts[int(query["partNumber"][0])] = body
            return self.reply(200)
        assert body.count(b"<PartNumber>") == len(parts)
        self.objects[path] = (b"".join(content for _, content in sorted(parts.items())), metadata)
        return self.reply(
            200, b"<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>"
        )

    def put(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        if headers.get("x-goog-if-generation-match") == "0" and path in self.objects:
            return self.reply(412)
        metadata = {name: value for name, value in headers.items() if name.startswith("x-goog-meta-")}
        self.objects[path] = (body, metadata)
        return self.reply(200)

    def list(self, prefix: str) -> None:
        found = [path.removeprefix("/models/") for path in sorted(self.objects)]
        items = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(self.objects[f'/models/{key}'][0])}</Size>"
            f'<LastModified>2026-11-22T10:00:00.000Z</LastModified><ETag>"1"</ETag></Contents>'
            for key in found
            if key.startswith(prefix)
        )
        self.reply(200, f"<ListBucketResult>{items}</ListBucketResult>".encode())

    def reply(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        more = {"ETag": '"1"', "x-goog-generation": "1", "Last-Modified": DATE, **(headers or {})}
        for name, value in {**more, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def google() -> Iterator[tuple[str, type[Handler]]]:
    handler = type("Recorded", (Handler,), {"objects": {}, "seen": [], "uploads": {}, "refused": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def account(bare: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a service account's file with a new key where Google's tools look; return the key."""
    made = rsa.generate_private_key(65537, 2048)
    encoding = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key = made.private_bytes(*encoding).decode()
    path = bare / "account.json"
    content = {"type": "service_account", "private_key": key, "private_key_id": "1", "client_email": "a@b"}
    path.write_text(json.dumps(content))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    return key


def test_a_release_is_stored_found_and_deleted(
    google: tuple[str, type[Handler]], account: str, tmp_path: Path
) -> None:
    url, handler = google
    store = open_store(Store(uri="gs://models/team", endpoint=url), tmp_path)
    member = Member(name="w.pt", size=1000, sha256=None, source=bytes(1000))
    archive = Archive(name="digits", version="1.0", format="zip-store", members=(member,))
    for again in (False, True):
        with store.stage() as staging:
            place = staging.archive_path("digits.mar")
            written = write_archive(archive, place, DigestCache(tmp_path / "digests.json"))
            release = plan_release(Config(model=Model(name="digits", version="1.0", handler="h")), written)
            assert (store.put(release, staging).bytes_written == 0) is again
    assert store.uri(release) == f"gs://models/team/digits/{release.id}/"
    prefix = f"/models/team/digits/{release.id}"
    puts = [unquote(path) for method, path, _ in handler.seen if method == "PUT"]
    assert puts[:3] == [
        f"{prefix}/{name}" for name in ("config/config.properties", "model-store/digits.mar", "release.json")
    ]
    assert handler.objects[f"{prefix}/model-store/digits.mar"][1] == {
        "x-goog-meta-kdeploydigest": release.archive.digest
    }
    assert store.find("digits", release.id) == release
    assert store.releases() == [release]
    store.verify(release)
    store.delete(release)
    deleted = [unquote(path) for method, path, _ in handler.seen if method == "DELETE"]
    assert deleted[0] == f"{prefix}/release.json"
    assert handler.objects == {}
    assert all(headers["authorization"].startswith("Bearer ") for _, _, headers in handler.seen)
    assert account not in str(handler.seen)


def test_an_object_of_several_parts_is_visible_only_when_complete(
    google: tuple[str, type[Handler]], account: str, tmp_path: Path
) -> None:
    url, handler = google
    store = open_store(Store(uri="gs://models/team", endpoint=url), tmp_path)
    content = random.Random(1).randbytes(40_000_000)
    member = Member(name="w.pt", size=len(content), sha256=None, source=content)
    archive = Archive(name="digits", version="1.0", format="zip-store", members=(member,))
    with store.stage() as staging:
        place = staging.archive_path("digits.mar")
        written = write_archive(archive, place, DigestCache(tmp_path / "digests.json"))
        release = plan_release(Config(model=Model(name="digits", version="1.0", handler="h")), written)
        handler.refused += [403]
        with pytest.raises(StoreError, match="lack a permission"):
            store.put(release, staging)
        assert not [path for path in handler.objects if path.endswith(".mar")]
        assert handler.uploads == {}  # the failed upload was aborted
        handler.refused[:] = [503]  # retried
        assert store.put(release, staging).bytes_written > len(content)
        archived = place.read_bytes()
    found, metadata = handler.objects[f"/models/team/digits/{release.id}/model-store/digits.mar"]
    assert found == archived
    assert metadata == {"x-goog-meta-kdeploydigest": release.archive.digest}
    store.verify(release)
