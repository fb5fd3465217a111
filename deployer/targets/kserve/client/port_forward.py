"""A port of a pod, reached through the API server's port-forward.

Each connection is one WebSocket with a channel for data and one for errors, which both begin with the port's
number. Nothing listens on this machine, so no other user of it can connect.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
from typing import TYPE_CHECKING

from deployer.errors import KdeployError, TargetError
from deployer.targets.kserve.client import api_errors
from deployer.targets.kserve.client.connection import Connection
from deployer.targets.kserve.client.resources import POD
from deployer.targets.kserve.client.websocket import open_websocket

if TYPE_CHECKING:
    from websocket import WebSocket

GRANT = "ask an admin for get and create of pods/portforward there, or name an address with --ingress"

_DATA = b"\0"  # the channel of data; the other one is of errors
_CHUNK = 65536


class Forward:
    """One port of one pod. Implements deployer.targets.protocols.Tunnel."""

    def __init__(self, connection: Connection, namespace: str, pod: str, port: int) -> None:
        self.fault: KdeployError | None = None
        self._connection = connection
        self._path = f"{POD.path(namespace, pod)}/portforward?ports={port}"
        self._where = f"pod {namespace}/{pod}"
        self._port = port

    def open(self) -> socket.socket:
        """Open one more connection to the port. Raises TargetError; RefusedError if it is not allowed."""
        asked = f"create pods/portforward {self._where.removeprefix('pod ')}"
        try:
            channel = open_websocket(self._connection, self._path, asked)
        except api_errors.ForbiddenError as error:
            error.hint = GRANT
            raise
        near, far = socket.socketpair()
        threading.Thread(target=self._carry, args=(channel, far), name="port-forward", daemon=True).start()
        return near

    def _carry(self, channel: WebSocket, far: socket.socket) -> None:
        """Carry bytes both ways until either end is closed. One thread does both: TLS wants it so."""
        from websocket import WebSocketException

        wire = channel.sock
        assert wire
        with far, wire, selectors.DefaultSelector() as selector:
            selector.register(far, selectors.EVENT_READ)
            selector.register(wire, selectors.EVENT_READ)
            begun: set[int] = set()
            try:
                while True:
                    # What TLS has read already is not seen by the selector.
                    buffered = isinstance(wire, ssl.SSLSocket) and wire.pending()
                    ready = [wire] if buffered else [key.fileobj for key, _ in selector.select()]
                    if wire in ready and not self._receive(channel, far, begun):
                        return
                    if far in ready:
                        data = _take(far)
                        if not data:
                            return
                        channel.send_binary(_DATA + data)
            except (OSError, WebSocketException) as error:
                self.fault = api_errors.broken(error, self._connection.where)

    def _receive(self, channel: WebSocket, far: socket.socket, begun: set[int]) -> bool:
        """Hand on the next frame; False when there will be no more, or nobody wants it."""
        from websocket import ABNF

        kind, data = channel.recv_data(control_frame=True)
        if kind != ABNF.OPCODE_BINARY or not data:
            return bool(kind != ABNF.OPCODE_CLOSE)
        if data[0] not in begun:
            begun.add(data[0])  # the port's number
            return True
        if data[:1] == _DATA:
            return _hand_on(far, data[1:])
        self.fault = self._unanswered(data[1:].decode(errors="replace"))
        return False

    def _unanswered(self, said: str) -> KdeployError:
        what = "nothing listens on" if "refused" in said else "no connection to"
        return TargetError(
            f"{what} port {self._port} of the pod: {' '.join(said.split())[: api_errors.TEXT_MAX]}",
            where=self._where,
            hint="check that the ingress runs, or name another address with --ingress",
        )


def _take(far: socket.socket) -> bytes:
    """Read what is to be sent; nothing once the near end is closed, in any way."""
    try:
        return far.recv(_CHUNK)
    except OSError:
        return b""


def _hand_on(far: socket.socket, data: bytes) -> bool:
    """Write what has come; False where nobody wants it any more."""
    try:
        far.sendall(data)
    except OSError:
        return False
    return True
