"""The local target, as a command sees it: a client of the supervisor, which it starts when needed."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from deployer.errors import NotFoundError, TargetError
from deployer.inuse import releases_named
from deployer.journal import Entry, Provenance
from deployer.managed_fields import agrees
from deployer.observed import Capabilities, Document, Live, Observed, Phase, Reference
from deployer.release import Traffic
from deployer.targets.local import daemon
from deployer.targets.local.connection import NotRunningError, ask, lines
from deployer.targets.local.logs import read_logs, read_previous, revisions_of_interest
from deployer.targets.local.protocol import Info, RevisionInfo, ServiceInfo
from deployer.targets.local.revisions import read_documents
from deployer.targets.local.state import State, explained
from deployer.targets.local.status import build_document, observe
from deployer.targets.protocols import Endpoint

_DOWN = "the supervisor is not running; `kdeploy local start` starts it, and what it served"


class OneNode:
    """A one-node KServe on this machine. Implements deployer.target.Target."""

    def __init__(self, *, state: Path, namespace: str, ingress_host: str, ingress_port: int) -> None:
        self._state = State(state)
        self._namespace = namespace
        self._ingress = (ingress_host, ingress_port)
        self._entries: dict[Reference, int] = {}  # the history's numbers of what was applied here

    @property
    def namespace(self) -> str:
        """The namespace that references without one are in."""
        return self._namespace

    def capabilities(self) -> Capabilities:
        """Return what this target can do: revisions and splits as KServe in Knative mode."""
        return Capabilities(deployment_mode="Knative", canary=True, local_storage_only=True)

    def start(self) -> Info:
        """Start the supervisor and what was wanted, unless it runs; its ingress moves if the config did.

        Raises TargetError, for one where the ingress's port is taken.
        """
        host, port = self._ingress
        info = daemon.start(self._state, host, port)
        if _listens(info, host, port):
            return info
        return msgspec.convert(self._ask("PUT", "/ingress", {"host": host, "port": port}), Info)

    def stop(self) -> bool:
        """Stop the supervisor and everything it has started, or left behind; False if nothing ran."""
        return daemon.stop(self._state)

    def info(self) -> Info:
        """Return what runs and where; with no pid where no supervisor is running."""
        return daemon.read_info(self._state) or Info(state=str(self._state.root.parent))

    def supervisor_log(self) -> Iterator[str]:
        """Yield the lines of the supervisor's own log."""
        with explained(self._state.supervisor_log, "the supervisor's log cannot be read"):
            if self._state.supervisor_log.is_file():
                with self._state.supervisor_log.open(encoding="utf-8", errors="replace") as log:
                    yield from (line.rstrip("\n") for line in log)

    def check(self, documents: Sequence[Document], *, wait: bool = True) -> builtins.list[str]:  # noqa: ARG002
        """Refuse documents that cannot be served here. Raises TargetError."""
        read_documents(documents, self._namespace)
        return []

    def serves(self, documents: Sequence[Document], live: Live) -> bool:
        """Return whether a live service is Ready with just these documents."""
        return live.status.phase is Phase.READY and agrees(live.document, _wanted(documents))

    def preview(self, documents: Sequence[Document]) -> builtins.list[tuple[Document | None, Document]]:
        """Return each document as it was applied last, None where it was not, and as it would be."""
        record = self._state.read_record(_reference(_wanted(documents)))
        held = {"InferenceService": record.service, "ServingRuntime": record.runtime} if record else {}
        return [(held.get(document["kind"]), document) for document in documents]

    def apply(
        self,
        documents: Sequence[Document],
        provenance: Provenance | None = None,
        traffic: Traffic | None = None,
    ) -> Reference:
        """Make the documents the wanted state; starts the supervisor if need be. Raises TargetError."""
        body = {
            "documents": list(documents),
            "namespace": self._namespace,
            "stable": traffic.stable if traffic else None,
            "provenance": msgspec.to_builtins(provenance or Provenance()),
        }
        self.start()
        try:
            answer = self._ask("PUT", "/services", body)
        except NotRunningError:  # killed in between; applying is idempotent
            self.start()
            answer = self._ask("PUT", "/services", body)
        reference = Reference(answer["namespace"], answer["name"])
        self._entries[reference] = answer["number"]
        return reference

    def history(self, reference: Reference) -> builtins.list[Entry]:
        """Return what was applied to a service, the oldest first; no supervisor has to run."""
        record = self._state.read_record(reference)
        return list(record.history) if record else []

    def note_outcome(self, reference: Reference, outcome: str, number: int | None = None) -> None:
        """Note the outcome of an entry of the history: by default of the one that was applied here last."""
        number = number or self._entries.get(reference)
        if number:
            self._ask("PUT", _path(reference) + "/outcome", {"number": number, "outcome": outcome})

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Iterator[Observed]:
        """Yield the status now and at every change; end after `timeout` seconds, or when deleted.

        Raises NotFoundError where there is no such service, TargetError when the supervisor ends. With
        no supervisor running there is one status, which says so, and then that error.
        """
        if daemon.read_info(self._state) is None:
            yield self._existing(reference).status
            raise NotRunningError(_DOWN)
        for document in lines(self._state, _path(reference) + "/watch", timeout):
            if document is None:
                return
            yield observe(document, stable=stable)

    def get(self, reference: Reference) -> Live | None:
        """Return the service as it is, or None where there is none."""
        try:
            found: Document = self._ask("GET", _path(reference))
        except NotFoundError:
            return None
        except NotRunningError:
            record = self._state.read_record(reference)
            if record is None:
                return None
            found = build_document(record, {}, record.created, down=_DOWN)
        return Live(found, observe(found))

    def inspect(self, reference: Reference) -> Live | None:
        """Return the service as it is: the supervisor knows why it is not ready."""
        return self.get(reference)

    def holding(self, reference: Reference) -> builtins.list[str]:
        """Return nothing: a deleted service's TorchServes have ended."""
        del reference
        return []

    def list(self, namespace: str | None = None) -> builtins.list[Observed]:
        """Return the state of the services of one namespace, or of all."""
        try:
            found: builtins.list[Document] = self._ask(
                "GET", "/services" + (f"?namespace={namespace}" if namespace else "")
            )
        except NotRunningError:
            found = [
                build_document(record, {}, record.created, down=_DOWN)
                for reference, record in self._state.read_records().items()
                if namespace in (None, reference.namespace)
            ]
        return [observe(document) for document in found]

    def delete(self, reference: Reference) -> bool:
        """Remove the service and end what runs for it. False where there was none."""
        if self._state.read_record(reference) is None:
            return False
        self.start()
        return bool(self._ask("DELETE", _path(reference)))

    def logs(self, reference: Reference, *, follow: bool = False, previous: bool = False) -> Iterator[str]:
        """Yield the log lines of the revisions that serve and of the newest. Raises NotFoundError."""
        self._existing(reference)

        def find() -> builtins.list[tuple[str, Path]]:
            record = self._state.read_record(reference)
            names = revisions_of_interest(record) if record else []
            return [(name, self._state.log_path(reference, name)) for name in names]

        return read_previous(find()) if previous else read_logs(find, follow=follow)

    def ingress(self, reference: Reference) -> Endpoint:
        """Return the way in through the ingress. Raises NotFoundError or TargetError."""
        info = self._running()
        return Endpoint(url=info.ingress or "", host=_service(info, reference).host)

    def direct(self, reference: Reference) -> Endpoint:
        """Return the way to the TorchServe that serves. Raises NotFoundError or TargetError."""
        return Endpoint(url=_serving(self._running(), reference).inference or "")

    def management(self, reference: Reference) -> Endpoint:
        """Return the management API of the TorchServe that serves. Raises NotFoundError or TargetError."""
        return Endpoint(url=_serving(self._running(), reference).management or "")

    def releases_in_use(self) -> frozenset[str]:
        """Return `NAME/ID` of every release that is served, wanted, one step back or in a history."""
        try:
            list(self._state.services.iterdir())  # a folder that may not be read must not count as empty
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            what = f"the supervisor's records cannot be listed: {error.strerror}"
            raise TargetError(what, where=str(self._state.services)) from error
        found: set[str] = set()
        for reference, record in self._state.read_records().items():
            ids = record.in_use | {entry.release for entry in record.history if entry.release}
            found |= {f"{reference.name}/{release}" for release in ids}
            found.update(releases_named([record.service, msgspec.to_builtins(record.history)]))
        return frozenset(found)

    def _ask(self, method: str, url: str, body: object = None) -> Any:
        return ask(self._state, method, url, body)

    def _existing(self, reference: Reference) -> Live:
        live = self.get(reference)
        if live is None:
            raise NotFoundError(f"service {reference} not found", hint="`kdeploy list` shows what exists")
        return live

    def _running(self) -> Info:
        info = daemon.read_info(self._state)
        if info is None:
            raise NotRunningError("the supervisor is not running", hint="`kdeploy local start` starts it")
        return info


def _wanted(documents: Sequence[Document]) -> Document:
    return next(document for document in documents if document["kind"] == "InferenceService")


def _reference(service: Document) -> Reference:
    return Reference(service["metadata"]["namespace"], service["metadata"]["name"])


def _path(reference: Reference) -> str:
    return f"/services/{reference.namespace}/{reference.name}"


def _listens(info: Info, host: str, port: int) -> bool:
    shown = f"[{host}]" if ":" in host else host
    address, _, actual = (info.ingress or "").removeprefix("http://").rpartition(":")
    return address == shown and (not port or actual == str(port))


def _service(info: Info, reference: Reference) -> ServiceInfo:
    for service in info.services:
        if (service.namespace, service.name) == (reference.namespace, reference.name):
            return service
    raise NotFoundError(f"there is no service {reference}", hint="`kdeploy list` shows what there is")


def _serving(info: Info, reference: Reference) -> RevisionInfo:
    """Return the revision that gets the most requests."""
    revisions = [r for r in _service(info, reference).revisions if r.percent and r.inference]
    if not revisions:
        raise TargetError(f"no release of {reference} serves yet", hint="`kdeploy status` says why")
    return max(revisions, key=lambda revision: revision.percent)
