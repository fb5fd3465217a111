"""One exchange with an API server: a request in, and its answer, or the error that the answer stands for."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import urllib3
from msgspec import Struct

from deployer.errors import KdeployError
from deployer.observed import Document
from deployer.targets.kserve.client import api_errors
from deployer.targets.kserve.client.connection import Connection

JSON = "application/json"


class Request(Struct, frozen=True, kw_only=True):
    """A request; `asked` says it in words, a verb and an object, for errors."""

    asked: str
    path: str
    method: str = "GET"
    query: Mapping[str, str] = {}
    body: Document | None = None
    content_type: str = JSON
    accept: str = JSON


def send(connection: Connection, request: Request) -> Document:
    """Send a request and return the object in its answer. Raises what a refusal stands for."""
    headers = {"Accept": request.accept, "Content-Type": request.content_type}
    # Without blanks, as the API server encodes: it compares byte by byte what must never change.
    data = None if request.body is None else json.dumps(request.body, separators=(",", ":")).encode()
    with _reaching(connection, request.asked):
        response = connection.pool.request(
            request.method, _url(connection, request), body=data, headers=connection.headers() | headers
        )
    found = _object(response)
    if found is None:
        raise _refusal(connection, response, request)
    return found


def open_stream(
    connection: Connection, request: Request, *, silence: float | None, no_log: Collection[int] = ()
) -> urllib3.BaseHTTPResponse:
    """Open an answer that is read as it comes; without a `silence` in seconds it may pause without limit.

    Raises NoLogError for the statuses in `no_log`, which are about the container and not the API server.
    """
    timeout = urllib3.Timeout(connect=connection.patience.connect, read=silence)
    with _reaching(connection, request.asked):
        response = connection.pool.request(
            "GET",
            _url(connection, request),
            headers=connection.headers() | {"Accept": "*/*"},
            preload_content=False,
            timeout=timeout,
        )
        is_page = response.headers.get("Content-Type", "").startswith("text/html")
        if response.status < 300 and not is_page:
            return response
        refusal = _refusal(connection, response, request)  # which reads the rest of the answer
    if response.status in no_log:
        raise api_errors.NoLogError(refusal.what, where=refusal.where, hint=refusal.hint) from refusal
    raise refusal


def read_lines(connection: Connection, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the lines of a stream as they come; the last one may lack its line break."""
    rest = b""
    try:
        for chunk in response.stream(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise api_errors.broken(error, connection.where) from error
    if rest:
        yield rest


def read_event(connection: Connection, line: bytes) -> tuple[str, Document]:
    """Read a line of a watch: (type, object). Raises GoneError, TargetError."""
    try:
        event = json.loads(line)
        kind, document = str(event["type"]), event["object"]
        if kind != "ERROR":
            document["metadata"]["resourceVersion"]
    except (ValueError, KeyError, TypeError):  # cut off, for example by a proxy
        raise api_errors.broken(ValueError("invalid watch event"), connection.where) from None
    if kind == "ERROR":
        body = json.dumps(document).encode()
        status = int(document.get("code") or 500)
        raise api_errors.read(api_errors.Answer(status, body, asked="watch", host=connection.where))
    return kind, document


@contextmanager
def _reaching(connection: Connection, asked: str) -> Iterator[None]:
    """Turn failures of the network into ours."""
    try:
        yield
    except urllib3.exceptions.HTTPError as error:
        raise api_errors.unreachable(error, f"{asked} on {connection.where}") from error


def _url(connection: Connection, request: Request) -> str:
    return connection.host + request.path + (f"?{urlencode(request.query)}" if request.query else "")


def _object(response: urllib3.BaseHTTPResponse) -> Document | None:
    """Return the object that an answer is, or None where it is a refusal or not of an API server."""
    try:
        found = json.loads(response.data) if response.status < 300 else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _refusal(connection: Connection, response: urllib3.BaseHTTPResponse, request: Request) -> KdeployError:
    after = response.headers.get("Retry-After", "")
    answer = api_errors.Answer(
        response.status,
        _without_values(response.data, request.body or {}),
        asked=request.asked,
        host=connection.where,
        after=float(after) if after.isdigit() else None,  # a date is ignored
    )
    return api_errors.read(answer)


def _without_values(answer: bytes, sent: Mapping[str, Any]) -> bytes:
    """Take a Secret's values out of a refusal that quotes them, as a webhook's may."""
    for value in sent.get("data", {}).values() if sent.get("kind") == "Secret" else ():
        plain = base64.b64decode(value)
        for form in (value.encode(), json.dumps(plain.decode(errors="replace"))[1:-1].encode(), plain):
            answer = answer.replace(form, b"***") if form else answer
    return answer
