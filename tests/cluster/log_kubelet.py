"""Simulates a kubelet with logs: serves timestamped lines, from a given second, and follows."""

from __future__ import annotations

import ssl
import threading
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.cluster.kube import Kube


class LogKubelet:
    """The node of a namespace's pods, whose containers all have the same log, while the `with` lasts."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube, self.node, self._namespace = kube, f"logs-{namespace}", namespace
        self.lines: list[str] = []  # TIME TEXT
        self.asked: list[dict[str, list[str]]] = []
        self.changed = threading.Condition()
        self.ended = False  # the container has ended, and its log
        kubelet = self

        class Handler(_Handler):
            owner = kubelet

        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(kube.certificate, kube.key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)

    def __enter__(self) -> LogKubelet:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.kube.create("/api/v1/nodes", {"metadata": {"name": self.node}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_address[1]}},
        }
        self.kube.merge(f"/api/v1/nodes/{self.node}/status", {"status": status})
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.kube.delete(f"/api/v1/nodes/{self.node}")

    def take(self, pod: str) -> None:
        """Bind a pod to this node."""
        binding = {"metadata": {"name": pod}, "target": {"kind": "Node", "name": self.node}}
        self.kube.create(f"/api/v1/namespaces/{self._namespace}/pods/{pod}/binding", binding)

    def say(self, *lines: str) -> None:
        with self.changed:
            self.lines += lines
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: LogKubelet

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        owner, query = self.owner, parse_qs(urlsplit(self.path).query)
        since = query.get("sinceTime", [""])[0].rstrip("Z")
        owner.asked.append(query)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if "sinceSeconds" in query:
            began = datetime.now(timezone.utc) - timedelta(seconds=int(query["sinceSeconds"][0]))
            since = began.isoformat()
        sent = max(len(owner.lines) - int(query.get("tailLines", ["1000000"])[0]), 0)
        while True:
            with owner.changed:
                fresh, sent = owner.lines[sent:], len(owner.lines)
                if not fresh and (owner.ended or "follow" not in query):
                    break
                if not fresh:
                    owner.changed.wait(30)
            for line in fresh:
                if line >= since:
                    data = f"{line}\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")
