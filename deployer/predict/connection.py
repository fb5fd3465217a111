"""One HTTP exchange with an endpoint, foreign failures turned into ours.

The promise: a request that may have reached the server is never sent twice, a redirect is never followed, a
header's value is in no error, and an exchange ends within its time.
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

_LONGER = "wait longer with --timeout, or see what the workers do: kdeploy logs"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Answer(Struct, frozen=True):
    """What came back: header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """Keeps connections to one endpoint; every failure is of the kind `failure`. Safe to share by threads.

    `timeout` is in seconds, for a whole exchange; `authority` is the PEM file whose certificates TLS trusts,
    in place of the usual ones.
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
        self._headers = {**_checked(headers or {}, failure)}
        # A token, a cookie's value; words as short as `Bearer` give nothing away.
        words = re.split(r"[\s,;=]+", " ".join(self._headers.values()))
        self._said = [word for word in words if len(word) > 7]
        if endpoint.host:
            self._headers |= _checked({"Host": endpoint.host}, failure)
        self._patience = patience
        self._deadline = wire.Deadline(patience.clock.now)
        self._tunnel = endpoint.tunnel
        self._proxy = None if endpoint.tunnel else find_proxy(self.address)
        parts = urlsplit(self.address)
        tls = tls_context(authority) if parts.scheme == "https" else None
        straight = partial(wire.open_pool, self._deadline, connections=connections, tls=tls)
        # A proxy that gets a whole URL, as for plain HTTP, replaces the Host header by the URL's host.
        by_connect = self._proxy and parts.scheme == "http" and endpoint.host not in (None, parts.netloc)
        self._forwarded = partial(straight, proxy=self._proxy)
        if endpoint.tunnel:
            self._pool = straight(open_socket=wire.through_tunnel(endpoint.tunnel))
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
        """Send one request and return the answer, whatever its status. Tries again only while refused.

        All of it takes `timeout` seconds at most. `path` is percent-encoded where it must be.
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
                    f"nobody listens at {self.address}",
                    hint="see whether the service runs: kdeploy status; if it does not: kdeploy rollout",
                )
            self._patience.clock.sleep(pause)
        if answer.status == 407 and self._proxy:
            raise self._refused_by_proxy("it wants credentials (407)")
        return answer

    def fit_to_quote(self, answer: Answer) -> tuple[dict[str, str], bytes]:
        """Return an answer's headers and body without what the request's own headers said."""
        headers, body = dict(answer.headers), answer.body
        for word in self._said:
            headers = {name: value.replace(word, "***") for name, value in headers.items()}
            body = body.replace(word.encode("latin-1"), b"***")
        return headers, body

    def _exchange(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> Answer | None:
        """Return the answer, or None where nobody listens and so nothing was sent."""
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
                raise self._refused_by_proxy("it wants credentials (407)") from error
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
                hint="let the handler return less, or fetch the answer with curl",
            )
        response.release_conn()
        return Answer(
            response.status, {name.lower(): value for name, value in response.headers.items()}, body
        )

    def _refused_by_proxy(self, why: str) -> KdeployError:
        return self.failure(
            f"{self.address}: the proxy {address_of(self._proxy or '')[0]} cannot be used: {why}",
            hint="check HTTPS_PROXY and HTTP_PROXY; NO_PROXY names hosts that are reached without a proxy",
        )

    def _explain(self, error: Exception, sent: int) -> KdeployError:
        from urllib3 import exceptions

        from deployer.predict.wire import CONNECT_TIMEOUT

        if isinstance(error, exceptions.ProtocolError) and isinstance(error.args[-1], TimeoutError):
            error = exceptions.TimeoutError(error)

        # Of two kinds of which one is the other's, the narrower stands first.
        table: tuple[tuple[type[Exception], str, str], ...] = (
            (
                exceptions.NameResolutionError,
                "the name cannot be resolved",
                "give an address that this machine knows; the Host header is sent besides",
            ),
            (
                exceptions.NewConnectionError,
                "no connection: {cause}",
                "see the address: kdeploy status",
            ),
            (
                exceptions.ConnectTimeoutError,
                "no connection within {wait:g} s: a firewall or a wrong address drops it",
                "see the address: kdeploy status; on a cluster, --ingress port-forward goes another way",
            ),
            (
                exceptions.TimeoutError,
                "no answer within {wait:g} s",
                _LONGER,
            ),
            (
                exceptions.SSLError,
                "TLS fails: {cause}",
                "check that it speaks https; --certificate-authority FILE names who signed its certificate",
            ),
            (
                exceptions.ProtocolError,
                "the connection was cut before the answer was complete ({sent} bytes were to be sent)",
                "the server died or refuses a request of that size: kdeploy logs, then kdeploy status",
            ),
        )
        cause = _cause(error)
        connect = isinstance(error, exceptions.ConnectTimeoutError)
        wait = min(CONNECT_TIMEOUT, self.timeout) if connect else self.timeout
        for kind, what, hint in table:
            if isinstance(error, kind):
                return self.failure(
                    f"{self.address}: " + what.format(wait=wait, cause=cause, sent=sent), hint=hint
                )
        return self.failure(f"{self.address}: {error}", hint="see the address: kdeploy status")


def _cause(error: Exception) -> str:
    """Return what is behind an error of urllib3's."""
    return str(error.__cause__ or (error.args[-1] if error.args else error))


def _address(url: str, failure: type[KdeployError]) -> str:
    """Return the endpoint's URL without a trailing slash or credentials, fit to be shown."""
    shown = url.rpartition("@")[2]
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError as error:
        raise failure(f"{shown!r} is no address", hint="write it as http://HOST:PORT") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise failure(f"{shown!r} is no address", hint="write it as http://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def _checked(headers: Mapping[str, str], failure: type[KdeployError]) -> dict[str, Any]:
    """Return the headers if they can be sent. The error names the header and keeps its value to itself."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise failure(f"{name!r} is no header name", hint="write --header 'Name: value'")
        if not _HEADER_VALUE.fullmatch(value):
            raise failure(
                f"the value of the header {name} has a character that cannot be sent",
                hint="look for a line break at its end",
            )
    return dict(headers)
