"""The three protocols of a target: `Services`, `Journal` and `Reach`.

`Services` has the wanted and the observed state, `Journal` the history of rollouts, `Reach` the endpoints and
logs of running releases. tests/contract/test_target.py runs against every target, including the one in
`deployer.targets.memory`. Every method can raise TargetError.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from deployer.bundle import Bundle
from deployer.errors import KdeployError, NotFoundError
from deployer.findings import Finding
from deployer.journal import Entry, JournalEvent
from deployer.observed import Capabilities, Document, Live, Observed, Reference
from deployer.targets.log_lines import WHOLE, Part

if TYPE_CHECKING:
    import socket


class Via(enum.Enum):
    """A route to a service: the ingress, or a port of a server of one of its releases."""

    INGRESS = "ingress"
    DIRECT = "direct"
    MANAGEMENT = "management"
    METRICS = "metrics"
    GRPC = "grpc"  # the ingress of a cluster, or the port of a server on this machine


class Tunnel(Protocol):
    """Connections to a server that this machine cannot address directly. Thread-safe."""

    @property
    def pod(self) -> tuple[str, str, int]:
        """The namespace and the name of the pod that it leads to, and the port."""

    @property
    def fault(self) -> KdeployError | None:
        """The error of a connection that failed after it was opened, if there is one."""

    def open(self) -> socket.socket:
        """Open a connection. Raises TargetError."""


class Endpoint(Struct, frozen=True):
    """The destination of a request: a base URL, the Host header if the ingress needs one, and a tunnel.

    `server_name` is the name that TLS asks for and verifies. Default: the host of the URL, or that of the
    Host header if the URL has an IP address. `model` is the name of the model in paths. Default: the name of
    the service.
    """

    url: str
    host: str | None = None
    tunnel: Tunnel | None = None
    server_name: str | None = None
    model: str | None = None


Watch = Generator[Observed, None, None]  # closing it ends the watch


class Services(Protocol):
    """The wanted and the observed state of services."""

    @property
    def namespace(self) -> str:
        """The namespace of references that name none."""

    @property
    def place(self) -> str:
        """Where the services are, for messages: the cluster, or a folder of this machine."""

    def capabilities(self, *, look: bool = True) -> Capabilities:
        """Read the target's capabilities. Changes nothing.

        Without `look`, read only what no document can be rendered without.
        """

    def examine(self) -> Sequence[Finding]:
        """Check whether the target can serve releases. Changes nothing."""

    def check(self, bundle: Bundle, *, wait: bool = True) -> Sequence[Finding]:
        """Check whether the target can serve a bundle. Changes nothing.

        With `wait`, also check what watching its rollout needs.
        """

    def role(self, bundle: Bundle) -> list[Document]:
        """Return the account and the permissions that a rollout of the bundle needs. Raises ConfigError."""

    def preview(self, bundle: Bundle) -> list[tuple[Document | None, Document]]:
        """Return each document as it is live, or None, and as it would be after applying it.

        Changes nothing. Raises ConflictError, or RolloutFailedError if the target rejects a document.
        """

    def serves(self, bundle: Bundle, live: Live) -> bool:
        """Return whether a live service is Ready with exactly this bundle: applying it changes nothing."""

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        """Make a bundle the wanted state, add a journal entry, and return its number.

        Idempotent. Raises ConflictError, with nothing changed, if another process is applying, or if the
        number of the newest entry is not `expect`.
        """

    def get(self, reference: Reference) -> Live | None:
        """Return the service, or None if it does not exist."""

    def inspect(self, reference: Reference) -> Live | None:
        """Return the service with every detail about why it is not ready; None if it does not exist."""

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        """Yield the observed state now and at every change; end after `timeout` seconds.

        Raises NotFoundError if the service does not exist or is deleted. `stable` is the release that gets
        the rest of the traffic, if known.
        """

    def list_all(self, namespace: str | None = None) -> list[Observed]:
        """Return the observed state of the services of one namespace, or of all."""

    def delete(self, reference: Reference) -> tuple[str, ...] | None:
        """Delete the service and the documents applied for it.

        Returns what is still terminating and holds resources, or None if there was no service.
        """

    def releases_in_use(self) -> frozenset[str]:
        """Return `NAME/ID` of every release in the actual or wanted state, a journal or a storage URI."""


class Journal(Protocol):
    """The history of rollouts: who applied which release, and the outcome. `Services.apply` adds an entry."""

    def entries(self, reference: Reference) -> list[Entry]:
        """Return the entries of a service, oldest first."""

    def note(self, reference: Reference, number: int, event: JournalEvent) -> None:
        """Add an event to an entry, from any process; the target sets the time.

        Does nothing if the entry no longer exists.
        """


class Reach(Protocol):
    """The endpoints and logs of running releases."""

    def endpoint(
        self, reference: Reference, via: Via = Via.INGRESS, *, release: str | None = None
    ) -> Endpoint:
        """Return the endpoint of a service, or of one of its releases independent of its traffic.

        Raises NotFoundError for an unknown service or release, TargetError if none of its servers is running
        yet, and ConfigError for a `via` that this target does not support.
        """

    def logs(
        self, reference: Reference, *, follow: bool = False, previous: bool = False, part: Part = WHOLE
    ) -> Iterator[str]:
        """Yield the log lines of running and failed servers, without the requests of readiness probes.

        `part` applies to each log as it is now. With `follow`, also yield new lines until the service is
        deleted; with `previous`, yield the lines of the previous instances.
        """


def not_found(reference: Reference, place: str) -> NotFoundError:
    """Return the error for a service that does not exist in a place."""
    return NotFoundError(
        f"service {reference} not found",
        where=place,
        hint="Run `kdeploy list` to list the services, or `kdeploy rollout` to create this one.",
    )


class Target(Struct, frozen=True):
    """A cluster, or this machine: where releases run."""

    services: Services
    journal: Journal
    reach: Reach
