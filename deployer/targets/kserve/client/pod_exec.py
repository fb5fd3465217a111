"""Runs a command in a container of a Pod by the API server's exec.

The protocol cannot say where stdin ends, so scripts read as many bytes as their arguments say.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from deployer.errors import KdeployError
from deployer.store.volume_shell import BrokenError, ExitError
from deployer.targets.kserve.client.connection import Connection
from deployer.targets.kserve.client.resources import POD
from deployer.targets.kserve.client.websocket import open_websocket

if TYPE_CHECKING:
    from websocket import WebSocket

_PARTING = 5.0
_STDIN, _STDOUT, _STDERR, _STATUS = b"\x00", b"\x01", b"\x02", b"\x03"
_FRAME = 1 << 17  # bytes of stdin in one message
_NO_PROGRAM, _KILLED = 127, 128  # exit codes; those above are signals'
_SAID_MAX = 4096
_CLOSE = 0x8  # WebSocket's opcode


def run_in_pod(
    connection: Connection,
    namespace: str,
    pod: str,
    command: Sequence[str],
    source: Iterable[bytes] = (),
) -> Iterator[bytes]:
    """Run a command in a Pod's only container, feed it the source, yield what it writes to stdout.

    Raises ExitError for an exit code that is not 0, BrokenError where the stream breaks off, and what
    the API server's refusal stands for.
    """
    query = [("command", word) for word in command]
    query += [(stream, "true") for stream in ("stdin", "stdout", "stderr")]
    path = f"{POD.path(namespace, pod)}/exec?{urlencode(query)}"
    socket = open_websocket(connection, path, f"create pods/exec {namespace}/{pod}")
    session = _Session(socket, f"pod {namespace}/{pod}", connection.patience.stream)
    try:
        for data in source:
            for start in range(0, len(data), _FRAME):
                yield from session.send(data[start : start + _FRAME])
            if session.status is not None:
                break
        yield from session.finish()
    finally:
        socket.shutdown()  # type: ignore[no-untyped-call]


class _Session:
    """What passes over one exec stream. `status` is how the command ended, once that is known."""

    def __init__(self, socket: WebSocket, where: str, silence: float) -> None:
        self.status: dict[str, Any] | None = None
        self._socket = socket
        self._where = where
        self._silence = silence
        self._said = b""

    def send(self, data: bytes) -> Iterator[bytes]:
        """Send a piece of stdin, unless the command has ended; yield what has come meanwhile."""
        # What comes is looked at first: a command that ended has said why, and takes nothing more.
        while self.status is None and (message := self._receive(0)) is not None:
            yield message
        if self.status is None:
            with self._unbroken():
                self._socket.settimeout(self._silence)
                self._socket.send_binary(_STDIN + data)

    def finish(self) -> Iterator[bytes]:
        """Yield the rest until the command has ended. Raises ExitError, BrokenError."""
        try:
            while (message := self._receive(self._silence)) is not None:
                yield message
        except BrokenError:
            if self.status is None:
                raise
        self._judge()

    def _receive(self, seconds: float) -> bytes | None:
        """Return the next piece of stdout; None at the end, or with 0 seconds where there is none yet."""
        while True:
            try:
                with self._unbroken():
                    # A server that has told the end and does not hang up is not waited for.
                    self._socket.settimeout(seconds if self.status is None else min(seconds, _PARTING))
                    opcode, data = self._socket.recv_data(control_frame=True)
            except (ssl.SSLWantReadError, BlockingIOError):
                return None
            if opcode == _CLOSE:
                return None
            channel, content = data[:1], data[1:]
            if channel == _STDOUT and content:
                return bytes(content)
            if channel == _STDERR:
                self._said = (self._said + content)[-_SAID_MAX:]
            elif channel == _STATUS and content:
                self.status = json.loads(content)

    @contextlib.contextmanager
    def _unbroken(self) -> Iterator[None]:
        import websocket

        try:
            yield
        except (ssl.SSLWantReadError, BlockingIOError):
            raise
        except (websocket.WebSocketException, OSError, ValueError) as error:
            raise self._broken("the stream to the Pod broke") from error

    def _judge(self) -> None:
        status = self.status
        if status is None:
            raise self._broken("the stream to the Pod ended before the command")
        if status.get("status") == "Success":
            return
        causes = (status.get("details") or {}).get("causes") or []
        codes = [c["message"] for c in causes if c.get("reason") == "ExitCode"]
        code = int(codes[0]) if codes and str(codes[0]).isdigit() else None
        if code is None and "executable file not found" in str(status.get("message")):
            raise ExitError(_NO_PROGRAM, status["message"])
        if code is None or code > _KILLED:
            raise self._broken(f"the command was not run to its end: {status.get('message', '')}")
        raise ExitError(code, self._said.decode(errors="replace"))

    def _broken(self, what: str) -> KdeployError:
        return BrokenError(what, where=self._where, hint="run this again: what arrived is not sent twice")
