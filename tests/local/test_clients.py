"""What clients may do to the ingress: odd requests, slow ones, large ones, and far too many at once.

Both sides are bytes on a socket here, so that nothing between the test and the ingress puts them right.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from msgspec import structs

from deployer.observed import Reference
from deployer.targets.local.connections import Limits
from deployer.targets.local.ingress import Ingress
from deployer.targets.local.routing import Route, Routes, Upstream

NAME = "demo.default.example.com"
HOST = f"Host: {NAME}\r\n".encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = "Transfer-Encoding: chunked"
KIB, MIB = 1 << 10, 1 << 20
LIMITS = Limits(connections=100, interval=0.05)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class CountingIngress(Ingress):
    """Sets `idle` while no request is in flight."""

    def __init__(self, routes: Routes, limits: Limits) -> None:
        super().__init__(routes, limits)
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def _relay(self, *args: Any) -> web.StreamResponse:
        self.in_flight += 1
        self.idle.clear()
        try:
            return await super()._relay(*args)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()


class Place:
    """The ingress in front of a server that keeps what it gets and answers with fixed bytes."""

    def __init__(self, limits: Limits) -> None:
        self.upstream = Upstream("demo-predictor-00001")
        self.upstream.ready = True
        self.says = OK
        self.answer: Answer = self.say
        self.got = bytearray()
        self.ingress = CountingIngress(self._routes(), limits)

    def _routes(self) -> Routes:
        routes = Routes()
        routes.set(Reference("default", "demo"), Route([(self.upstream, 100)]))
        return routes

    async def say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer each request with the same bytes, once its body has come."""
        while head := await self.read_head(reader):
            await self.read_body(reader, head)
            writer.write(self.says)
            if b"Content-Length" not in self.says and b"Transfer-Encoding" not in self.says:
                return

    async def read_head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        self.got += head
        return head

    async def read_body(self, reader: asyncio.StreamReader, head: bytes) -> None:
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        if b"transfer-encoding" in fields:
            self.got += await reader.readuntil(b"0\r\n\r\n")
        else:
            self.got += await reader.readexactly(int(fields.get(b"content-length", b"0")))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def open(self) -> Streams:
        return await asyncio.open_connection("127.0.0.1", self.ingress.port)

    async def ask(self, *parts: bytes) -> bytes:
        """Send bytes on a connection of their own; returns everything that comes back until it is closed."""
        reader, writer = await self.open()
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
        except ConnectionError:
            pass
        return await read_to_end(reader, writer)


async def read_to_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    data = bytearray()
    try:
        while more := await asyncio.wait_for(reader.read(MIB), 20):
            data += more
    except ConnectionError:
        pass
    finally:
        writer.close()
    return bytes(data)


def within(test: Callable[[Place], Awaitable[None]], **limits: Any) -> None:
    """Run a test's coroutine with a place."""

    async def run() -> None:
        place = Place(structs.replace(LIMITS, **limits))
        server = await asyncio.start_server(place.serve, "127.0.0.1", 0, limit=64 * MIB)
        place.upstream.port = server.sockets[0].getsockname()[1]
        await place.ingress.listen("127.0.0.1", 0)
        try:
            await test(place)
        finally:
            await place.ingress.close()
            server.close()

    asyncio.run(run())


def post(*headers: str, path: str = "/x", version: str = "1.1", end: str = "close") -> bytes:
    lines = [f"POST {path} HTTP/{version}", f"Host: {NAME}", *headers, f"Connection: {end}"]
    return "\r\n".join([*lines, "", ""]).encode()


def get(*headers: str, path: str = "/x", **more: str) -> bytes:
    return post(*headers, path=path, **more).replace(b"POST", b"GET", 1)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def error(answer: bytes) -> str:
    text: str = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return text


def body_of(message: bytes) -> bytes:
    return message.partition(b"\r\n\r\n")[2]


# What is in it


PLAIN = b"line of a text\n" * 500


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(PLAIN)),
        ("gzip", gzip.compress(b"a")),  # longer than what is in it
        ("deflate", zlib.compress(PLAIN)),
        ("br", b"\x0b\x02\x80\x61\x62\x63\x03"),
        ("zstd", b"\x28\xb5\x2f\xfd not really"),
        ("gzip", b"not gzip at all"),
        ("gzip, gzip", gzip.compress(gzip.compress(PLAIN))),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_encoded_body_passes_as_it_is_in_both_directions(
    encoding: str, body: bytes, chunked: bool
) -> None:
    async def check(place: Place) -> None:
        answer = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
        place.says = answer.encode() + body
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        got = await place.ask(post(f"Content-Encoding: {encoding}", length), sent)
        assert status(got) == 200
        assert body_of(got) == body
        assert body_of(place.got) == sent
        assert f"Content-Encoding: {encoding}".encode() in place.got

    within(check)


def test_a_header_that_is_not_utf_8_loses_nothing() -> None:
    async def check(place: Place) -> None:
        place.says = b"HTTP/1.1 200 OK\r\nX-Name: Jos\xe9\r\nContent-Length: 0\r\n\r\n"
        for name in (b"Jos\xe9", "José".encode()):
            place.got.clear()
            answer = await place.ask(get().replace(b"Connection", b"X-Name: " + name + b"\r\nConnection"))
            assert "X-Name: José\r\n".encode() in place.got
            assert "X-Name: José\r\n".encode() in answer

    within(check)


def test_forwarded_headers_are_added_to_and_host_and_length_survive_a_connection_header() -> None:
    async def check(place: Place) -> None:
        headers = "X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 10.0.0.2", "X-Hop: 1", "Content-Length: 2"
        await place.ask(post(*headers, end="host, content-length, x-hop, close"), b"hi")
        assert b"X-Forwarded-For: 10.0.0.1, 10.0.0.2, 127.0.0.1\r\n" in place.got
        assert HOST in place.got
        assert b"X-Hop" not in place.got
        assert body_of(place.got) == b"hi"

    within(check)


# Odd, and right all the same


def test_a_target_may_name_its_host() -> None:
    async def check(place: Place) -> None:
        for target, path in (
            (f"http://{NAME}/v1/x?y=%20", "/v1/x?y=%20"),
            (f"HTTP://{NAME}:80", "/"),
            (f"http://{NAME}?y", "/?y"),
        ):
            place.got.clear()
            sent = (
                get(path=target).replace(NAME.encode(), b"elsewhere").replace(b"elsewhere", NAME.encode(), 1)
            )
            assert status(await place.ask(sent)) == 200
            assert place.got.startswith(f"GET {path} HTTP/1.1\r\n".encode())
            assert HOST.strip() in place.got
            assert b"elsewhere" not in place.got

    within(check)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello there",
        b"HTTP/1.1 200 OK\r\n%b\r\n\r\n5\r\nhello\r\n6\r\n there\r\n0\r\nX-T: 1\r\n\r\n" % CHUNKED.encode(),
        b"HTTP/1.1 200 OK\r\n\r\nhello there",
        b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello there",
    ],
    ids=["length", "chunked and trailers", "until the end", "after a hint"],
)
def test_every_kind_of_answer_reaches_every_kind_of_client(answer: bytes) -> None:
    async def check(place: Place) -> None:
        place.says = answer
        old = await place.ask(get(version="1.0"))
        assert status(old) == 200
        assert b"Transfer-Encoding" not in old
        assert body_of(old) == b"hello there"
        new = await place.ask(get())
        assert status(new) == 200
        assert body_of(new) in (
            b"hello there",
            b"b\r\nhello there\r\n0\r\n\r\n",
            b"5\r\nhello\r\n6\r\n there\r\n0\r\n\r\n",
        )

    within(check)


def test_trailers_head_requests_and_upgrades_are_plain_requests() -> None:
    async def check(place: Place) -> None:
        chunks = b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
        assert status(await place.ask(post("Transfer-Encoding: chunked", "Trailer: X-Sum"), chunks)) == 200
        place.got.clear()
        place.says = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
        answer = await place.ask(get().replace(b"GET", b"HEAD"))
        assert (status(answer), body_of(answer)) == (200, b"")
        assert b"Content-Length: 7" in answer
        place.says = OK
        for upgrade in ("h2c", "websocket"):
            place.got.clear()
            sent = post(f"Upgrade: {upgrade}", "Content-Length: 5", end="Upgrade, close")
            assert body_of(await place.ask(sent, b"hello")) == b"ok"
            assert body_of(place.got) == b"hello"
            assert b"Upgrade" not in place.got

    within(check)


def test_requests_in_a_row_are_answered_in_a_row() -> None:
    async def check(place: Place) -> None:
        one = post("Content-Length: 5", end="keep-alive") + b"hello"
        answers = await place.ask(one * 4 + get())
        assert answers.count(b"HTTP/1.1 200 OK") == 5
        assert answers.count(b"\r\n\r\nok") == 5

    within(check)


# What two servers might read in two ways


BODY = b"5\r\nhello\r\n0\r\n\r\n"
MALFORMED = {
    "length and chunked": (post("Content-Length: 5", CHUNKED), BODY),
    "chunked and length": (post(CHUNKED, "Content-Length: 5"), BODY),
    "two lengths": (post("Content-Length: 5", "Content-Length: 6"), b"hello!"),
    "a list of lengths": (post("Content-Length: 5, 6"), b"hello!"),
    "a signed length": (post("Content-Length: +5"), b"hello"),
    "a negative length": (post("Content-Length: -5"), b"hello"),
    "a length in hex": (post("Content-Length: 0x5"), b"hello"),
    "an endless length": (post("Content-Length: " + "9" * 30), b"hello"),
    "a blank before the colon": (post("Content-Length : 5"), b"hello"),
    "chunked with a blank before the colon": (post("Transfer-Encoding : chunked"), BODY),
    "gzip and chunked": (post("Transfer-Encoding: gzip, chunked"), BODY),
    "gzip in one line and chunked in another": (post("Transfer-Encoding: gzip", CHUNKED), BODY),
    "chunked twice": (post(CHUNKED, CHUNKED), BODY),
    "almost chunked": (post("Transfer-Encoding: xchunked"), BODY),
    "identity": (post("Transfer-Encoding: identity"), BODY),
    "chunked in HTTP/1.0": (post(CHUNKED, version="1.0"), BODY),
    "a chunk size that is no number": (post(CHUNKED), b"zz\r\nhello\r\n0\r\n\r\n"),
    "a negative chunk size": (post(CHUNKED), b"-5\r\nhello\r\n0\r\n\r\n"),
    "an endless chunk size": (post(CHUNKED), b"f" * 20 + b"\r\nhello\r\n0\r\n\r\n"),
    "a chunk that is too long": (post(CHUNKED), b"5\r\nhello!!\r\n0\r\n\r\n"),
    "chunks with bare line feeds": (post(CHUNKED), b"5\nhello\n0\n\n"),
    "two hosts": (get("Host: other.default.example.com"), b""),
    "no host": (get().replace(HOST, b""), b""),
    "a folded header": (get("X-Fold: a\r\n b"), b""),
    "a carriage return in a value": (get("X-Bare: a\rb"), b""),
    "a zero in a value": (get("X-Zero: a\0b"), b""),
    "a header without a name": (get(": x"), b""),
    "a header without a colon": (get("xyz"), b""),
    "a blank in the target": (get(path="/a b"), b""),
    "a fragment in the target": (get(path="/a#b"), b""),
    "a target that is no path": (get(path="*"), b""),
    "HTTP/2.0": (get(version="2.0"), b""),
    "HTTP/3 to come": (get(version="9.9"), b""),
    "no version": (b"GET /x\r\n\r\n", b""),
    "a tunnel": (get(path="demo:80").replace(b"GET", b"CONNECT"), b""),
    "another expectation": (post("Expect: miracles", "Content-Length: 5"), b"hello"),
    "HTTP/2 at once": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b""),
    "a long line": (get(path="/" + "a" * 100 * KIB), b""),
    "a long header": (get("X-Long: " + "a" * 100 * KIB), b""),
    "many headers": (get(*(f"X-{n}: a" for n in range(5000))), b""),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_refused_and_reaches_nobody(case: str) -> None:
    async def check(place: Place) -> None:
        head, body = MALFORMED[case]
        answer = await place.ask(head, body)
        assert status(answer) in (400, 413, 417, 431, 501, 505)
        assert error(answer)
        assert len(re.findall(rb"HTTP/\d\.\d \d{3} ", answer)) == 1
        assert b"0\r\n\r\n" not in place.got  # not even a part of it as something whole
        assert b"hello!" not in place.got
        assert status(await place.ask(get())) == 200

    within(check)


def test_a_body_that_breaks_off_halfway_is_refused_and_reaches_nobody_as_a_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check(place: Place) -> None:
        reader, writer = await place.open()
        writer.write(post(CHUNKED, end="keep-alive") + b"5\r\nhello\r\n")
        await until(lambda: b"hello" in place.got or place.ingress.idle.is_set() is False)
        writer.write(b"zz\r\n")
        answer = await read_to_end(reader, writer)
        assert status(answer) == 400
        assert len(re.findall(rb"HTTP/\d\.\d \d{3} ", answer)) == 1
        assert b"0\r\n\r\n" not in place.got
        await asyncio.wait_for(place.ingress.idle.wait(), 10)

    within(check)
    assert [record for record in caplog.records if record.exc_info] == []


async def until(condition: Callable[[], object]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it does not come to pass")


# Large


def test_leave_to_send_a_body_is_given_at_once() -> None:
    async def check(place: Place) -> None:
        reader, writer = await place.open()
        writer.write(post("Expect: 100-continue", "Content-Length: 5"))
        leave = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert leave == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert body_of(await read_to_end(reader, writer)) == b"ok"
        assert body_of(place.got) == b"hello"
        assert b"Expect" not in place.got

    within(check)


@pytest.mark.parametrize("how", ["length", "chunked", "expect"])
def test_a_body_over_the_models_limit_is_413_and_names_the_key(how: str) -> None:
    async def check(place: Place) -> None:
        place.upstream.max_request_size = MIB
        chunk = b"10000\r\n%b\r\n" % bytes(64 * KIB)
        answer = await {
            "length": lambda: place.ask(post(f"Content-Length: {50 * MIB}"), *[bytes(MIB)] * 50),
            "chunked": lambda: place.ask(post(CHUNKED), *[chunk] * 800, b"0\r\n\r\n"),
            "expect": lambda: place.ask(post(f"Content-Length: {MIB + 1}", "Expect: 100-continue")),
        }[how]()
        assert status(answer) == 413
        assert "serving.max-request-size" in error(answer)
        assert str(MIB) in error(answer)
        await asyncio.wait_for(place.ingress.idle.wait(), 10)
        place.got.clear()
        exact = await place.ask(post(CHUNKED), *[chunk] * 16, b"0\r\n\r\n")
        assert status(exact) == 200
        assert body_of(place.got).count(0) > MIB - 64 * KIB

    within(check)


@pytest.mark.parametrize("length", [f"Content-Length: {20 * MIB}", CHUNKED], ids=["length", "chunked"])
def test_an_upstream_that_answers_and_closes_before_it_has_read_everything_is_heard(length: str) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refusal)
        await writer.drain()
        writer.transport.abort()  # with a body unread, so that whoever goes on sending is told to stop

    async def check(place: Place) -> None:
        place.answer = refuse
        block = bytes(MIB) if length != CHUNKED else b"100000\r\n%b\r\n" % bytes(MIB)
        answers = [await place.ask(post(length), *[block] * 20, b"0\r\n\r\n") for _ in range(20)]
        assert [status(answer) for answer in answers] == [413] * 20
        assert {body_of(answer) for answer in answers} == {b"much"}

    within(check)


# Slow


def test_a_client_that_sends_no_request_is_disconnected() -> None:
    async def check(place: Place) -> None:
        assert await place.ask() == b""
        reader, writer = await place.open()  # and so is one that has had its answer
        writer.write(get(end="keep-alive"))
        assert (await read_to_end(reader, writer)).endswith(b"ok")

    within(check, idle=1.0)


def test_a_head_that_does_not_come_to_its_end_is_timed_out() -> None:
    async def check(place: Place) -> None:
        reader, writer = await place.open()

        async def drip() -> None:
            for byte in get("X-Slow: " + "a" * 5000):
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        answer = await read_to_end(reader, writer)
        dripping.cancel()
        assert status(answer) == 408
        assert "head" in error(answer)
        assert status(await place.ask(get())) == 200

    within(check, head=0.5)


@pytest.mark.parametrize("drip", [b"", b"x"], ids=["stopped", "a byte at a time"])
def test_a_body_that_does_not_come_to_its_end_is_timed_out(drip: bytes) -> None:
    async def check(place: Place) -> None:
        reader, writer = await place.open()
        writer.write(post("Content-Length: 100000") + b"some of it")

        async def send() -> None:
            while True:
                writer.write(drip)
                await asyncio.sleep(0.05)

        sending = asyncio.create_task(send())
        answer = await read_to_end(reader, writer)
        sending.cancel()
        assert status(answer) == 408
        await asyncio.wait_for(place.ingress.idle.wait(), 10)

    within(check, stalled=0.5)


def test_a_slow_body_that_makes_progress_is_not_timed_out() -> None:
    async def check(place: Place) -> None:
        reader, writer = await place.open()
        writer.write(post("Content-Length: 30000"))
        for _ in range(30):
            writer.write(bytes(1000))
            await asyncio.sleep(0.1)
        assert status(await read_to_end(reader, writer)) == 200

    within(check, stalled=2.0)


def test_an_answer_that_is_not_read_holds_nothing_up_and_is_given_up() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(MIB))
            await writer.drain()
            sent += 1

    async def check(place: Place) -> None:
        place.answer = flood
        _, writer = await asyncio.open_connection("127.0.0.1", place.ingress.port, limit=KIB)
        writer.write(get())
        await until(lambda: sent)
        await asyncio.wait_for(place.ingress.idle.wait(), 20)  # the request has been given up
        assert sent < 50  # of what the kernel keeps, and not of what there is
        writer.close()

    within(check, stalled=0.5)


def test_a_client_that_leaves_in_the_middle_of_its_body_ends_its_request() -> None:
    async def check(place: Place) -> None:
        _, writer = await place.open()
        writer.write(post("Content-Length: 100000") + b"some of it")
        await until(lambda: not place.ingress.idle.is_set())
        writer.transport.abort()
        await asyncio.wait_for(place.ingress.idle.wait(), 10)
        assert status(await place.ask(get())) == 200

    within(check)


# Many


def test_where_there_are_too_many_the_longest_idle_is_disconnected_and_no_request_is() -> None:
    release = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        writer.write(OK)

    async def check(place: Place) -> None:
        place.answer = wait
        busy_reader, busy_writer = await place.open()
        busy_writer.write(get())
        await until(lambda: not place.ingress.idle.is_set())
        place.answer = place.say
        idle = []
        for _ in range(200):
            idle.append(await place.open())
            if len(idle) % 20 == 0:
                assert status(await place.ask(get())) == 200
        assert await read_to_end(*idle[0]) == b""
        last_reader, last_writer = idle[-1]
        last_writer.write(get())
        assert status(await read_to_end(last_reader, last_writer)) == 200
        release.set()
        assert status(await read_to_end(busy_reader, busy_writer)) == 200
        for _, writer in idle:
            writer.close()

    within(check, connections=50)


def test_no_variable_sends_requests_to_torchserve_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(place: Place) -> None:
        assert status(await place.ask(get())) == 200

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    within(check)
