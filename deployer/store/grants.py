"""From a model store's credentials to what KServe's storage-initializer needs. Pure."""

from __future__ import annotations

from deployer.access import Access
from deployer.config import Store
from deployer.store.credentials import Credentials
from deployer.store.location import Location, host_of

_KSERVE = "serving.kserve.io/"
_IDENTITY = "azure.workload.identity/"  # whose webhook looks at labelled pods alone


def grant(config: Store, location: Location, credentials: Credentials) -> Access:
    """Return how a service on a cluster is let into an object store.

    What exists on the cluster is named; else our credentials become a Secret, where they can: a token that
    KServe does not know, or a person's own sign-in, never does, and the `caution` says so.
    """
    if config.service_account:
        return Access(account=config.service_account)
    if config.secret_name:
        return Access(secret=config.secret_name)
    annotations = _s3_annotations(config, location) if location.scheme == "s3" else {}
    if config.service_account_annotations:
        of_azure = any(name.startswith(_IDENTITY) for name in config.service_account_annotations)
        return Access(
            account_annotations=config.service_account_annotations,
            annotations=annotations,
            pod_labels={f"{_IDENTITY}use": "true"} if of_azure else {},
        )
    data = {} if location.scheme == "gs" and not credentials.lasting else credentials.data
    return Access(data=data, annotations=annotations, caution=_caution(data, credentials))


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


def _caution(data: dict[str, str], credentials: Credentials) -> str:
    way_out = "name a ServiceAccount that may read the model store in store.service-account"
    if not data:
        return f"there are no credentials that a cluster could use: {way_out}"
    if not credentials.lasting:
        return f"the cluster's credentials expire, and replicas that start then cannot load: {way_out}"
    return ""
