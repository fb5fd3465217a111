"""JSON over HTTP on the supervisor's unix socket, with nothing but the standard library."""

from __future__ import annotations

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

_ANSWER_TIMEOUT = 60.0  # deleting a service waits for its TorchServes to end


class NotRunningError(errors.TargetError):
    """No supervisor answers on the socket."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("supervisor", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, url: str, body: object = None, *, timeout: float = _ANSWER_TIMEOUT) -> Any:
    """Ask the supervisor, and return its JSON. Raises NotRunningError, or what it answers with."""
    connection = _UnixConnection(path, timeout)
    try:
        return json.loads(_send(connection, method, url, body).read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotRunningError(
            f"the supervisor does not answer: {error}", hint="`kdeploy local start` starts it"
        ) from error
    finally:
        connection.close()


def lines(path: Path, url: str, timeout: float) -> Iterator[Any]:
    """Yield each line of JSON that the supervisor sends within `timeout` seconds, as it comes."""
    end = time.monotonic() + timeout
    connection = _UnixConnection(path, timeout)
    try:
        response = _send(connection, "GET", url, None)
        channel = connection.sock  # http.client lets go of it where the answer has no length
        while time.monotonic() < end:
            if channel:
                channel.settimeout(max(end - time.monotonic(), 0.001))
            line = response.readline()
            if not line:
                raise NotRunningError("the supervisor ended", hint="run the command again")
            yield json.loads(line)
    except TimeoutError:
        return
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotRunningError(f"the supervisor ended: {error}", hint="run the command again") from error
    finally:
        connection.close()


def _send(connection: _UnixConnection, method: str, url: str, body: object) -> http.client.HTTPResponse:
    data = None if body is None else json.dumps(body).encode()
    connection.request(method, url, body=data, headers={"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status >= 400:
        raise _error(response.read())
    return response


def _error(data: bytes) -> errors.KdeployError:
    try:
        failure = msgspec.json.decode(data, type=Failure)
    except msgspec.MsgspecError:
        return errors.TargetError(f"the supervisor failed: {data[:200].decode(errors='replace')}")
    return error_of(failure)


def error_of(failure: Failure) -> errors.KdeployError:
    """Turn a failure that was sent back into the error that it was."""
    kind = getattr(errors, failure.kind, errors.TargetError)
    error: errors.KdeployError = kind(failure.what, where=failure.where, hint=failure.hint)
    return error
