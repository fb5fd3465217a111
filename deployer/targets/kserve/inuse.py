"""Which releases a cluster needs: those that any object of KServe's, Knative's or a history's names."""

from __future__ import annotations

import contextlib

from deployer.inuse import releases_named
from deployer.target import Document
from deployer.targets.kserve.api import Api
from deployer.targets.kserve.history import ENTRIES
from deployer.targets.kserve.refusals import RefusedError
from deployer.targets.kserve.resources import (
    CONTROLLER_REVISION,
    INFERENCE_SERVICE,
    REPLICA_SET,
    REVISION,
    Resource,
)
from deployer.targets.kserve.serving import SERVICE_LABEL, release_of


def releases_in_use(api: Api, namespace: str, *, standard: bool) -> frozenset[str]:
    """Return `NAME/ID` of every release that is served, wanted, in a history or in a storage URI.

    Of all namespaces where the user may list them, else of the one given. Raises TargetError.
    """

    def everywhere(resource: Resource, selector: str = "") -> list[Document]:
        query = {"labelSelector": selector} if selector else None
        try:
            return api.list(resource, None, query)[0]
        except RefusedError:
            return api.list(resource, namespace, query)[0]

    ours, others = (REPLICA_SET, REVISION) if standard else (REVISION, REPLICA_SET)
    found = everywhere(INFERENCE_SERVICE) + everywhere(ours, SERVICE_LABEL)
    with contextlib.suppress(RefusedError):  # of the other mode: no Knative, or not for this user
        found += everywhere(others, SERVICE_LABEL)
    found += everywhere(CONTROLLER_REVISION, ENTRIES)
    labelled = (
        (one["metadata"].get("labels", {}).get(SERVICE_LABEL, one["metadata"]["name"]), release_of(one))
        for one in found
    )
    used = {f"{name}/{release}" for name, release in labelled if release}
    return frozenset(used.union(*map(releases_named, found)))
