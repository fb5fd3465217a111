"""Applies the documents that a service can run without, such as a PodDisruptionBudget.

They are applied after the service, which owns them, and deleted if a later rollout does not have them. A
kind that this user cannot write is skipped: the check before the rollout has warned.
"""

from __future__ import annotations

from contextlib import suppress

from deployer.bundle import Bundle
from deployer.errors import RefusedError, RolloutFailedError
from deployer.managed_fields import agrees
from deployer.observed import Document
from deployer.targets.kserve.client.api_errors import UnknownKindError
from deployer.targets.kserve.client.resources import Resource
from deployer.targets.kserve.state.kinds import EXTRAS, resource_of
from deployer.targets.kserve.target.session import Session
from deployer.targets.kserve.target.writer import owner_of

# No permission; a kind that the cluster does not have; a policy that rejects it.
_SKIPPED = (RefusedError, UnknownKindError, RolloutFailedError)
_MANAGED = "app.kubernetes.io/managed-by=kdeploy"


def apply_extras(session: Session, bundle: Bundle, service: Document) -> None:
    """Apply the extras of a bundle, owned by its live service; delete its extras of earlier rollouts."""
    wanted = {resource_of(one): one for one in bundle.extras}
    for resource in EXTRAS:
        with suppress(*_SKIPPED):
            if document := wanted.get(resource):
                session.api.apply(resource, _owned(document, service), force=True)
            else:
                _delete_own(session, resource, service)


def preview_extras(session: Session, bundle: Bundle) -> list[tuple[Document | None, Document]]:
    """Apply the extras in a dry run: return each live object or None, and the object that would result."""
    found = []
    service = session.find(bundle.reference) if bundle.extras else None
    for one in bundle.extras:
        resource, document = resource_of(one), _owned(one, service) if service else one
        with suppress(*_SKIPPED):
            live = session.api.get(resource, bundle.reference.namespace, one["metadata"]["name"])
            after = session.api.apply(resource, document, force=True, dry_run=True)
            found.append((live, after if live else document))
    return found


def are_applied(session: Session, bundle: Bundle, service: Document) -> bool:
    """Return whether applying the extras of a bundle would change nothing."""
    for one in bundle.extras:
        with suppress(*_SKIPPED):
            live = session.api.get(resource_of(one), bundle.reference.namespace, one["metadata"]["name"])
            if live is None or not agrees(live, _owned(one, service)):
                # Raises if this user cannot write it: then there is nothing to do.
                session.api.apply(resource_of(one), _owned(one, service), force=True, dry_run=True)
                return False
    return True


def _owned(document: Document, service: Document) -> Document:
    metadata = {**document["metadata"], "ownerReferences": [owner_of(service)]}
    return {**document, "metadata": metadata}


def _delete_own(session: Session, resource: Resource, service: Document) -> None:
    """Delete the objects of a kind that kdeploy made for a service."""
    uid, namespace = service["metadata"]["uid"], service["metadata"]["namespace"]
    for one in session.api.list(resource, namespace, {"labelSelector": _MANAGED})[0]:
        if any(owner["uid"] == uid for owner in one["metadata"].get("ownerReferences", [])):
            session.api.delete(resource, namespace, one["metadata"]["name"])
