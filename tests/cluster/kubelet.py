"""Simulates a kubelet: a Node that starts pods, and whose containers are a shell in a folder.

The API server proxies `exec` to it as to any kubelet, over HTTPS to the Node's address and port. The commands
run in a folder for each claim instead of a container.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import urllib3
from aiohttp import WSCloseCode, web

from deployer.observed import Document
from tests.cluster.kube import Kube

NODE = "kubelet-of-the-tests"
_PROTOCOL = "v4.channel.k8s.io"
_RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


class Kubelet:
    """Serves exec, and is scheduler and kubelet for the pods of one namespace, while the `with` lasts."""

    def __init__(self, kube: Kube, namespace: str, folder: Path) -> None:
        self.kube, self.namespace, self.folder = kube, namespace, folder
        self.commands: list[list[str]] = []
        self.received = 0  # bytes of stdin
        self.pods: list[Document] = []  # as first seen
        self.deleted: list[str] = []
        self.status: Document | None = None  # the status of new pods, if not Running
        self.loses: list[int] = []  # bytes lost at the end of stdin, for each of the next commands with stdin
        self.stalls = 0  # the number of next commands that never get their stdin
        self.refuses = ""  # the container runtime's error, if it does not run commands
        self.executing = threading.Event()
        self._changed = threading.Condition()
        self._running = 0
        self._stopping = False
        self._pods = f"/api/v1/namespaces/{namespace}/pods"

    def __enter__(self) -> Kubelet:
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])
        self._thread.start()
        assert self._started.wait(10)
        self._join()
        self._player = threading.Thread(target=self._play)
        self._player.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        with contextlib.suppress(OSError, ValueError):  # it ended by itself
            self._watch.shutdown()
        self._player.join()
        self.settle()
        self._loop.call_soon_threadsafe(self._stop.set_result, None)
        self._thread.join()
        self._loop.close()
        self.kube.delete(f"/api/v1/nodes/{NODE}-{self.namespace}")

    def path(self, claim: str) -> Path:
        """Return the folder for a claim's volume."""
        return self.folder / claim

    def _join(self) -> None:
        node = f"{NODE}-{self.namespace}"
        self.kube.create("/api/v1/nodes", {"metadata": {"name": node}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
        }
        self.kube.merge(f"/api/v1/nodes/{node}/status", {"status": status})
        self._watch = self._open_watch()

    def _open_watch(self) -> Any:
        query = "watch=true&resourceVersion=0"
        return self.kube.admin.request("GET", f"{self.kube.url}{self._pods}?{query}", preload_content=False)

    def _play(self) -> None:
        while not self._stopping:
            for event in self._events():
                if event["type"] == "DELETED":
                    self.deleted.append(event["object"]["metadata"]["name"])
                elif event["type"] != "ERROR":  # this event ends a watch
                    self._advance(event["object"])
            self._watch = self._open_watch()

    def _events(self) -> Iterator[Document]:
        rest = b""
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError, ValueError):  # how a watch can end
            for data in self._watch.stream(65536):
                *lines, rest = (rest + data).split(b"\n")
                yield from map(json.loads, lines)

    def _advance(self, pod: Document) -> None:
        path = f"{self._pods}/{pod['metadata']['name']}"
        if "deletionTimestamp" in pod["metadata"]:
            self.kube.request("DELETE", f"{path}?gracePeriodSeconds=0")
        elif not pod["spec"].get("nodeName"):
            self.pods.append(pod)
            target = {"kind": "Node", "name": f"{NODE}-{self.namespace}"}
            self.kube.request("POST", f"{path}/binding", {"metadata": pod["metadata"], "target": target})
        elif "containerStatuses" not in pod["status"] and pod["status"]["phase"] == "Pending":
            claim = pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
            self.path(claim).mkdir(parents=True, exist_ok=True)
            container = {"name": "shell", "image": "i", "imageID": "", "ready": True, "restartCount": 0}
            running = {"phase": "Running", "containerStatuses": [{**container, "state": _RUNNING}]}
            self.set_status(pod["metadata"]["name"], self.status or running)

    def wait_for(self, received: int) -> bool:
        """Wait until this many bytes of stdin have arrived."""
        with self._changed:
            return self._changed.wait_for(lambda: self.received >= received, timeout=20)

    def settle(self) -> None:
        """Wait until no command runs."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._running == 0, timeout=20)

    def set_status(self, pod: str, status: Document) -> None:
        self.kube.request(
            "PATCH", f"{self._pods}/{pod}/status", {"status": status}, "application/merge-patch+json"
        )

    async def _serve(self) -> None:
        self._stop = self._loop.create_future()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.kube.certificate, self.kube.key)
        app = web.Application()
        app.router.add_get("/exec/{namespace}/{pod}/{container}", self._exec)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.port = runner.addresses[0][1]
        self._started.set()
        await self._stop
        await runner.cleanup()

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        pod = self.kube.get(f"{self._pods}/{request.match_info['pod']}")
        claim = pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        socket = web.WebSocketResponse(protocols=[_PROTOCOL], max_msg_size=0, timeout=0.5)
        await socket.prepare(request)
        command = request.query.getall("command")
        self.commands.append(command)
        if self.refuses:
            failure = {"status": "Failure", "reason": "InternalError", "message": self.refuses, "code": 500}
            await socket.send_bytes(b"\x03" + json.dumps(failure).encode())
            await socket.close()
            return socket
        self._run(1)
        child = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.path(claim),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        feeding = asyncio.create_task(self._feed(socket, child.stdin, command))
        try:
            for channel in (1, 2, 3):
                await socket.send_bytes(bytes([channel]))
            await asyncio.gather(_pump(socket, 1, child.stdout), _pump(socket, 2, child.stderr))
            await socket.send_bytes(b"\x03" + json.dumps(_status(await child.wait())).encode())
            await socket.close(code=WSCloseCode.OK)
        except ConnectionError:
            pass  # the client closed the connection
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding
            child.stdin.close()
            await child.wait()
            child._transport.close()  # otherwise it warns when it is collected after the loop ends
            self._run(-1)
        return socket

    def _run(self, more: int) -> None:
        with self._changed:
            self._running += more
            self._changed.notify_all()

    async def _feed(
        self, socket: web.WebSocketResponse, stdin: asyncio.StreamWriter, command: list[str]
    ) -> None:
        """Pass on stdin, and close it if the client closes the connection."""
        got, loses = 0, None
        async for message in socket:
            if self.stalls:
                self.stalls -= 1
                async for _ in socket:
                    pass  # until the client closes the connection
                break
            if loses is None:
                loses = self.loses.pop(0) if self.loses else 0
            self.executing.set()
            data = message.data[1:]
            with self._changed:
                self.received += len(data)
                self._changed.notify_all()
            if loses:  # the last argument of such a command is the size of its stdin
                data = data[: max(0, int(command[-1]) - loses - got)]
            got += len(message.data) - 1
            with contextlib.suppress(ConnectionError):
                stdin.write(data)
                await stdin.drain()
            if loses and got >= int(command[-1]):
                break
        stdin.close()


async def _pump(socket: web.WebSocketResponse, channel: int, stream: asyncio.StreamReader) -> None:
    while data := await stream.read(65536):
        await socket.send_bytes(bytes([channel]) + data)


def _status(code: int) -> dict[str, Any]:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code if code > 0 else 128 - code)}]},
    }
