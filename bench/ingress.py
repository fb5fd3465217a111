"""Measures the time that the local ingress adds to a request.

The same clients send requests to a minimal server, directly and through the ingress. The two take turns, and
the median counts. Exits with 1 if the ingress adds more than a millisecond to a request of a single client.

usage: python bench/ingress.py [--requests 2000] [--runs 5]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection

from deployer.observed import Reference
from deployer.targets.local.ingress import Ingress
from deployer.targets.local.routing import Route, Routes, Upstream

BODY = b'{"instances": [{"data": 12345}]}'
ANSWER = b'{"predictions": [12345]}'
REQUEST = (
    b"POST /v1/models/demo:predict HTTP/1.1\r\nHost: demo.default.example.com\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(ANSWER),
    ANSWER,
)


class Instant(asyncio.Protocol):
    """A server that sends a fixed answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.data = transport, b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.data.endswith(BODY):
            self.data = b""
            self.transport.write(RESPONSE)


def serve(ports: Connection) -> None:
    """Run the server and the ingress, and send their ports."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
        upstream = Upstream("demo-predictor-00001")
        upstream.port, upstream.ready = server.sockets[0].getsockname()[1], True
        routes = Routes()
        routes.set(Reference("default", "demo"), Route([(upstream, 100)]))
        ingress = Ingress(routes)
        await ingress.listen("127.0.0.1", 0)
        ports.send((upstream.port, ingress.port))
        await asyncio.Event().wait()

    asyncio.run(run())


async def load(port: int, clients: int, requests: int) -> tuple[float, float]:
    """Send requests over persistent connections. Return answers per second, and the median in ms."""
    times: list[float] = []

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(requests // clients):
            started = time.perf_counter()
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            await reader.readexactly(len(ANSWER))
            times.append(time.perf_counter() - started)
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(clients)))
    return len(times) / (time.perf_counter() - started), statistics.median(times) * 1000


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(there,), daemon=True)
    process.start()
    direct, ingress = here.recv()
    added = 0.0
    for clients in (16, 1):
        medians = []
        runs: dict[int, list[tuple[float, float]]] = {direct: [], ingress: []}
        for run in range(options.runs + 1):
            for port, results in runs.items():
                result = asyncio.run(load(port, clients, options.requests if run else 200))
                if run:  # the first run warms up
                    results.append(result)
        for name, port in (("direct", direct), ("ingress", ingress)):
            rate, median = (statistics.median(values) for values in zip(*runs[port], strict=True))
            medians.append(median)
            print(f"{clients:2} clients, {name:8} {rate:7.0f} answers/s   {median:6.2f} ms")
        added = medians[1] - medians[0]
    process.kill()
    print(f"bar: the ingress adds {added:.2f} ms, at most 1: {'met' if added <= 1 else 'MISSED'}")
    return 0 if added <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
