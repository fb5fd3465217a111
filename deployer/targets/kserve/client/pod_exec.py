"""Runs a command in a pod's container through the API server's exec.

The protocol cannot mark the end of stdin, so scripts read as many bytes as their arguments say.
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

if TYPE_CHECKING:
    from websocket import WebSocket

_PARTING = 5.0  # seconds for the server to close the stream after it reported the end
_STDIN, _STDOUT, _STDERR, _STATUS = b"\x00", b"\x01", b"\x02", b"\x03"
_FRAME = 1 << 17  # bytes of stdin in one message
_NO_PROGRAM, _KILLED = 127, 128  # exit codes; higher ones are signals
_STDERR_MAX = 4096  # bytes
_CLOSE = 0x8  # WebSocket's opcode


def run_in_pod(
    connection: Connection,
    namespace: str,
    pod: str,
    command: Sequence[str],
    source: Iterable[bytes] = (),
) -> Iterator[bytes]:
    """Run a command in a pod's only container, write the source to its stdin, and yield its stdout.

    Raises ExitError for an exit code other than 0, BrokenError if the stream breaks off, and the error for a
    refusal of the API server.
    """
    query = [("command", word) for word in command]
    query += [(stream, "true") for stream in ("stdin", "stdout", "stderr")]
    path = f"{POD.path(namespace, pod)}/exec?{urlencode(query)}"
    socket = connection.open_websocket(path, f"create pods/exec {namespace}/{pod}")
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
    """One exec stream. `status` is the command's result, None until it has ended."""

    def __init__(self, socket: WebSocket, where: str, silence: float) -> None:
        self.status: dict[str, Any] | None = None
        self._socket, self._where, self._silence = socket, where, silence
        self._stderr = b""

    def send(self, data: bytes) -> Iterator[bytes]:
        """Send a piece of stdin, unless the command has ended; yield the stdout received meanwhile."""
        # Received messages come first: a command that has ended explained why, and reads no more.
        while self.status is None and (message := self._receive(0)) is not None:
            yield message
        if self.status is None:
            with self._unbroken():
                self._socket.settimeout(self._silence)
                self._socket.send_binary(_STDIN + data)

    def finish(self) -> Iterator[bytes]:
        """Yield the remaining stdout until the command has ended. Raises ExitError, BrokenError."""
        try:
            while (message := self._receive(self._silence)) is not None:
                yield message
        except BrokenError:
            if self.status is None:
                raise
        self._check_status()

    def _receive(self, seconds: float) -> bytes | None:
        """Return the next piece of stdout; None at the end, or if none arrived and `seconds` is 0."""
        while True:
            try:
                with self._unbroken():
                    # A server that reported the end and keeps the stream open gets a short time.
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
                self._stderr = (self._stderr + content)[-_STDERR_MAX:]
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
            raise self._broken("the stream to the pod broke") from error

    def _check_status(self) -> None:
        status = self.status
        if status is None:
            raise self._broken("the stream to the pod ended before the command")
        if status.get("status") == "Success":
            return
        causes = (status.get("details") or {}).get("causes") or []
        codes = [c["message"] for c in causes if c.get("reason") == "ExitCode"]
        code = int(codes[0]) if codes and str(codes[0]).isdigit() else None
        if code is None and "executable file not found" in str(status.get("message")):
            raise ExitError(_NO_PROGRAM, status["message"])
        if code is None or code > _KILLED:
            raise self._broken(f"the command did not run to its end: {status.get('message', '')}")
        raise ExitError(code, self._stderr.decode(errors="replace"))

    def _broken(self, what: str) -> KdeployError:
        hint = "Run the command again. It does not send again what the pod has received."
        return BrokenError(what, where=self._where, hint=hint)
