"""The ingress: forwards HTTP requests by Host header to the revisions of a service.

Bodies are streamed unchanged in both directions. If no revision can answer, the response is a 503 with the
reason; for an unknown Host it is a 404 with the known Hosts. Requests that another server could read in a
different way are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web
from aiohttp.http import HttpProcessingError, HttpVersion10, HttpVersion11
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from deployer.errors import TargetError
from deployer.targets.local.connections import Connections, Limits, client_of, read_limits
from deployer.targets.local.routing import Route, Routes, Upstream

HOST_KEY, PORT_KEY = "targets.local.ingress-host", "targets.local.ingress-port"
TORCHSERVE_PORT_KEY = "targets.local.torchserve-port"

_CHUNK = 1 << 16
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ABSOLUTE = re.compile(r"https?://(?P<host>[^/?]+)(?P<path>.*)", re.IGNORECASE)

_HOP_BY_HOP = frozenset([
    "connection", "expect", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "trailer", "transfer-encoding", "upgrade",
])  # fmt: skip
_END_TO_END = frozenset(["content-length", "host"])  # even if a Connection header names them
_ADDED_BY_CLIENT = ("User-Agent", "Content-Type", "Accept", "Accept-Encoding")


class Ingress:
    """A reverse proxy for a set of routes. With `any_host`, an unknown Host leads to the only service."""

    def __init__(self, routes: Routes, limits: Limits | None = None, *, any_host: bool = False) -> None:
        self._routes, self._any_host = routes, any_host
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=_open_socket),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_ADDED_BY_CLIENT,
            trust_env=False,  # TorchServe is on loopback: no proxies
        )
        server = Connections(self._answer, limits or read_limits())
        self._runner = web.ServerRunner(server, shutdown_timeout=5.0)
        self._site: web.TCPSite | None = None
        self._wanted: tuple[str, int] | None = None
        self.url = ""
        self.port = 0

    async def listen(self, host: str, port: int, *, last_port: int = 0) -> None:
        """Listen on an address instead of the previous one. Port 0 takes `last_port`, or else any free one.

        Raises TargetError if it cannot, and then keeps listening on the previous address.
        """
        if self._wanted == (host, port):
            return
        if self._runner.server is None:
            await self._runner.setup()
        site = None
        if not port and last_port:
            with contextlib.suppress(OSError):
                site = await _start(self._runner, host, last_port)
        try:
            site = site or await _start(self._runner, host, port)
        except OSError as error:
            raise _cannot_listen(
                host, port, error, TORCHSERVE_PORT_KEY if self._any_host else PORT_KEY
            ) from error
        if self._site:
            await self._site.stop()
        self._site, self._wanted = site, (host, port)
        self.port = self._runner.addresses[-1][1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}"

    async def close(self) -> None:
        """Stop listening, and wait up to 5 s for requests in flight."""
        await self._runner.cleanup()
        await self._session.close()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            asked = _read(request)
            route = self._routes.find(asked.host)
            if route is None and self._any_host:
                route = self._routes.only()
            if route is None:
                return _not_found(asked.host, self._routes.names())
            for _ in range(2):
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    return await self._forward(request, asked, route)
                # The connection was refused before any byte was sent: try once more.
                await asyncio.sleep(0)
            return _unavailable("TorchServe does not answer: it is restarting")
        except _RefusedError as error:
            response = web.json_response({"error": str(error)}, status=error.status)
            response.force_close()
            return response

    async def _forward(self, request: web.BaseRequest, asked: _Asked, route: Route) -> web.StreamResponse:
        upstream = route.pick()
        if upstream is None:
            return _unavailable(route.reason or "no release of this service is ready")
        if not upstream.ready:
            return _unavailable(f"{upstream.revision} is not ready: {upstream.reason}")
        return await self._relay(request, asked, upstream)

    async def _relay(self, request: web.BaseRequest, asked: _Asked, upstream: Upstream) -> web.StreamResponse:
        body = _Body(request, upstream.max_request_size)
        response: web.StreamResponse | None = None
        try:
            async with self._session.request(
                request.method,
                URL(f"http://127.0.0.1:{upstream.port}{asked.path}", encoded=True),
                headers=_request_headers(request, asked.host),
                data=asked.body or (body if request.can_read_body else None),
                allow_redirects=False,
            ) as answer:
                headers = _end_to_end(answer.headers)
                if request.method != "HEAD" and (answer.content_length or _CHUNK) < _CHUNK:
                    # Head and body together cost only one system call.
                    return web.Response(
                        status=answer.status, reason=answer.reason, headers=headers, body=await answer.read()
                    )
                response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
                if not request.content.is_eof():
                    response.force_close()
                await response.prepare(request)
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    await response.write(chunk)
                await response.write_eof()
                return response
        except aiohttp.ClientConnectorError:
            raise
        except aiohttp.ClientError as error:
            if response is not None and response.prepared:
                # Part of the response is sent: only a broken connection shows that the rest is missing.
                client_of(request).disconnect()
                return response
            if body.refused:
                raise body.refused from error
            return _unavailable(
                f"{upstream.revision} ended during the request: {str(error) or 'no response'}"
            )


class _Asked(NamedTuple):
    """A request's Host, its path with the query, and its body if that is already complete."""

    host: str
    path: str
    body: bytes


class _RefusedError(Exception):
    """A request that the ingress refuses, with an HTTP status and a message."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


class _Body:
    """The body of a request, as TorchServe gets it; `refused` is the reason if it ended early."""

    def __init__(self, request: web.BaseRequest, limit: int | None) -> None:
        self.refused: _RefusedError | None = None
        self._request = request
        self._limit = limit
        self._check(request.content_length or 0)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives. Raises _RefusedError."""
        client, content = client_of(self._request), self._request.content
        if "Expect" in self._request.headers and self._request.version == HttpVersion11:
            client.write(_CONTINUE)
        limits, time, size = client.limits, asyncio.get_running_loop().time, 0
        patience = limits.stalled
        while True:
            since = time()
            client.expect(patience, lambda: content.set_exception(asyncio.TimeoutError()))
            try:
                chunk = await content.readany()
            except asyncio.TimeoutError as error:
                raise self._refuse(408, f"the body stopped after {size} bytes") from error
            except (web.RequestPayloadError, HttpProcessingError) as error:
                raise self._refuse(400, "malformed body") from error
            finally:
                client.met()
            if not chunk:
                return
            size += len(chunk)
            self._check(size)
            patience = min(patience - (time() - since) + len(chunk) / limits.slowest, limits.stalled)
            yield chunk

    def _check(self, size: int) -> None:
        if self._limit is not None and size > self._limit:
            raise self._refuse(
                413,
                f"the request is larger than {self._limit} bytes, the model's limit; "
                "raise serving.max-request-size and roll out again",
            )

    def _refuse(self, status: int, error: str) -> _RefusedError:
        self.refused = _RefusedError(status, error)
        return self.refused


class _Socket(socket.socket):
    """A socket to a server that can respond and disconnect before it has read the whole request.

    Sending then fails, and asyncio would close the connection without reading the response. This socket
    discards what it cannot send.
    """

    def send(self, data: Any, flags: int = 0) -> int:
        try:
            return super().send(data, flags)
        except (BrokenPipeError, ConnectionResetError):
            return memoryview(data).nbytes

    def sendmsg(self, buffers: Any, *more: Any) -> int:
        try:
            return super().sendmsg(buffers, *more)
        except (BrokenPipeError, ConnectionResetError):
            return sum(memoryview(buffer).nbytes for buffer in buffers)


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    return _Socket(family, kind, protocol)


async def _start(runner: web.ServerRunner, host: str, port: int) -> web.TCPSite:
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        with contextlib.suppress(RuntimeError):
            await site.stop()
        raise
    return site


def _cannot_listen(host: str, port: int, error: OSError, port_key: str) -> TargetError:
    # asyncio's text repeats the address.
    known = error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL)
    reason = os.strerror(error.errno or 0) if known else error.strerror or error
    key, hint = HOST_KEY, f"Set {HOST_KEY} to an address of this machine."
    if known and error.errno != errno.EADDRNOTAVAIL:
        key = port_key
        hint = f"End the process that listens there, or set {port_key} to another port"
        hint += "; 0 takes a free one." if port_key == PORT_KEY else "."
    return TargetError(f"the ingress cannot listen on {host}:{port}: {reason}", where=key, hint=hint)


def _read(request: web.BaseRequest) -> _Asked:
    """Read a request, and its body if that is complete. Raises _RefusedError."""
    _check_framing(request)
    host, path = request.headers.get("Host", ""), request.raw_path
    absolute = _ABSOLUTE.fullmatch(path)
    if absolute:
        host, path = absolute["host"], absolute["path"]
        path = path if path.startswith("/") else f"/{path}"
    if not path.startswith("/") or "#" in path:
        raise _RefusedError(400, f"invalid path {path!r}")
    whole = request.content.is_eof() and "Content-Length" in request.headers
    return _Asked(host, path, request.content.read_nowait() if whole else b"")


def _check_framing(request: web.BaseRequest) -> None:
    """Refuse a request that another server could read in a different way. Raises _RefusedError."""
    if request.version not in (HttpVersion10, HttpVersion11):
        raise _RefusedError(505, "only HTTP/1.1 and HTTP/1.0 are supported")
    encodings = request.headers.getall("Transfer-Encoding", [])
    if encodings and request.version == HttpVersion10:
        raise _RefusedError(400, "HTTP/1.0 does not support Transfer-Encoding")
    if encodings and [encoding.lower() for encoding in encodings] != ["chunked"]:
        raise _RefusedError(501, f"Transfer-Encoding {', '.join(encodings)} is not supported; send chunked")
    if request.headers.get("Expect", "100-continue").lower() != "100-continue":
        raise _RefusedError(417, f"Expect {request.headers['Expect']} is not supported")


def _request_headers(request: web.BaseRequest, host: str) -> CIMultiDict[str]:
    headers = _end_to_end(request.headers)
    headers["Host"] = host
    before = headers.getall("X-Forwarded-For", [])
    headers["X-Forwarded-For"] = ", ".join([*before, request.remote or "unknown"])
    headers.setdefault("X-Forwarded-Proto", "http")
    headers.setdefault("X-Forwarded-Host", host)
    return headers


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for line in headers.getall("Connection", []) for name in line.split(",")}
    dropped = _HOP_BY_HOP | (named - _END_TO_END)
    return CIMultiDict((name, _text(value)) for name, value in headers.items() if name.lower() not in dropped)


def _text(value: str) -> str:
    """Return a header's value as text. aiohttp would drop bytes that are not UTF-8: read those as Latin-1."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value


def _not_found(host: str, names: list[str]) -> web.Response:
    hint = "send one of these in the Host header" if names else "no service has been rolled out"
    return web.json_response(
        {"error": f"no InferenceService has the Host {host!r}: {hint}", "hosts": names}, status=404
    )


def _unavailable(reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=503, headers={"Retry-After": "1"})
