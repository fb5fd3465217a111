"""Applies documents one by one, and sets their owners."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from deployer.bundle import Bundle
from deployer.errors import ConflictError, NotFoundError
from deployer.managed_fields import agrees
from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import OutdatedError
from deployer.targets.kserve.client.resources import CONTROLLER_REVISION, SECRET, SERVICE_ACCOUNT, Resource
from deployer.targets.kserve.state.children import is_terminating
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, SERVING_RUNTIME, resource_of

_GONE_PERIOD = 0.2  # seconds between two reads of an object that is being deleted
_OURS = ("app.kubernetes.io/managed-by", "kdeploy")


def apply_document(
    api: Api, document: Document, namespace: str, *, force: bool, dry_run: bool = False
) -> Document:
    """Apply one document server-side, again where the object was being deleted.

    Raises ConflictError naming the field and its manager, or what keeps an object from being deleted.
    """
    resource = resource_of(document)
    placed = {**document, "metadata": {"namespace": namespace, **document["metadata"]}}
    try:
        applied = api.apply(resource, placed, force=force, dry_run=dry_run)
        if not dry_run and is_terminating(applied):
            wait_until_gone(api, applied)
            applied = api.apply(resource, placed, force=force)
        return applied
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


def recreate_if_orphaned(
    api: Api, sent: Document, applied: Document, name: str, live: Document | None, *, force: bool
) -> Document:
    """Return an object that was applied; it is applied again where the service that owned it is gone.

    The cluster collects what a deleted service owned some time later, even if it has been applied again or
    has got another owner in between. So this waits for that and applies the object again. If it does not
    happen in time, the owners that are gone are removed from the object.
    """
    uid = live["metadata"]["uid"] if live else None
    held = applied["metadata"].get("ownerReferences", [])
    if not held or _living(held, name, uid):
        return applied
    if _is_gone_in_time(api, applied):
        return apply_document(api, sent, applied["metadata"]["namespace"], force=force)
    return _change_owners(api, applied, lambda held: _living(held, name, uid))


def add_owner_or_recreate(
    api: Api, sent: Document, applied: Document, owner: Document, *, force: bool
) -> None:
    """Add a service to the owners of an object, which the cluster collects when the last of them is gone.

    The object is applied again where it was collected meanwhile.
    """

    def add(held: list[Document]) -> list[Document]:
        living = _living(held, owner["name"], owner["uid"])
        return living if any(one["uid"] == owner["uid"] for one in living) else [*living, owner]

    def attempt() -> None:
        nonlocal applied
        try:
            _change_owners(api, applied, add)
        except NotFoundError:
            applied = apply_document(api, sent, applied["metadata"]["namespace"], force=force)
            raise

    api.patience.again(attempt, NotFoundError)


def transfer_ownership(api: Api, entry: Document, bundle: Bundle) -> None:
    """Let an entry of the history own what its rollout made for a service that was never created.

    So the cluster collects it with the entry, which needs no permission to delete Secrets. The ServingRuntime
    stays: it runs nothing by itself, the next rollout takes it over, and services that others applied may use
    it without owning it.
    """
    for resource, name in _made_for(bundle):
        live = api.get(resource, bundle.reference.namespace, name)
        if live and _OURS in live["metadata"].get("labels", {}).items():
            _change_owners(api, live, lambda held: held or [owner_of(entry)])


def wait_until_gone(api: Api, document: Document) -> None:
    """Wait until an object that is being deleted is gone. Raises ConflictError, naming what holds it."""
    if not _is_gone_in_time(api, document):
        metadata = document["metadata"]
        raise ConflictError(
            f"{document['kind']} {metadata['name']} is still being deleted after {api.patience.gone:g} s: "
            f"its finalizers are {', '.join(metadata.get('finalizers', [])) or 'none'}",
            where=f"namespace {metadata['namespace']}",
            hint="remove the finalizer, or wait for the controller that set it; then run it again",
        )


def _is_gone_in_time(api: Api, document: Document) -> bool:
    resource, metadata = resource_of(document), document["metadata"]
    clock = api.patience.clock
    end = clock.now() + api.patience.gone
    while found := api.get(resource, metadata["namespace"], metadata["name"]):
        if found["metadata"]["uid"] != metadata["uid"]:
            break
        if clock.now() > end:
            return False
        clock.sleep(_GONE_PERIOD)
    return True


def _living(held: list[Document], name: str, uid: str | None) -> list[Document]:
    """Return owners without the history's entries, and of services of a name only the one with this uid."""

    def gone(owner: Document) -> bool:
        if owner["kind"] == CONTROLLER_REVISION.kind:
            return True
        return (owner["kind"], owner["name"]) == (INFERENCE_SERVICE.kind, name) and owner["uid"] != uid

    return [owner for owner in held if not gone(owner)]


def _change_owners(
    api: Api, document: Document, change: Callable[[list[Document]], list[Document]]
) -> Document:
    """Change an object's owners, where that changes anything, and return it. Raises NotFoundError.

    The list is one field to the API server, so it is read and written whole, and again when another service
    did the same in between.
    """

    def attempt() -> Document:
        nonlocal document
        resource, metadata = resource_of(document), document["metadata"]
        held = metadata.get("ownerReferences", [])
        owners = change(held)
        if owners == held:
            return document
        place = metadata["namespace"], metadata["name"]
        wanted = {"resourceVersion": metadata["resourceVersion"], "ownerReferences": owners}
        try:
            return api.merge(resource, *place, {"metadata": wanted})
        except ConflictError:
            document = api.get(resource, *place) or document
            raise

    return api.patience.again(attempt, ConflictError)


def _made_for(bundle: Bundle) -> Iterator[tuple[Resource, str]]:
    """Yield what a rollout creates for its service alone; a Secret is known by its account."""
    if bundle.account:
        yield SERVICE_ACCOUNT, bundle.account["metadata"]["name"]
        yield from ((SECRET, one["name"]) for one in bundle.account.get("secrets", []))
    yield from ((resource_of(one), one["metadata"]["name"]) for one in bundle.extras)
