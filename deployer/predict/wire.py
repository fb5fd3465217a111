"""Connections to one server: direct, through a proxy or a tunnel.

Each exchange has one deadline: for connecting, TLS, sending, and every byte of the response.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import urllib3
from urllib3 import connection, connectionpool
from urllib3.exceptions import ProxyError
from urllib3.util.connection import create_connection

from deployer.proxies import address_of, tls_context

CONNECT_TIMEOUT = 10.0  # seconds


class TunnelRefusedError(Exception):
    """A proxy refuses a tunnel to a port. The server has received nothing."""


class Deadline(threading.local):
    """The time by which this thread's exchange must end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = float("inf")

    def begin(self, seconds: float) -> None:
        """Start an exchange that can take so many seconds."""
        self._end = self._clock() + seconds

    def allows(self, seconds: float) -> bool:
        """Whether so many seconds are left."""
        return self._end - self._clock() > seconds

    def left(self, at_most: float = 3600.0) -> float:
        """Return the seconds that are left, within a maximum. Raises TimeoutError if none are."""
        left = self._end - self._clock()
        if left <= 0:
            raise TimeoutError("the whole exchange has timed out")
        return min(left, at_most)


class _Timed:
    """A socket whose calls time out at the deadline."""

    def __init__(self, wrapped: socket.socket, deadline: Deadline) -> None:
        self._socket = wrapped
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(self._deadline.left())
            rest = rest[self._socket.send(rest) :]

    def makefile(self, mode: str = "rb", *_: Any, **__: Any) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_TimedReader(self._socket, self._deadline))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _TimedReader(io.RawIOBase):
    def __init__(self, source: socket.socket, deadline: Deadline) -> None:
        self._socket = source
        self._deadline = deadline
        self._file = source.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(self._deadline.left())
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_pool(
    deadline: Deadline,
    *,
    connections: int,
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
    open_socket: Callable[[str, int], socket.socket] | None = None,
    proxy: str | None = None,
) -> urllib3.PoolManager:
    """Return a pool of connections, which `open_socket` opens if they are not direct.

    TLS asks for and verifies `server_name`, or the host of the URL.
    """

    def open_timed(self: connection.HTTPConnection) -> Any:
        self.timeout = deadline.left(CONNECT_TIMEOUT)
        direct = connection.HTTPConnection._new_conn  # noqa: SLF001 - urllib3's users override it
        opened = open_socket(self.host, self.port) if open_socket else direct(self)
        opened.settimeout(deadline.left())
        return _Timed(opened, deadline)

    class Plain(connection.HTTPConnection):
        _new_conn = open_timed

    class Secure(connection.HTTPSConnection):
        _new_conn = open_timed

        def connect(self) -> None:
            super().connect()
            self.sock = cast("Any", _Timed(cast("socket.socket", self.sock), deadline))

    class PlainPool(connectionpool.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(connectionpool.HTTPSConnectionPool):
        ConnectionCls = Secure

    options: dict[str, Any] = {"maxsize": connections, "retries": False, "ssl_context": tls}
    if server_name:
        options["server_hostname"] = server_name
    if proxy:
        url, headers = address_of(proxy)
        to_proxy = tls_context() if url.startswith("https:") else None
        pool: urllib3.PoolManager = urllib3.ProxyManager(
            url, proxy_headers=headers, proxy_ssl_context=to_proxy, **options
        )
    else:
        pool = urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return pool


def through_proxy(proxy: str, deadline: Deadline) -> Callable[[str, int], socket.socket]:
    """Return a function that opens a connection by a proxy's CONNECT, also for plain HTTP.

    A proxy that gets a whole URL replaces the Host header by the URL's host; in a tunnel it cannot. The
    function raises TunnelRefusedError if the proxy refuses, ProxyError if it cannot be reached.
    """
    url, headers = address_of(proxy)
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))

    def open_socket(host: str, port: int) -> socket.socket:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *(": ".join(h) for h in headers.items())]
        try:
            opened = create_connection(address, deadline.left(CONNECT_TIMEOUT))
            if parts.scheme == "https":
                opened = tls_context().wrap_socket(opened, server_hostname=address[0])
            timed = _Timed(opened, deadline)
            timed.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
            response = http.client.HTTPResponse(timed, method="CONNECT")  # type: ignore[arg-type]
            response.begin()
        except (OSError, http.client.HTTPException) as error:
            raise ProxyError("Unable to connect to proxy", error) from error
        if not 200 <= response.status < 300:
            opened.close()
            raise TunnelRefusedError(f"{response.status} {response.reason}")
        return opened

    return open_socket
