"""Simulates a kubelet: a node, and the kubelet's end of the API server's port-forward."""

from __future__ import annotations

import asyncio
import ssl
import threading
from types import TracebackType

from aiohttp import WSMsgType, web

from tests.cluster.kube import Kube

NODE = "port-forward-node"
PROTOCOL = "v4.channel.k8s.io"


class Kubelet:
    """Forwards the ports of every pod on its node to loopback ports, by the mapping `ports`."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube
        self.ports: dict[int, int] = {}  # a pod's port -> a local port
        self.opened: list[str] = []  # requested: NAMESPACE/POD:PORT
        self._transports: list[asyncio.Transport] = []
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(kube.certificate, kube.key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Kubelet:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.kube.create("/api/v1/nodes", {"metadata": {"name": NODE}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
        }
        self.kube.merge(f"/api/v1/nodes/{NODE}/status", {"status": status})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kube.delete(f"/api/v1/nodes/{NODE}")
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stop(self) -> None:
        """Stop answering."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)

    def reset(self) -> None:
        """Abort every connection."""
        for one in list(self._transports):
            self._loop.call_soon_threadsafe(one.abort)

    async def _start(self) -> int:
        app = web.Application()
        app.router.add_get("/portForward/{namespace}/{pod}", self._forward)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        return int(self._runner.addresses[0][1])

    async def _forward(self, request: web.Request) -> web.WebSocketResponse:
        port = int(request.query["port"])
        self.opened.append(f"{request.match_info['namespace']}/{request.match_info['pod']}:{port}")
        if request.transport:
            self._transports.append(request.transport)
        channel = web.WebSocketResponse(protocols=[PROTOCOL])
        await channel.prepare(request)
        for number in (b"\0", b"\1"):
            await channel.send_bytes(number + port.to_bytes(2, "little"))
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.ports.get(port, 1))
        except OSError:
            await channel.send_bytes(
                b"\1failed to connect to localhost:%d inside namespace: connection refused" % port
            )
            return channel
        back = asyncio.create_task(_back(reader, channel))
        try:
            async for message in channel:
                if message.type is WSMsgType.BINARY and message.data[:1] == b"\0":
                    writer.write(message.data[1:])
                    await writer.drain()
        finally:
            back.cancel()
            writer.close()
        return channel


async def _back(reader: asyncio.StreamReader, channel: web.WebSocketResponse) -> None:
    while data := await reader.read(20000):
        await channel.send_bytes(b"\0" + data)
    await channel.close()
