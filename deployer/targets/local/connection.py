"""JSON over HTTP on the supervisor's unix socket, with nothing but the standard library.

Tells apart a supervisor that is not running and one that runs and does not answer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from deployer import errors
from deployer.targets.local.protocol import Failure
from deployer.targets.local.state import State, explained

_READ_TIMEOUT = 10.0  # seconds
_WRITE_TIMEOUT = 60.0  # seconds; deleting a service waits for its TorchServes to end
_RETRY = 0.05

# Nobody listens, or too many wait to be heard.
_UNHEARD = (FileNotFoundError, ConnectionRefusedError, BlockingIOError)


class NotRunningError(errors.TargetError):
    """No supervisor holds the state folder, or it ended before it answered."""


class NotAnsweringError(errors.TargetError):
    """A supervisor holds the state folder and does not answer."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket; proxies and netrc files have no part in it."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("supervisor", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(state: State, method: str, url: str, body: object = None, *, timeout: float | None = None) -> Any:
    """Send the supervisor a request, and return the JSON of its answer.

    Waits `timeout` seconds at most, also for a supervisor that is starting or ending; by default 10 for a
    GET and 60 for anything else. Raises NotRunningError, NotAnsweringError, or the error that it answers
    with.
    """
    timeout = timeout or (_READ_TIMEOUT if method == "GET" else _WRITE_TIMEOUT)
    with _connected(state, timeout) as connection:
        return json.loads(_send(connection, method, url, body).read())


def lines(state: State, url: str, timeout: float) -> Iterator[Any]:
    """Yield each line of JSON that the supervisor sends within `timeout` seconds.

    Raises what `ask` raises.
    """
    end = time.monotonic() + timeout
    with _connected(state, _READ_TIMEOUT) as connection:
        response = _send(connection, "GET", url, None)
        channel = connection.sock  # http.client drops it if the answer has no length
        while (left := end - time.monotonic()) > 0:
            if channel:
                channel.settimeout(left)
            try:
                line = response.readline()
            except TimeoutError:
                return
            if not line:
                raise NotRunningError("the supervisor ended", hint="run the command again")
            yield json.loads(line)


@contextlib.contextmanager
def _connected(state: State, timeout: float) -> Iterator[_UnixConnection]:
    """Open a connection; turn what breaks on it into our errors."""
    connection = _connect(state, timeout)
    try:
        yield connection
    except TimeoutError as error:
        raise _silent(state, timeout) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotRunningError(
            f"the supervisor ended before it answered: {error}", hint="run the command again"
        ) from error
    finally:
        connection.close()


def _connect(state: State, timeout: float) -> _UnixConnection:
    end = time.monotonic() + timeout
    while state.holder() is not None:
        path = state.socket
        connection = _UnixConnection(path, timeout)
        with explained(path, "the supervisor's socket cannot be opened"):
            try:
                connection.connect()
            except _UNHEARD:
                connection.close()
            except TimeoutError:
                connection.close()
                break
            else:
                return connection
        if time.monotonic() > end:
            break
        time.sleep(_RETRY)
    else:
        raise NotRunningError("the supervisor is not running", hint="`kdeploy local start` starts it")
    raise _silent(state, timeout)


def _silent(state: State, timeout: float) -> NotAnsweringError:
    return NotAnsweringError(
        f"the supervisor (pid {state.holder() or 'unknown'}) has not answered within {timeout:g} s",
        where=str(state.supervisor_log),
        hint="`kdeploy local logs` shows its log, `kdeploy local stop` ends it",
    )


def _send(connection: _UnixConnection, method: str, url: str, body: object) -> http.client.HTTPResponse:
    data = None if body is None else msgspec.json.encode(body)
    connection.request(method, url, body=data, headers={"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status >= 400:
        data = response.read()
        try:
            raise msgspec.json.decode(data, type=Failure).error()
        except msgspec.MsgspecError:
            text = data[:200].decode(errors="replace")
            raise errors.TargetError(f"the supervisor failed: {text}") from None
    return response
