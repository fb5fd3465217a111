"""Finds out whether an address means the machine that uses it, so that a pod cannot use it. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

_NAMES = {
    "localhost",
    "localhost.localdomain",
    "localhost4",
    "localhost6",
    "ip6-localhost",
    "ip6-loopback",
}
# Names that container engines give to the machine that they run on.
_MACHINES = (".docker.internal", ".containers.internal", ".for.mac.localhost", ".for.win.localhost")


def is_this_machine(url: str) -> bool:
    """Return whether a URL's host is loopback, link-local or unspecified, or a name of this machine.

    In a pod, such a host is the pod itself, or unknown.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    address = _address(host)
    if address is None:
        return host in _NAMES or host.endswith((".localhost", *_MACHINES))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    address = mapped or address
    return address.is_loopback or address.is_link_local or address.is_unspecified


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address that a host is, also in the short forms of the C library, such as 127.1."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        *high, low = [_number(part) for part in host.split(".")]
        value = low + sum(part << 8 * (3 - place) for place, part in enumerate(high))
        return IPv4Address(value) if len(high) < 4 else None
    except ValueError:  # a name, or too large
        return None


def _number(text: str) -> int:
    """Return a decimal, octal (leading 0) or hexadecimal number. Raises ValueError."""
    octal = len(text) > 1 and text.startswith("0") and text.isdigit()
    return int(text, 8 if octal else 0)
