"""Writes the objects of one service, and makes the service the owner of the others.

The cluster collects an object when its last owner is gone. It collects the objects of a deleted service some
time later, even if they were applied again or got another owner in between.
"""

from __future__ import annotations

from deployer.errors import ConflictError, NotFoundError, RolloutFailedError
from deployer.managed_fields import find_dropped, leave_to_others
from deployer.observed import Document, Reference
from deployer.targets.kserve.client.api_errors import OutdatedError
from deployer.targets.kserve.client.resources import CONTROLLER_REVISION, Resource
from deployer.targets.kserve.state.children import is_terminating
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, SERVING_RUNTIME
from deployer.targets.kserve.target.session import Session

_SCALED = (("spec", "predictor", "minReplicas"), ("spec", "predictor", "maxReplicas"))


class Writer:
    """Writes one service: `before` is the live service before, `service` the one applied."""

    def __init__(self, session: Session, reference: Reference) -> None:
        self.before: Document | None = None
        self.service: Document = {}
        self._session, self._reference = session, reference
        self._beside: list[tuple[Resource, Document, Document]] = []  # with the document, and as applied

    def find(self, resource: Resource, document: Document) -> Document | None:
        """Return a document's live object, or None if it does not exist."""
        metadata = document["metadata"]
        return self._session.api.get(resource, metadata["namespace"], metadata["name"])

    def wanted(self, document: Document, live: Document | None) -> Document:
        """Return a document without the replicas that another manager holds in the live object."""
        return document if live is None or self._session.force else leave_to_others(document, live, _SCALED)

    def preview(self, resource: Resource, document: Document) -> tuple[Document | None, Document]:
        """Apply a document in a dry run: return the live object or None, and the object that would result.

        Raises RolloutFailedError for a field that the cluster does not know: it would be dropped silently.
        """
        live = self.find(resource, document)
        after = self._apply(resource, document, live, dry_run=True)
        for path in find_dropped(self.wanted(document, live), after):
            raise RolloutFailedError(
                f"unknown field {path}",
                where=f"{document['kind']} {document['metadata']['name']}",
                hint=f"Correct or remove it: `kubectl explain {resource.full_name}.spec` lists the fields.",
            )
        return live, after if live else document

    def await_deletion(self) -> None:
        """Read the service; if it is being deleted, wait until it is gone. Raises ConflictError."""
        self.before = self._session.find(self._reference)
        if self.before and is_terminating(self.before):
            self._session.api.wait_until_gone(INFERENCE_SERVICE, self.before)
            self.before = None

    def write(self, resource: Resource, document: Document) -> None:
        """Apply a document, the service last. Raises ConflictError, RolloutFailedError, TargetError.

        If a deleted service of this name owns the object, wait until the cluster has collected it, and apply
        the document again. If that takes too long, remove the owners that are gone.
        """
        if resource is INFERENCE_SERVICE:
            self.await_deletion()
            self.service = self._apply(resource, document, self.before)
            return
        applied = self._apply(resource, document)
        held = applied["metadata"].get("ownerReferences", [])
        if held and not self._living(held, self.before):
            if self._session.api.is_gone_in_time(resource, applied):
                applied = self._apply(resource, document)
            else:
                change = self._session.api.change_owners
                applied = change(resource, applied, lambda held: self._living(held, self.before))
        self._beside.append((resource, document, applied))

    def set_owners(self) -> None:
        """Make the service an owner of every other object; the first one gets its owner last."""
        for resource, document, applied in reversed(self._beside):
            self._add_owner(resource, document, applied)

    def _add_owner(self, resource: Resource, document: Document, applied: Document) -> None:
        """Add the service to the owners of an object; apply it again if it was collected meanwhile."""
        owner = owner_of(self.service)

        def add(held: list[Document]) -> list[Document]:
            living = self._living(held, self.service)
            return living if any(one["uid"] == owner["uid"] for one in living) else [*living, owner]

        def attempt() -> None:
            nonlocal applied
            try:
                self._session.api.change_owners(resource, applied, add)
            except NotFoundError:
                applied = self._apply(resource, document)
                raise

        self._session.api.patience.again(attempt, NotFoundError)

    def _living(self, held: list[Document], service: Document | None) -> list[Document]:
        """Return owners without entries of the journal, and without other services of this name."""
        uid = service["metadata"]["uid"] if service else None

        def gone(owner: Document) -> bool:
            named = (owner["kind"], owner["name"]) == (INFERENCE_SERVICE.kind, self._reference.name)
            return owner["kind"] == CONTROLLER_REVISION.kind or (named and owner["uid"] != uid)

        return [owner for owner in held if not gone(owner)]

    def _apply(
        self, resource: Resource, document: Document, live: Document | None = None, *, dry_run: bool = False
    ) -> Document:
        wanted, force = self.wanted(document, live), self._session.force
        try:
            return self._session.api.apply(resource, wanted, force=force, dry_run=dry_run)
        except ConflictError as error:
            if resource is SERVING_RUNTIME and not force and not isinstance(error, OutdatedError):
                error.hint = "Changing the runtime would restart every service that uses it."
            raise


def owner_of(owner: Document) -> Document:
    """Return the reference that names an owner to the cluster."""
    metadata = owner["metadata"]
    kind = {"apiVersion": owner["apiVersion"], "kind": owner["kind"]}
    return {**kind, "name": metadata["name"], "uid": metadata["uid"]}
