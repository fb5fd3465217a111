"""From a model store's credentials to what KServe's storage-initializer needs."""

from __future__ import annotations

from msgspec import structs

from deployer.config import Store
from deployer.errors import ConfigError
from deployer.storage_access import StorageAccess
from deployer.store.credentials import Credentials
from deployer.store.hosts import is_this_machine
from deployer.store.location import Location

_IDENTITY = "azure.workload.identity/"  # whose webhook changes labelled pods only
_SVC = "http://minio.minio.svc:9000"
_ADDRESS = f"Set `store.cluster-endpoint` to the address that pods use, such as {_SVC}."
_CLOUD_ONLY = "KServe reads gs:// and az:// from the cloud only. Use an s3:// store, or a claim."
_SETTINGS = "`store.service-account`, `store.secret-name` or `store.service-account-annotations`"


def plan_access(config: Store, location: Location, credentials: Credentials) -> StorageAccess:
    """Return how a service on a cluster reads an object store.

    Credentials found on this machine become a Secret if the config names nothing that exists on the cluster.
    Raises ConfigError if they expire or are a person's login: kdeploy never stores these in a cluster; or if
    pods cannot reach the store's endpoint.
    """
    if config.service_account:
        return StorageAccess(account=config.service_account)
    if config.secret_name:
        return StorageAccess(secret=config.secret_name)
    location = _seen_by_pods(config, location)
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
            "cannot store the model store's credentials in the cluster: they are temporary or personal",
            where="store.uri",
            hint=f"Set {_SETTINGS}: pods that start later could not load the model with these credentials.",
        )
    caution = "" if credentials.data else f"no credentials found that a cluster could use: set {_SETTINGS}"
    return StorageAccess(data=credentials.data, annotations=annotations, caution=caution)


def _seen_by_pods(config: Store, location: Location) -> Location:
    """Return a location with the endpoint that pods use. Raises ConfigError if they cannot reach it."""
    if location.scheme == "s3" and config.cluster_endpoint:
        location = structs.replace(location, endpoint=config.cluster_endpoint.rstrip("/"))
        where = "store.cluster-endpoint"
    else:
        where = "store.endpoint" if config.endpoint else "the environment"
    if is_this_machine(location.endpoint):
        raise ConfigError(
            f"a cluster cannot reach {location.host}: in a pod it is the pod itself, or unknown",
            where=where,
            hint=_ADDRESS if location.scheme == "s3" else _CLOUD_ONLY,
        )
    return location


def _s3_annotations(config: Store, location: Location) -> dict[str, str]:
    """Return where S3 is, in full: KServe takes what is missing from the cluster's defaults."""
    annotations = {
        "s3-endpoint": location.host,
        "s3-usehttps": "1" if location.secure else "0",
        "s3-verifyssl": "1" if location.secure else "0",
        "s3-region": location.region,
    }
    if location.virtual_hosted:
        annotations["s3-usevirtualbucket"] = "true"
    if config.ca_config_map:
        annotations["s3-cabundle-configmap"] = config.ca_config_map
    return {f"serving.kserve.io/{name}": value for name, value in annotations.items()}
