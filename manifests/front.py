"""The front: an HTTP/1.1 proxy before TorchServe, with one connection to TorchServe per client connection.

TorchServe always answers `Connection: keep-alive`, and drops the requests in flight when it stops. The front
counts the requests in flight: a request begins with its first byte, and ends when the last byte of its
response is handed to the kernel. While the front drains, every response has `Connection: close`. Bodies are
streamed.
"""

import asyncio
import contextlib
import json
import socket
import struct

from manifests.apis import mark
from manifests.http_messages import (
    ANSWER,
    HEAD_MAX,
    REQUEST,
    UNTIL_CLOSE,
    BadMessageError,
    Body,
    Head,
    find_head,
)
from manifests.upstream import Upstream

LINGER = 1.0  # seconds that a client gets to close a connection that the front has closed

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}


class Client(asyncio.Protocol):
    """A client's connection. One request at a time is in flight; pipelined requests wait."""

    def __init__(self, front):
        self.front = front
        self.transport = self.upstream = None
        self.in_flight = False
        self._ahead = b""  # received, and not yet forwarded
        self._method = b""
        self._body = None  # of the request, until it is complete
        self._answering = False  # a request's head was forwarded, and its response is incomplete
        self._answer_head, self._answer_body = b"", None
        self._last = False  # this response is the connection's last
        self._awaits_continue = False  # the client sends the body only after 100 Continue
        self._eof = self._ending = self._discarding = self._blocked = False
        self._telling = None  # the answer that the front gives itself, while it is found out

    def connection_made(self, transport):
        """Register; with a write buffer limit of 0, a slow client pauses TorchServe."""
        self.transport = transport
        transport.set_write_buffer_limits(high=0)
        self.front.clients.add(self)

    def data_received(self, data):
        """Forward the bytes of the current request; keep those of later ones."""
        if self._ending:
            return
        if not self.in_flight:
            self.in_flight = True
            self.front.count(1)
        self._ahead += data
        self.advance()

    def eof_received(self):
        """Keep the connection open for the response if the request is complete."""
        self._eof = True
        return self._answering and self._body is None and not self._ending

    def connection_lost(self, _error):
        """Abort the request in flight."""
        self.front.clients.discard(self)
        self._ending = True
        self._leave()
        if self._telling:
            self._telling.cancel()
        if self.upstream:
            self.upstream.abort()

    def pause_writing(self):
        """Pause TorchServe while the client does not read."""
        if self.upstream:
            self.upstream.hold(True)

    def resume_writing(self):
        """Read from TorchServe again; the end of a response is sent by now."""
        if self.upstream:
            self.upstream.hold(False)
        self._settle()

    def block(self, blocked):
        """Pause the client while TorchServe does not read."""
        self._blocked = blocked
        self._regulate()

    def end(self):
        """Close the connection so that its last response arrives: send EOF, and let the client close."""
        self._ending, self._ahead = True, b""
        if self.upstream:
            self.upstream.abort()
        if self.transport.is_closing():
            return
        self.transport.resume_reading()  # later bytes are dropped; unread, they would reset the connection
        if self._eof:
            self.transport.close()
        else:
            self.transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER, self.transport.close)

    def reply(self, status, document, last=True):
        """Answer a request without TorchServe, and discard the rest of its body."""
        self._telling = None
        self._last = self._last or last or self._body is not None
        data = json.dumps(document).encode() + b"\n"
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(data)}\r\n"
        head += "Connection: close\r\n" if self._last else ""
        head += "Retry-After: 1\r\n\r\n" if status == 503 else "\r\n"
        self.transport.write(head.encode() + (b"" if self._method == b"HEAD" else data))
        self._answering, self._discarding, self._blocked = False, True, False
        self.advance()
        self._settle()

    def _leave(self):
        if self.in_flight:
            self.in_flight = False
            self.front.count(-1)

    def advance(self):
        """Forward as many of the received bytes as possible."""
        try:
            while self._ahead and not self._ending and self._step():
                pass
        except BadMessageError as error:
            self._refuse(str(error))
        if self.upstream:
            self.upstream.flush()
        self._regulate()

    def _refuse(self, text):
        """Answer 400 to an invalid message unless a response has begun, and stop reading."""
        is_answered = self._body is not None and not self._answering
        self._body = None
        if self._answer_body is not None:
            self.transport.abort()
        elif is_answered:
            self.end()
        else:
            if self.upstream:
                self.upstream.abort()
                self.upstream = None
            self.reply(400, {"error": text})

    def _step(self):
        """Forward one part of the received bytes; return False if they have to wait."""
        if self._body is None:
            return not self._answering and not self._last and self._begin()
        if not self._discarding and not (self.upstream and self.upstream.transport):
            return False
        self._awaits_continue = False
        size = self._body.split(self._ahead)
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        if self.upstream:
            self.upstream.send(data)
        if self._body.done:
            self._body = None
            self._settle()
        return True

    def _begin(self):
        """Begin a request once its head is complete."""
        self._method, self._ahead = b"", self._ahead.lstrip(b"\r\n")
        if not self._ahead:
            self._leave()
            return False
        if not self._ahead[:1].isalpha():
            raise BadMessageError("the first line is not HTTP/1.1")
        size = find_head(self._ahead)
        if not size:
            return False
        head, self._ahead = Head(self._ahead[:size], REQUEST), self._ahead[size:]
        body = Body(head.framing(otherwise=0))
        self._method = head.line[1]
        old = head.line[3] == b"0"
        self._last = b"close" in head.options or (old and b"keep-alive" not in head.options)
        self._body = None if body.done else body
        self._awaits_continue = head.expects
        self._answering = True
        self._route(head)
        return True

    def _route(self, head):
        """Forward a request's head, or answer the request without TorchServe."""
        status = self.front.status
        question = status and self._method in (b"GET", b"HEAD") and status.find(head.line[2])
        if question:
            self._telling = asyncio.ensure_future(self._tell(question))
            return
        # Connection options apply to one connection, not to the next.
        data = head.without_connection() if head.options else head.data
        if self._body is not None:
            data = mark(data, head.line[2])
        if self.upstream is None:
            self.upstream = Upstream(self)
        self.upstream.send(data)

    async def _tell(self, question):
        """Answer a question about readiness or metadata."""
        status, document = await self.front.status.answer(question, draining=self.front.draining)
        self.reply(status, document, last=self.front.draining and not self._ahead)

    def answer(self, data):
        """Forward bytes of TorchServe's response."""
        out = []
        while data and self._answering:
            if self._answer_body is None:
                data = self._answer_head + data
                size = find_head(data)
                self._answer_head, data = (b"", data) if size else (data, b"")
                if size:
                    out.append(self._read_answer(Head(data[:size], ANSWER)))
                    data = data[size:]
            else:
                size = self._answer_body.split(data)
                out.append(data[:size])
                data = data[size:]
            if self._answer_body and self._answer_body.done:
                self._answering, self._answer_body = False, None
        if out and not self.transport.is_closing():
            self.transport.write(b"".join(out))
        self._settle()

    def _read_answer(self, head):
        """Find out where the response ends; return its head as the client gets it."""
        status = int(head.line[1])
        if status < 200:
            self._awaits_continue = False
            return head.data
        bodiless = self._method == b"HEAD" or status in (204, 304)
        self._answer_body = Body(0 if bodiless else head.framing(otherwise=UNTIL_CLOSE))
        # A pipelined request has already begun, and would be lost.
        drained = self.front.draining and not self._ahead
        if self._awaits_continue and self._body:
            self._last, self._body = True, None  # the client need not send the body
        if self._last or drained or b"close" in head.options or self._answer_body.framing == UNTIL_CLOSE:
            self._last = True
            return head.without_connection(b"Connection: close")
        return head.data

    def lost(self, error, text="TorchServe ended before it answered"):
        """Answer with an error, if still possible, after the connection to TorchServe was lost."""
        self.upstream, self._blocked = None, False
        if self._ending or self._telling:
            return
        if not self._answering:
            if self._body is not None:
                self.end()
        elif self._answer_body is None:
            self.reply(503, {"error": text})
        elif self._answer_body.framing == UNTIL_CLOSE and error is None:
            self._answering, self._answer_body = False, None
            self._settle()
        else:
            # Part of the response was sent: only a reset can report that the rest is missing.
            with contextlib.suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                self.transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
            self.transport.abort()

    def _settle(self):
        """Finish a request whose response was sent, and continue with the next one."""
        if not self.in_flight or self._answering or self._body is not None or self._ending:
            return
        if self.transport.get_write_buffer_size():
            return  # resume_writing calls this again
        self._discarding = False
        if self._last or (self.front.closing and not self._ahead) or (self._eof and not self._ahead):
            self._leave()
            self.end()
        elif self._ahead:
            self.advance()
            if self._eof and not self._answering and not self._ending:
                self.transport.close()  # the last request is incomplete
        else:
            self._leave()

    def _regulate(self):
        if self._ending:
            return
        if self._blocked or len(self._ahead) > HEAD_MAX:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()


class Front:
    """All connections, and the number of requests in flight."""

    def __init__(self, upstream_port, status=None):
        """Forward to TorchServe at this loopback port; `status` answers about readiness and metadata."""
        self.upstream_port = upstream_port
        self.status = status
        self.clients = set()
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.draining = self.closing = False
        self._server = None

    async def listen(self, host, port):
        """Listen. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Client(self), host, port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    def count(self, change):
        """Add to the number of requests in flight."""
        self.in_flight += change
        if self.in_flight:
            self.idle.clear()
        else:
            self.idle.set()

    def drain(self):
        """Continue to accept requests, but make every response its connection's last."""
        self.draining = True

    async def close(self):
        """Accept no more connections, close idle ones, and wait for the requests in flight."""
        await asyncio.sleep(0.01)  # so that connections that the kernel has accepted are handled
        self.draining = self.closing = True
        self._server.close()
        for client in list(self.clients):
            if not client.in_flight:
                client.end()
        await self.idle.wait()
