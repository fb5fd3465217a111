"""Which releases a cluster needs: those that any object of KServe's, Knative's or a history's names."""

from __future__ import annotations

import contextlib

from deployer.inuse import releases_named
from deployer.target import RELEASE_LABEL, Document
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
from deployer.targets.kserve.state.children import SERVICE_LABEL, release_of


def releases_in_use(api: Api, namespace: str, *, standard: bool) -> frozenset[str]:
    """Return `NAME/ID` of every release that is served, wanted, in a history or in a storage URI.

    Of all namespaces where the user may list them, else of the one given. Raises TargetError.
    """

    def everywhere(resource: Resource, selector: str = "") -> list[Document]:
        try:
            return _objects(api, resource, None, selector)
        except RefusedError:
            return _objects(api, resource, namespace, selector)

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


def _objects(api: Api, resource: Resource, namespace: str | None, selector: str) -> list[Document]:
    """List objects, of those with a release's label the metadata alone: a template is 50 kB or more."""
    if not selector:
        return api.list(resource, namespace)[0]
    others = {"labelSelector": f"{selector},!{RELEASE_LABEL}"}
    labelled = {"labelSelector": f"{selector},{RELEASE_LABEL}"}
    return api.list(resource, namespace, others)[0] + api.table(resource, namespace, labelled)
