"""Documents to the cluster, and each of them to its owner: the writes of a rollout, one by one."""

from __future__ import annotations

from deployer.errors import ConflictError
from deployer.ownership import agrees
from deployer.target import Document
from deployer.targets.kserve.api import Api
from deployer.targets.kserve.refusals import OutdatedError
from deployer.targets.kserve.resources import SERVING_RUNTIME, resource_of

_OWN_ATTEMPTS = 10


def apply_document(
    api: Api, document: Document, namespace: str, *, force: bool, dry_run: bool = False
) -> Document:
    """Apply one document server-side. Raises ConflictError naming the field and its holder."""
    resource = resource_of(document)
    placed = {**document, "metadata": {"namespace": namespace, **document["metadata"]}}
    try:
        return api.apply(resource, placed, force=force, dry_run=dry_run)
    except ConflictError as error:
        if resource is SERVING_RUNTIME and not force and not isinstance(error, OutdatedError):
            raise ConflictError(
                error.what, where=error.where, hint="every service on this runtime would restart"
            ) from error
        raise


def find_document(api: Api, document: Document, namespace: str) -> Document | None:
    """Return a document's live object, or None where there is none."""
    metadata = document["metadata"]
    return api.get(resource_of(document), metadata.get("namespace", namespace), metadata["name"])


def is_applied(api: Api, document: Document, namespace: str, service: Document) -> bool:
    """Return whether an object is as a document says, and is one that goes with the service."""
    live = find_document(api, document, namespace)
    if live is None or not agrees(live, document):
        return False
    owners = live["metadata"].get("ownerReferences", [])
    return any(owner["uid"] == service["metadata"]["uid"] for owner in owners)


def owner_of(service: Document) -> Document:
    """Return the owner reference that lets an object be collected with a service."""
    return {
        "apiVersion": service["apiVersion"],
        "kind": service["kind"],
        "name": service["metadata"]["name"],
        "uid": service["metadata"]["uid"],
    }


def add_owner(api: Api, document: Document, owner: Document) -> None:
    """Add to an object's owners: it is collected when the last of them is gone.

    The list is one field to the API server, so it is read and written whole, and again when
    another service did the same in between.
    """
    resource, metadata = resource_of(document), document["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    for attempt in range(_OWN_ATTEMPTS):
        held = metadata.get("ownerReferences", [])
        if any(other["uid"] == owner["uid"] for other in held):
            return
        version = metadata["resourceVersion"]
        change = {"metadata": {"resourceVersion": version, "ownerReferences": [*held, owner]}}
        try:
            api.merge(resource, namespace, name, change)
        except ConflictError:
            found = api.get(resource, namespace, name)
            if found is None or attempt == _OWN_ATTEMPTS - 1:
                raise
            metadata = found["metadata"]
        else:
            return
