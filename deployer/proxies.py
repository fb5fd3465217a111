"""The proxy for a URL, and the certificates that TLS trusts: one policy for predictions, clusters and stores.

HTTPS_PROXY applies to https:// and HTTP_PROXY to http://; their lower-case forms win. NO_PROXY is read as Go
reads it. Loopback never uses a proxy of the environment.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from deployer.errors import ConfigError
from deployer.files import read_bytes

if TYPE_CHECKING:
    from ssl import SSLContext

_BUNDLE_MAX = 16 << 20  # bytes
_PORTS = {"http": 80, "https": 443}


def find_proxy(url: str, named: str | None = None, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the proxy for a URL, or None: the one that is `named`, or the environment's.

    `named`, the `proxy-url` of a kubeconfig, applies to every host. Raises ConfigError for an invalid or
    unsupported proxy; the error does not quote it.
    """
    parts = urlsplit(url)
    where, proxy = ("the kubeconfig's proxy-url", named) if named else _of_environment(parts, environment)
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    scheme = proxy.partition("://")[0].lower()
    try:
        usable = scheme in _PORTS and bool(urlsplit(proxy).hostname) and urlsplit(proxy).port != 0
    except ValueError:
        usable = False
    if not usable:
        what = "invalid address of a proxy" if scheme in _PORTS else f"unsupported proxy scheme {scheme}://"
        raise ConfigError(what, where=where, hint="Use an http:// or https:// proxy.")
    return proxy


def login_of(proxy: str) -> tuple[str, str]:
    """Return user and password of a proxy's URL; both are empty if it has none."""
    parts = urlsplit(proxy)
    return unquote(parts.username or ""), unquote(parts.password or "")


def address_of(proxy: str) -> tuple[str, dict[str, str]]:
    """Return a proxy's URL without its login, and the header that carries the login."""
    parts = urlsplit(proxy)
    user, password = login_of(proxy)
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    headers = {"Proxy-Authorization": f"Basic {encoded}"} if user else {}
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", headers


def is_loopback(host: str) -> bool:
    """Whether a name or address is of this machine."""
    host = host.rstrip(".").lower()
    with suppress(ValueError):  # a name
        address = ip_address(host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified
    return host == "localhost" or host.endswith(".localhost")


def tls_context(authority: Path | None = None, environment: Mapping[str, str] = os.environ) -> SSLContext:
    """Return a TLS context that trusts `authority`, else SSL_CERT_FILE, else the system's certificates.

    Raises ConfigError if the file cannot be used.
    """
    import ssl

    file = str(authority or environment.get("SSL_CERT_FILE") or "")
    if not file:
        return ssl.create_default_context()
    try:
        pem = read_bytes(file, _BUNDLE_MAX).decode("ascii", "ignore")  # other characters are comments
        return ssl.create_default_context(cadata=pem or "-")
    except OSError as error:
        reason = "not a PEM file" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(
            f"cannot read the certificates: {reason}",
            where=f"{'--certificate-authority' if authority else 'SSL_CERT_FILE'}: {file}",
            hint="Use a PEM file with the certificate of the CA that signed the server's.",
        ) from error


def _of_environment(parts: SplitResult, environment: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the variable that applies to a URL, and its proxy unless the host is excepted."""
    lower = f"{parts.scheme}_proxy"
    variable = lower if lower in environment else lower.upper()
    if variable == "HTTP_PROXY" and "REQUEST_METHOD" in environment:
        return variable, None  # under CGI, a client's header sets it
    excepted = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    host = (parts.hostname or "").rstrip(".").lower()
    port = parts.port or _PORTS.get(parts.scheme, 0)
    entries = re.split(r"[\s,]+", excepted.lower())
    if is_loopback(host) or any(_excepts(entry, host, port) for entry in entries if entry):
        return variable, None
    return variable, environment.get(variable)


def _excepts(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY matches: `*`, a network, or a name or address, maybe with a port."""
    if entry == "*":
        return True
    if "/" in entry:
        with suppress(ValueError):
            return ip_address(host) in ip_network(entry, strict=False)
        return False
    named = re.fullmatch(r"\[(.+)\](?::(\d+))?|([^:]+):(\d+)|(.+)", entry)
    assert named
    name = (named[1] or named[3] or named[5]).rstrip(".").removeprefix("*")
    only = named[2] or named[4]
    if only and int(only) != port:
        return False
    with suppress(ValueError):
        return ip_address(name) == ip_address(host)
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")
