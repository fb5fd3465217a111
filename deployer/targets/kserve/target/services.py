"""Applies, watches and reads InferenceServices. Implements deployer.targets.protocols.Services."""

from __future__ import annotations

import contextlib

from msgspec import Struct, structs

from deployer.bundle import Bundle
from deployer.errors import TargetError
from deployer.findings import Finding
from deployer.journal import Entry
from deployer.managed_fields import agrees, leave_to_others
from deployer.observed import Capabilities, Document, Live, Observed, Phase, Reference
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.resources import Resource
from deployer.targets.kserve.preflight.doctor import examine
from deployer.targets.kserve.preflight.facts import read_facts
from deployer.targets.kserve.preflight.permissions import (
    check_permissions,
    needed_for_store,
    render_role,
    to_roll_out,
)
from deployer.targets.kserve.preflight.rules.cluster import check
from deployer.targets.kserve.state.children import is_terminating, release_of
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, resource_of
from deployer.targets.kserve.target.apply import (
    add_owner_or_recreate,
    apply_document,
    find_document,
    is_applied,
    owner_of,
    recreate_if_orphaned,
    wait_until_gone,
)
from deployer.targets.kserve.target.in_use import releases_in_use
from deployer.targets.kserve.target.journal import Journal, Rollout
from deployer.targets.kserve.target.read import holding_pods, inspect, list_observed, read_live
from deployer.targets.kserve.target.session import Session
from deployer.targets.kserve.target.wait import Wait
from deployer.targets.protocols import Watch

_SCALED = (("spec", "predictor", "minReplicas"), ("spec", "predictor", "maxReplicas"))


class _Applied(Struct, frozen=True):
    """What was applied here: whether that changed the pods, and the model status of the release before."""

    fresh: bool
    spec_before: Document | None


class Services:
    """The services of one namespace, and of others that references name."""

    def __init__(self, session: Session, journal: Journal) -> None:
        self._session, self._journal = session, journal
        self._applied: dict[Reference, _Applied] = {}

    @property
    def _api(self) -> Api:
        return self._session.api

    @property
    def namespace(self) -> str:
        """The namespace of references without one: the config's, or the context's."""
        return self._session.namespace

    def capabilities(self) -> Capabilities:
        """Find out the deployment mode and whether canaries work. Changes nothing."""
        mode = self._session.mode
        return Capabilities(deployment_mode=mode, canary=mode == "Knative")

    def examine(self) -> list[Finding]:
        """Check whether the cluster can serve releases, and this user may roll them out. Changes nothing."""
        session = self._session
        return examine(
            self._api, session.discovery, session.namespace, session.config.deployment_mode, session.store
        )

    def check(self, bundle: Bundle, *, wait: bool = True) -> list[Finding]:
        """Find out what KServe, Knative or Kubernetes would refuse or ignore later. Changes nothing."""
        session = self._session
        facts = read_facts(self._api, session.discovery, bundle, session.config, session.store)
        wanted = [*to_roll_out(_kinds(bundle), session.mode, wait=wait), *needed_for_store(session.store)]
        allowed = check_permissions(self._api, bundle.reference.namespace, wanted)
        lacking = [allowed] if allowed.status == "failure" else []
        return [*lacking, *check(bundle, facts)]

    def role(self, bundle: Bundle) -> list[Document]:
        """Render an account that may do what rolling a bundle out needs, also in the model store."""
        session, namespace = self._session, bundle.reference.namespace
        return render_role(namespace, _kinds(bundle), session.mode, needed_for_store(session.store))

    def preview(self, bundle: Bundle) -> list[tuple[Document | None, Document]]:
        """Try each document, webhooks included: return it as it is live, None if new, and as it would be.

        Raises ConflictError where another manager holds a field that would change, RolloutFailedError where
        the cluster refuses a document.
        """
        tried = []
        for document in (*bundle.beside, bundle.service):
            live = find_document(self._api, document, self.namespace)
            wanted = self._wanted(bundle, live) if document is bundle.service else document
            after = self._apply_document(bundle, wanted, dry_run=True)
            tried.append((live, after if live else document))
        return tried

    def serves(self, bundle: Bundle, live: Live) -> bool:
        """Return whether a live service is Ready with just this bundle.

        A rotated Secret is not part of the release, so that it is looked at, and the first document is what
        a rollout finishes last. The runtime's name is made of its content: it needs no look.
        """
        if is_terminating(live.document) or live.status.phase is not Phase.READY:
            return False
        wanted = _keep_strategy(self._wanted(bundle, live.document), live.document)
        return agrees(live.document, wanted) and all(
            is_applied(self._api, one, self.namespace, live.document)
            for one in ([one for one in bundle.beside if one is not bundle.runtime] or bundle.beside)
        )

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        """Apply a bundle server-side, the service last, with an entry of the journal; return its number.

        The service owns what is made for it. Raises ConflictError where another rollout is under way, where
        the newest entry is not `expect`, or for a field that another manager holds; RolloutFailedError where
        the cluster refuses a document, TargetError.
        """
        reference = bundle.reference
        self._live_service(reference)  # one that is being deleted is waited for before anything is written
        entry = structs.replace(entry, account=self._session.connection.user)
        with self._journal.begin(reference, entry, expect) as rollout:
            self._apply(bundle, rollout)
        with contextlib.suppress(TargetError):  # what is not pruned now is pruned next time
            self._journal.prune(reference, self._session.config.history_limit)
        return rollout.number

    def _apply(self, bundle: Bundle, rollout: Rollout) -> None:
        """Apply everything and make the service its owner; the first document gets its owner last."""
        api, reference, force = self._api, bundle.reference, self._session.force
        live, applied = self._live_service(reference), []
        for document in bundle.beside:
            self._journal.check_time(rollout)
            made = self._apply_document(bundle, document)
            made = recreate_if_orphaned(api, document, made, reference.name, live, force=force)
            applied.append((document, made))
        self._journal.check_time(rollout)
        live = self._live_service(reference)
        new = self._apply_document(bundle, self._wanted(bundle, live))
        changed = live is not None and live["metadata"]["generation"] != new["metadata"]["generation"]
        self._applied[reference] = _Applied(
            fresh=live is None or release_of(live) != release_of(new),
            spec_before=(live or {}).get("status", {}).get("modelStatus", {}) if changed else None,
        )
        owner = owner_of(new)
        self._journal.finish(rollout, owner)
        for document, made in reversed(applied):
            add_owner_or_recreate(api, document, made, owner, force=force)

    def _live_service(self, reference: Reference) -> Document | None:
        """Return the InferenceService, if there is one; wait until one that is being deleted is gone."""
        live = self._session.find(reference)
        if live and is_terminating(live):
            wait_until_gone(self._api, live)
            return None
        return live

    def _apply_document(self, bundle: Bundle, document: Document, *, dry_run: bool = False) -> Document:
        session, namespace = self._session, bundle.reference.namespace
        return apply_document(self._api, document, namespace, force=session.force, dry_run=dry_run)

    def _wanted(self, bundle: Bundle, live: Document | None) -> Document:
        """Return the service that is to be applied; replicas are left to others who manage them."""
        if self._session.force or live is None:
            return bundle.service
        return leave_to_others(bundle.service, live, _SCALED)

    def get(self, reference: Reference) -> Live | None:
        """Return a service and which releases answer its requests, or None where there is none."""
        return read_live(self._api, reference)

    def inspect(self, reference: Reference) -> Live | None:
        """Return a service with what its pods tell: why it fails, or what it waits for."""
        return inspect(self._api, reference, self._session.patience.clock.now())

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        """Yield what is observed now and at every change; end after `timeout` seconds.

        Ready counts once it has lasted `wait-window` seconds. Raises NotFoundError where there is no such
        service.
        """
        applied = self._applied.get(reference)
        return Wait(
            self._api,
            self._session.get(reference),
            window=self._session.config.wait_window,
            fresh=applied.fresh if applied else False,
            stable=stable,
            spec_before=applied.spec_before if applied else None,
        ).observe(timeout)

    def list_all(self, namespace: str | None = None) -> list[Observed]:
        """Return what is observed of the services of one namespace, or of all."""
        return list_observed(self._api, namespace)

    def delete(self, reference: Reference) -> tuple[str, ...] | None:
        """Delete a service, and what a rollout that was killed left of one; the cluster collects the rest.

        Returns the pods that are still terminating. None where there was none. Raises ConflictError where a
        rollout is under way.
        """
        orphans = self._journal.orphans(reference)
        found = self._api.delete(INFERENCE_SERVICE, reference.namespace, reference.name)
        self._journal.collect(reference, orphans)
        return holding_pods(self._api, reference) if found else None

    def releases_in_use(self) -> frozenset[str]:
        """Return `NAME/ID` of every release that is served, wanted, in a journal or in a storage URI."""
        standard = self._session.mode == "Standard"
        return releases_in_use(self._api, self.namespace, standard=standard)


def _kinds(bundle: Bundle) -> list[Resource]:
    return list(dict.fromkeys(resource_of(one) for one in (*bundle.beside, bundle.service)))


def _keep_strategy(wanted: Document, live: Document) -> Document:
    """Return a document with the live strategy: a different one alone is not worth a rollout."""
    strategy = live["spec"]["predictor"].get("deploymentStrategy")
    predictor = {
        key: value for key, value in wanted["spec"]["predictor"].items() if key != "deploymentStrategy"
    }
    if strategy is not None:
        predictor["deploymentStrategy"] = strategy
    return {**wanted, "spec": {**wanted["spec"], "predictor": predictor}}
