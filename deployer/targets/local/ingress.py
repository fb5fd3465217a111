"""The way in: HTTP by Host header to the revision whose turn it is.

Bodies are streamed both ways and never held whole. What cannot be served is a 503 that says why,
or a 404 that says which Hosts there are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from deployer.errors import TargetError
from deployer.targets.local.routing import Route, Routes, Upstream

PORT_KEY = "targets.local.ingress-port"

_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
_ADDED_BY_CLIENT = ("User-Agent", "Content-Type", "Accept", "Accept-Encoding")
_CHUNK = 1 << 16


class Ingress:
    """A reverse proxy over the routes that it is given."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None
        self._wanted: tuple[str, int] | None = None
        self.url = ""
        self.port = 0

    async def listen(self, host: str, port: int, *, last_port: int = 0) -> None:
        """Listen on another address, or go on. Port 0 takes `last_port`, or else any free one.

        Raises TargetError where the port is taken; then what was listened on before still is.
        """
        if self._wanted == (host, port):
            return
        runner = await self._open()
        site = None
        if not port and last_port:
            with contextlib.suppress(OSError):
                site = await _start(runner, host, last_port)
        try:
            site = site or await _start(runner, host, port)
        except OSError as error:
            raise TargetError(
                f"the ingress cannot listen on {host}:{port}: {error.strerror or error}",
                where=PORT_KEY,
                hint=f"end what listens there, or set {PORT_KEY} to another port; 0 takes a free one",
            ) from error
        if self._site:
            await self._site.stop()
        self._site, self._wanted = site, (host, port)
        self.port = runner.addresses[-1][1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}"

    async def close(self) -> None:
        """Stop listening, and let what is in flight end."""
        if self._runner:
            await self._runner.cleanup()
        if self._session:
            await self._session.close()

    async def _open(self) -> web.ServerRunner:
        if self._runner is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=_ADDED_BY_CLIENT,
            )
            # A client that goes away cancels its request, and with it the one to TorchServe.
            server = web.Server(self._answer, handler_cancellation=True, access_log=None)
            self._runner = web.ServerRunner(server, shutdown_timeout=5.0)
            await self._runner.setup()
        return self._runner

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if not request.raw_path.startswith("/"):
            return web.json_response({"error": f"{request.raw_path!r} is no path"}, status=400)
        route = self._routes.find(request.headers.get("Host", ""))
        if route is None:
            return _not_found(request, self._routes.names())
        try:
            return await self._forward(request, route)
        except aiohttp.ClientConnectorError:
            # Refused: not a byte of the body has been read, so it may be sent elsewhere, once.
            await asyncio.sleep(0)
        try:
            return await self._forward(request, route)
        except aiohttp.ClientConnectorError:
            return _unavailable("TorchServe does not answer: it is being started again")

    async def _forward(self, request: web.BaseRequest, route: Route) -> web.StreamResponse:
        upstream = route.pick()
        if upstream is None:
            return _unavailable(route.reason or "no release of this service is ready")
        if not upstream.ready:
            return _unavailable(f"{upstream.revision} is not ready: {upstream.reason}")
        upstream.enter()
        try:
            return await self._relay(request, upstream)
        finally:
            upstream.leave()

    async def _relay(self, request: web.BaseRequest, upstream: Upstream) -> web.StreamResponse:
        assert self._session is not None
        url = URL(f"http://127.0.0.1:{upstream.port}{request.raw_path}", encoded=True)
        response: web.StreamResponse | None = None
        try:
            async with self._session.request(
                request.method,
                url,
                headers=_request_headers(request),
                data=_body(request) if request.can_read_body else None,
                allow_redirects=False,
            ) as answer:
                response = _head(request, answer)
                await response.prepare(request)
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    await response.write(chunk)
                await response.write_eof()
                return response
        except aiohttp.ClientConnectorError:
            raise
        except aiohttp.ClientError as error:
            if response is not None and response.prepared:
                # Half of the answer is out: only a broken connection says that the rest is not coming.
                if request.transport:
                    request.transport.abort()
                return response
            return _unavailable(
                f"{upstream.revision} ended while it was answering: {str(error) or 'no answer'}"
            )


async def _start(runner: web.ServerRunner, host: str, port: int) -> web.TCPSite:
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        with contextlib.suppress(RuntimeError):
            await site.stop()
        raise
    return site


async def _body(request: web.BaseRequest) -> AsyncIterator[bytes]:
    async for chunk in request.content.iter_any():
        yield chunk


def _request_headers(request: web.BaseRequest) -> CIMultiDict[str]:
    headers = _end_to_end(request.headers)
    headers.popall("Expect", None)  # answered by the ingress itself
    peer = request.remote or "unknown"
    forwarded = headers.get("X-Forwarded-For")
    headers["X-Forwarded-For"] = f"{forwarded}, {peer}" if forwarded else peer
    headers.setdefault("X-Forwarded-Proto", "http")
    headers.setdefault("X-Forwarded-Host", request.headers.get("Host", ""))
    return headers


def _head(request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(
        status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
    )
    has_no_body = request.method == "HEAD" or answer.status in (204, 304) or answer.status < 200
    if "Content-Length" not in answer.headers and not has_no_body:
        response.enable_chunked_encoding()
    return response


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP | named
    )


def _not_found(request: web.BaseRequest, names: list[str]) -> web.Response:
    host = request.headers.get("Host", "")
    known = "send one of these in the Host header" if names else "no service has been rolled out"
    return web.json_response(
        {"error": f"no InferenceService answers to Host {host!r}: {known}", "hosts": names}, status=404
    )


def _unavailable(reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=503, headers={"Retry-After": "1"})
