"""The Kubernetes documents of one release as a value, each kind in its own field. Pure."""

from __future__ import annotations

from msgspec import Struct, structs

from deployer.observed import RELEASE_LABEL, Document, Reference
from deployer.overlay import overlay_of


class Sealed:
    """A document that holds credentials: it cannot be printed or encoded, only unwrapped and applied."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def __repr__(self) -> str:
        return "Sealed(...)"


class Bundle(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is applied for a release: its InferenceService, and the documents that it needs.

    An existing runtime or ServiceAccount of the cluster is not included. `extras` are documents that the
    service can run without, such as a PodDisruptionBudget; they are applied after it.
    """

    service: Document
    runtime: Document | None = None
    account: Document | None = None
    secret: Sealed | None = None
    extras: tuple[Document, ...] = ()

    @property
    def reference(self) -> Reference:
        """The name of the service."""
        metadata = self.service["metadata"]
        return Reference(metadata["namespace"], metadata["name"])

    @property
    def release(self) -> str:
        """The release ID; empty for a service that kdeploy did not render."""
        return str(self.service["metadata"].get("labels", {}).get(RELEASE_LABEL, ""))

    @property
    def overlay(self) -> str:
        """The digest of the target's overlays; empty without any."""
        return overlay_of(self.service)

    @property
    def percent(self) -> int:
        """The wanted percentage of requests."""
        return int(self.service["spec"]["predictor"].get("canaryTrafficPercent", 100))

    @property
    def storage_uri(self) -> str:
        """Where the service loads its model from."""
        return str(self.service["spec"]["predictor"]["model"]["storageUri"])

    @property
    def beside(self) -> tuple[Document, ...]:
        """The documents that are applied before the service, in this order; the Secret is first."""
        secret = self.secret.document if self.secret else None
        return tuple(one for one in (secret, self.account, self.runtime) if one)

    @property
    def documents(self) -> tuple[Document, ...]:
        """Every document that can be shown, the service last."""
        return *self.without_secret().beside, *self.extras, self.service

    def recreating(self) -> Bundle:
        """Return a bundle whose service stops its old pods before it starts new ones."""
        predictor = {**self.service["spec"]["predictor"], "deploymentStrategy": {"type": "Recreate"}}
        service = {**self.service, "spec": {**self.service["spec"], "predictor": predictor}}
        return structs.replace(self, service=service)

    def without_secret(self) -> Bundle:
        """Return the documents that can be shown and stored."""
        return structs.replace(self, secret=None)
