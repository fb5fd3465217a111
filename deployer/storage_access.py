"""What a service on a cluster needs to read its model store: a ServiceAccount, and the Secret it lists.

The values of a Secret are here and nowhere else: no repr shows them, and they become a document only to be
applied.
"""

from __future__ import annotations

from msgspec import Struct, field

__all__ = ["StorageAccess"]


class StorageAccess(Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """How KServe's storage-initializer reads a model store.

    With `account` or `secret` one that exists is named, and none is created. `data` and `annotations` are
    those of the Secret that is made otherwise; without data, there is none, and the annotations are the
    ServiceAccount's, beside `account_annotations`. `pod_labels` are what pods need to be given its identity.
    `caution` is what may go wrong later.
    """

    account: str = ""
    secret: str = ""
    data: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    account_annotations: dict[str, str] = field(default_factory=dict)
    pod_labels: dict[str, str] = field(default_factory=dict)
    caution: str = ""

    def __repr__(self) -> str:
        data = ", ".join(self.data)
        return f"StorageAccess(account={self.account!r}, secret={self.secret!r}, data of {data})"

    def service_account(self, service: str) -> str:
        """Return the ServiceAccount that a service runs as; it has the same name at every rollout."""
        return self.account or f"{service}-model-store"

    def secret_name(self, service: str) -> str:
        """Return the Secret that the ServiceAccount lists, or nothing where it lists none."""
        return self.secret or (f"{service}-model-store" if self.data else "")
