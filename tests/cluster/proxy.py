"""A proxy between kdeploy and the API server that counts requests and injects faults.

It terminates TLS with the API server's certificate and opens TLS to it, so kdeploy sees no difference. A
fault names the requests that it applies to, and how many of them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.cluster.kube import Kube

READS = ("GET", "HEAD", "OPTIONS")
_POLICY = re.compile(rb"\bpolicy/v1\b")  # Debian's API server only has v1beta1
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass(eq=False)
class Fault:
    """A fault of the next `times` requests whose `METHOD path?query` matches `where`."""

    where: str
    times: int = 1
    status: int = 0  # answer this status without the API server
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""  # the answer; else a Status object with `message` and `reason`
    message: str = "a fault of the test"
    reason: str = ""
    skip: int = 0  # requests that pass first
    before: float = 0.0  # seconds to wait first
    cut: int = -1  # reset the connection after this many bytes of the answer, or of an upgraded connection
    slow: float = 0.0  # seconds between pieces of the answer
    reset: bool = False  # reset the connection without a request to the API server
    lost: bool = False  # send the request to the API server, then reset the connection
    hold: bool = False  # before such a reset, wait until the client closes the connection
    gone: bool = False  # on a watch: an ERROR event with code 410
    seen: int = 0
    passed: int = 0
    held: threading.Event = field(default_factory=threading.Event)  # set when a request is held or answered
    over: threading.Event = field(default_factory=threading.Event)  # set when the fault ends

    def matches(self, request: str) -> bool:
        return re.search(self.where, request) is not None

    @property
    def wanted(self) -> bool:
        return self.seen < self.times and self.passed >= self.skip


class Proxy:
    """Listens on loopback while the `with` lasts."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube
        self.requests: list[tuple[str, str]] = []  # method, path with query
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        self._tls = kube.tls()
        self._idle: list[http.client.HTTPSConnection] = []
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(kube.certificate, kube.key)
        self._server.tls = tls
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self.drop()
        self._server.server_close()
        for one in self._idle:
            one.close()

    def connect(self) -> http.client.HTTPSConnection:
        """Return a connection to the API server, an idle one if possible."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return http.client.HTTPSConnection("127.0.0.1", self.kube.port, context=self._tls)

    def keep(self, connection: http.client.HTTPSConnection) -> None:
        with self._lock:
            self._idle.append(connection)

    def drop(self) -> None:
        """Reset every open connection."""
        for one in list(self._server.open):
            _reset(one)

    @contextmanager
    def fault(self, where: str, **how: Any) -> Iterator[Fault]:
        with self.failing(Fault(where, **how)) as (one,):
            yield one

    @contextmanager
    def failing(self, *faults: Fault) -> Iterator[tuple[Fault, ...]]:
        """Inject several faults. A request that none of them takes counts as passed for all of them."""
        with self._lock:
            self.faults += faults
        try:
            yield faults
        finally:
            with self._lock:
                self.faults = [one for one in self.faults if one not in faults]
            for one in faults:
                one.over.set()

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            meant = [one for one in self.faults if one.matches(f"{method} {path}")]
            taken = next((one for one in meant if one.wanted), None)
            if taken:
                taken.seen += 1
            if taken is None or taken.slow:
                for one in meant:
                    one.passed += 1
        return taken

    def count(self) -> Counter[str]:
        """Count requests by method, without the reviews of permissions."""
        return Counter(m for m, path in self.requests if "selfsubject" not in path)

    def writes(self) -> list[tuple[str, str]]:
        """Return the requests that write."""
        harmless = ("selfsubject", "dryRun=All")
        return [
            (m, path)
            for m, path in self.requests
            if m not in READS and not any(word in path for word in harmless)
        ]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    tls: ssl.SSLContext

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.open: set[socket.socket] = set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the connection's thread, so that a slow handshake delays no other connection.
        try:
            wrapped = self.tls.wrap_socket(request, server_side=True)
        except (OSError, ssl.SSLError):
            return
        self.open.add(wrapped)
        try:
            super().finish_request(wrapped, client_address)
        finally:
            self.open.discard(wrapped)
            wrapped.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the faults break connections


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fault = self.owner.take(self.command, self.path) or Fault("")
        time.sleep(fault.before)
        if fault.before and self._left():
            self.close_connection = True
        elif fault.reset or (fault.hold and not fault.lost):
            self._leave(fault)
        elif fault.status:
            self._answer(fault)
        elif fault.gone:
            self._answer_gone()
            fault.held.set()
        elif self.headers.get("Upgrade"):
            self._tunnel(fault)
        else:
            self._forward(body, fault)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _left(self) -> bool:
        """Return whether the client closed the connection, so that its request is not forwarded."""
        self.connection.settimeout(0)
        try:
            return self.connection.recv(1) == b""
        except ssl.SSLWantReadError:
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(None)

    def _answer(self, fault: Fault) -> None:
        text = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": fault.message,
            "reason": fault.reason,
            "code": fault.status,
        }
        data = (fault.body or json.dumps(text)).encode()
        self.send_response(fault.status)
        for name, value in {**fault.headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _answer_gone(self) -> None:
        text = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
        data = json.dumps({"type": "ERROR", "object": text}).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _leave(self, fault: Fault) -> None:
        """Reset the connection; a held one when the client closes it or the fault ends."""
        fault.held.set()
        self.connection.settimeout(0.05)
        while fault.hold and not fault.over.is_set():
            try:
                if not self.connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        _reset(self.connection)
        self.close_connection = True

    def _forward(self, body: bytes, fault: Fault) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        upstream = self.owner.connect()
        try:
            path, body = (_POLICY.sub(b"policy/v1beta1", text) for text in (self.path.encode(), body))
            upstream.request(self.command, path.decode(), body=body or None, headers=headers)
            self._pass_on(upstream.getresponse(), fault)
        except BaseException:
            upstream.close()
            raise
        if upstream.sock and not self.close_connection:
            self.owner.keep(upstream)
        else:
            upstream.close()

    def _pass_on(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
        if fault.lost:
            if "watch=true" not in self.path:
                answer.read()
            self._leave(fault)
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        left = fault.cut if fault.cut >= 0 else None
        while data := answer.read1(65536):
            if left is not None:
                data, left = data[:left], left - len(data)
            for piece in _pieces(data, 3 if fault.slow else 1):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                time.sleep(fault.slow)
            if left is not None and left <= 0:
                _reset(self.connection)
                self.close_connection = True
                return
        answer.read()  # after this read, http.client can reuse the connection
        self.wfile.write(b"0\r\n\r\n")

    def _tunnel(self, fault: Fault) -> None:
        """Copy the bytes of an upgraded connection in both directions."""
        plain = socket.create_connection(("127.0.0.1", self.owner.kube.port))
        upstream = self.owner.kube.tls().wrap_socket(plain, server_hostname="127.0.0.1")
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        upstream.sendall(f"{self.requestline}\r\n{head}\r\n".encode())
        pair = [self.connection, upstream]
        left = [fault.cut]

        def pump(source: socket.socket, to: socket.socket) -> None:
            with contextlib.suppress(OSError, ValueError):
                while data := source.recv(65536):
                    if fault.cut >= 0:
                        left[0] -= len(data)
                        if left[0] <= 0:
                            break
                    to.sendall(data)
            end = _reset if fault.cut >= 0 and left[0] <= 0 else _close
            for one in pair:
                end(one)

        back = threading.Thread(target=pump, args=pair[::-1])
        back.start()
        pump(*pair)
        back.join()
        self.close_connection = True


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def _pieces(data: bytes, count: int) -> list[bytes]:
    size = max(-(-len(data) // count), 1)
    return [data[start : start + size] for start in range(0, len(data), size)]


def _reset(one: socket.socket) -> None:
    """Reset a connection as a broken network does, even if there is unread data."""
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RDWR)
        socket.socket.close(one)
    except OSError:
        pass
