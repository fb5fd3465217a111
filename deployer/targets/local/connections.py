"""The clients of the ingress: how many may be connected, and how long each may take over a request.

A connection is idle until a whole head has come, so a client that sends nothing and a client that sends
its head byte by byte get the same treatment: a time limit, and where there are too many clients, the one
that has been idle longest is disconnected. What is not HTTP gets a 4xx, and one line of log.
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

# A head, and what is read of the body before the handler runs: at most two reads of 256 KiB.
_UNSEEN_MAX = 1 << 20
_CONNECTIONS_MAX = 4096
_RESERVED = 512  # descriptors for the control socket, logs, and clients that are not yet disconnected
_DETAIL_MAX = 120

_log = logging.getLogger(__name__)

_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Limits(Struct, frozen=True, kw_only=True):
    """What a client may do; times in seconds."""

    connections: int
    idle: float = 75.0  # until a connection's next request
    head: float = 20.0  # from the first byte of a head to its last
    stalled: float = 60.0  # without progress in sending a body or reading an answer
    slowest: int = 512  # bytes a second of a body that still are progress
    linger: float = 30.0  # of a body that is sent after the answer: a client that is cut off may not see that
    look: float = 1.0  # between two looks at the clock


def read_limits() -> Limits:
    """Return the limits for this process: as many connections as it may have open files for.

    Each may need a connection to TorchServe, and leave another one in the pool.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return Limits(connections=_CONNECTIONS_MAX)
    return Limits(connections=max(min((files - min(_RESERVED, files // 2)) // 3, _CONNECTIONS_MAX), 1))


class Client:
    """One connected client: what it has to do next, and by when."""

    def __init__(self, transport: asyncio.Transport, limits: Limits) -> None:
        self.limits = limits
        self.request: web.BaseRequest | None = None  # that is being answered
        self._transport = transport
        self._time = asyncio.get_running_loop().time
        self._unseen = 0  # bytes of the next request that have come
        self._unsent, self._unsent_since = 0, 0.0  # bytes that the client has not taken
        self._deadline, self._expired = math.inf, self.disconnect
        self.await_request()

    def expect(self, seconds: float, expired: Callable[[], None]) -> None:
        """Call `expired` after so many seconds, unless the client does what it has to; see `seen`."""
        self._deadline, self._expired = self._time() + seconds, expired

    def seen(self) -> None:
        """Note that the client has done what it had to."""
        self._deadline = math.inf

    def await_request(self) -> None:
        """Expect the next request."""
        self.request, self._unseen = None, 0
        self.expect(self.limits.idle, self.disconnect)

    def serve(self, request: web.BaseRequest) -> None:
        """Note that a request has come, but for its body."""
        self.request = request
        self.seen()

    def take(self, size: int) -> bool:
        """Note that so many bytes have come; False for too many of a head."""
        if self.request:
            return True
        if not self._unseen:
            self.expect(self.limits.head, self._refuse_late_head)
        self._unseen += size
        if self._unseen <= _UNSEEN_MAX:
            return True
        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too long")
        return False

    def look(self, now: float) -> None:
        """Disconnect a client that is late, and one that takes nothing of what it is sent."""
        if now > self._deadline:
            self.seen()
            self._expired()
        unsent = self._transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since > self.limits.stalled:
            self.disconnect()

    def write(self, data: bytes) -> None:
        """Send bytes that belong to no answer."""
        self._transport.write(data)

    def disconnect(self) -> None:
        """Disconnect at once, whatever has not been sent."""
        self._transport.abort()

    def _refuse_late_head(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the head has not come within {self.limits.head:g} s")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer a request without a whole head, which no handler gets to see."""
        self.seen()
        _log.warning("malformed request: %s", reason)
        body = json.dumps({"error": f"malformed request: {reason}"}).encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.write(head.encode() + body)
        self._transport.close()


class Connections(web.Server):
    """An HTTP server with one handler and limits for its clients."""

    def __init__(self, handler: _Handler, limits: Limits) -> None:
        # A client that disconnects cancels its request, and with it the one to TorchServe.
        super().__init__(self._handle, handler_cancellation=True)
        self._answer = handler
        self._limits = limits
        self._settings: dict[str, Any] = {
            "logger": _log,
            "access_log": None,
            "auto_decompress": False,  # bodies pass as they are
            "keepalive_timeout": 3600.0,  # `Limits.idle` comes first
            "lingering_time": limits.linger,
        }
        self._clients: set[Client] = set()
        self._idle: dict[Client, None] = {}  # the longest idle first
        self._looking = False

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return _Connection(self, loop=asyncio.get_running_loop(), **self._settings)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Add a client, and disconnect another one where there are too many."""
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
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(self._limits.look, self._look)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Remove a client."""
        assert isinstance(handler, _Connection)
        self._forget(handler.client)
        super().connection_lost(handler, exc)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        client = client_of(request)
        self._idle.pop(client, None)
        client.serve(request)
        response = await self._answer(request)
        content = request.content
        if content.is_eof():
            if client in self._clients:
                client.await_request()
                self._idle[client] = None
            return response
        response.force_close()
        if content.exception() or ("Expect" in request.headers and not content.total_bytes):
            # The rest of the body makes no sense, or will not be sent: do not wait for it.
            await response.prepare(request)
            await response.write_eof()
            request.protocol.force_close()
        return response

    def _forget(self, client: Client) -> None:
        self._clients.discard(client)
        self._idle.pop(client, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for client in list(self._clients):
            client.look(now)
        self._looking = bool(self._clients)
        if self._looking:
            loop.call_later(self._limits.look, self._look)


class _Connection(web.RequestHandler):
    """The HTTP of one client's connection."""

    __slots__ = ("client",)
    client: Client

    def data_received(self, data: bytes) -> None:
        """Read more of a request, unless its head is too long."""
        if data and not self.client.take(len(data)):
            return
        super().data_received(data)
        last = self._messages[-1][0] if self._messages else None
        if last and not isinstance(last, RawRequestMessage) and self.client.request:
            # aiohttp answers what it cannot read when its turn comes; the body before that never ends.
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
        """Answer what is not HTTP with a 4xx and one line of log; log anything else, a bug, whole."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        # What was sent may hold a secret: it goes back to its sender, and into no log.
        _log.warning("malformed request: %s", type(exc).__name__)
        detail = exc.message.partition("\n")[0].rstrip(" :")[:_DETAIL_MAX]
        response = web.json_response({"error": f"malformed request: {detail}"}, status=status)
        response.force_close()
        return response


def client_of(request: web.BaseRequest) -> Client:
    """Return the client that has sent a request."""
    assert isinstance(request.protocol, _Connection)
    return request.protocol.client
