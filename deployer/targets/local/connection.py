"""HTTP requests to the supervisor on its unix socket, with the standard library only.

Distinguishes a supervisor that is not running from one that is running and does not answer.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from deployer import errors
from deployer.targets.local.protocol import Failure
from deployer.targets.local.state import State, explained

_READ_TIMEOUT = 10.0  # seconds
_WRITE_TIMEOUT = 60.0  # seconds; deleting a service waits for its TorchServes to end
_RETRY = 0.05
_RETRIED = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)  # not listening yet, or the backlog is full


class NotRunningError(errors.TargetError):
    """No supervisor holds the state folder, or it ended before it answered."""


class NotAnsweringError(errors.TargetError):
    """A supervisor holds the state folder and does not answer."""


def call(state: State, method: str, url: str, body: object = None, *, timeout: float | None = None) -> Any:
    """Send the supervisor a request, and return the JSON of the response.

    Waits at most `timeout` seconds, also for a supervisor that is starting or ending; by default 10 for a
    GET and 60 for anything else. Raises NotRunningError, NotAnsweringError, or the error in the answer.
    """
    timeout = timeout or (_READ_TIMEOUT if method == "GET" else _WRITE_TIMEOUT)
    with _connected(state, timeout) as connection:
        return json.loads(_send(connection, method, url, body).read())


def stream_lines(state: State, url: str, timeout: float) -> Iterator[Any]:
    """Yield each line of JSON that the supervisor sends within `timeout` seconds.

    Raises what `call` raises.
    """
    end = time.monotonic() + timeout
    with _connected(state, _READ_TIMEOUT) as connection:
        channel = connection.sock
        response = _send(connection, "GET", url, None)
        while (left := end - time.monotonic()) > 0:
            channel.settimeout(left)
            try:
                line = response.readline()
            except TimeoutError:
                return
            if not line:
                raise NotRunningError("the supervisor ended", hint="Run the command again.")
            yield json.loads(line)


@contextlib.contextmanager
def _connected(state: State, timeout: float) -> Iterator[http.client.HTTPConnection]:
    """Open a connection, and turn its errors into ours."""
    connection = http.client.HTTPConnection("supervisor")
    connection.sock = _open_socket(state, timeout)
    try:
        yield connection
    except TimeoutError as error:
        raise _not_answering(state, timeout) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NotRunningError(
            f"the supervisor ended before it answered: {error}", hint="Run the command again."
        ) from error
    finally:
        connection.close()


def _open_socket(state: State, timeout: float) -> socket.socket:
    """Connect to the supervisor, which can still be starting. Raises NotRunningError, NotAnsweringError."""
    end = time.monotonic() + timeout
    while state.holder() is not None:
        path = state.socket
        channel = socket.socket(socket.AF_UNIX)
        channel.settimeout(timeout)
        code = channel.connect_ex(str(path))
        if not code:
            return channel
        channel.close()
        if code not in _RETRIED:
            with explained(path, "cannot open the supervisor's socket"):
                raise OSError(code, os.strerror(code))
        if time.monotonic() > end:
            raise _not_answering(state, timeout)
        time.sleep(_RETRY)
    raise NotRunningError("the supervisor is not running", hint="Run `kdeploy local start` to start it.")


def _not_answering(state: State, timeout: float) -> NotAnsweringError:
    return NotAnsweringError(
        f"the supervisor (pid {state.holder() or 'unknown'}) has not answered within {timeout:g} s",
        where=str(state.supervisor_log),
        hint="Read its log with `kdeploy local logs`, or end it with `kdeploy local stop`.",
    )


def _send(
    connection: http.client.HTTPConnection, method: str, url: str, body: object
) -> http.client.HTTPResponse:
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
