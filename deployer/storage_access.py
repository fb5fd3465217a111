"""How a service on a cluster reads its model store: the ServiceAccount, and the Secret that it lists.

Only this type holds the Secret's values. Its repr hides them, and they are rendered only to be applied.
"""

from __future__ import annotations

from msgspec import Struct, field


class StorageAccess(Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """How KServe's storage-initializer reads a model store.

    `account` or `secret` name an existing object; then kdeploy creates none. Otherwise `data` and
    `annotations` are those of the Secret that kdeploy creates. Without data there is no Secret, and the
    ServiceAccount gets the annotations, in addition to `account_annotations`. `pod_labels` give pods the
    account's identity. `caution` is a warning for the user.
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
        """Return the ServiceAccount that a service runs as; every rollout uses the same name."""
        return self.account or f"{service}-model-store"

    def secret_name(self, service: str) -> str:
        """Return the Secret that the ServiceAccount lists, or nothing."""
        return self.secret or (f"{service}-model-store" if self.data else "")
