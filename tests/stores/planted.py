"""Finding planted secrets in every encoding, and a server that quotes every request in its errors."""

from __future__ import annotations

import base64
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

import obstore
import pytest

from deployer.config import Store
from deployer.store.open import open_store

MARK = "planted8d1f70c3e6b2"


def holders(texts: Mapping[str, bytes], *secrets: str) -> list[str]:
    """Return the names of the texts that contain a secret: plain, quoted or in base64."""
    forms = {form for secret in secrets for form in _forms(secret)}
    return sorted(name for name, text in texts.items() if any(form in text for form in forms))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder, and of every member of an archive."""
    found = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        found[str(path)] = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found |= {f"{path}!{name}": archive.read(name) for name in archive.namelist()}
    return found


def uploaded(config: Store, folder: Path) -> dict[str, bytes]:
    """Return every object below a store's prefix, with its metadata."""
    objects = open_store(config, folder)._objects
    paths = [meta["path"] for chunk in obstore.list(objects) for meta in chunk]
    answers = {path: obstore.get(objects, path) for path in paths}
    return {path: repr(one.attributes).encode() + bytes(one.bytes()) for path, one in answers.items()}


def _forms(secret: str) -> set[bytes]:
    raw = secret.encode()
    texts = {secret, quote(secret, safe=""), repr(secret)[1:-1], json.dumps(secret)[1:-1]}
    encoded = {_inner(encode(b"x" * n + raw), n, len(raw)) for n in range(3) for encode in _BASE64}
    return {text.encode() for text in texts} | encoded


_BASE64 = (base64.b64encode, base64.urlsafe_b64encode)


def _inner(encoded: bytes, before: int, size: int) -> bytes:
    """Return the letters of base64 that depend only on the `size` bytes."""
    return encoded[-(-before * 8 // 6) : (before + size) * 8 // 6]


class QuotingHandler(BaseHTTPRequestHandler):
    """Refuses every request with an error that quotes it, in a form that every cloud's client reads."""

    protocol_version = "HTTP/1.1"
    received: list[str]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode("latin-1")
        quoted = f"{self.path} {dict(self.headers)} {body}"
        self.received.append(quoted)
        text = f"<Error><Code>Odd</Code><Message>{escape(quoted)}</Message></Error>".encode("latin-1")
        self.send_response(400)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_CONNECT = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def quoting_server() -> Iterator[tuple[str, list[str]]]:
    """The URL of a server that refuses and quotes every request, and the list of those requests."""
    handler = type("Recorded", (QuotingHandler,), {"received": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.received
    server.shutdown()
    thread.join()
    server.server_close()
