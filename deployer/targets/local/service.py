"""One service: reconciles its TorchServes with the wanted state when either changes.

`reconcile` never waits, so each request sees the old traffic or the new. TorchServes start and end in their
own tasks, which call it again.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from msgspec import structs

from deployer.errors import KdeployError
from deployer.journal import JournalEvent, write_time
from deployer.observed import Document, Observed, Reference
from deployer.patience import Clock
from deployer.targets.local.protocol import RevisionInfo, ServiceInfo
from deployer.targets.local.revisions import Record, commit_traffic, hosts, note_event, note_failure
from deployer.targets.local.routing import Route, Routes
from deployer.targets.local.state import State
from deployer.targets.local.status import Seen, build_document, observe
from deployer.targets.local.torchserve import Context, TorchServe


def now() -> str:
    """Return the time in Kubernetes' format."""
    return write_time(Clock().utc())


class Service:
    """An InferenceService, its TorchServes and its watchers."""

    def __init__(self, record: Record, state: State, routes: Routes, context: Context) -> None:
        self.record = record
        self.document: Document = {}
        self._seen: dict[str, Seen] = {}
        self._state = state
        self._routes = routes
        self._context = context
        self._running: dict[str, TorchServe] = {}
        self._draining: dict[TorchServe, asyncio.Task[None]] = {}
        self._watchers: set[asyncio.Event] = set()
        self._closed = self._deleted = False

    @property
    def reference(self) -> Reference:
        """The name of the service."""
        return self.record.reference

    def replace(self, record: Record, context: Context) -> None:
        """Make a record, which has been written, the wanted state; `context` is for new TorchServes."""
        dropped = {r.name for r in self.record.revisions} - {r.name for r in record.revisions}
        self.record, self._context = record, context
        for name in dropped:
            self._state.remove_logs(self.reference, name)
        self.reconcile()

    def note(self, number: int, event: JournalEvent) -> None:
        """Add an event to a journal entry."""
        self.record = note_event(self.record, number, structs.replace(event, at=now()))
        self._state.write_record(self.record)

    def reconcile(self) -> None:
        """Run one reconcile pass and notify the watchers."""
        if self._closed:
            return
        before = self.record
        for name, server in list(self._running.items()):
            if server.failure:
                self.record = note_failure(self.record, name, server.failure)
        for name in self.record.required:
            self._run(name)
        if not self.record.arrived:
            servers = [self._running.get(line.revision) for line in self.record.desired_traffic]
            if all(server and server.upstream.ready for server in servers):
                self.record = commit_traffic(self.record)
        if self.record != before:
            self._save()
        self._route()
        for name in set(self._running) - self.record.required:
            self._retire(name)
        self._publish()

    def observe(self, stable: str | None = None) -> Observed:
        """Return the observed state; `stable` is that of read_observed."""
        return observe(self.record, self.document, self._seen, stable=stable)

    async def watch(self, stable: str | None = None) -> AsyncIterator[Observed | None]:
        """Yield the observed state now and at every change; None when the service is deleted."""
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            last: Observed | None = None
            while not self._deleted:
                observed = self.observe(stable)
                if observed != last:
                    last = observed
                    yield observed
                    continue
                await event.wait()
                event.clear()
            yield None
        finally:
            self._watchers.discard(event)

    async def delete(self) -> None:
        """End every TorchServe of the service, and remove its logs. The caller removes its record first."""
        self._deleted = self._closed = True
        self._routes.remove(self.reference)
        self._wake()
        await self.close()
        for revision in self.record.revisions:
            self._state.remove_logs(self.reference, revision.name)

    async def close(self) -> None:
        """End every TorchServe of the service. The next supervisor starts them again."""
        self._closed = True
        servers = [*self._running.values(), *self._draining]
        await asyncio.gather(*(server.stop() for server in servers), *self._draining.values())

    def info(self) -> ServiceInfo:
        """Return the service's TorchServes, with their URLs."""
        percents = {line.revision: line.percent for line in self.record.traffic}
        revisions = [
            RevisionInfo(
                name=name,
                release=server.revision.release,
                percent=percents.get(name, 0),
                ready=server.upstream.ready,
                reason=server.upstream.reason,
                pid=server.pid,
                inference=server.url("inference"),
                management=server.url("management"),
                metrics=server.url("metrics"),
                grpc=server.url("grpc"),
                draining=server in self._draining,
            )
            for server in [*self._running.values(), *self._draining]
            for name in [server.revision.name]
        ]
        return ServiceInfo(
            namespace=self.reference.namespace,
            name=self.reference.name,
            host=hosts(self.reference)[0],
            revisions=tuple(revisions),
        )

    def _run(self, name: str) -> None:
        if name in self._running:
            return
        revision = self.record.revision(name)
        self._running[name] = TorchServe(
            revision,
            self._context,
            self._state.log_path(self.reference, name),
            proven=name in {self.record.ready, *(line.revision for line in self.record.traffic)},
            changed=self._reconcile_soon,
        )

    def _retire(self, name: str) -> None:
        server = self._running.pop(name)
        self._draining[server] = asyncio.create_task(self._drain(server))

    async def _drain(self, server: TorchServe) -> None:
        await server.drain()
        self._draining.pop(server, None)

    def _route(self) -> None:
        servers = [(self._running.get(line.revision), line.percent) for line in self.record.traffic]
        lines = tuple((server.upstream, percent) for server, percent in servers if server and percent)
        host = hosts(self.reference)[0]
        current = self._routes.find(host)
        if current is None or current.lines != lines:
            current = Route(lines)
            self._routes.set(self.reference, current)
        latest = self.record.revision(self.record.latest)
        server = self._running.get(latest.name)
        current.reason = latest.failure or (server.upstream.reason if server else "")

    def _publish(self) -> None:
        seen = {
            name: Seen(server.upstream.ready, server.upstream.reason)
            for name, server in self._running.items()
        }
        document = build_document(self.record, seen, now(), before=self.document)
        if (document, seen) != (self.document, self._seen):
            self.document, self._seen = document, seen
            self._wake()

    def _wake(self) -> None:
        for event in self._watchers:
            event.set()

    def _reconcile_soon(self) -> None:
        # Not immediately: a TorchServe calls this in the middle of its loop.
        asyncio.get_running_loop().call_soon(self.reconcile)

    def _save(self) -> None:
        try:
            self._state.write_record(self.record)
        except KdeployError as error:
            # The service keeps running, and its next change writes the record again.
            sys.stderr.write(f"{self.reference}: {error}\n")
