"""A cluster with KServe, as a command sees it. Implements deployer.target.Target."""

from __future__ import annotations

import builtins
import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import TracebackType

import msgspec

from deployer.config import KServeTarget, Store
from deployer.errors import ConfigError, KdeployError, NotFoundError, TargetError
from deployer.history import plan_entry, write_time
from deployer.ownership import agrees, leave_to_others
from deployer.target import (
    Capabilities,
    Document,
    Endpoint,
    Entry,
    Origin,
    Phase,
    Reference,
    Status,
    read_status,
)
from deployer.targets.kserve.api import Api
from deployer.targets.kserve.applying import (
    apply_document,
    await_end,
    find_document,
    is_applied,
    is_ending,
    outlive,
    own,
    owner_of,
)
from deployer.targets.kserve.capabilities import Discovery
from deployer.targets.kserve.checks import check, refuse
from deployer.targets.kserve.connection import Connection, connect
from deployer.targets.kserve.doctor import examine
from deployer.targets.kserve.helper_pod import HelperPod
from deployer.targets.kserve.history import History, Rollout
from deployer.targets.kserve.ingress import find_ingress
from deployer.targets.kserve.inuse import releases_in_use
from deployer.targets.kserve.judge import Judge
from deployer.targets.kserve.logs import follow_logs, last_lines, read_logs
from deployer.targets.kserve.permissions import check_permissions, needed_for_store, render_role, to_roll_out
from deployer.targets.kserve.refusals import RefusedError
from deployer.targets.kserve.resources import (
    INFERENCE_SERVICE,
    POD,
    REPLICA_SET,
    REVISION,
    resource_of,
)
from deployer.targets.kserve.rules import Finding, mode_of, service_of
from deployer.targets.kserve.serving import (
    SERVICE_LABEL,
    Children,
    assume_serving,
    count_replicas,
    describe_serving,
    is_standard,
)
from deployer.targets.kserve.surroundings import look
from deployer.targets.kserve.watching import Watching, selections

_SCALED = (("spec", "predictor", "minReplicas"), ("spec", "predictor", "maxReplicas"))


class Cluster:
    """One namespace of a cluster with KServe, in the name of the kubeconfig's user."""

    def __init__(
        self,
        config: KServeTarget,
        store: Store | None = None,
        *,
        force_conflicts: bool = False,
        dry_run: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._store = store or Store()
        self._force = force_conflicts
        self._dry_run = dry_run
        self._clock = clock
        self._connected: Connection | None = None
        self._entries: dict[Reference, int] = {}  # the history's numbers of what was applied here
        self._left: dict[Reference, Document] = {}  # the model status that the release before left

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connected:
            self._connected.close()

    @property
    def _connection(self) -> Connection:
        if self._connected is None:
            self._connected = connect(self._config.kubeconfig, self._config.context)
        return self._connected

    @property
    def api(self) -> Api:
        """The cluster's API."""
        return Api(self._connection)

    @cached_property
    def _discovery(self) -> Discovery:
        return Discovery(self.api)

    @property
    def namespace(self) -> str:
        """The namespace that references without one are in: the config's, or the context's."""
        return self._config.namespace or self._connection.namespace

    def capabilities(self) -> Capabilities:
        """Find out the deployment mode and whether canaries work. Changes nothing."""
        mode = self._config.deployment_mode or self._discovery.mode
        return Capabilities(deployment_mode=mode, canary=mode == "Knative")

    def check(self, documents: Sequence[Document], *, wait: bool = True) -> builtins.list[str]:
        """Refuse what KServe, Knative or Kubernetes would refuse or ignore later, all of it at once.

        Returns what may go wrong nevertheless. Raises ConfigError, RefusedError for permissions, TargetError.
        """
        kinds = dict.fromkeys(resource_of(document) for document in documents)
        service = service_of(documents)
        wanted = [*to_roll_out(kinds, mode_of(service), wait=wait), *needed_for_store(self._store)]
        around = look(self.api, self._discovery, documents, self._config, self._store)
        allowed = check_permissions(self.api, service["metadata"]["namespace"], wanted)
        return refuse([allowed, *check(documents, around)])

    def serves(self, documents: Sequence[Document]) -> bool:
        """Return whether just these documents serve already: a small request for each, and one more.

        All of them are looked at: a rotated Secret is no part of the release, and the first document is
        what a rollout finishes last.
        """
        service = service_of(documents)
        live = self.get(self._reference(service))
        if live is None or is_ending(live) or read_status(live).phase is not Phase.READY:
            return False
        return agrees(live, self._wanted(service, live)) and all(
            is_applied(self.api, document, self.namespace, live) for document in _others(documents)
        )

    def preview(self, documents: Sequence[Document]) -> builtins.list[tuple[Document | None, Document]]:
        """Return each document as it is live and as applying would leave it. Changes nothing.

        Raises ConflictError where another manager holds a field that would change.
        """
        compared: builtins.list[tuple[Document | None, Document]] = []
        for document in documents:
            live = find_document(self.api, document, self.namespace)
            after = document
            if live:
                wanted = self._wanted(document, live)
                after = apply_document(self.api, wanted, self.namespace, force=self._force, dry_run=True)
            compared.append((live, after))
        return compared

    def apply(self, documents: Sequence[Document], origin: Origin | None = None) -> Reference:
        """Apply documents server-side, the service's own last; what is made for it goes when it goes.

        The rollout is an entry of the history from before the first write on. Raises ConflictError naming
        who is just rolling out, or the field that would change and its holder, RolloutFailedError where
        the cluster refuses the documents, TargetError.
        """
        service = service_of(documents)
        reference = self._reference(service)
        if self._dry_run:
            live = self.api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
            for document in (*_others(documents), self._wanted(service, live)):
                apply_document(self.api, document, reference.namespace, force=self._force, dry_run=True)
            return reference
        live = self._lasting(reference)
        history = History(self.api, reference, self._clock)
        entry = plan_entry(
            documents, origin or Origin(), now=write_time(_utc()), account=self._connection.user
        )
        with history.begin(entry) as rollout:
            self._apply(documents, reference, rollout, live)
        self._entries[reference] = rollout.number
        with contextlib.suppress(TargetError):  # what is not pruned now is pruned next time
            history.prune(self._config.history_limit)
        return reference

    def _apply(
        self, documents: Sequence[Document], reference: Reference, rollout: Rollout, live: Document | None
    ) -> None:
        """Apply everything, and let the service own it: the first of the documents last of all."""
        applied = []
        for document in _others(documents):
            rollout.check()
            made = apply_document(self.api, document, reference.namespace, force=self._force)
            made = outlive(self.api, document, made, reference.name, live, force=self._force)
            applied.append((document, made))
        rollout.check()
        live = self._lasting(reference)
        wanted = self._wanted(service_of(documents), live)
        new = apply_document(self.api, wanted, reference.namespace, force=self._force)
        if live and live["metadata"].get("generation") != new["metadata"].get("generation"):
            self._left[reference] = live.get("status", {}).get("modelStatus", {})
        owner = owner_of(new)
        rollout.done(owner)
        for document, made in reversed(applied):
            own(self.api, document, made, owner, force=self._force)

    def _lasting(self, reference: Reference) -> Document | None:
        """Return the InferenceService that there is; one that is being deleted is waited for."""
        live = self.api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
        if live and is_ending(live):
            await_end(self.api, live)
            return None
        return live

    def history(self, reference: Reference) -> builtins.list[Entry]:
        """Return what was applied to a service, the oldest first, from its ControllerRevisions."""
        return History(self.api, reference).read()

    def note_outcome(self, reference: Reference, outcome: str) -> None:
        """Note in the history how the wait for what was applied here last has ended."""
        if reference in self._entries:
            History(self.api, reference).note(self._entries[reference], outcome)

    def watch(self, reference: Reference, timeout: float) -> Iterator[Status]:
        """Yield the status now and at every change; end after `timeout` seconds.

        Ready is told when the serving revision is of the service's own release and Ready has lasted
        `wait-window` seconds. Raises NotFoundError where there is no such service.
        """
        service = self._existing(reference)
        end = self._clock() + timeout
        judge = Judge(window=self._config.wait_window, before=self._left.get(reference))
        chosen = selections(reference, standard=is_standard(service))
        with Watching(self.api, reference, chosen) as watching:
            while True:
                limit = judge.look_again if judge.in_window else min(end, judge.look_again or end)
                changed = watching.wait((limit or end) - self._clock())
                now = self._clock()
                if watching.complete:
                    yield self._status(judge, self._same(service, watching.service), watching, now)
                elif changed and watching.trouble:
                    yield _in_trouble(read_status(service), watching.trouble)
                if now >= end and not judge.in_window:
                    if not watching.complete:
                        yield _in_trouble(read_status(service), watching.trouble or watching.silence)
                    return

    def get(self, reference: Reference) -> Document | None:
        """Return the InferenceService with the release of each revision, or None where there is none."""
        live = self.api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
        if live is None:
            return None
        children = self._children(reference, standard=is_standard(live))
        return count_replicas(describe_serving(live, children), children)

    def list(self, namespace: str | None = None) -> builtins.list[Document]:
        """Return the InferenceServices of one namespace, or of all: one paged list, no look at revisions."""
        found, _ = self.api.list(INFERENCE_SERVICE, namespace)
        return [assume_serving(document) for document in found]

    def delete(self, reference: Reference) -> bool:
        """Delete the service; what was made for it is collected by the cluster. False where none was.

        What a rollout that was killed left of one goes, too. Raises ConflictError where one is under way.
        """
        if self._dry_run:
            return self.api.get(INFERENCE_SERVICE, reference.namespace, reference.name) is not None
        history = History(self.api, reference)
        orphans = history.orphans()
        found = self.api.delete(INFERENCE_SERVICE, reference.namespace, reference.name)
        history.collect(orphans)
        return found

    def logs(self, reference: Reference, *, follow: bool = False, previous: bool = False) -> Iterator[str]:
        """Yield the log lines of every container of every pod of the service. Raises NotFoundError."""
        self._existing(reference)
        if follow:
            return follow_logs(self.api, reference)
        pods, _ = self.api.list(POD, reference.namespace, _labelled(reference))
        return read_logs(self.api, pods, previous=previous)

    def ingress(self, reference: Reference) -> Endpoint:
        """Return the way in through the ingress. Raises NotFoundError or TargetError."""
        return find_ingress(self.api, reference, self._existing(reference), self._config.ingress)

    def direct(self, reference: Reference) -> Endpoint:
        """Refuse: TorchServe's own ports are inside the pod."""
        raise ConfigError(
            "TorchServe itself cannot be asked on a cluster", where=str(reference), hint="add --kserve"
        )

    def examine(self, render: Callable[[], Sequence[Document]]) -> builtins.list[Finding]:
        """Look at everything that a rollout of the documents depends on. Changes nothing."""
        return examine(self.api, self._discovery, self._config, self._store, self.namespace, render)

    def shell(self, image: str, note: Callable[[str], None]) -> HelperPod:
        """Return a shell in the claim of the model store; its Pod is made when it is first used."""
        return HelperPod(lambda: (self._connection, self.namespace), self._store, image, note)

    def role(self) -> builtins.list[Document]:
        """Render the least that an account must be allowed to do here, in the model store, too."""
        more = needed_for_store(self._store)
        return render_role(self.namespace, self.capabilities().deployment_mode, more)

    def releases_in_use(self) -> frozenset[str]:
        """Return `NAME/ID` of every release that is served, wanted, in a history or in a storage URI."""
        standard = self.capabilities().deployment_mode == "Standard"
        return releases_in_use(self.api, self.namespace, standard=standard)

    def _reference(self, service: Document) -> Reference:
        metadata = service["metadata"]
        return Reference(metadata.get("namespace", self.namespace), metadata["name"])

    def _wanted(self, document: Document, live: Document | None) -> Document:
        """Return what is to be applied: the replicas are left to whoever has taken them over."""
        if self._force or live is None or document["kind"] != "InferenceService":
            return document
        return leave_to_others(document, live, _SCALED)

    def _same(self, service: Document, found: Document | None) -> Document:
        """Return the service as it is now. Raises NotFoundError where it is there no more."""
        if found and found["metadata"]["uid"] == service["metadata"]["uid"]:
            return found
        anew = ", and another was made of its name" if found else ""
        raise NotFoundError(
            f"{service['metadata']['name']} was deleted while its release was being rolled out{anew}",
            where=f"namespace {service['metadata']['namespace']} on {self._connection.where}",
            hint="`kdeploy list` shows what there is; `kdeploy rollout` again makes it",
        )

    def _status(self, judge: Judge, service: Document, watching: Watching, now: float) -> Status:
        status = judge.look(service, watching.children, now)
        if status.phase is Phase.FAILED and judge.failure:
            log = last_lines(self.api, status.reference.namespace, judge.failure)
            return msgspec.structs.replace(status, log=log)
        return _in_trouble(status, watching.trouble) if watching.trouble else status

    def _children(self, reference: Reference, *, standard: bool) -> Children:
        resource = REPLICA_SET if standard else REVISION
        try:
            found, _ = self.api.list(resource, reference.namespace, _labelled(reference))
        except RefusedError:
            return Children()
        return Children(replica_sets=found) if standard else Children(revisions=found)

    def _existing(self, reference: Reference) -> Document:
        live = self.api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
        if live is None:
            raise NotFoundError(f"there is no service {reference}", hint="`kdeploy list` shows what there is")
        return live


def _labelled(reference: Reference) -> dict[str, str]:
    return {"labelSelector": f"{SERVICE_LABEL}={reference.name}"}


def _in_trouble(status: Status, trouble: KdeployError) -> Status:
    """Say what is wrong; what is not seen right now is not believed to be Ready still."""
    if status.phase is Phase.FAILED:
        return status
    phase = Phase.PENDING if status.phase is Phase.PENDING else Phase.PROGRESSING
    return msgspec.structs.replace(status, phase=phase, reason="Unreachable", message=trouble.what)


def _others(documents: Sequence[Document]) -> builtins.list[Document]:
    return [document for document in documents if document["kind"] != "InferenceService"]


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)
