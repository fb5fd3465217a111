"""Orders the documents of a bundle and applies them; deletes a service with everything that belongs to it."""

from __future__ import annotations

from msgspec import Struct, structs

from deployer.bundle import Bundle
from deployer.journal import Entry
from deployer.managed_fields import agrees
from deployer.observed import Document, Reference
from deployer.targets.kserve.client.resources import CONTROLLER_REVISION, SECRET, Resource
from deployer.targets.kserve.state.children import is_of_release
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, SERVING_RUNTIME, resource_of
from deployer.targets.kserve.target.extras import apply_extras, are_applied, preview_extras
from deployer.targets.kserve.target.journal import Journal
from deployer.targets.kserve.target.session import Session
from deployer.targets.kserve.target.writer import Writer, owner_of

_OURS = ("app.kubernetes.io/managed-by", "kdeploy")


class Applied(Struct, frozen=True):
    """A bundle that was applied: the number of its entry, and whether it starts new pods.

    `spec_before` is the model status of the release before, if the service changed.
    """

    number: int
    fresh: bool
    spec_before: Document | None


def order(bundle: Bundle) -> list[tuple[Resource, Document]]:
    """Return the documents that a service needs in the order of applying, the service last. Pure."""
    return [(resource_of(one), one) for one in (*bundle.beside, bundle.service)]


def preview(session: Session, bundle: Bundle) -> list[tuple[Document | None, Document]]:
    """Apply each document in a dry run: return the live object or None, and the object that would result."""
    writes, writer = order(bundle), Writer(session, bundle.reference)
    found = [writer.preview(resource, document) for resource, document in writes]
    return [*found[:-1], *preview_extras(session, bundle), found[-1]]


def is_applied(session: Session, bundle: Bundle, live: Document) -> bool:
    """Return whether applying a bundle would change neither the live service nor what it owns.

    A rotated Secret is not part of the release, so this reads it, and the first document, which a rollout
    finishes last. A runtime's name contains the digest of its content: it is read only if nothing else is.
    """
    *beside, (_, service) = order(bundle)
    writer = Writer(session, bundle.reference)
    if not agrees(live, _keep_strategy(writer.wanted(service, live), live)):
        return False
    uid = live["metadata"]["uid"]
    for resource, document in [one for one in beside if one[0] is not SERVING_RUNTIME] or beside:
        found = writer.find(resource, document)
        owners = found["metadata"].get("ownerReferences", []) if found else []
        if not (found and agrees(found, document) and any(owner["uid"] == uid for owner in owners)):
            return False
    return are_applied(session, bundle, live)


def apply_bundle(
    session: Session, journal: Journal, bundle: Bundle, entry: Entry, expect: int | None
) -> Applied:
    """Apply a bundle with an entry of the journal, and make the service the owner of the other documents.

    Raises ConflictError if another rollout is under way, if the newest entry is not `expect`, or if another
    manager holds a field; RolloutFailedError if the cluster rejects a document; TargetError.
    """
    writes, writer = order(bundle), Writer(session, bundle.reference)
    entry = structs.replace(entry, account=session.connection.user)
    writer.await_deletion()  # before anything is written
    with journal.begin(bundle.reference, entry, expect) as rollout:
        writer.await_deletion()
        for resource, document in writes:
            rollout.check_time()
            writer.write(resource, document)
        rollout.finish(owner_of(writer.service))
        writer.set_owners()
        apply_extras(session, bundle, writer.service)
    before, after = writer.before, writer.service
    changed = before is not None and before["metadata"]["generation"] != after["metadata"]["generation"]
    return Applied(
        number=rollout.number,
        fresh=before is None or not is_of_release(after, before),
        spec_before=(before or {}).get("status", {}).get("modelStatus", {}) if changed else None,
    )


def delete_service(session: Session, journal: Journal, reference: Reference) -> bool:
    """Delete a service and the entries that no service owns; the cluster collects what these own.

    Returns False if there was no service. Raises ConflictError if a rollout is under way.
    """
    orphans = journal.orphans(reference)
    found = session.api.delete(INFERENCE_SERVICE, reference.namespace, reference.name)
    for entry, bundle in orphans:
        if bundle:
            _give(session, bundle, entry)
        session.api.delete(CONTROLLER_REVISION, reference.namespace, entry["metadata"]["name"])
    return found


def _give(session: Session, bundle: Bundle, entry: Document) -> None:
    """Make an entry the owner of the objects that its rollout made for a service that was never created.

    So the cluster collects them with the entry, and no permission to delete Secrets is necessary. The
    ServingRuntime stays: it runs nothing, and services that others applied can use it without owning it.
    """
    kept = (SERVING_RUNTIME, INFERENCE_SERVICE)
    made = [(resource, one["metadata"]["name"]) for resource, one in order(bundle) if resource not in kept]
    made += [(SECRET, one["name"]) for one in (bundle.account or {}).get("secrets", [])]
    for resource, name in made:
        live = session.api.get(resource, bundle.reference.namespace, name)
        if live and _OURS in live["metadata"].get("labels", {}).items():
            session.api.change_owners(resource, live, lambda held: held or [owner_of(entry)])


def _keep_strategy(wanted: Document, live: Document) -> Document:
    """Return a document with the live strategy: a different strategy does not cause a rollout."""
    strategy = live["spec"]["predictor"].get("deploymentStrategy")
    predictor = {**wanted["spec"]["predictor"], "deploymentStrategy": strategy}
    predictor = {key: value for key, value in predictor.items() if value is not None}
    return {**wanted, "spec": {**wanted["spec"], "predictor": predictor}}
