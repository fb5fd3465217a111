"""HTTP exchanges with an endpoint; urllib3's errors become ours.

The promise: a request that may have reached the server is never sent twice, no redirect is followed, no error
shows a header's value, and an exchange ends within its time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
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

ANSWER_LIMIT = 64 * 2**20  # bytes of an answer at most; TorchServe's own default is a tenth of it

_LONGER = "raise --timeout, or see what the workers do: kdeploy logs"
_SEE_ADDRESS = "check the address: kdeploy status"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Answer(Struct, frozen=True):
    """A response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """Keeps connections to one endpoint; every error is a `failure`. Threads may share it.

    `timeout` is in seconds, for a whole exchange; `authority` is a PEM file of the certificates to trust,
    instead of the usual ones.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        failure: type[KdeployError],
        timeout: float,
        headers: Mapping[str, str] | None = None,
        connections: int = 1,
        authority: Path | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        from deployer.predict import wire

        self.failure = failure
        self.address = _address(endpoint.url, failure)
        self.timeout = timeout
        self._headers = _checked(headers or {}, failure)
        # A token, a cookie's value; words as short as `Bearer` give nothing away.
        words = re.split(r"[\s,;=]+", " ".join(self._headers.values()))
        self._secrets = [word for word in words if len(word) > 7]
        if endpoint.host:
            self._headers |= _checked({"Host": endpoint.host}, failure)
        self._patience = patience
        self._deadline = wire.Deadline(patience.clock.now)
        self._tunnel = endpoint.tunnel
        self._proxy = None if self._tunnel else find_proxy(self.address)
        parts = urlsplit(self.address)
        tls = tls_context(authority) if parts.scheme == "https" else None
        straight = partial(wire.open_pool, self._deadline, connections=connections, tls=tls)
        # A proxy that gets a whole URL, as for plain HTTP, replaces the Host header by the URL's host.
        by_connect = self._proxy and parts.scheme == "http" and endpoint.host not in (None, parts.netloc)
        self._forwarded = partial(straight, proxy=self._proxy)
        if endpoint.tunnel:
            tunnel = endpoint.tunnel
            self._pool = straight(open_socket=lambda _host, _port: tunnel.open())
        elif self._proxy and by_connect:
            self._pool = straight(open_socket=wire.through_proxy(self._proxy, self._deadline))
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
    ) -> Answer:
        """Send one request and return the answer, whatever its status. Retries only refused connections.

        This takes `timeout` seconds at most. `path` is percent-encoded.
        """
        url = self.address + path + (f"?{urlencode(query)}" if query else "")
        headers = self._headers | ({"Content-Type": content_type} if content_type else {})
        retry, failures = self._patience.retry, 0
        self._deadline.begin(self.timeout)
        while (answer := self._exchange(method, url, body, headers)) is None:
            failures += 1
            pause = retry.pause(failures)
            if failures >= retry.attempts or not self._deadline.allows(pause):
                raise self.failure(
                    f"connection refused: {self.address}",
                    hint="check that the service runs: kdeploy status; if not: kdeploy rollout",
                )
            self._patience.clock.sleep(pause)
        if answer.status == 407 and self._proxy:
            raise self._refused_by_proxy("it requires credentials (407)")
        return answer

    def fit_to_quote(self, answer: Answer) -> tuple[dict[str, str], bytes]:
        """Return an answer's headers and body without the values of the request's headers."""
        headers, body = dict(answer.headers), answer.body
        for word in self._secrets:
            headers = {name: value.replace(word, "***") for name, value in headers.items()}
            body = body.replace(word.encode("latin-1"), b"***")
        return headers, body

    def _exchange(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> Answer | None:
        """Return the answer, or None if the connection was refused, so that nothing was sent."""
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
            # Many proxies let nothing but TLS through a tunnel. Some keep the Host header of a whole URL.
            self._pool = self._forwarded()
            return self._exchange(method, url, body, headers)
        except HTTPError as error:
            if isinstance(error, ProxyError):
                raise self._refused_by_proxy(_cause(error)) from error
            if isinstance(error.__cause__, ConnectionRefusedError):
                return None
            fault = self._tunnel.fault if self._tunnel else None
            if fault:
                raise self.failure(fault.what, where=fault.where, hint=fault.hint) from error
            raise self._explain(error, len(body)) from error

    def _read(self, response: BaseHTTPResponse) -> Answer:
        from urllib3.exceptions import TimeoutError as TimedOutError

        try:
            body = response.read(ANSWER_LIMIT + 1)
        except TimedOutError as error:
            raise self.failure(
                f"{self.address}: the answer is not complete after {self.timeout:g} s", hint=_LONGER
            ) from error
        if len(body) > ANSWER_LIMIT:
            response.close()
            raise self.failure(
                f"{self.address} answers with more than {ANSWER_LIMIT // 2**20} MiB",
                hint="let the handler return less, or use curl",
            )
        response.release_conn()
        return Answer(
            response.status, {name.lower(): value for name, value in response.headers.items()}, body
        )

    def _refused_by_proxy(self, why: str) -> KdeployError:
        return self.failure(
            f"{self.address}: the proxy {address_of(self._proxy or '')[0]} cannot be used: {why}",
            hint="check HTTPS_PROXY and HTTP_PROXY; NO_PROXY lists hosts that need no proxy",
        )

    def _explain(self, error: Exception, sent: int) -> KdeployError:
        from urllib3 import exceptions

        from deployer.predict.wire import CONNECT_TIMEOUT

        if isinstance(error, exceptions.ProtocolError) and isinstance(error.args[-1], TimeoutError):
            error = exceptions.TimeoutError(error)

        wait, cause = f"{self.timeout:g} s", _cause(error)
        # A kind stands before those that it derives from.
        table: tuple[tuple[type[Exception], str, str], ...] = (
            (
                exceptions.NameResolutionError,
                "the name cannot be resolved",
                "use an address that this machine can resolve; the Host header is sent in addition",
            ),
            (exceptions.NewConnectionError, f"no connection: {cause}", _SEE_ADDRESS),
            (
                exceptions.ConnectTimeoutError,
                f"no connection within {min(CONNECT_TIMEOUT, self.timeout):g} s: firewall or wrong address",
                f"{_SEE_ADDRESS}; on a cluster, --ingress port-forward takes another path",
            ),
            (exceptions.TimeoutError, f"no answer within {wait}", _LONGER),
            (
                exceptions.SSLError,
                f"TLS fails: {cause}",
                "check that it speaks https; --certificate-authority FILE names the CA of its certificate",
            ),
            (
                exceptions.ProtocolError,
                f"the connection was cut before the answer was complete ({sent} bytes were to be sent)",
                "the server died or refuses a request of that size: kdeploy logs, then kdeploy status",
            ),
            (Exception, str(error), _SEE_ADDRESS),
        )
        what, hint = next((what, hint) for kind, what, hint in table if isinstance(error, kind))
        return self.failure(f"{self.address}: {what}", hint=hint)


def _cause(error: Exception) -> str:
    """Return the cause of an error of urllib3's."""
    return str(error.__cause__ or (error.args[-1] if error.args else error))


def _address(url: str, failure: type[KdeployError]) -> str:
    """Return the endpoint's URL without credentials and trailing slash."""
    shown = url.rpartition("@")[2]
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError as error:
        raise failure(f"{shown!r} is not an address", hint="write it as http://HOST:PORT") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise failure(f"{shown!r} is not an address", hint="write it as http://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def _checked(headers: Mapping[str, str], failure: type[KdeployError]) -> dict[str, Any]:
    """Return the headers if they are valid. The error does not show a value."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise failure(f"{name!r} is not a header name", hint="write --header 'Name: value'")
        if not _HEADER_VALUE.fullmatch(value):
            raise failure(
                f"the value of the header {name} has a character that cannot be sent",
                hint="look for a line break at its end",
            )
    return dict(headers)
