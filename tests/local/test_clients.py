"""The ingress and unusual clients: malformed, slow and large requests, and too many connections.

The tests write bytes to a socket, because an HTTP library would correct them.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import Awaitable, Callable
from functools import partial
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
    """An ingress that sets `idle` while no request is in flight."""

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


class Setup:
    """The ingress, in front of a server that records requests and answers with fixed bytes."""

    def __init__(self, limits: Limits) -> None:
        self.upstream = Upstream("demo-predictor-00001")
        self.upstream.ready = True
        self.response = OK
        self.answer: Answer = self.respond
        self.got = bytearray()
        self.ingress = CountingIngress(self._routes(), limits)

    def _routes(self) -> Routes:
        routes = Routes()
        routes.set(Reference("default", "demo"), Route([(self.upstream, 100)]))
        return routes

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer each request with the same bytes after reading its body."""
        while head := await self.read_head(reader):
            await self.read_body(reader, head)
            writer.write(self.response)
            if b"Content-Length" not in self.response and b"Transfer-Encoding" not in self.response:
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
        """Send bytes on a new connection; return all bytes received until it is closed."""
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


def within(test: Callable[[Setup], Awaitable[None]], **limits: Any) -> None:
    """Run a test's coroutine with a server and an ingress."""

    async def run() -> None:
        setup = Setup(structs.replace(LIMITS, **limits))
        server = await asyncio.start_server(setup.serve, "127.0.0.1", 0, limit=64 * MIB)
        setup.upstream.port = server.sockets[0].getsockname()[1]
        await setup.ingress.listen("127.0.0.1", 0)
        try:
            await test(setup)
        finally:
            await setup.ingress.close()
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


# Content


PLAIN = b"line of a text\n" * 500
zipped = partial(gzip.compress, mtime=0)  # a time would give the tests another name in each process


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", zipped(PLAIN)),
        ("gzip", zipped(b"a")),  # longer than its content
        ("deflate", zlib.compress(PLAIN)),
        ("br", b"\x0b\x02\x80\x61\x62\x63\x03"),
        ("zstd", b"\x28\xb5\x2f\xfd not really"),
        ("gzip", b"not gzip at all"),
        ("gzip, gzip", zipped(zipped(PLAIN))),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_encoded_body_is_forwarded_unchanged_in_both_directions(
    encoding: str, body: bytes, chunked: bool
) -> None:
    async def check(setup: Setup) -> None:
        answer = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
        setup.response = answer.encode() + body
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        got = await setup.ask(post(f"Content-Encoding: {encoding}", length), sent)
        assert status(got) == 200
        assert body_of(got) == body
        assert body_of(setup.got) == sent
        assert f"Content-Encoding: {encoding}".encode() in setup.got

    within(check)


def test_a_header_that_is_not_utf_8_keeps_all_characters() -> None:
    async def check(setup: Setup) -> None:
        setup.response = b"HTTP/1.1 200 OK\r\nX-Name: Jos\xe9\r\nContent-Length: 0\r\n\r\n"
        for name in (b"Jos\xe9", "José".encode()):
            setup.got.clear()
            answer = await setup.ask(get().replace(b"Connection", b"X-Name: " + name + b"\r\nConnection"))
            assert "X-Name: José\r\n".encode() in setup.got
            assert "X-Name: José\r\n".encode() in answer

    within(check)


def test_forwarded_headers_are_extended_and_a_connection_header_cannot_remove_host_and_length() -> None:
    async def check(setup: Setup) -> None:
        headers = "X-Forwarded-For: 10.0.0.1", "X-Forwarded-For: 10.0.0.2", "X-Hop: 1", "Content-Length: 2"
        await setup.ask(post(*headers, end="host, content-length, x-hop, close"), b"hi")
        assert b"X-Forwarded-For: 10.0.0.1, 10.0.0.2, 127.0.0.1\r\n" in setup.got
        assert HOST in setup.got
        assert b"X-Hop" not in setup.got
        assert body_of(setup.got) == b"hi"

    within(check)


# Unusual but valid requests


def test_a_request_target_can_be_a_full_url() -> None:
    async def check(setup: Setup) -> None:
        for target, path in (
            (f"http://{NAME}/v1/x?y=%20", "/v1/x?y=%20"),
            (f"HTTP://{NAME}:80", "/"),
            (f"http://{NAME}?y", "/?y"),
        ):
            setup.got.clear()
            sent = (
                get(path=target)
                .replace(NAME.encode(), b"other.invalid")
                .replace(b"other.invalid", NAME.encode(), 1)
            )
            assert status(await setup.ask(sent)) == 200
            assert setup.got.startswith(f"GET {path} HTTP/1.1\r\n".encode())
            assert HOST.strip() in setup.got
            assert b"other.invalid" not in setup.got

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
def test_every_kind_of_response_reaches_every_kind_of_client(answer: bytes) -> None:
    async def check(setup: Setup) -> None:
        setup.response = answer
        old = await setup.ask(get(version="1.0"))
        assert status(old) == 200
        assert b"Transfer-Encoding" not in old
        assert body_of(old) == b"hello there"
        new = await setup.ask(get())
        assert status(new) == 200
        assert body_of(new) in (
            b"hello there",
            b"b\r\nhello there\r\n0\r\n\r\n",
            b"5\r\nhello\r\n6\r\n there\r\n0\r\n\r\n",
        )

    within(check)


def test_trailers_head_requests_and_upgrades_are_forwarded_as_plain_requests() -> None:
    async def check(setup: Setup) -> None:
        chunks = b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
        assert status(await setup.ask(post("Transfer-Encoding: chunked", "Trailer: X-Sum"), chunks)) == 200
        setup.got.clear()
        setup.response = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
        answer = await setup.ask(get().replace(b"GET", b"HEAD"))
        assert (status(answer), body_of(answer)) == (200, b"")
        assert b"Content-Length: 7" in answer
        setup.response = OK
        for upgrade in ("h2c", "websocket"):
            setup.got.clear()
            sent = post(f"Upgrade: {upgrade}", "Content-Length: 5", end="Upgrade, close")
            assert body_of(await setup.ask(sent, b"hello")) == b"ok"
            assert body_of(setup.got) == b"hello"
            assert b"Upgrade" not in setup.got

    within(check)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def check(setup: Setup) -> None:
        one = post("Content-Length: 5", end="keep-alive") + b"hello"
        answers = await setup.ask(one * 4 + get())
        assert answers.count(b"HTTP/1.1 200 OK") == 5
        assert answers.count(b"\r\n\r\nok") == 5

    within(check)


# Requests that two servers could read in different ways


BODY = b"5\r\nhello\r\n0\r\n\r\n"
MALFORMED = {
    "length and chunked": (post("Content-Length: 5", CHUNKED), BODY),
    "chunked and length": (post(CHUNKED, "Content-Length: 5"), BODY),
    "two lengths": (post("Content-Length: 5", "Content-Length: 6"), b"hello!"),
    "a list of lengths": (post("Content-Length: 5, 6"), b"hello!"),
    "a signed length": (post("Content-Length: +5"), b"hello"),
    "a negative length": (post("Content-Length: -5"), b"hello"),
    "a length in hex": (post("Content-Length: 0x5"), b"hello"),
    "a huge length": (post("Content-Length: " + "9" * 30), b"hello"),
    "a space before the colon": (post("Content-Length : 5"), b"hello"),
    "chunked with a space before the colon": (post("Transfer-Encoding : chunked"), BODY),
    "gzip and chunked": (post("Transfer-Encoding: gzip, chunked"), BODY),
    "gzip in one line and chunked in another": (post("Transfer-Encoding: gzip", CHUNKED), BODY),
    "chunked twice": (post(CHUNKED, CHUNKED), BODY),
    "almost chunked": (post("Transfer-Encoding: xchunked"), BODY),
    "identity": (post("Transfer-Encoding: identity"), BODY),
    "chunked in HTTP/1.0": (post(CHUNKED, version="1.0"), BODY),
    "an invalid chunk size": (post(CHUNKED), b"zz\r\nhello\r\n0\r\n\r\n"),
    "a negative chunk size": (post(CHUNKED), b"-5\r\nhello\r\n0\r\n\r\n"),
    "a huge chunk size": (post(CHUNKED), b"f" * 20 + b"\r\nhello\r\n0\r\n\r\n"),
    "a chunk that is too long": (post(CHUNKED), b"5\r\nhello!!\r\n0\r\n\r\n"),
    "chunks with bare line feeds": (post(CHUNKED), b"5\nhello\n0\n\n"),
    "two hosts": (get("Host: other.default.example.com"), b""),
    "no host": (get().replace(HOST, b""), b""),
    "a folded header": (get("X-Fold: a\r\n b"), b""),
    "a carriage return in a value": (get("X-Bare: a\rb"), b""),
    "a NUL in a value": (get("X-Zero: a\0b"), b""),
    "a header without a name": (get(": x"), b""),
    "a header without a colon": (get("xyz"), b""),
    "a space in the target": (get(path="/a b"), b""),
    "a fragment in the target": (get(path="/a#b"), b""),
    "a target without a path": (get(path="*"), b""),
    "HTTP/2.0": (get(version="2.0"), b""),
    "HTTP/9.9": (get(version="9.9"), b""),
    "no version": (b"GET /x\r\n\r\n", b""),
    "a tunnel": (get(path="demo:80").replace(b"GET", b"CONNECT"), b""),
    "an unknown expectation": (post("Expect: 200-ok", "Content-Length: 5"), b"hello"),
    "the HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b""),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b""),
    "a long line": (get(path="/" + "a" * 100 * KIB), b""),
    "a long header": (get("X-Long: " + "a" * 100 * KIB), b""),
    "many headers": (get(*(f"X-{n}: a" for n in range(5000))), b""),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_refused_and_not_forwarded(case: str) -> None:
    async def check(setup: Setup) -> None:
        head, body = MALFORMED[case]
        answer = await setup.ask(head, body)
        assert status(answer) in (400, 413, 417, 431, 501, 505)
        assert error(answer)
        assert len(re.findall(rb"HTTP/\d\.\d \d{3} ", answer)) == 1
        assert b"0\r\n\r\n" not in setup.got  # the server does not get a part of it as a complete body
        assert b"hello!" not in setup.got
        assert status(await setup.ask(get())) == 200

    within(check)


def test_a_body_that_becomes_malformed_is_refused_and_not_forwarded_as_complete(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check(setup: Setup) -> None:
        reader, writer = await setup.open()
        writer.write(post(CHUNKED, end="keep-alive") + b"5\r\nhello\r\n")
        await until(lambda: b"hello" in setup.got or setup.ingress.idle.is_set() is False)
        writer.write(b"zz\r\n")
        answer = await read_to_end(reader, writer)
        assert status(answer) == 400
        assert len(re.findall(rb"HTTP/\d\.\d \d{3} ", answer)) == 1
        assert b"0\r\n\r\n" not in setup.got
        await asyncio.wait_for(setup.ingress.idle.wait(), 10)

    within(check)
    assert [record for record in caplog.records if record.exc_info] == []


async def until(condition: Callable[[], object]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the condition did not become true")


# Large requests


def test_a_client_that_expects_100_continue_gets_it_immediately() -> None:
    async def check(setup: Setup) -> None:
        reader, writer = await setup.open()
        writer.write(post("Expect: 100-continue", "Content-Length: 5"))
        interim = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert body_of(await read_to_end(reader, writer)) == b"ok"
        assert body_of(setup.got) == b"hello"
        assert b"Expect" not in setup.got

    within(check)


@pytest.mark.parametrize("how", ["length", "chunked", "expect"])
def test_a_body_over_the_models_limit_gets_a_413_with_the_key(how: str) -> None:
    async def check(setup: Setup) -> None:
        setup.upstream.max_request_size = MIB
        chunk = b"10000\r\n%b\r\n" % bytes(64 * KIB)
        answer = await {
            "length": lambda: setup.ask(post(f"Content-Length: {50 * MIB}"), *[bytes(MIB)] * 50),
            "chunked": lambda: setup.ask(post(CHUNKED), *[chunk] * 800, b"0\r\n\r\n"),
            "expect": lambda: setup.ask(post(f"Content-Length: {MIB + 1}", "Expect: 100-continue")),
        }[how]()
        assert status(answer) == 413
        assert "serving.max-request-size" in error(answer)
        assert str(MIB) in error(answer)
        await asyncio.wait_for(setup.ingress.idle.wait(), 10)
        setup.got.clear()
        exact = await setup.ask(post(CHUNKED), *[chunk] * 16, b"0\r\n\r\n")
        assert status(exact) == 200
        assert body_of(setup.got).count(0) > MIB - 64 * KIB

    within(check)


@pytest.mark.parametrize("length", [f"Content-Length: {20 * MIB}", CHUNKED], ids=["length", "chunked"])
def test_the_response_of_an_upstream_that_closes_before_reading_everything_arrives(length: str) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refusal)
        await writer.drain()
        writer.transport.abort()  # with an unread body, so that the sender gets a reset

    async def check(setup: Setup) -> None:
        setup.answer = refuse
        block = bytes(MIB) if length != CHUNKED else b"100000\r\n%b\r\n" % bytes(MIB)
        answers = [await setup.ask(post(length), *[block] * 20, b"0\r\n\r\n") for _ in range(20)]
        assert [status(answer) for answer in answers] == [413] * 20
        assert {body_of(answer) for answer in answers} == {b"much"}

    within(check)


# Slow clients


def test_a_client_that_sends_no_request_is_disconnected() -> None:
    async def check(setup: Setup) -> None:
        assert await setup.ask() == b""
        reader, writer = await setup.open()  # the same applies after a response
        writer.write(get(end="keep-alive"))
        assert (await read_to_end(reader, writer)).endswith(b"ok")

    within(check, idle=1.0)


def test_an_incomplete_head_times_out() -> None:
    async def check(setup: Setup) -> None:
        reader, writer = await setup.open()

        async def drip() -> None:
            for byte in get("X-Slow: " + "a" * 5000):
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        answer = await read_to_end(reader, writer)
        dripping.cancel()
        assert status(answer) == 408
        assert "head" in error(answer)
        assert status(await setup.ask(get())) == 200

    within(check, head=0.5)


@pytest.mark.parametrize("drip", [b"", b"x"], ids=["stopped", "a byte at a time"])
def test_an_incomplete_body_times_out(drip: bytes) -> None:
    async def check(setup: Setup) -> None:
        reader, writer = await setup.open()
        writer.write(post("Content-Length: 100000") + b"some of it")

        async def send() -> None:
            while True:
                writer.write(drip)
                await asyncio.sleep(0.05)

        sending = asyncio.create_task(send())
        answer = await read_to_end(reader, writer)
        sending.cancel()
        assert status(answer) == 408
        await asyncio.wait_for(setup.ingress.idle.wait(), 10)

    within(check, stalled=0.5)


def test_a_slow_body_that_makes_progress_does_not_time_out() -> None:
    async def check(setup: Setup) -> None:
        reader, writer = await setup.open()
        writer.write(post("Content-Length: 30000"))
        for _ in range(30):
            writer.write(bytes(1000))
            await asyncio.sleep(0.1)
        assert status(await read_to_end(reader, writer)) == 200

    within(check, stalled=2.0)


def test_a_response_that_the_client_does_not_read_is_canceled() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(MIB))
            await writer.drain()
            sent += 1

    async def check(setup: Setup) -> None:
        setup.answer = flood
        _, writer = await asyncio.open_connection("127.0.0.1", setup.ingress.port, limit=KIB)
        writer.write(get())
        await until(lambda: sent)
        await asyncio.wait_for(setup.ingress.idle.wait(), 20)  # the request was canceled
        assert sent < 50  # MiB; only the kernel buffers data
        writer.close()

    within(check, stalled=0.5)


def test_a_disconnect_during_the_body_cancels_the_request() -> None:
    async def check(setup: Setup) -> None:
        _, writer = await setup.open()
        writer.write(post("Content-Length: 100000") + b"some of it")
        await until(lambda: not setup.ingress.idle.is_set())
        writer.transport.abort()
        await asyncio.wait_for(setup.ingress.idle.wait(), 10)
        assert status(await setup.ask(get())) == 200

    within(check)


# Many clients


def test_too_many_clients_disconnect_the_longest_idle_and_no_request() -> None:
    release = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        writer.write(OK)

    async def check(setup: Setup) -> None:
        setup.answer = wait
        busy_reader, busy_writer = await setup.open()
        busy_writer.write(get())
        await until(lambda: not setup.ingress.idle.is_set())
        setup.answer = setup.respond
        idle = []
        for _ in range(200):
            idle.append(await setup.open())
            if len(idle) % 20 == 0:
                assert status(await setup.ask(get())) == 200
        assert await read_to_end(*idle[0]) == b""
        last_reader, last_writer = idle[-1]
        last_writer.write(get())
        assert status(await read_to_end(last_reader, last_writer)) == 200
        release.set()
        assert status(await read_to_end(busy_reader, busy_writer)) == 200
        for _, writer in idle:
            writer.close()

    within(check, connections=50)


def test_requests_to_torchserve_ignore_proxy_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(setup: Setup) -> None:
        assert status(await setup.ask(get())) == 200

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    within(check)
