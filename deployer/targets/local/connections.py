"""The clients of the ingress: limits their number and the time that each takes for a request.

A connection is idle until the server has read a whole request head. An idle client has a time limit, whether
it sends nothing or one byte at a time. If there are too many clients, the server disconnects the one that has
been idle longest. Data that is not HTTP gets a 4xx response and one log line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import resource
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError, RawRequestMessage
from msgspec import Struct

# Bytes read before the handler runs: a head, and at most two reads of 256 KiB.
_UNSEEN_MAX = 1 << 20
_CONNECTIONS_MAX = 4096
_RESERVED = 512  # file descriptors for the supervisor's socket, logs, and clients that are disconnecting
_DETAIL_MAX = 120

_log = logging.getLogger(__name__)

_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Limits(Struct, frozen=True, kw_only=True):
    """The limits for clients; times in seconds."""

    connections: int
    idle: float = 75.0  # between two requests of a connection
    head: float = 20.0  # from the first byte of a head to its last
    stalled: float = 60.0  # without progress while sending a body or reading a response
    slowest: int = 512  # bytes of a body per second that count as progress
    linger: float = 30.0  # for reading a body after the response, or the client might miss the response
    interval: float = 1.0  # between two checks of the limits


def read_limits() -> Limits:
    """Return the limits for this process, by how many files it can open.

    Each client can need a connection to TorchServe and leave another one in the pool.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return Limits(connections=_CONNECTIONS_MAX)
    return Limits(connections=max(min((files - min(_RESERVED, files // 2)) // 3, _CONNECTIONS_MAX), 1))


class Client:
    """One connected client: its next step, and the deadline for it."""

    def __init__(self, transport: asyncio.Transport, limits: Limits) -> None:
        self.limits = limits
        self.request: web.BaseRequest | None = None  # the request in progress
        self._transport = transport
        self._time = asyncio.get_running_loop().time
        self._unseen = 0  # bytes received of the next request
        self._unsent, self._unsent_since = 0, 0.0  # bytes that the client has not read
        self._deadline, self._expired = math.inf, self.disconnect
        self.await_request()

    def expect(self, seconds: float, expired: Callable[[], None]) -> None:
        """Call `expired` after this many seconds, unless `met` is called first."""
        self._deadline, self._expired = self._time() + seconds, expired

    def met(self) -> None:
        """Cancel the deadline: the client has taken its next step."""
        self._deadline = math.inf

    def await_request(self) -> None:
        """Expect the next request."""
        self.request, self._unseen = None, 0
        self.expect(self.limits.idle, self.disconnect)

    def begin(self, request: web.BaseRequest) -> None:
        """Begin to answer a request whose head has been read."""
        self.request = request
        self.met()

    def receive(self, size: int) -> bool:
        """Count received bytes; return False if the head is too long."""
        if self.request:
            return True
        if not self._unseen:
            self.expect(self.limits.head, self._refuse_late_head)
        self._unseen += size
        if self._unseen <= _UNSEEN_MAX:
            return True
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too long")
        return False

    def check(self, now: float) -> None:
        """Disconnect a client that missed its deadline or has stopped reading."""
        if now > self._deadline:
            self.met()
            self._expired()
        unsent = self._transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since > self.limits.stalled:
            self.disconnect()

    def write(self, data: bytes) -> None:
        """Send bytes that are not part of a response."""
        self._transport.write(data)

    def disconnect(self) -> None:
        """Disconnect immediately, and discard unsent data."""
        self._transport.abort()

    def _refuse_late_head(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"no complete head within {self.limits.head:g} s")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Refuse a request without a complete head; no handler runs for it."""
        self.met()
        _log.warning("malformed request: %s", reason)
        body = json.dumps({"error": f"malformed request: {reason}"}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.write(head.encode() + body)
        self._transport.close()


class Connections(web.Server):
    """An HTTP server with one handler, and limits for its clients."""

    def __init__(self, handler: _Handler, limits: Limits) -> None:
        # A client that disconnects cancels its request, and with it the one to TorchServe.
        super().__init__(self._handle, handler_cancellation=True)
        self._answer = handler
        self._limits = limits
        self._settings: dict[str, Any] = {
            "logger": _log,
            "access_log": None,
            "auto_decompress": False,  # bodies are forwarded unchanged
            "keepalive_timeout": 3600.0,  # `Limits.idle` is shorter
            "lingering_time": limits.linger,
        }
        self._clients: set[Client] = set()
        self._idle: dict[Client, None] = {}  # the longest idle first
        self._checking = False

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return _Connection(self, loop=asyncio.get_running_loop(), **self._settings)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Add a client; if there are too many, disconnect the longest idle."""
        super().connection_made(handler, transport)
        assert isinstance(handler, _Connection)
        handler.client = client = Client(transport, self._limits)
        self._clients.add(client)
        self._idle[client] = None
        if len(self._clients) > self._limits.connections:
            _log.warning("over %d connections: disconnecting the longest idle", self._limits.connections)
            longest = next(iter(self._idle))
            self._forget(longest)
            longest.disconnect()
        if not self._checking:
            self._checking = True
            asyncio.get_running_loop().call_later(self._limits.interval, self._check)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Remove a client."""
        assert isinstance(handler, _Connection)
        self._forget(handler.client)
        super().connection_lost(handler, exc)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        client = client_of(request)
        self._idle.pop(client, None)
        client.begin(request)
        response = await self._answer(request)
        content = request.content
        if content.is_eof():
            if client in self._clients:
                client.await_request()
                self._idle[client] = None
            return response
        response.force_close()
        if content.exception() or ("Expect" in request.headers and not content.total_bytes):
            # The rest of the body is malformed, or the client will not send it: do not wait for it.
            await response.prepare(request)
            await response.write_eof()
            request.protocol.force_close()
        return response

    def _forget(self, client: Client) -> None:
        self._clients.discard(client)
        self._idle.pop(client, None)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for client in list(self._clients):
            client.check(now)
        self._checking = bool(self._clients)
        if self._checking:
            loop.call_later(self._limits.interval, self._check)


class _Connection(web.RequestHandler):
    """The HTTP of one client's connection."""

    __slots__ = ("client",)
    client: Client

    def data_received(self, data: bytes) -> None:
        """Read more of a request, unless its head is too long."""
        if data and not self.client.receive(len(data)):
            return
        super().data_received(data)
        last = self._messages[-1][0] if self._messages else None
        if last and not isinstance(last, RawRequestMessage) and self.client.request:
            # aiohttp reports malformed data only after the request before it, whose body would never end.
            content = self.client.request.content
            if not content.is_eof():
                content.set_exception(last.exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Refuse data that is not HTTP with a 4xx and one log line; log any other error, a bug, in full."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        # The request can contain a secret: its text goes back to the client, and not into the log.
        _log.warning("malformed request: %s", type(exc).__name__)
        detail = exc.message.partition("\n")[0].rstrip(" :")[:_DETAIL_MAX]
        response = web.json_response({"error": f"malformed request: {detail}"}, status=status)
        response.force_close()
        return response


def client_of(request: web.BaseRequest) -> Client:
    """Return the client that sent a request."""
    assert isinstance(request.protocol, _Connection)
    return request.protocol.client
