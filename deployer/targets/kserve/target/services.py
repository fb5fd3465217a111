"""Applies, watches and reads InferenceServices. Implements deployer.targets.protocols.Services."""

from __future__ import annotations

from deployer.bundle import Bundle
from deployer.findings import Finding
from deployer.journal import Entry
from deployer.observed import Capabilities, Document, Live, Observed, Phase, Reference
from deployer.targets.kserve.client.resources import Resource
from deployer.targets.kserve.preflight.doctor import examine
from deployer.targets.kserve.preflight.facts import read_facts
from deployer.targets.kserve.preflight.permissions import (
    check_extras,
    check_permissions,
    needed_for_store,
    render_role,
    to_roll_out,
)
from deployer.targets.kserve.preflight.rules.cluster import check
from deployer.targets.kserve.state.children import is_terminating
from deployer.targets.kserve.state.kinds import resource_of
from deployer.targets.kserve.target.apply import (
    Applied,
    apply_bundle,
    delete_service,
    is_applied,
    order,
    preview,
)
from deployer.targets.kserve.target.journal import Journal
from deployer.targets.kserve.target.read import (
    holding_pods,
    inspect,
    list_observed,
    read_live,
    releases_in_use,
)
from deployer.targets.kserve.target.session import Session
from deployer.targets.kserve.target.wait import Wait
from deployer.targets.protocols import Watch


class Services:
    """The services of one namespace, and of other namespaces that references name."""

    def __init__(self, session: Session, journal: Journal) -> None:
        self._session, self._journal = session, journal
        self._applied: dict[Reference, Applied] = {}

    @property
    def namespace(self) -> str:
        """The namespace of references without one: the configured one, or the context's."""
        return self._session.namespace

    @property
    def place(self) -> str:
        """The cluster, as its kubeconfig names it."""
        return self._session.connection.where

    def capabilities(self, *, look: bool = True) -> Capabilities:
        """Find the deployment mode, whether canaries work, and who chooses the user of pods."""
        session, mode = self._session, self._session.mode
        unknown = look and session.config.run_as_user is None
        assigned = unknown and session.discovery.assigns_user(self.namespace)
        return Capabilities(deployment_mode=mode, canary=mode == "Knative", assigns_user=assigned)

    def examine(self) -> list[Finding]:
        """Check whether the cluster can serve releases, and this user can roll them out."""
        session = self._session
        mode = session.config.deployment_mode
        return examine(session.api, session.discovery, session.namespace, mode, session.store)

    def check(self, bundle: Bundle, *, wait: bool = True) -> list[Finding]:
        """Find what KServe, Knative or Kubernetes would reject or ignore after the rollout begins."""
        session, kinds = self._session, _kinds(bundle)
        facts = read_facts(session.api, session.discovery, bundle, session.config, session.store)
        wanted = [*to_roll_out(kinds, session.mode, wait=wait), *needed_for_store(session.store)]
        allowed = check_permissions(session.api, bundle.reference.namespace, wanted)
        lacking = [allowed] if allowed.status == "failure" else []
        extras = [resource_of(one) for one in bundle.extras]
        optional = check_extras(session.api, bundle.reference.namespace, extras) if extras else []
        return [*lacking, *optional, *check(bundle, facts)]

    def role(self, bundle: Bundle) -> list[Document]:
        """Render an account with the permissions for rolling out a bundle and using the model store."""
        kinds, session = _kinds(bundle), self._session
        stored = needed_for_store(session.store)
        return render_role(bundle.reference.namespace, kinds, session.mode, stored)

    def preview(self, bundle: Bundle) -> list[tuple[Document | None, Document]]:
        """Apply each document in a dry run, webhooks included: return the object before and after."""
        return preview(self._session, bundle)

    def serves(self, bundle: Bundle, live: Live) -> bool:
        """Return whether a live service is Ready with exactly this bundle."""
        if is_terminating(live.document) or live.status.phase is not Phase.READY:
            return False
        return is_applied(self._session, bundle, live.document)

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        """Apply a bundle with an entry of the journal, and return the entry's number."""
        applied = apply_bundle(self._session, self._journal, bundle, entry, expect)
        self._applied[bundle.reference] = applied
        return applied.number

    def get(self, reference: Reference) -> Live | None:
        """Return a service and the releases that answer its requests, or None if it does not exist."""
        return read_live(self._session.api, reference)

    def inspect(self, reference: Reference) -> Live | None:
        """Return a service with the reason that its pods give for not being ready."""
        return inspect(self._session.api, reference, self._session.patience.clock.now())

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        """Yield the observed state now and at every change; Ready must last `wait-window` seconds."""
        session = self._session
        service, window = session.get(reference), session.config.wait_window
        return Wait(session.api, service, window, self._applied.get(reference), stable).observe(timeout)

    def list_all(self, namespace: str | None = None) -> list[Observed]:
        """Return the observed state of the services in one namespace, or in all."""
        return list_observed(self._session.api, namespace)

    def delete(self, reference: Reference) -> tuple[str, ...] | None:
        """Delete a service and return its pods that still terminate, or None if it does not exist."""
        found = delete_service(self._session, self._journal, reference)
        return holding_pods(self._session.api, reference) if found else None

    def releases_in_use(self) -> frozenset[str]:
        """Return `NAME/ID` of every release that is served, wanted, in a journal or in a storage URI."""
        standard = self._session.mode == "Standard"
        return releases_in_use(self._session.api, self.namespace, standard=standard)


def _kinds(bundle: Bundle) -> list[Resource]:
    return list(dict.fromkeys(resource for resource, _ in order(bundle)))
