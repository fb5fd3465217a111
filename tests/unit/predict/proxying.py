"""A real HTTP proxy on loopback, as strict as RFC 9112 or as lax as many are; it records all requests."""

from __future__ import annotations

import base64
import http.client
import http.server
import selectors
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit


class Proxy:
    """Connects `HOST:PORT` to a port of this machine. `asked` has (method, target, Host) of each request."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.routes: dict[str, int] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.tunnels = True  # whether CONNECT is allowed
        self.strict = True  # whether the Host header of a whole URL is replaced by the URL's host
        self.login = ""
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def admits(self, login: str | None) -> bool:
        wanted = "Basic " + base64.b64encode(self.login.encode()).decode()
        return not self.login or login == wanted

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: Proxy, *arguments: Any) -> None:
        self.proxy = proxy
        super().__init__(*arguments)

    def do_CONNECT(self) -> None:
        self.proxy.asked.append((self.command, self.path, self.headers.get("Host", "")))
        admitted = self.proxy.admits(self.headers.get("Proxy-Authorization"))
        if not admitted or not self.proxy.tunnels:
            self._answer(403 if admitted else 407)
            return
        with socket.create_connection(("127.0.0.1", self.proxy.routes[self.path])) as server:
            self.send_response_only(200, "Connection established")
            self.end_headers()
            _pump(self.connection, server)
        self.close_connection = True

    def forward(self) -> None:
        self.proxy.asked.append((self.command, self.path, self.headers.get("Host", "")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.proxy.admits(self.headers.get("Proxy-Authorization")):
            self._answer(407)
            return
        parts = urlsplit(self.path)
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.routes[f"{parts.netloc}:80"])
        headers = {name.title(): value for name, value in self.headers.items()}
        if self.proxy.strict:
            headers["Host"] = parts.netloc
        upstream.request(self.command, parts._replace(scheme="", netloc="").geturl(), body, headers)
        answer = upstream.getresponse()
        self._answer(answer.status, answer.read())
        upstream.close()

    do_GET = do_PUT = do_POST = do_HEAD = forward  # noqa: N815

    def _answer(self, status: int, content: bytes = b"") -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def proxying(tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    proxy = Proxy(tls)
    try:
        yield proxy
    finally:
        proxy.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    """Copy bytes both ways until one end is closed."""
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while True:
            pending = isinstance(one, ssl.SSLSocket) and one.pending()
            ready = [(one, other)] if pending else [(key.fileobj, key.data) for key, _ in selector.select()]
            for source, to in ready:
                try:
                    data = source.recv(65536)
                    if not data:
                        return
                    to.sendall(data)
                except OSError:
                    return
