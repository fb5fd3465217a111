"""From a model store's credentials to what KServe's storage-initializer needs."""

from __future__ import annotations

from deployer.config import Store
from deployer.errors import ConfigError
from deployer.storage_access import StorageAccess
from deployer.store.credentials import Credentials
from deployer.store.location import Location, host_of

_KSERVE = "serving.kserve.io/"
_IDENTITY = "azure.workload.identity/"  # whose webhook looks at labelled pods alone
_WAY_OUT = (
    "name a ServiceAccount of the cluster in store.service-account, a Secret of the cluster in "
    "store.secret-name, or a role in store.service-account-annotations"
)


def plan_access(config: Store, location: Location, credentials: Credentials) -> StorageAccess:
    """Return how a service on a cluster reads an object store.

    What exists on the cluster is named; else the credentials found here become a Secret. Raises ConfigError
    where those expire, or are a person's own login: neither is ever stored in a cluster.
    """
    if config.service_account:
        return StorageAccess(account=config.service_account)
    if config.secret_name:
        return StorageAccess(secret=config.secret_name)
    annotations = _s3_annotations(config, location) if location.scheme == "s3" else {}
    if config.service_account_annotations:
        of_azure = any(name.startswith(_IDENTITY) for name in config.service_account_annotations)
        return StorageAccess(
            account_annotations=config.service_account_annotations,
            annotations=annotations,
            pod_labels={f"{_IDENTITY}use": "true"} if of_azure else {},
        )
    if not credentials.lasting:
        raise ConfigError(
            "the credentials for the model store are temporary or personal, and kdeploy stores neither in a "
            "cluster: pods that start later could not load the model",
            where="store.uri",
            hint=_WAY_OUT,
        )
    caution = "" if credentials.data else f"there are no credentials that a cluster could use: {_WAY_OUT}"
    return StorageAccess(data=credentials.data, annotations=annotations, caution=caution)


def _s3_annotations(config: Store, location: Location) -> dict[str, str]:
    """Say where S3 is. Always in full: what is left out is taken from the cluster's own defaults."""
    annotations = {
        "s3-endpoint": host_of(location.endpoint),
        "s3-usehttps": "1" if location.secure else "0",
        "s3-verifyssl": "1" if location.secure else "0",
        "s3-region": location.region,
    }
    if location.virtual_hosted:
        annotations["s3-usevirtualbucket"] = "true"
    if config.ca_config_map:
        annotations["s3-cabundle-configmap"] = config.ca_config_map
    return {_KSERVE + name: value for name, value in annotations.items()}
