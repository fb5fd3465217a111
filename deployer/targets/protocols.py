"""What every target is: three small protocols, and one of each makes a target.

`Services` is what is wanted and observed, `Journal` what was done and by whom, `Reach` how to get at what
runs. `deployer.targets.memory` implements them in memory, and tests/contract/test_target.py holds every
target to them. Every method may raise TargetError.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from deployer.bundle import Bundle
from deployer.errors import KdeployError
from deployer.findings import Finding
from deployer.journal import Entry, JournalEvent
from deployer.observed import Capabilities, Document, Live, Observed, Reference

if TYPE_CHECKING:
    import socket


class Via(enum.Enum):
    """A way to a service: through the ingress, or to a server of one of its releases."""

    INGRESS = "ingress"
    DIRECT = "direct"
    MANAGEMENT = "management"
    METRICS = "metrics"


class Tunnel(Protocol):
    """A way to a server that has no address here. Safe to share by threads."""

    @property
    def pod(self) -> tuple[str, str, int]:
        """The namespace and the name of the pod that it leads to, and the port."""

    @property
    def fault(self) -> KdeployError | None:
        """Why a connection that was opened came to nothing, where it did."""

    def open(self) -> socket.socket:
        """Open one more connection. Raises TargetError."""


class Endpoint(Struct, frozen=True):
    """Where a request goes: a base URL, the Host header if the ingress wants one, a way there."""

    url: str
    host: str | None = None
    tunnel: Tunnel | None = None


Watch = Generator[Observed, None, None]  # closing it ends the watch


class Services(Protocol):
    """What is wanted of services, and what is observed of them."""

    @property
    def namespace(self) -> str:
        """The namespace that references without one are in."""

    def capabilities(self) -> Capabilities:
        """Find out what the target can do. Changes nothing."""

    def examine(self) -> Sequence[Finding]:
        """Find out whether the target itself is fit to serve releases. Changes nothing."""

    def check(self, bundle: Bundle, *, wait: bool = True) -> Sequence[Finding]:
        """Find out what stands in the way of a bundle. Changes nothing.

        `wait`: whether its rollout is to be watched, too.
        """

    def role(self, bundle: Bundle) -> list[Document]:
        """Return the account and the permissions that rolling a bundle out needs. Raises ConfigError."""

    def preview(self, bundle: Bundle) -> list[tuple[Document | None, Document]]:
        """Have the target try each document: return it as it is live, None if new, and as applying leaves it.

        Changes nothing. Raises ConflictError, or RolloutFailedError where the target refuses a document.
        """

    def serves(self, bundle: Bundle, live: Live) -> bool:
        """Return whether a live service is Ready with just this bundle: applying it changes nothing."""

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        """Make a bundle the wanted state, with an entry of the journal, and return the entry's number.

        Idempotent. Raises ConflictError, with nothing changed, where somebody else is applying, or where the
        newest entry has another number than `expect`.
        """

    def get(self, reference: Reference) -> Live | None:
        """Return the service as it is, or None where there is none."""

    def inspect(self, reference: Reference) -> Live | None:
        """Return the service as it is, with all that tells why it is not ready; None where there is none."""

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        """Yield what is observed now and at every change; end after `timeout` seconds.

        Raises NotFoundError where there is no such service, or none any more. `stable` is the release that is
        to get the rest of the requests, where it is known.
        """

    def list_all(self, namespace: str | None = None) -> list[Observed]:
        """Return what is observed of the services of one namespace, or of all."""

    def delete(self, reference: Reference) -> tuple[str, ...] | None:
        """Remove the service and what was made for it. None where there was none.

        Returns what is still terminating and holds its resources.
        """

    def releases_in_use(self) -> frozenset[str]:
        """Return `NAME/ID` of every release that is served, wanted, in the journal or in a storage URI."""


class Journal(Protocol):
    """What was rolled out, by whom, and what came of it. `Services.apply` begins an entry."""

    def entries(self, reference: Reference) -> list[Entry]:
        """Return the entries of a service, the oldest first."""

    def note(self, reference: Reference, number: int, event: JournalEvent) -> None:
        """Add an event to an entry, from whatever process; the target fills in the time.

        An entry that is there no more is none.
        """


class Reach(Protocol):
    """How to get at what runs."""

    def endpoint(
        self, reference: Reference, via: Via = Via.INGRESS, *, release: str | None = None
    ) -> Endpoint:
        """Return a way to a service, or to one of its releases whatever share of the requests it gets.

        Raises NotFoundError for a service or a release that is not there, TargetError where nothing runs yet,
        and ConfigError for a way that this target does not have.
        """

    def logs(self, reference: Reference, *, follow: bool = False, previous: bool = False) -> Iterator[str]:
        """Yield the log lines of what runs and of what fails to.

        With `follow` they go on as they come, until the service is deleted; `previous` are those before.
        """


class Target(Struct, frozen=True):
    """Where releases are served."""

    services: Services
    journal: Journal
    reach: Reach
