"""The ingress in front of a small real server: streaming, early responses, and broken connections."""

from __future__ import annotations

import asyncio
import resource
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


class Setup:
    """An upstream server, and the ingress in front of it."""

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


def within(test: Callable[[Setup, aiohttp.ClientSession, str], Awaitable[None]]) -> None:
    """Run a test's coroutine with servers, a client and the ingress's URL."""

    async def run() -> None:
        setup = Setup()
        runner = web.ServerRunner(web.Server(setup.answer, handler_cancellation=True, access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        setup.upstream.port = runner.addresses[0][1]
        setup.upstream.ready = True
        setup.routes.set(DEMO, Route([(setup.upstream, 100)]))
        await setup.ingress.listen("127.0.0.1", 0)
        try:
            async with aiohttp.ClientSession(headers=HOST) as session:
                await test(setup, session, setup.ingress.url)
        finally:
            await setup.ingress.close()
            await runner.cleanup()

    asyncio.run(run())


async def zeros(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // MIB):
        yield bytes(MIB)


def test_large_bodies_are_streamed_in_both_directions() -> None:
    async def check(setup: Setup, session: aiohttp.ClientSession, url: str) -> None:
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


def test_the_fixed_port_needs_no_host_while_there_is_one_service() -> None:
    async def check(setup: Setup, session: aiohttp.ClientSession, url: str) -> None:
        fixed = Ingress(setup.routes, any_host=True)
        await fixed.listen("127.0.0.1", 0)
        try:
            for place, host, status in (
                (fixed.url, "any.example.org", 200),
                (url, "any.example.org", 404),
                (url, "localhost:80", 200),
            ):
                async with session.get(place + "/count", headers={"Host": host}) as answer:
                    assert answer.status == status
            setup.routes.set(Reference("default", "other"), Route([]))
            async with session.get(fixed.url + "/count", headers={"Host": "any.example.org"}) as answer:
                assert answer.status == 404
                assert "other.default.example.com" in (await answer.json())["hosts"]
        finally:
            await fixed.close()

    within(check)


def test_headers_are_forwarded_without_hop_by_hop_headers() -> None:
    async def check(setup: Setup, session: aiohttp.ClientSession, url: str) -> None:
        path = "/v1/models/a%2Fb:predict?x=%20y"
        async with session.get(
            url + path, headers={"X-Forwarded-For": "10.0.0.1", "TE": "trailers"}
        ) as answer:
            assert await answer.text() == path
            assert "X-Kept" in answer.headers
            assert "X-Secret" not in answer.headers
        headers = setup.seen[0].headers
        assert headers["X-Forwarded-For"] == "10.0.0.1, 127.0.0.1"
        assert (headers["X-Forwarded-Proto"], headers["Host"]) == ("http", HOST["Host"])
        assert "TE" not in headers
        async with session.head(url + "/x") as answer:
            assert (answer.status, await answer.read()) == (200, b"")

    within(check)


def test_an_unknown_host_gets_a_404_with_the_known_hosts() -> None:
    async def check(setup: Setup, session: aiohttp.ClientSession, url: str) -> None:
        async with session.get(url, headers={"Host": "demo.other.example.com"}) as answer:
            assert answer.status == 404
            assert (await answer.json())["hosts"] == [
                "demo.default.example.com",
                "demo.default.svc.cluster.local",
            ]

    within(check)


def test_a_disconnect_of_the_client_cancels_its_request() -> None:
    async def check(setup: Setup, session: aiohttp.ClientSession, url: str) -> None:
        task = asyncio.create_task(session.get(url + "/hang").__aenter__())
        await asyncio.wait_for(setup.entered.wait(), 10)
        task.cancel()
        await asyncio.wait_for(setup.cancelled.wait(), 10)

    within(check)


def test_a_dead_upstream_gets_a_503_with_the_reason() -> None:
    async def check(setup: Setup, session: aiohttp.ClientSession, url: str) -> None:
        async def reason(path: str) -> Any:
            async with session.post(url + path, data=b"x" * 10) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
                return (await answer.json())["error"]

        assert "ended during the request" in await reason("/die")
        dead, alive = Upstream("demo-predictor-00001"), setup.upstream
        dead.ready = True
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        dead.port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        setup.routes.set(DEMO, Route([(dead, 50), (alive, 50)]))
        for _ in range(4):  # a refused request is sent to the other upstream
            async with session.post(url + "/count", data=b"x" * 10) as answer:
                assert await answer.json() == {"size": 10}
        setup.routes.set(DEMO, Route([(dead, 100)]))
        assert "does not answer" in await reason("/count")
        dead.ready, dead.reason = False, "TorchServe is starting"
        assert await reason("/") == "demo-predictor-00001 is not ready: TorchServe is starting"
        setup.routes.set(DEMO, Route([], "loading"))
        assert await reason("/") == "loading"

    within(check)


def test_a_response_before_the_end_of_the_body_reaches_the_client() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 413 Request Entity Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        await writer.drain()
        while await reader.read(MIB):
            pass
        writer.close()

    async def check(setup: Setup, session: aiohttp.ClientSession, url: str) -> None:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        setup.upstream.port = server.sockets[0].getsockname()[1]
        # Like http.client: send the whole body, then read the response.
        reader, writer = await asyncio.open_connection("127.0.0.1", setup.ingress.port)
        size = 20 * MIB
        writer.write(f"POST /x HTTP/1.1\r\nHost: {HOST['Host']}\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(size // MIB):
            writer.write(bytes(MIB))
            await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        server.close()

    within(check)


def test_the_address_can_change_and_a_taken_one_is_an_error_with_its_key() -> None:
    async def check() -> None:
        one, other = Ingress(Routes()), Ingress(Routes())
        await one.listen("127.0.0.1", 0)
        taken = one.port
        with pytest.raises(TargetError, match=f"127.0.0.1:{taken}") as caught:
            await other.listen("127.0.0.1", taken)
        assert caught.value.where == "targets.local.ingress-port"
        await other.listen("127.0.0.1", 0, last_port=taken)  # the last port is in use
        before = other.port
        assert before != taken
        await one.close()
        await other.listen("127.0.0.1", taken)
        assert other.port == taken
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", before)
        await other.close()

    asyncio.run(check())
