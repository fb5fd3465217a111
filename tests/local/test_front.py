"""The front before a scripted server: message boundaries, backpressure, and requests in flight."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable

import pytest

from manifests.front import Front
from manifests.status import Status

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Script = Callable[[Reader, Writer], Awaitable[None]]


class Place:
    """A front, a server behind it that follows a script, and the requests that the server received."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self.script(reader, writer)
        finally:
            writer.close()

    async def head(self, reader: Reader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        return head

    async def open(self) -> tuple[Reader, Writer]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, data: bytes) -> bytes:
        """Send bytes on a new connection, and return all bytes received until it is closed."""
        reader, writer = await self.open()
        writer.write(data)
        got = await reader.read()
        writer.close()
        return got


def within(
    script: Script | None, test: Callable[[Place, Front], Awaitable[None]], status: Status | None = None
) -> None:
    async def run() -> None:
        place = Place(script or (lambda reader, writer: always(place, reader, writer)))
        server = await asyncio.start_server(place.serve, "127.0.0.1", 0, limit=1 << 20)
        front = Front(server.sockets[0].getsockname()[1], status)
        await front.listen("127.0.0.1", 0)
        assert front._server
        place.port = front._server.sockets[0].getsockname()[1]
        try:
            await asyncio.wait_for(test(place, front), 20)
            await asyncio.wait_for(front.idle.wait(), 5)
            assert front.in_flight == 0
        finally:
            front._server.close()
            server.close()

    asyncio.run(run())


async def always(place: Place, reader: Reader, writer: Writer) -> None:
    """Answer each request, with or without a Content-Length, with `ok`."""
    while True:
        head = (await place.head(reader)).lower()
        size = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        place.bodies.append(await reader.readexactly(size))
        writer.write(OK)


def post(body: bytes, *fields: bytes) -> bytes:
    lines = [b"POST /x HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def answer(reader: Reader) -> tuple[bytes, bytes]:
    """Read one response with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head, await reader.readexactly(size)


def test_a_connection_is_kept_and_only_its_hop_by_hop_headers_change() -> None:
    async def check(place: Place, front: Front) -> None:
        reader, writer = await place.open()
        for body in (b"", b"hello", b"x" * 300_000):
            writer.write(post(body, b"X-A:  1 ", b"Connection: keep-alive"))
            assert await answer(reader) == (OK[:-2], b"ok")
            await front.idle.wait()
        assert (place.connections, place.bodies) == (1, [b"", b"hello", b"x" * 300_000])
        assert place.heads[1] == post(b"hello", b"X-A:  1 ", b"kdeploy-api: torchserve")[:-5]
        writer.close()

    within(None, check)


def test_messages_can_arrive_in_pieces_of_any_size() -> None:
    chunks = b"4;a=b\r\nWiki\r\n10 \r\n0123456789abcdef\r\n0\r\nTrailer: x\r\n\r\n"
    request = b"POST /x HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunks
    reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks

    async def script(reader: Reader, writer: Writer) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            assert await reader.readexactly(len(chunks)) == chunks
            for position in range(len(reply)):
                writer.write(reply[position : position + 1])
                await writer.drain()
                await asyncio.sleep(0)

    async def check(place: Place, front: Front) -> None:
        reader, writer = await place.open()
        for size in (1, 7, 1000):
            for start in range(0, len(request), size):
                writer.write(request[start : start + size])
                await asyncio.sleep(0.001)
            assert await reader.readexactly(len(reply)) == reply
        writer.close()

    within(script, check)


@pytest.mark.parametrize(
    ("method", "head", "last"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 \r\nContent-Length: 1\r\n\r\n", b"x"),
    ],
)
def test_responses_without_a_body_end_with_their_head(method: bytes, head: bytes, last: bytes) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(head + last)

    async def check(place: Place, front: Front) -> None:
        reader, writer = await place.open()
        for _ in range(2):
            writer.write(GET.replace(b"GET", method))
            assert await reader.readexactly(len(head + last)) == head + last
        writer.close()

    within(script, check)


def test_a_response_that_ends_with_its_connection_closes_the_clients_connection() -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000)

    async def check(place: Place, front: Front) -> None:
        assert await place.ask(GET) == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 100_000

    within(script, check)


@pytest.mark.parametrize(
    "request_", [GET.replace(b"\r\n\r\n", b"\r\nConnection: x, Close\r\n\r\n"), b"GET / HTTP/1.0\r\n\r\n"]
)
def test_the_connection_closes_if_the_client_asks_for_it(request_: bytes) -> None:
    async def check(place: Place, front: Front) -> None:
        assert await place.ask(request_) == OK.replace(b"keep-alive", b"close")

    within(None, check)


def test_pipelined_requests_wait_for_the_previous_response() -> None:
    turns = asyncio.Semaphore(0)

    async def script(reader: Reader, writer: Writer) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            await turns.acquire()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.05)
            writer.write(OK)

    async def check(place: Place, front: Front) -> None:
        reader, writer = await place.open()
        writer.write(b"\r\n" + GET * 3)
        for _ in range(3):
            turns.release()
            assert await answer(reader) == (OK[:-2], b"ok")
        await asyncio.sleep(0.05)
        assert front.in_flight == 0
        writer.close()

    within(script, check)


def test_backpressure_reaches_both_sides_and_bodies_are_not_buffered() -> None:
    size, read_on = 64 << 20, asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await read_on.wait()
        for _ in range(size >> 20):
            await reader.readexactly(1 << 20)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 20):
            writer.write(bytes(1 << 20))
            await asyncio.wait_for(writer.drain(), 10)

    async def check(place: Place, front: Front) -> None:
        reader, writer = await place.open()
        writer.write(b"POST /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size)
        sent = 0
        with pytest.raises(asyncio.TimeoutError):
            while sent < size:
                writer.write(bytes(1 << 20))
                await asyncio.wait_for(writer.drain(), 1.0)
                sent += 1 << 20
        assert sent < size // 2, "the front buffers the body"
        read_on.set()
        sent += 1 << 20
        while sent < size:
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1 << 20
        await reader.readuntil(b"\r\n\r\n")
        [client] = front.clients
        await asyncio.sleep(0.3)  # the client does not read the response
        assert client.transport.get_write_buffer_size() < 1 << 20
        assert client.in_flight
        await reader.readexactly(size)
        writer.close()

    within(script, check)


def test_a_draining_front_closes_each_connection_after_its_response() -> None:
    async def check(place: Place, front: Front) -> None:
        reader, writer = await place.open()
        writer.write(GET)
        assert b"keep-alive" in (await answer(reader))[0]
        front.drain()
        writer.write(GET)
        assert b"Connection: close" in (await answer(reader))[0]
        assert await reader.read() == b""
        assert b"Connection: close" in await place.ask(GET)  # new connections are still accepted
        # Pipelined requests have begun: only the last response has `Connection: close`.
        answers = await place.ask(GET * 3)
        assert (answers.count(b"200 OK"), answers.count(b"keep-alive"), answers.count(b"close")) == (3, 2, 1)
        writer.close()

    within(None, check)


def test_closing_waits_only_for_requests_in_flight() -> None:
    go = asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            await go.wait()
            writer.write(OK)

    async def check(place: Place, front: Front) -> None:
        idle, _ = await place.open()
        reader, writer = await place.open()
        begun, begun_writer = await place.open()
        writer.write(GET)
        begun_writer.write(GET[:5])  # a request is in flight from its first byte
        while front.in_flight < 2:
            await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(front.close())
        assert await idle.read() == b""
        with pytest.raises(ConnectionError):
            await place.open()
        assert not closing.done()
        go.set()
        assert b"Connection: close" in (await answer(reader))[0]
        assert not closing.done()
        begun_writer.write(GET[5:])
        assert b"Connection: close" in (await answer(begun))[0]
        await closing
        assert await reader.read() == await begun.read() == b""

    within(script, check)


def test_a_disconnect_of_the_client_cancels_its_request() -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        gone.set()

    async def check(place: Place, front: Front) -> None:
        _, writer = await place.open()
        writer.write(GET)
        await begun.wait()
        assert front.in_flight == 1
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        await gone.wait()

    within(script, check)


def test_a_client_that_closes_its_sending_side_is_answered() -> None:
    async def check(place: Place, front: Front) -> None:
        reader, writer = await place.open()
        writer.write(GET * 2)
        writer.write_eof()
        assert (await reader.read()).count(b"ok") == 2
        reader, writer = await place.open()
        writer.write(post(b"whole")[:-1])
        writer.write_eof()
        assert await reader.read() == b"", "an incomplete request gets no response"

    within(None, check)


@pytest.mark.parametrize("ahead", [b"", b"x" * 300_000], ids=["no body", "a body"])
def test_a_dead_server_gets_a_503_with_the_reason(ahead: bytes) -> None:
    async def dies(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async def check(place: Place, front: Front) -> None:
        ended = await place.ask(post(ahead))
        front.upstream_port = 1  # nothing listens there
        for got, reason in ((ended, "ended before"), (await place.ask(post(ahead)), "does not listen")):
            head, _, body = got.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"Connection: close\r\nRetry-After: 1" in head
            assert reason in json.loads(body)["error"]

    within(dies, check)


def test_an_incomplete_response_resets_the_connection() -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.1)

    async def check(place: Place, front: Front) -> None:
        with pytest.raises(ConnectionResetError):
            await place.ask(GET)

    within(script, check)


def test_an_early_response_reaches_the_client_and_the_connection_is_kept() -> None:
    size, rest = 4 << 20, asyncio.Event()
    early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n"

    async def script(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(early)
        await rest.wait()
        await reader.readexactly(size)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)

    async def check(place: Place, front: Front) -> None:
        reader, writer = await place.open()
        writer.write(b"POST /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size)
        assert await answer(reader) == (early, b"")
        assert front.in_flight == 1
        rest.set()
        writer.write(bytes(size) + GET)
        assert await answer(reader) == (OK[:-2], b"ok")
        writer.close()

    within(script, check)


def test_a_client_that_expects_100_continue_gets_it_or_is_closed() -> None:
    refused = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n"

    async def script(reader: Reader, writer: Writer) -> None:
        if b"/small" in await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert await reader.readexactly(3) == b"abc"
            writer.write(OK)
        else:
            writer.write(refused + b"\r\n")
        await reader.read()

    async def check(place: Place, front: Front) -> None:
        head = b"POST /%s HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        reader, writer = await place.open()
        writer.write(head % b"small")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert await answer(reader) == (OK[:-2], b"ok")
        writer.close()
        # The client can send the body anyway: its bytes must not be read as another request.
        assert await place.ask(head % b"large") == refused + b"Connection: close\r\n\r\n"

    within(script, check)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET /a b HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\nx",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000,
    ],
)
def test_ambiguous_requests_are_refused(data: bytes) -> None:
    async def silent(reader: Reader, writer: Writer) -> None:
        await reader.read()

    async def check(place: Place, front: Front) -> None:
        got = await place.ask(data)
        assert got.startswith(b"HTTP/1.1 400 ")
        assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]

    within(silent, check)


def test_a_response_that_is_not_http_becomes_a_503() -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-x\r\n\r\n")
        await reader.read()

    async def check(place: Place, front: Front) -> None:
        assert (await place.ask(GET)).startswith(b"HTTP/1.1 503 ")

    within(script, check)


READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n"


def answers(data: bytes) -> list[tuple[int, bytes]]:
    """Return the status and the body of every response in these bytes."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append((int(head.split()[1]), data[:size]))
        data = data[size:]
    return found


def test_questions_about_readiness_are_answered_between_requests_of_one_connection() -> None:
    async def test(place: Place, _front: Front) -> None:
        close = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        got = answers(await place.ask(GET + READY + GET + READY + close))
        ready = (200, b'{"ready": true}\n')
        assert got == [(200, b"ok"), ready, (200, b"ok"), ready, (200, b"ok")]
        assert len(place.heads) == 3
        assert place.connections == 1

    within(None, test, Status({"m": "1"}, lambda: ""))


def test_a_question_with_a_body_is_answered_and_its_body_discarded() -> None:
    async def test(place: Place, _front: Front) -> None:
        body = b"x" * 200_000
        asked = READY.replace(b"\r\n\r\n", b"\r\nContent-Length: 200000\r\n\r\n") + body
        assert answers(await place.ask(asked)) == [(503, b'{"ready": false, "error": "no worker"}\n')]
        assert place.heads == []

    within(None, test, Status({"m": "1"}, lambda: "no worker"))


def test_a_client_that_leaves_while_its_question_is_answered_does_no_harm() -> None:
    looking, leave = threading.Event(), threading.Event()

    def look() -> str:
        looking.set()
        assert leave.wait(5)
        return ""

    async def test(place: Place, front: Front) -> None:
        _, writer = await place.open()
        writer.write(READY)
        await asyncio.to_thread(looking.wait, 5)
        reset = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()
        await asyncio.wait_for(front.idle.wait(), 5)
        leave.set()
        assert answers(await place.ask(READY.replace(b"1.1", b"1.0"))) == [(200, b'{"ready": true}\n')]

    within(None, test, Status({"m": "1"}, look))


def test_a_draining_server_is_not_ready_and_still_answers_requests() -> None:
    async def test(place: Place, front: Front) -> None:
        front.drain()
        assert answers(await place.ask(READY)) == [
            (503, b'{"ready": false, "error": "the server is draining"}\n')
        ]
        assert (await place.ask(GET)).endswith(b"ok")

    within(None, test, Status({"m": "1"}, lambda: ""))


def test_a_head_request_gets_no_body_and_a_post_goes_to_torchserve() -> None:
    async def test(place: Place, _front: Front) -> None:
        head = await place.ask(READY.replace(b"GET", b"HEAD").replace(b"1.1", b"1.0"))
        assert head.startswith(b"HTTP/1.1 200")
        assert head.endswith(b"\r\n\r\n")
        await place.ask(READY.replace(b"GET", b"POST").replace(b"1.1", b"1.0"))
        assert place.heads[0].startswith(b"POST /v2/health/ready")

    within(None, test, Status({"m": "1"}, lambda: ""))
