"""The connection to one API server: sends requests and returns answers, or raises an error for a refusal."""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import urllib3
from msgspec import Struct

from deployer.errors import KdeployError, TargetError
from deployer.observed import Document
from deployer.patience import PATIENCE, Patience
from deployer.proxies import address_of, login_of
from deployer.targets.kserve.client.api_errors import NoLogError, read_refusal, unreachable

if TYPE_CHECKING:
    from websocket import WebSocket

JSON = "application/json"

_EXEC_PROTOCOL = "v4.channel.k8s.io"  # the first byte of a message is its channel; since Kubernetes 1.20


class Request(Struct, frozen=True, kw_only=True):
    """A request; `asked` names it in errors by a verb and an object."""

    asked: str
    path: str
    method: str = "GET"
    query: Mapping[str, str] = {}
    body: Document | None = None
    content_type: str = JSON
    accept: str = JSON


class Connection:
    """A pool of connections to one API server, and the user's credentials."""

    def __init__(
        self,
        host: str,
        *,
        namespace: str,
        where: str,
        tls: ssl.SSLContext,
        authorize: Callable[[], str] = str,
        server_name: str | None = None,
        proxy: str | None = None,
        user: str = "",
        patience: Patience = PATIENCE,
    ) -> None:
        """Open nothing yet. `authorize` returns the Authorization header; `user` is the kubeconfig's name."""
        self.namespace, self.user, self.patience = namespace, user, patience
        self.where = re.sub(r"//[^/@]*@", "//", where)  # the text before @ can be a password
        self.host, self._tls, self._server_name = host.rstrip("/"), tls, server_name
        self._proxy, self._authorize = proxy, authorize
        options: dict[str, Any] = {
            "ssl_context": tls,
            "retries": False,
            "maxsize": 32,
            "timeout": urllib3.Timeout(connect=patience.connect, read=patience.answer),
        }
        if server_name:
            options["server_hostname"] = server_name
        if proxy:
            address, headers = address_of(proxy)
            self._pool: urllib3.PoolManager = urllib3.ProxyManager(address, proxy_headers=headers, **options)
        else:
            self._pool = urllib3.PoolManager(**options)

    def headers(self) -> dict[str, str]:
        """Return the headers that authenticate. An exec plugin runs again if its token has expired.

        Raises TargetError if the plugin fails, or a header cannot contain the token.
        """
        value = self._authorize()
        if not (value.isascii() and value.isprintable()):
            what = "the kubeconfig's token has an invalid character"
            raise TargetError(what, where=self.where, hint="Log in to the cluster again.")
        return {"Authorization": value} if value else {}

    def send(self, request: Request) -> Document:
        """Send a request once and return the object in its answer. Raises the error for a refusal."""
        headers = {"Accept": request.accept, "Content-Type": request.content_type}
        # Without spaces, as the API server encodes: it compares immutable data byte by byte.
        data = None if request.body is None else json.dumps(request.body, separators=(",", ":")).encode()
        with self._reaching(request):
            response = self._pool.request(
                request.method, self._url(request), body=data, headers=self.headers() | headers
            )
        try:
            found = json.loads(response.data) if response.status < 300 else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._refusal(response, request)
        return found

    def open_stream(
        self, request: Request, *, silence: float | None, no_log: Collection[int] = ()
    ) -> urllib3.BaseHTTPResponse:
        """Open an answer to read as it arrives; `silence` limits the seconds between two pieces.

        Raises NoLogError for the statuses in `no_log`, which concern the container and not the API server.
        """
        timeout = urllib3.Timeout(connect=self.patience.connect, read=silence)
        headers = self.headers() | {"Accept": "*/*"}
        with self._reaching(request):
            response = self._pool.request(
                "GET", self._url(request), headers=headers, preload_content=False, timeout=timeout
            )
            is_page = response.headers.get("Content-Type", "").startswith("text/html")
            if response.status < 300 and not is_page:
                return response
            refusal = self._refusal(response, request)  # this reads the rest of the answer
        if response.status in no_log:
            raise NoLogError(refusal.what, where=refusal.where, hint=refusal.hint) from refusal
        raise refusal

    def read_lines(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """Yield the lines of a stream as they arrive; the last one can lack its line break."""
        rest = b""
        try:
            for chunk in response.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise unreachable(error, self.where) from error
        if rest:
            yield rest

    def open_websocket(self, path: str, asked: str) -> WebSocket:
        """Open a WebSocket for exec or port-forward; `asked` names the request in errors.

        Raises the error for a refusal, TargetError.
        """
        import websocket

        try:
            opened = websocket.create_connection(
                "ws" + self.host.removeprefix("http") + path,
                timeout=self.patience.answer,
                header=self.headers(),
                subprotocols=[_EXEC_PROTOCOL],
                sslopt={"context": self._tls, "server_hostname": self._server_name},
                suppress_origin=True,
                redirect_limit=0,  # a redirect would send the credentials to another server
                **_proxy_options(self._proxy),
            )
        except websocket.WebSocketBadStatusException as error:
            where = f"{asked} on {self.where}"
            raise read_refusal(error.status_code, error.resp_body or b"", where) from error
        except (websocket.WebSocketException, OSError) as error:
            raise unreachable(error, self.where) from error
        opened.settimeout(None)
        return opened

    def close(self) -> None:
        """Close every connection."""
        self._pool.clear()

    @contextmanager
    def _reaching(self, request: Request) -> Iterator[None]:
        """Raise our error for a failure of the network."""
        try:
            yield
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(error, f"{request.asked} on {self.where}") from error

    def _url(self, request: Request) -> str:
        return self.host + request.path + (f"?{urlencode(request.query)}" if request.query else "")

    def _refusal(self, response: urllib3.BaseHTTPResponse, request: Request) -> KdeployError:
        after = response.headers.get("Retry-After", "")
        return read_refusal(
            response.status,
            _without_values(response.data, request.body or {}),
            f"{request.asked} on {self.where}",
            float(after) if after.isdigit() else None,  # a date is ignored
        )


def _without_values(answer: bytes, sent: Mapping[str, Any]) -> bytes:
    """Mask a Secret's values in a refusal that quotes them, as a webhook's can."""
    for value in sent.get("data", {}).values() if sent.get("kind") == "Secret" else ():
        plain = base64.b64decode(value)
        for form in (value.encode(), json.dumps(plain.decode(errors="replace"))[1:-1].encode(), plain):
            answer = answer.replace(form, b"***") if form else answer
    return answer


def _proxy_options(url: str | None) -> dict[str, Any]:
    """Return websocket-client's options for a proxy, so that it does not read the environment itself."""
    if not url:
        return {"http_proxy_host": "none", "http_no_proxy": ["*"]}
    parts, account = urlsplit(url), login_of(url)
    if parts.scheme != "http":
        raise TargetError(
            "HTTPS proxies are not supported for WebSockets",
            where=f"proxy {parts.hostname}",
            hint="Give the proxy an http:// URL. The connection through it is encrypted in both cases.",
        )
    return {
        "http_proxy_host": parts.hostname,
        "http_proxy_port": parts.port or 80,
        "http_proxy_auth": account if account[0] else None,
        "http_no_proxy": [""],
    }
