"""The local target: a client of the supervisor, which it starts when needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from deployer.bundle import Bundle
from deployer.errors import ConfigError, NotFoundError, TargetError
from deployer.findings import Finding, failure
from deployer.inuse import model_of, releases_named
from deployer.journal import Entry, JournalEvent
from deployer.managed_fields import agrees
from deployer.observed import GPU, Capabilities, Document, Live, Observed, Phase, Reference
from deployer.targets.local import lifecycle
from deployer.targets.local.connection import NotRunningError, call, stream_lines
from deployer.targets.local.dev_endpoint import find_endpoint
from deployer.targets.local.launch import unset_variable
from deployer.targets.local.logs import read_logs, read_previous
from deployer.targets.local.protocol import Address, Info, Noted, RevisionInfo, ServiceInfo, Wanted
from deployer.targets.local.revisions import Record, check_bundle, referenced_variables
from deployer.targets.local.state import State, explained
from deployer.targets.local.status import build_document, observe
from deployer.targets.log_lines import WHOLE, Part
from deployer.targets.protocols import Endpoint, Target, Via, Watch, not_found

_DOWN = "the supervisor is not running"


class OneNode:
    """A one-node KServe on this machine: its supervisor and its target."""

    def __init__(
        self,
        *,
        state: Path,
        namespace: str,
        ingress_host: str,
        ingress_port: int,
        torchserve_port: int | None = None,
        gpus: int = 0,
        packages: Sequence[str] = (),
    ) -> None:
        self._state = State(state)
        self._address = Address(ingress_host, ingress_port, torchserve_port)
        self._folder, self._namespace, self._gpus, self._packages = state, namespace, gpus, packages

    @property
    def target(self) -> Target:
        """The node's target."""
        target = _Target(self, self._state, self._namespace)
        return Target(services=target, journal=target, reach=target)

    def start(self) -> Info:
        """Start the supervisor and its services unless it is running; move the ingress if its config changed.

        Raises TargetError, for example if the ingress's port is in use.
        """
        info = lifecycle.start(self._state, self._address)
        if _listens(info, self._address):
            return info
        answer = call(self._state, "PUT", "/ingress", self._address)
        return msgspec.convert(answer, Info)

    def stop(self) -> bool:
        """Stop the supervisor and every process that it started; return False if nothing was running."""
        return lifecycle.stop(self._state)

    def info(self) -> Info:
        """Return the state of the supervisor and its services; `pid` is None if it is not running."""
        return lifecycle.read_info(self._state) or Info(state=str(self._state.root.parent))

    def supervisor_log(self) -> Iterator[str]:
        """Yield the lines of the supervisor's log."""
        with explained(self._state.supervisor_log, "cannot read the supervisor's log"):
            if self._state.supervisor_log.is_file():
                with self._state.supervisor_log.open(encoding="utf-8", errors="replace") as log:
                    yield from (line.rstrip("\n") for line in log)

    def examine(self) -> list[Finding]:
        """Check whether this machine has what the target needs. Changes nothing."""
        from deployer.targets.local import doctor

        return doctor.checks(
            state=self._folder,
            ingress_host=self._address.host,
            ingress_port=self._address.port,
            torchserve_port=self._address.torchserve_port,
            gpus=self._gpus,
            packages=self._packages,
        )


class _Target:
    """Implements Services, Journal and Reach of deployer.targets.protocols."""

    def __init__(self, node: OneNode, state: State, namespace: str) -> None:
        self._node, self._state, self.namespace = node, state, namespace
        self.place = str(state.root.parent)

    def capabilities(self, *, look: bool = True) -> Capabilities:  # noqa: ARG002
        return Capabilities(deployment_mode="Knative", canary=True, local_storage_only=True)

    def examine(self) -> list[Finding]:
        return self._node.examine()

    def check(self, bundle: Bundle, *, wait: bool = True) -> list[Finding]:  # noqa: ARG002
        """Check that confidential variables are set, and for GPUs. Raises TargetError for another bundle."""
        from deployer.targets.local import doctor

        check_bundle(bundle)
        variables = referenced_variables(bundle.service["spec"]["predictor"])
        resources = bundle.service["spec"]["predictor"]["model"].get("resources", {})
        gpus = int(resources.get("limits", {}).get(GPU, 0))
        unset = [unset_variable(name, place) for name, place in variables.items() if name not in os.environ]
        return [
            *(failure("environment", one.what, one.where or "", one.hint or "") for one in unset),
            *(doctor.check_gpu(doctor.run_program, doctor.installed_version, gpus) if gpus else ()),
        ]

    def role(self, bundle: Bundle) -> list[Document]:
        """Raise ConfigError: only a cluster has accounts and permissions."""
        raise ConfigError(
            "only a cluster has accounts",
            where=str(bundle.reference),
            hint='Choose a target of kind = "kserve" with --target.',
        )

    def preview(self, bundle: Bundle) -> list[tuple[Document | None, Document]]:
        record = self._state.read_record(bundle.reference)
        held = {"InferenceService": record.service, "ServingRuntime": record.runtime} if record else {}
        return [(held.get(document["kind"]), document) for document in bundle.documents]

    def serves(self, bundle: Bundle, live: Live) -> bool:
        return live.status.phase is Phase.READY and agrees(live.document, bundle.service)

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        """Make a bundle the wanted state; start the supervisor if needed. Raises TargetError."""
        names = referenced_variables(bundle.service["spec"]["predictor"])
        variables = {name: os.environ[name] for name in names if name in os.environ}
        wanted = Wanted(bundle.without_secret(), entry, expect, variables)
        before = self.entries(bundle.reference)
        self._node.start()
        try:
            return int(call(self._state, "PUT", "/services", wanted))
        except NotRunningError:  # killed before it wrote the record, or after
            self._node.start()
            after = self.entries(bundle.reference)
            if after[-1:] not in ([], before[-1:]) and (after[-1].bundle, after[-1].who) == (
                entry.bundle,
                entry.who,
            ):
                return after[-1].number
            return int(call(self._state, "PUT", "/services", wanted))

    def get(self, reference: Reference) -> Live | None:
        try:
            return msgspec.convert(call(self._state, "GET", _path(reference)), Live)
        except NotFoundError:
            return None
        except NotRunningError:
            record = self._state.read_record(reference)
            return _down(record) if record else None

    def inspect(self, reference: Reference) -> Live | None:
        return self.get(reference)

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        """Yield the observed state now and at every change; end after `timeout` seconds.

        Raises NotFoundError if the service does not exist or is deleted, and TargetError when the supervisor
        ends. If no supervisor is running, yields one observation that says so, and then raises TargetError.
        """
        if lifecycle.read_info(self._state) is None:
            live = self.get(reference)
            if live is None:
                raise not_found(reference, self.place)
            yield live.status
            raise NotRunningError(_DOWN)
        query = f"?stable={stable}" if stable else ""
        for observed in stream_lines(self._state, f"{_path(reference)}/watch{query}", timeout):
            if observed is None:
                raise not_found(reference, self.place)
            yield msgspec.convert(observed, Observed)

    def list_all(self, namespace: str | None = None) -> list[Observed]:
        try:
            found = msgspec.convert(call(self._state, "GET", "/services"), list[Observed])
        except NotRunningError:
            found = [_down(record).status for record in self._state.read_records().values()]
        return [one for one in found if namespace in (None, one.reference.namespace)]

    def delete(self, reference: Reference) -> tuple[str, ...] | None:
        if self._state.read_record(reference) is None:
            return None
        self._node.start()
        return () if call(self._state, "DELETE", _path(reference)) else None

    def releases_in_use(self) -> frozenset[str]:
        found: set[str] = set()
        for reference, record in self._state.read_records().items():
            ids = record.in_use | {entry.release for entry in record.history if entry.release}
            found |= {f"{reference.name}/{release}" for release in ids}
            found.update(releases_named([record.service, msgspec.to_builtins(record.history)]))
        return frozenset(found)

    def entries(self, reference: Reference) -> list[Entry]:
        record = self._state.read_record(reference)
        return list(record.history) if record else []

    def note(self, reference: Reference, number: int, event: JournalEvent) -> None:
        try:
            call(self._state, "POST", _path(reference) + "/journal", Noted(number, event))
        except NotFoundError:
            return

    def endpoint(
        self, reference: Reference, via: Via = Via.INGRESS, *, release: str | None = None
    ) -> Endpoint:
        try:
            info = msgspec.convert(call(self._state, "GET", "/info"), Info)
        except NotRunningError:
            served = find_endpoint(self._state.root.parent, reference)
            if served is None or release or via not in (Via.INGRESS, Via.DIRECT):
                raise
            return served
        service = _find(info, reference, self.place)
        record = self._state.read_record(reference)
        model = model_of(record.service) if record else None
        if via is Via.INGRESS and release is None:
            return Endpoint(url=info.ingress or "", host=service.host, model=model)
        server = _server(service, reference, release)
        if via is Via.GRPC and server.grpc is None:
            hint = 'Set `protocol-version = "grpc-v2"` in `[serving]`, then run `kdeploy rollout`.'
            raise ConfigError("the release does not serve gRPC", where=str(reference), hint=hint)
        urls = {Via.MANAGEMENT: server.management, Via.METRICS: server.metrics, Via.GRPC: server.grpc}
        return Endpoint(url=urls.get(via, server.inference) or "", model=model)

    def logs(
        self, reference: Reference, *, follow: bool = False, previous: bool = False, part: Part = WHOLE
    ) -> Iterator[str]:
        if self._state.read_record(reference) is None:
            raise not_found(reference, self.place)

        def find() -> list[tuple[str, Path]]:
            record = self._state.read_record(reference)
            if not record:
                return []
            names = dict.fromkeys([*(line.revision for line in record.traffic), record.latest])
            return [(name, self._state.log_path(reference, name)) for name in names]

        return read_previous(find(), part) if previous else read_logs(find, follow=follow, part=part)


def _down(record: Record) -> Live:
    """Return the state of a service whose supervisor is not running."""
    document = build_document(record, {}, record.created, down=_DOWN)
    return Live(document, observe(record, document, {}))


def _path(reference: Reference) -> str:
    return f"/services/{reference.namespace}/{reference.name}"


def _listens(info: Info, address: Address) -> bool:
    shown = f"[{address.host}]" if ":" in address.host else address.host
    host, _, port = (info.ingress or "").removeprefix("http://").rpartition(":")
    fixed = f"http://{shown}:{address.torchserve_port}" if address.torchserve_port else None
    return host == shown and address.port in (0, int(port)) and info.torchserve == fixed


def _find(info: Info, reference: Reference, place: str) -> ServiceInfo:
    for service in info.services:
        if (service.namespace, service.name) == (reference.namespace, reference.name):
            return service
    raise not_found(reference, place)


def _server(service: ServiceInfo, reference: Reference, release: str | None) -> RevisionInfo:
    """Return the TorchServe of a release, or the one with the most traffic."""
    revisions = [r for r in service.revisions if not r.draining]
    if release and release not in {r.release for r in revisions}:
        raise NotFoundError(
            f"release {release} of {reference} not found",
            hint="Run `kdeploy status` to list the running releases.",
        )
    found = [r for r in revisions if r.inference and (r.release == release if release else r.percent)]
    if not found:
        what = f"release {release} of {reference}" if release else f"service {reference}"
        raise TargetError(f"{what} does not answer requests yet", hint="Run `kdeploy status` to see why.")
    return max(found, key=lambda r: (r.ready, r.percent))
