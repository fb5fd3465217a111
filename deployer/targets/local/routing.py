"""Routes requests by Host header to a service, and by percentage to its revisions.

The algorithm is smooth weighted round robin: of 100 consecutive requests, a revision gets exactly its
percentage.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from msgspec import Struct

from deployer.observed import Reference
from deployer.targets.local.revisions import hosts


class Upstream(Struct, eq=False):
    """The TorchServe of one revision: its port, and whether it is ready, or why not."""

    revision: str
    port: int = 0
    max_request_size: int | None = None  # bytes of a body; None if unknown
    ready: bool = False
    reason: str = "TorchServe is starting"


class Route:
    """The traffic of one service."""

    def __init__(self, lines: Iterable[tuple[Upstream, int]], reason: str = "") -> None:
        self.lines = tuple((upstream, percent) for upstream, percent in lines if percent)
        self.reason = reason
        self._credits = [0] * len(self.lines)

    def pick(self) -> Upstream | None:
        """Pick the revision for the next request; None if no revision gets traffic yet."""
        if not self.lines:
            return None
        for index, (_, percent) in enumerate(self.lines):
            self._credits[index] += percent
        chosen = max(range(len(self.lines)), key=self._credits.__getitem__)
        self._credits[chosen] -= sum(percent for _, percent in self.lines)
        return self.lines[chosen][0]


class Routes:
    """The routes of all services, by Host header."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}

    def set(self, reference: Reference, route: Route) -> None:
        """Set the route of a service. The next request uses it."""
        for host in hosts(reference):
            self._routes[host] = route

    def remove(self, reference: Reference) -> None:
        """Remove the route of a service."""
        for host in hosts(reference):
            self._routes.pop(host, None)

    def find(self, host: str) -> Route | None:
        """Return the route for a Host header, ignoring its port and its case.

        `localhost` and IP addresses lead to the only service. Other unknown names do not, so that a web page
        whose name resolves to this machine cannot send requests to it.
        """
        name, colon, port = host.rpartition(":")
        bare = (name if colon and port.isdigit() else host).lower().rstrip(".")
        return self._routes.get(bare) or (self.only() if _is_this_machine(bare) else None)

    def only(self) -> Route | None:
        """Return the route of the only service; None if there is none, or more than one."""
        routes = set(self._routes.values())
        return routes.pop() if len(routes) == 1 else None

    def names(self) -> list[str]:
        """Return all Hosts."""
        return sorted(self._routes)


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False
