"""Applies a bundle, and deletes a service with everything that belongs to it: every write in its order."""

from __future__ import annotations

import contextlib

from msgspec import Struct, structs

from deployer.bundle import Bundle
from deployer.errors import ConflictError, NotFoundError, TargetError
from deployer.journal import Entry
from deployer.managed_fields import agrees, leave_to_others
from deployer.observed import Document, Reference
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import OutdatedError
from deployer.targets.kserve.client.resources import CONTROLLER_REVISION, SECRET, Resource
from deployer.targets.kserve.state.children import is_terminating, release_of
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, SERVING_RUNTIME, resource_of
from deployer.targets.kserve.target.journal import Journal
from deployer.targets.kserve.target.session import Session

_OURS = ("app.kubernetes.io/managed-by", "kdeploy")
_SCALED = (("spec", "predictor", "minReplicas"), ("spec", "predictor", "maxReplicas"))

Write = tuple[Resource, Document]


class Applied(Struct, frozen=True):
    """A bundle that was applied: the number of its entry, whether it starts new pods.

    `spec_before` is the model status of the release before, if the service changed.
    """

    number: int
    fresh: bool
    spec_before: Document | None


def order(bundle: Bundle) -> list[Write]:
    """Return the documents of a bundle in the order in which they are applied, the service last."""
    return [(resource_of(one), one) for one in (*bundle.beside, bundle.service)]


def preview(session: Session, bundle: Bundle) -> list[tuple[Document | None, Document]]:
    """Apply each document in a dry run: return the live object or None, and the object as it would become."""
    previewed = []
    for resource, document in order(bundle):
        live = _find(session.api, resource, document)
        after = _apply(session, (resource, document), live, dry_run=True)
        previewed.append((live, after if live else document))
    return previewed


def is_applied(session: Session, bundle: Bundle, live: Document) -> bool:
    """Return whether applying a bundle would change neither the live service nor what it owns.

    A rotated Secret is not part of the release, so this reads it, and the first document, which a rollout
    finishes last. The name of a runtime contains the digest of its content: it is read only if it is alone.
    """
    *beside, (_, service) = order(bundle)
    if not agrees(live, _keep_strategy(_leave_replicas(session, service, live), live)):
        return False
    uid = live["metadata"]["uid"]
    for resource, document in [one for one in beside if one[0] is not SERVING_RUNTIME] or beside:
        found = _find(session.api, resource, document)
        owners = found["metadata"].get("ownerReferences", []) if found else []
        if not (found and agrees(found, document) and any(owner["uid"] == uid for owner in owners)):
            return False
    return True


def apply_bundle(
    session: Session, journal: Journal, bundle: Bundle, entry: Entry, expect: int | None
) -> Applied:
    """Apply a bundle with an entry of the journal, and make the service the owner of the other documents.

    The service is applied last, and the first document gets its owner last. Raises ConflictError if another
    rollout is under way, if the newest entry is not `expect`, or if another manager holds a field.
    """
    reference = bundle.reference
    entry = structs.replace(entry, account=session.connection.user)
    *beside, service = order(bundle)
    _await_service(session, reference)  # before anything is written
    with journal.begin(reference, entry, expect) as rollout:
        live = _await_service(session, reference)
        applied = []
        for write in beside:
            rollout.check_time()
            applied.append((write, _apply_beside(session, write, reference.name, live)))
        rollout.check_time()
        live = _await_service(session, reference)
        new = _apply(session, service, live)
        rollout.finish(_owner(new))
        for write, made in reversed(applied):
            _add_owner(session, write, made, new)
    with contextlib.suppress(TargetError):  # the next rollout prunes the entries that this one could not
        journal.prune(reference, session.config.history_limit)
    changed = live is not None and live["metadata"]["generation"] != new["metadata"]["generation"]
    return Applied(
        number=rollout.number,
        fresh=live is None or release_of(live) != release_of(new),
        spec_before=(live or {}).get("status", {}).get("modelStatus", {}) if changed else None,
    )


def delete_service(session: Session, journal: Journal, reference: Reference) -> bool:
    """Delete a service and the entries that no service owns; the cluster collects what these own.

    Returns False if there was no service. Raises ConflictError if a rollout is under way.
    """
    api = session.api
    orphans = journal.orphans(reference)
    found = api.delete(INFERENCE_SERVICE, reference.namespace, reference.name)
    for entry, bundle in orphans:
        if bundle:
            _give(api, bundle, entry)
        api.delete(CONTROLLER_REVISION, reference.namespace, entry["metadata"]["name"])
    return found


def _give(api: Api, bundle: Bundle, entry: Document) -> None:
    """Make an entry the owner of what its rollout made for a service that was never created.

    So the cluster collects it with the entry, and no permission to delete Secrets is necessary. The
    ServingRuntime stays: it runs nothing, and services that others applied can use it without owning it.
    """
    kept = (SERVING_RUNTIME, INFERENCE_SERVICE)
    made = [(resource, one["metadata"]["name"]) for resource, one in order(bundle) if resource not in kept]
    made += [(SECRET, one["name"]) for one in (bundle.account or {}).get("secrets", [])]
    for resource, name in made:
        live = api.get(resource, bundle.reference.namespace, name)
        if live and _OURS in live["metadata"].get("labels", {}).items():
            api.change_owners(resource, live, lambda held: held or [_owner(entry)])


def _await_service(session: Session, reference: Reference) -> Document | None:
    """Return the service, or None if it does not exist; wait until one that is being deleted is gone."""
    live = session.find(reference)
    if live and is_terminating(live):
        session.api.wait_until_gone(INFERENCE_SERVICE, live)
        return None
    return live


def _find(api: Api, resource: Resource, document: Document) -> Document | None:
    return api.get(resource, document["metadata"]["namespace"], document["metadata"]["name"])


def _apply(
    session: Session, write: Write, live: Document | None = None, *, dry_run: bool = False
) -> Document:
    """Apply one document, except the replicas that another manager holds in the live object."""
    resource, document = write
    wanted = _leave_replicas(session, document, live)
    try:
        return session.api.apply(resource, wanted, force=session.force, dry_run=dry_run)
    except ConflictError as error:
        if resource is SERVING_RUNTIME and not session.force and not isinstance(error, OutdatedError):
            error.hint = "Changing the runtime would restart every service that uses it."
        raise


def _leave_replicas(session: Session, document: Document, live: Document | None) -> Document:
    return document if live is None or session.force else leave_to_others(document, live, _SCALED)


def _apply_beside(session: Session, write: Write, name: str, service: Document | None) -> Document:
    """Apply a document, and again if the service of this name that owned the object is gone.

    The cluster collects what a deleted service owned some time later, even if it was applied again or got
    another owner in between. So this waits for that. If it does not happen in time, the owners that are
    gone are removed from the object.
    """
    applied, (resource, _) = _apply(session, write), write
    uid = service["metadata"]["uid"] if service else None
    held = applied["metadata"].get("ownerReferences", [])
    if not held or _living(held, name, uid):
        return applied
    if session.api.is_gone_in_time(resource, applied):
        return _apply(session, write)
    return session.api.change_owners(resource, applied, lambda held: _living(held, name, uid))


def _add_owner(session: Session, write: Write, applied: Document, service: Document) -> None:
    """Add the service to the owners of an object; apply the object again if it was collected meanwhile."""
    resource, owner = write[0], _owner(service)

    def add(held: list[Document]) -> list[Document]:
        living = _living(held, owner["name"], owner["uid"])
        return living if any(one["uid"] == owner["uid"] for one in living) else [*living, owner]

    def attempt() -> None:
        nonlocal applied
        try:
            session.api.change_owners(resource, applied, add)
        except NotFoundError:
            applied = _apply(session, write)
            raise

    session.api.patience.again(attempt, NotFoundError)


def _owner(owner: Document) -> Document:
    """Return the reference by which the cluster collects an object with its owner."""
    metadata = owner["metadata"]
    kind = {"apiVersion": owner["apiVersion"], "kind": owner["kind"]}
    return {**kind, "name": metadata["name"], "uid": metadata["uid"]}


def _living(held: list[Document], name: str, uid: str | None) -> list[Document]:
    """Return owners without entries of the journal, and without services of this name with another uid."""

    def gone(owner: Document) -> bool:
        if owner["kind"] == CONTROLLER_REVISION.kind:
            return True
        return (owner["kind"], owner["name"]) == (INFERENCE_SERVICE.kind, name) and owner["uid"] != uid

    return [owner for owner in held if not gone(owner)]


def _keep_strategy(wanted: Document, live: Document) -> Document:
    """Return a document with the live strategy: a different strategy is no reason for a rollout."""
    strategy = live["spec"]["predictor"].get("deploymentStrategy")
    predictor = {**wanted["spec"]["predictor"], "deploymentStrategy": strategy}
    predictor = {key: value for key, value in predictor.items() if value is not None}
    return {**wanted, "spec": {**wanted["spec"], "predictor": predictor}}
