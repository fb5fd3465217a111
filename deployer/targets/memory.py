"""A target in memory that behaves like KServe in Knative mode, for tests of rollouts.

A release becomes ready after `lag` observations, unless it is in `broken`. The observed state is read from a
document, by the function that reads a cluster's.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct, structs

from deployer.bundle import Bundle
from deployer.errors import ConfigError, NotFoundError
from deployer.findings import Finding
from deployer.inuse import model_of
from deployer.journal import Entry, JournalEvent, Outcome, add_event, check_expected, write_time
from deployer.managed_fields import agrees
from deployer.observed import (
    Capabilities,
    Document,
    Live,
    Observed,
    Phase,
    Reference,
    Revision,
    read_observed,
)
from deployer.patience import Clock
from deployer.targets.log_lines import WHOLE, Part
from deployer.targets.protocols import Endpoint, Target, Via, Watch, not_found

INTERVAL = 1.0  # seconds between two observations of a watch


class Served(Struct, kw_only=True):
    """A service: its wanted bundle, its actual traffic, and its journal."""

    bundle: Bundle
    previous: str = ""
    stable: str = ""
    traffic: tuple[tuple[str, int], ...] = ()
    looks: int = 0
    entries: list[Entry] = []


class MemoryTarget:
    """Implements all three protocols. `broken` maps releases that fail to load to the message."""

    def __init__(self, *, namespace: str = "default", clock: Clock | None = None, lag: int = 0) -> None:
        self.namespace = namespace
        self.place = "memory"
        self.broken: dict[str, str] = {}
        self.lag = lag
        self.served: dict[Reference, Served] = {}
        self._clock = clock or Clock()

    @property
    def target(self) -> Target:
        """This object as a target."""
        return Target(services=self, journal=self, reach=self)

    def capabilities(self, *, look: bool = True) -> Capabilities:  # noqa: ARG002
        """Return the capabilities of KServe in Knative mode."""
        return Capabilities(deployment_mode="Knative", canary=True)

    def examine(self) -> list[Finding]:
        """Return no findings."""
        return []

    def check(self, bundle: Bundle, *, wait: bool = True) -> list[Finding]:  # noqa: ARG002
        """Return no findings."""
        return []

    def role(self, bundle: Bundle) -> list[Document]:
        """Raise ConfigError: only a cluster has accounts and permissions."""
        raise ConfigError("only a cluster has accounts", where=str(bundle.reference))

    def preview(self, bundle: Bundle) -> list[tuple[Document | None, Document]]:
        """Return each document as it was applied, or None, and as it would be applied."""
        served = self.served.get(bundle.reference)
        held = {one["kind"]: one for one in served.bundle.documents} if served else {}
        return [(held.get(one["kind"]), one) for one in bundle.documents]

    def serves(self, bundle: Bundle, live: Live) -> bool:
        """Return whether a live service is Ready with exactly this bundle."""
        return live.status.phase is Phase.READY and agrees(live.document, bundle.service)

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        """Make a bundle the wanted state."""
        reference, now = bundle.reference, write_time(self._clock.utc())
        served = self.served.get(reference)
        entries = served.entries if served else []
        check_expected(entries[-1] if entries else None, expect, str(reference))
        number = entries[-1].number + 1 if entries else 1
        applied = JournalEvent(outcome=Outcome.APPLIED, at=now, who=entry.who)
        entry = add_event(structs.replace(entry, number=number, when=now), applied)
        kept = bundle.without_secret()
        if served is None:
            self.served[reference] = Served(bundle=kept, entries=[entry])
        else:
            served.bundle, served.looks, served.entries = kept, 0, [*entries, entry]
        return number

    def get(self, reference: Reference) -> Live | None:
        """Return the service, or None if it does not exist."""
        served = self.served.get(reference)
        if served is None:
            return None
        self._reconcile(served)
        return self._live(served)

    def inspect(self, reference: Reference) -> Live | None:
        """Return the service, or None if it does not exist."""
        return self.get(reference)

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        """Yield the observed state now and at every change, for `timeout` seconds. Raises NotFoundError."""
        end, last = self._clock.now() + timeout, None
        while True:
            served = self._find(reference)
            self._reconcile(served)
            observed = self._live(served, stable).status
            if observed != last:
                last = observed
                yield observed
            if self._clock.now() >= end:
                return
            self._clock.sleep(INTERVAL)

    def list_all(self, namespace: str | None = None) -> list[Observed]:
        """Return the observed state of the services of one namespace, or of all."""
        found = [live for reference in self.served if (live := self.get(reference))]
        return [one.status for one in found if namespace in (None, one.status.reference.namespace)]

    def delete(self, reference: Reference) -> tuple[str, ...] | None:
        """Delete a service."""
        return () if self.served.pop(reference, None) else None

    def releases_in_use(self) -> frozenset[str]:
        """Return `NAME/ID` of every release that is wanted or in a journal."""
        return frozenset(
            f"{reference.name}/{release}"
            for reference, served in self.served.items()
            for release in (served.bundle.release, *(entry.release for entry in served.entries))
        )

    def entries(self, reference: Reference) -> list[Entry]:
        """Return the entries of a service, oldest first."""
        served = self.served.get(reference)
        return list(served.entries) if served else []

    def note(self, reference: Reference, number: int, event: JournalEvent) -> None:
        """Add an event to an entry; do nothing if the service was deleted."""
        if served := self.served.get(reference):
            event = structs.replace(event, at=write_time(self._clock.utc()))
            served.entries = [
                add_event(one, event) if one.number == number else one for one in served.entries
            ]

    def endpoint(
        self, reference: Reference, via: Via = Via.INGRESS, *, release: str | None = None
    ) -> Endpoint:
        """Return an address at which nothing listens."""
        served = self._find(reference)
        if release and release not in (served.bundle.release, *(name for name, _ in served.traffic)):
            raise NotFoundError(
                f"release {release} of {reference} not found",
                hint="Run `kdeploy status` to list the running releases.",
            )
        path = f"/{release}" if release else ""
        return Endpoint(
            f"http://{via.value}.invalid{path}",
            host=f"{reference.name}.{reference.namespace}",
            model=model_of(served.bundle.service),
        )

    def logs(
        self,
        reference: Reference,
        *,
        follow: bool = False,  # noqa: ARG002
        previous: bool = False,  # noqa: ARG002
        part: Part = WHOLE,  # noqa: ARG002
    ) -> Iterator[str]:
        """Yield nothing: no server is running."""
        self._find(reference)
        return iter(())

    def _find(self, reference: Reference) -> Served:
        if reference not in self.served:
            raise not_found(reference, self.place)
        return self.served[reference]

    def _reconcile(self, served: Served) -> None:
        """Make the wanted traffic the actual traffic when the release has been observed `lag` times."""
        bundle = served.bundle
        served.looks += 1
        if bundle.release in self.broken or served.looks <= self.lag:
            return
        if bundle.percent >= 100 or served.stable in ("", bundle.release):
            served.stable, served.traffic = bundle.release, ((bundle.release, 100),)
        else:
            split = ((bundle.release, bundle.percent), (served.stable, 100 - bundle.percent))
            served.traffic = tuple(line for line in split if line[1])
        served.previous = bundle.release

    def _live(self, served: Served, stable: str | None = None) -> Live:
        bundle, broken = served.bundle, self.broken.get(served.bundle.release)
        arrived = served.previous == bundle.release and served.looks > self.lag and not broken
        predictor = {
            "latestCreatedRevision": bundle.release,
            "latestReadyRevision": served.previous,
            "latestRolledoutRevision": served.stable,
            "traffic": [{"revisionName": name, "percent": percent} for name, percent in served.traffic],
        }
        status: Document = {
            "conditions": [{"type": "Ready", "status": "True" if arrived else "Unknown"}],
            "components": {"predictor": predictor},
        }
        if broken:
            failure = {"reason": "ModelLoadFailed", "message": broken, "modelRevisionName": bundle.release}
            status["modelStatus"] = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": failure}
        document = {**bundle.service, "status": status}
        releases = {name: name for name in (bundle.release, served.previous, served.stable) if name}
        running = {name for name, _ in served.traffic} | ({bundle.release} if not broken else set())

        observed = structs.replace(
            read_observed(document, releases, stable=stable),
            revisions=tuple(
                Revision(name, name, ready=int(name != bundle.release or arrived), pods=1)
                for name in sorted(running)
            ),
            replicas=(len(served.traffic), len(running)),
        )
        return Live(document, observed)
