"""Connects to a port of a pod through the API server's port-forward.

Each connection is one WebSocket with a channel for data and one for errors; the first message of each is the
port number. Nothing listens on this machine, so its other users cannot connect.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import threading
from typing import TYPE_CHECKING

from deployer.errors import KdeployError, TargetError
from deployer.targets.kserve.client.api_errors import TEXT_MAX, ForbiddenError, unreachable
from deployer.targets.kserve.client.connection import Connection
from deployer.targets.kserve.client.resources import POD

if TYPE_CHECKING:
    from websocket import WebSocket

_DATA = b"\0"  # the channel of data; the other one is for errors
_CHUNK = 65536


class Forward:
    """One port of one pod. Implements deployer.targets.protocols.Tunnel."""

    def __init__(self, connection: Connection, namespace: str, pod: str, port: int) -> None:
        self.pod = (namespace, pod, port)
        self.fault: KdeployError | None = None
        self._connection = connection
        self._path = f"{POD.path(namespace, pod)}/portforward?ports={port}"
        self._pod, self._port = f"{namespace}/{pod}", port

    def open(self) -> socket.socket:
        """Open another connection to the port. Raises TargetError, RefusedError without the permission."""
        try:
            channel = self._connection.open_websocket(self._path, f"create pods/portforward {self._pod}")
        except ForbiddenError as error:
            error.hint = (
                "Ask a cluster administrator for `get` and `create` on pods/portforward there, "
                "or name an address with --ingress."
            )
            raise
        near, far = socket.socketpair()
        threading.Thread(target=self._carry, args=(channel, far), name="port-forward", daemon=True).start()
        return near

    def _carry(self, channel: WebSocket, far: socket.socket) -> None:
        """Copy bytes both ways until one end closes, in one thread: a TLS connection is not thread-safe."""
        from websocket import WebSocketException

        wire = channel.sock
        assert wire
        with far, wire, selectors.DefaultSelector() as selector:
            selector.register(far, selectors.EVENT_READ)
            selector.register(wire, selectors.EVENT_READ)
            begun: set[int] = set()
            try:
                while True:
                    # The selector does not see what TLS has already read.
                    buffered = isinstance(wire, ssl.SSLSocket) and wire.pending()
                    ready = [wire] if buffered else [key.fileobj for key, _ in selector.select()]
                    if wire in ready and not self._receive(channel, far, begun):
                        return
                    if far in ready:
                        data = b""
                        with contextlib.suppress(OSError):  # the near end was closed
                            data = far.recv(_CHUNK)
                        if not data:
                            return
                        channel.send_binary(_DATA + data)
            except (OSError, WebSocketException) as error:
                self.fault = unreachable(error, self._connection.where)

    def _receive(self, channel: WebSocket, far: socket.socket, begun: set[int]) -> bool:
        """Pass on the next frame; return False if there are no more, or the near end was closed."""
        from websocket import ABNF

        kind, data = channel.recv_data(control_frame=True)
        if kind != ABNF.OPCODE_BINARY or not data:
            return bool(kind != ABNF.OPCODE_CLOSE)
        if data[0] not in begun:
            begun.add(data[0])  # this message holds the port number
            return True
        if data[:1] == _DATA:
            with contextlib.suppress(OSError):
                far.sendall(data[1:])
                return True
            return False
        text = data[1:].decode(errors="replace")
        what = "nothing listens on" if "refused" in text else "cannot connect to"
        self.fault = TargetError(
            f"{what} port {self._port} of the pod: {' '.join(text.split())[:TEXT_MAX]}",
            where=f"pod {self._pod}",
            hint="Check that the ingress runs, or name another address with --ingress.",
        )
        return False
