"""The ingress alone, in front of a small real server: streaming, early answers, and broken connections."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from deployer.errors import TargetError
from deployer.observed import Reference
from deployer.targets.local.ingress import Ingress
from deployer.targets.local.routing import Route, Routes, Upstream

DEMO = Reference("default", "demo")
HOST = {"Host": "demo.default.example.com"}
MIB = 1 << 20


class Place:
    """An upstream server and the ingress in front of it."""

    def __init__(self) -> None:
        self.routes = Routes()
        self.ingress = Ingress(self.routes)
        self.upstream = Upstream("demo-predictor-00001")
        self.seen: list[web.BaseRequest] = []
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(request)
        if request.path == "/count":
            size = 0
            async for chunk in request.content.iter_any():
                size += len(chunk)
            return web.json_response({"size": size})
        if request.path == "/large":
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(50):
                await response.write(bytes(MIB))
            return response
        if request.path == "/hang":
            self.entered.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.path == "/die":
            assert request.transport
            request.transport.abort()
        return web.Response(
            text=request.raw_path, headers={"Connection": "close, X-Secret", "X-Secret": "1", "X-Kept": "1"}
        )


def within(test: Callable[[Place, aiohttp.ClientSession, str], Awaitable[None]]) -> None:
    """Run a test's coroutine with a place, a client and the ingress's URL."""

    async def run() -> None:
        place = Place()
        runner = web.ServerRunner(web.Server(place.answer, handler_cancellation=True, access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        place.upstream.port = runner.addresses[0][1]
        place.upstream.ready = True
        place.routes.set(DEMO, Route([(place.upstream, 100)]))
        await place.ingress.listen("127.0.0.1", 0)
        try:
            async with aiohttp.ClientSession(headers=HOST) as session:
                await test(place, session, place.ingress.url)
        finally:
            await place.ingress.close()
            await runner.cleanup()

    asyncio.run(run())


async def zeros(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // MIB):
        yield bytes(MIB)


def test_large_bodies_are_streamed_both_ways_and_never_held() -> None:
    async def check(place: Place, session: aiohttp.ClientSession, url: str) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with session.post(url + "/count", data=zeros(50 * MIB)) as answer:
            assert await answer.json() == {"size": 50 * MIB}
        async with session.get(url + "/large") as answer:
            size = 0
            async for chunk in answer.content.iter_any():
                size += len(chunk)
            assert size == 50 * MIB
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < 25, f"{grown:.0f} MiB"

    within(check)


def test_headers_are_passed_on_without_those_of_the_connection() -> None:
    async def check(place: Place, session: aiohttp.ClientSession, url: str) -> None:
        path = "/v1/models/a%2Fb:predict?x=%20y"
        async with session.get(
            url + path, headers={"X-Forwarded-For": "10.0.0.1", "TE": "trailers"}
        ) as answer:
            assert await answer.text() == path
            assert "X-Kept" in answer.headers
            assert "X-Secret" not in answer.headers
        headers = place.seen[0].headers
        assert headers["X-Forwarded-For"] == "10.0.0.1, 127.0.0.1"
        assert (headers["X-Forwarded-Proto"], headers["Host"]) == ("http", HOST["Host"])
        assert "TE" not in headers
        async with session.head(url + "/x") as answer:
            assert (answer.status, await answer.read()) == (200, b"")

    within(check)


def test_an_unknown_host_is_told_which_there_are() -> None:
    async def check(place: Place, session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(url, headers={"Host": "demo.other.example.com"}) as answer:
            assert answer.status == 404
            assert (await answer.json())["hosts"] == [
                "demo.default.example.com",
                "demo.default.svc.cluster.local",
            ]

    within(check)


def test_a_client_that_goes_away_takes_its_request_with_it() -> None:
    async def check(place: Place, session: aiohttp.ClientSession, url: str) -> None:
        task = asyncio.create_task(session.get(url + "/hang").__aenter__())
        await asyncio.wait_for(place.entered.wait(), 10)
        task.cancel()
        await asyncio.wait_for(place.cancelled.wait(), 10)

    within(check)


def test_an_upstream_that_dies_or_refuses_is_a_503_with_a_reason() -> None:
    async def check(place: Place, session: aiohttp.ClientSession, url: str) -> None:
        async def reason(path: str) -> Any:
            async with session.post(url + path, data=b"x" * 10) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
                return (await answer.json())["error"]

        assert "ended while it was answering" in await reason("/die")
        dead, alive = Upstream("demo-predictor-00001"), place.upstream
        dead.ready = True
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        dead.port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        place.routes.set(DEMO, Route([(dead, 50), (alive, 50)]))
        for _ in range(4):  # what was refused has not been sent, and is sent to the other one
            async with session.post(url + "/count", data=b"x" * 10) as answer:
                assert await answer.json() == {"size": 10}
        place.routes.set(DEMO, Route([(dead, 100)]))
        assert "does not answer" in await reason("/count")
        dead.ready, dead.reason = False, "TorchServe is starting"
        assert await reason("/") == "demo-predictor-00001 is not ready: TorchServe is starting"
        place.routes.set(DEMO, Route([], "it loads"))
        assert await reason("/") == "it loads"

    within(check)


def test_an_answer_that_comes_before_the_body_was_read_reaches_the_client() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 413 Request Entity Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        await writer.drain()
        while await reader.read(MIB):
            pass
        writer.close()

    async def check(place: Place, session: aiohttp.ClientSession, url: str) -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        place.upstream.port = server.sockets[0].getsockname()[1]
        # As http.client does it: all of the body first, then a look at the answer.
        reader, writer = await asyncio.open_connection("127.0.0.1", place.ingress.port)
        size = 20 * MIB
        writer.write(f"POST /x HTTP/1.1\r\nHost: {HOST['Host']}\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(size // MIB):
            writer.write(bytes(MIB))
            await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        server.close()

    within(check)


def test_a_split_is_exact_over_any_hundred_requests() -> None:
    async def check() -> None:
        new, old = Upstream("new"), Upstream("old")
        for percent in (0, 1, 10, 33, 50, 99, 100):
            route = Route([(new, percent), (old, 100 - percent)])
            picked = [route.pick() for _ in range(250)]
            for start in range(0, 150, 7):
                assert Counter(picked[start : start + 100])[new] == percent

    asyncio.run(check())


def test_the_address_moves_stays_and_is_refused_with_the_key_to_change() -> None:
    async def check() -> None:
        one, other = Ingress(Routes()), Ingress(Routes())
        await one.listen("127.0.0.1", 0)
        taken = one.port
        with pytest.raises(TargetError, match=f"127.0.0.1:{taken}") as caught:
            await other.listen("127.0.0.1", taken)
        assert caught.value.where == "targets.local.ingress-port"
        await other.listen("127.0.0.1", 0, last_port=taken)  # a remembered port that is gone
        before = other.port
        assert before != taken
        await one.close()
        await other.listen("127.0.0.1", taken)
        assert other.port == taken
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", before)
        await other.close()

    asyncio.run(check())
