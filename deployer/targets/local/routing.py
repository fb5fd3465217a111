"""Which requests go to which revision: by Host header to a service, by percent within it.

The split is a smooth weighted round robin, which is periodic: of any 100 requests in a row exactly
as many go to a revision as its percent says.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from deployer.observed import Reference
from deployer.targets.local.revisions import hosts


class Upstream(Struct, eq=False):
    """One revision's TorchServe as the ingress sees it: its port, and whether it is ready, or why not."""

    revision: str
    port: int = 0
    max_request_size: int | None = None  # bytes of a body; None where it is not known
    ready: bool = False
    reason: str = "TorchServe is being started"


class Route:
    """The split of one service's requests."""

    def __init__(self, lines: Iterable[tuple[Upstream, int]], reason: str = "") -> None:
        self.lines = tuple((upstream, percent) for upstream, percent in lines if percent)
        self.reason = reason
        self._credits = [0] * len(self.lines)

    def pick(self) -> Upstream | None:
        """Pick the revision for the next request; None where no release serves yet."""
        if not self.lines:
            return None
        for index, (_, percent) in enumerate(self.lines):
            self._credits[index] += percent
        chosen = max(range(len(self.lines)), key=self._credits.__getitem__)
        self._credits[chosen] -= sum(percent for _, percent in self.lines)
        return self.lines[chosen][0]


class Routes:
    """Every service's route, by Host header."""

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}

    def set(self, reference: Reference, route: Route) -> None:
        """Switch a service to another split, between two requests."""
        for host in hosts(reference):
            self._routes[host] = route

    def remove(self, reference: Reference) -> None:
        """Stop answering for a service."""
        for host in hosts(reference):
            self._routes.pop(host, None)

    def find(self, host: str) -> Route | None:
        """Return the route that a Host header names, its port and case not minded."""
        name, colon, port = host.rpartition(":")
        bare = name if colon and port.isdigit() else host
        return self._routes.get(bare.lower().rstrip("."))

    def names(self) -> list[str]:
        """Return every Host that is answered."""
        return sorted(self._routes)
