"""A cluster with KServe, as a command sees it. Implements deployer.target.Target."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from types import TracebackType

from deployer.config import KServeTarget, Store
from deployer.errors import ConfigError, NotFoundError, TargetError
from deployer.findings import Finding, refuse
from deployer.journal import plan_entry, write_time
from deployer.managed_fields import agrees, leave_to_others
from deployer.patience import PATIENCE, Patience
from deployer.release import Traffic
from deployer.observed import Capabilities, Document, Live, Phase, Reference, Status
from deployer.targets.protocols import Endpoint
from deployer.journal import Entry, Provenance
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.connection import Connection, connect
from deployer.targets.kserve.client.resources import POD
from deployer.targets.kserve.preflight.capabilities import Discovery
from deployer.targets.kserve.preflight.doctor import examine
from deployer.targets.kserve.preflight.facts import read_facts
from deployer.targets.kserve.preflight.permissions import (
    check_permissions,
    needed_for_store,
    render_role,
    to_roll_out,
)
from deployer.targets.kserve.preflight.rules.cluster import check
from deployer.targets.kserve.preflight.rules.documents import mode_of, service_of
from deployer.targets.kserve.state.children import SERVICE_LABEL, release_of
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, resource_of
from deployer.targets.kserve.target.apply import (
    add_owner_or_recreate,
    apply_document,
    find_document,
    is_applied,
    is_ending,
    owner_of,
    recreate_if_orphaned,
    wait_until_gone,
)
from deployer.targets.kserve.target.helper_pod import HelperPod
from deployer.targets.kserve.target.in_use import releases_in_use
from deployer.targets.kserve.target.ingress import find_ingress
from deployer.targets.kserve.target.journal import History, Rollout
from deployer.targets.kserve.target.logs import follow_logs, read_logs
from deployer.targets.kserve.target.read import holding_pods, inspect, list_statuses, read_live
from deployer.targets.kserve.target.wait import Wait

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
        patience: Patience = PATIENCE,
    ) -> None:
        self._config = config
        self._store = store or Store()
        self._force = force_conflicts
        self._dry_run = dry_run
        self._patience = patience
        self._connected: Connection | None = None
        self._entries: dict[Reference, int] = {}  # the history's numbers of what was applied here
        # Of what was applied here: whether that changed the pods, and the model status of the release before.
        self._fresh: dict[Reference, bool] = {}
        self._left: dict[Reference, Document] = {}

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._connected:
            self._connected.close()

    @property
    def _connection(self) -> Connection:
        if self._connected is None:
            self._connected = connect(self._config.kubeconfig, self._config.context, self._patience)
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
        around = read_facts(self.api, self._discovery, documents, self._config, self._store)
        allowed = check_permissions(self.api, service["metadata"]["namespace"], wanted)
        return refuse([allowed, *check(documents, around)])

    def serves(self, documents: Sequence[Document], live: Live) -> bool:
        """Return whether a live service is Ready with just these documents: one small request for each other.

        A rotated Secret is not part of the release, and the first document is what a rollout finishes last.
        The runtime's name is made of its content, so that it needs no look.
        """
        if is_ending(live.document) or live.status.phase is not Phase.READY:
            return False
        wanted = _keep_strategy(self._wanted(service_of(documents), live.document), live.document)
        others = _others(documents)
        asked = [document for document in others if document["kind"] != "ServingRuntime"] or others
        return agrees(live.document, wanted) and all(
            is_applied(self.api, document, self.namespace, live.document) for document in asked
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

    def apply(
        self,
        documents: Sequence[Document],
        provenance: Provenance | None = None,
        traffic: Traffic | None = None,
    ) -> Reference:
        """Apply documents server-side, the service's own last; what is made for it goes when it goes.

        The rollout is an entry of the history from before the first write on. Raises ConflictError naming
        who is just rolling out, or the field that would change and its holder, RolloutFailedError where
        the cluster refuses the documents, TargetError.
        """
        service = service_of(documents)
        reference = self._reference(service)
        if self._dry_run:
            live = self.api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
            self._admit([*_others(documents), self._wanted(service, live)])
            return reference
        live = self._live_service(reference)
        history = History(self.api, reference)
        entry = plan_entry(
            documents,
            provenance or Provenance(),
            now=write_time(self._patience.clock.utc()),
            account=self._connection.user,
            stable=traffic.stable if traffic else None,
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
            made = recreate_if_orphaned(self.api, document, made, reference.name, live, force=self._force)
            applied.append((document, made))
        rollout.check()
        live = self._live_service(reference)
        wanted = self._wanted(service_of(documents), live)
        new = apply_document(self.api, wanted, reference.namespace, force=self._force)
        self._fresh[reference] = live is None or release_of(live) != release_of(new)
        if live and live["metadata"].get("generation") != new["metadata"].get("generation"):
            self._left[reference] = live.get("status", {}).get("modelStatus", {})
        owner = owner_of(new)
        rollout.done(owner)
        for document, made in reversed(applied):
            add_owner_or_recreate(self.api, document, made, owner, force=self._force)

    def _live_service(self, reference: Reference) -> Document | None:
        """Return the InferenceService that there is; one that is being deleted is waited for."""
        live = self.api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
        if live and is_ending(live):
            wait_until_gone(self.api, live)
            return None
        return live

    def history(self, reference: Reference) -> builtins.list[Entry]:
        """Return what was applied to a service, the oldest first, from its ControllerRevisions."""
        return History(self.api, reference).read()

    def note_outcome(self, reference: Reference, outcome: str, number: int | None = None) -> None:
        """Note the outcome of an entry of the history: by default of the one that was applied here last."""
        number = number or self._entries.get(reference)
        if number:
            History(self.api, reference).note(number, outcome)

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Iterator[Status]:
        """Yield the status now and at every change; end after `timeout` seconds.

        Ready counts once it has lasted `wait-window` seconds. Raises NotFoundError where there is no such
        service.
        """
        return Wait(
            self.api,
            self._existing(reference),
            window=self._config.wait_window,
            fresh=self._fresh.get(reference, False),
            stable=stable,
            spec_before=self._left.get(reference),
        ).statuses(timeout)

    def get(self, reference: Reference) -> Live | None:
        """Return the service and who answers its requests, or None where there is none."""
        return read_live(self.api, reference)

    def inspect(self, reference: Reference) -> Live | None:
        """Return the service with what its pods tell: why it fails, or what it waits for."""
        return inspect(self.api, reference, self._patience.clock.now())

    def list(self, namespace: str | None = None) -> builtins.list[Status]:
        """Return the state of the services of one namespace, or of all."""
        return list_statuses(self.api, namespace)

    def holding(self, reference: Reference) -> tuple[str, ...]:
        """Return the pods of a service that are being deleted and still hold their resources."""
        return holding_pods(self.api, reference)

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
        return examine(
            self.api, self._discovery, self._config, self._store, self.namespace, render, self._admit
        )

    def _admit(self, documents: Sequence[Document]) -> None:
        """Let the API server and its webhooks try documents. Changes nothing."""
        for document in documents:
            apply_document(self.api, document, self.namespace, force=self._force, dry_run=True)

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

    def _existing(self, reference: Reference) -> Document:
        live = self.api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
        if live is None:
            raise NotFoundError(f"service {reference} not found", hint="`kdeploy list` shows what exists")
        return live


def _labelled(reference: Reference) -> dict[str, str]:
    return {"labelSelector": f"{SERVICE_LABEL}={reference.name}"}


def _keep_strategy(wanted: Document, live: Document) -> Document:
    """Return a document with the live strategy: another one alone is not worth a rollout."""
    strategy = live["spec"]["predictor"].get("deploymentStrategy")
    predictor = {
        key: value for key, value in wanted["spec"]["predictor"].items() if key != "deploymentStrategy"
    }
    if strategy is not None:
        predictor["deploymentStrategy"] = strategy
    return {**wanted, "spec": {**wanted["spec"], "predictor": predictor}}


def _others(documents: Sequence[Document]) -> builtins.list[Document]:
    return [document for document in documents if document["kind"] != "InferenceService"]
