"""HTTP exchanges with an endpoint; urllib3's errors become ours.

A request that can have reached the server is never sent twice, no redirect is followed, no error shows a
header's value, and an exchange ends within its time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from msgspec import Struct

from deployer.errors import KdeployError
from deployer.patience import PATIENCE, Patience
from deployer.proxies import address_of, find_proxy, tls_context
from deployer.targets.protocols import Endpoint

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

ANSWER_LIMIT = 64 * 2**20  # bytes of a response; TorchServe's own default is a tenth of it

_LONGER = "Raise `--timeout`, or run `kdeploy logs` to see the workers."
_SEE_ADDRESS = "Run `kdeploy status` and compare the address."
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Response(Struct, frozen=True):
    """A response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """Keeps connections to one endpoint. Threads can share it.

    An error is a `failure`, or `unreached` if the server has received nothing. `timeout` is in seconds, for a
    whole exchange; `authority` is a PEM file of the certificates to trust instead of the usual ones.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        failure: type[KdeployError],
        unreached: type[KdeployError] | None = None,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        connections: int = 1,
        authority: Path | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        from deployer.predict import wire

        self.failure = failure
        self.unreached = unreached or failure
        self.address = _address(endpoint.url, failure)
        self.timeout = timeout
        self._headers = _checked(headers or {}, failure)
        # Tokens and values of cookies. Shorter words, such as `Bearer`, are not secret.
        words = re.split(r"[\s,;=]+", " ".join(self._headers.values()))
        self._secrets = [word for word in words if len(word) > 7]
        if endpoint.host:
            self._headers |= _checked({"Host": endpoint.host}, failure)
        self._patience = patience
        self._deadline = wire.Deadline(patience.clock.now)
        self._tunnel = tunnel = endpoint.tunnel
        parts = urlsplit(self.address)
        named = urlsplit(f"//{endpoint.host or parts.netloc}")
        # NO_PROXY can except the address or, as for curl, the name of the service.
        direct = tunnel or not find_proxy(f"{parts.scheme}://{named.netloc}")
        self._proxy = None if direct else find_proxy(self.address)
        tls = tls_context(authority) if parts.scheme == "https" else None
        self._server_name = server_name_of(endpoint)
        open_pool = partial(
            wire.open_pool,
            self._deadline,
            connections=connections,
            tls=tls,
            server_name=self._server_name,
        )
        self._forwarded = partial(open_pool, proxy=self._proxy)
        if tunnel:
            self._pool = open_pool(open_socket=lambda _host, _port: tunnel.open())
        elif self._proxy and parts.scheme == "http" and endpoint.host not in (None, parts.netloc):
            # A proxy that gets a whole URL, as for plain HTTP, replaces the Host header by the URL's host.
            self._pool = open_pool(open_socket=wire.through_proxy(self._proxy, self._deadline))
        else:
            self._pool = self._forwarded()

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.clear()

    def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        content_type: str | None = None,
        query: Mapping[str, str | int] | None = None,
    ) -> Response:
        """Send one request and return the response, also one with an error status.

        Only a refused connection is retried.
        This takes `timeout` seconds at most. `path` is percent-encoded.
        """
        url = self.address + path + (f"?{urlencode(query)}" if query else "")
        headers = self._headers | ({"Content-Type": content_type} if content_type else {})
        retry, failures = self._patience.retry, 0
        self._deadline.begin(self.timeout)
        while (response := self._exchange(method, url, body, headers)) is None:
            failures += 1
            pause = retry.pause(failures)
            if failures >= retry.attempts or not self._deadline.allows(pause):
                raise self.unreached(
                    f"connection refused: {self.address}",
                    hint="Run `kdeploy status`. If the service does not run, run `kdeploy rollout`.",
                )
            self._patience.clock.sleep(pause)
        if response.status == 407 and self._proxy:
            raise self._refused_by_proxy("it requires credentials (407)")
        return response

    def without_secrets(self, response: Response) -> tuple[dict[str, str], bytes]:
        """Return a response's headers and body without the values of the request's headers."""
        headers, body = dict(response.headers), response.body
        for word in self._secrets:
            headers = {name: value.replace(word, "***") for name, value in headers.items()}
            body = body.replace(word.encode("latin-1"), b"***")
        return headers, body

    def _exchange(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> Response | None:
        """Return the response, or None if the connection was refused, so that nothing was sent."""
        from urllib3.exceptions import HTTPError, ProxyError

        from deployer.predict.wire import TunnelRefusedError

        try:
            response: BaseHTTPResponse = self._pool.request(
                method,
                url,
                body=body or None,
                headers=headers,
                redirect=False,
                preload_content=False,
            )
            return self._read(response)
        except TunnelRefusedError as error:
            if str(error).startswith("407"):
                raise self._refused_by_proxy("it requires credentials (407)") from error
            # Many proxies allow a tunnel for TLS only. Some keep the Host header of a whole URL.
            self._pool = self._forwarded()
            return self._exchange(method, url, body, headers)
        except HTTPError as error:
            if isinstance(error, ProxyError):
                raise self._refused_by_proxy(_cause(error)) from error
            if isinstance(error.__cause__, ConnectionRefusedError):
                return None
            fault = self._tunnel.fault if self._tunnel else None
            if fault:
                raise self.unreached(fault.what, where=fault.where, hint=fault.hint) from error
            raise self._explain(error, len(body)) from error

    def _read(self, response: BaseHTTPResponse) -> Response:
        from urllib3.exceptions import TimeoutError as TimedOutError

        try:
            body = response.read(ANSWER_LIMIT + 1)
        except TimedOutError as error:
            raise self.failure(
                f"{self.address}: the response is incomplete after {self.timeout:g} s", hint=_LONGER
            ) from error
        if len(body) > ANSWER_LIMIT:
            response.close()
            raise self.failure(
                f"{self.address}: the response has more than {ANSWER_LIMIT // 2**20} MiB",
                hint="Let the handler return less, or use curl.",
            )
        response.release_conn()
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Response(response.status, headers, body)

    def _refused_by_proxy(self, why: str) -> KdeployError:
        return self.unreached(
            f"{self.address}: cannot use the proxy {address_of(self._proxy or '')[0]}: {why}",
            hint="Check HTTPS_PROXY and HTTP_PROXY. NO_PROXY lists hosts that need no proxy.",
        )

    def _explain(self, error: Exception, sent: int) -> KdeployError:
        from urllib3 import exceptions

        from deployer.predict.wire import CONNECT_TIMEOUT

        if isinstance(error, exceptions.ProtocolError) and isinstance(error.args[-1], TimeoutError):
            error = exceptions.TimeoutError(error)
        cause = _cause(error)
        named = f", asked for {self._server_name}" if self._server_name else ""
        # A class is listed before its base classes.
        table: tuple[tuple[type[Exception], str, str], ...] = (
            (
                exceptions.NameResolutionError,
                "cannot resolve the name",
                "Use an address that this machine can resolve; the Host header is sent in addition.",
            ),
            (exceptions.NewConnectionError, f"no connection: {cause}", _SEE_ADDRESS),
            (
                exceptions.ConnectTimeoutError,
                f"no connection within {min(CONNECT_TIMEOUT, self.timeout):g} s: firewall or wrong address",
                f"{_SEE_ADDRESS} On a cluster, `--ingress port-forward` uses another path.",
            ),
            (exceptions.TimeoutError, f"no response within {self.timeout:g} s", _LONGER),
            (exceptions.SSLError, f"TLS failed{named}: {cause}", _tls_hint(cause)),
            (
                exceptions.ProtocolError,
                f"the connection was closed before the response was complete ({sent} bytes were to be sent)",
                "Run `kdeploy logs` and `kdeploy status`: it died, or rejects a request of this size.",
            ),
            (Exception, str(error), _SEE_ADDRESS),
        )
        what, hint = next((what, hint) for kind, what, hint in table if isinstance(error, kind))
        early = (exceptions.NewConnectionError, exceptions.ConnectTimeoutError, exceptions.SSLError)
        failure = self.unreached if isinstance(error, early) else self.failure
        return failure(f"{self.address}: {what}", hint=hint)


def server_name_of(endpoint: Endpoint) -> str | None:
    """Return the name that TLS asks for and verifies, if it is not the host of the URL."""
    named = urlsplit(f"//{endpoint.host or ''}").hostname
    return endpoint.server_name or (named if _is_ip(urlsplit(endpoint.url).hostname) else None)


def _tls_hint(cause: str) -> str:
    if "mismatch" in cause:
        return "The certificate must have the host of the service's URL. Run `kdeploy status` to see it."
    if "CERTIFICATE_VERIFY_FAILED" in cause:
        return "Name a PEM file with its CA's certificate: SSL_CERT_FILE, or `--certificate-authority FILE`."
    return "Check that the server uses https."


def _is_ip(host: str | None) -> bool:
    try:
        ip_address((host or "").partition("%")[0])
    except ValueError:
        return False
    return True


def _cause(error: Exception) -> str:
    """Return the cause of an error of urllib3's."""
    return str(error.__cause__ or (error.args[-1] if error.args else error))


def _address(url: str, failure: type[KdeployError]) -> str:
    """Return the endpoint's URL without credentials and trailing slash."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError
    except ValueError as error:
        shown = url.rpartition("@")[2]
        raise failure(f"invalid address {shown!r}", hint="Write it as http://HOST:PORT.") from error
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def _checked(headers: Mapping[str, str], failure: type[KdeployError]) -> dict[str, Any]:
    """Return the headers if they are valid. The error does not show a value."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise failure(f"invalid header name {name!r}", hint="Write `--header 'Name: value'`.")
        if not _HEADER_VALUE.fullmatch(value):
            raise failure(
                f"invalid value of the header {name}: it has a character that cannot be sent",
                hint="Look for a line break at its end.",
            )
    return dict(headers)
