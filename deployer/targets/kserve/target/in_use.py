"""Which releases a cluster needs: those that any object of KServe's, Knative's or a history's names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from deployer.errors import RefusedError
from deployer.inuse import releases_named
from deployer.observed import RELEASE_LABEL, Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.resources import CONTROLLER_REVISION, REPLICA_SET, Resource
from deployer.targets.kserve.state.children import SERVICE_LABEL, release_of
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, REVISION
from deployer.targets.kserve.target.journal import ENTRIES, OF_SERVICE

Query = Mapping[str, str]
Read = Callable[[Resource, "str | None", Query], list[Document]]


def releases_in_use(api: Api, namespace: str, *, standard: bool) -> frozenset[str]:
    """Return `NAME/ID` of every release that is served, wanted, in a history or in a storage URI.

    Of all namespaces where the user may list them, else of the one given. Raises TargetError.
    """

    def everywhere(read: Read, resource: Resource, selector: str) -> list[Document]:
        query = {"labelSelector": selector}
        try:
            return read(resource, None, query)
        except RefusedError:
            return read(resource, namespace, query)

    def whole(resource: Resource, where: str | None, query: Query) -> list[Document]:
        return api.list(resource, where, query)[0]

    def read_children(resource: Resource, selector: str) -> None:
        # Of those with a release's label the metadata are enough: a pod template is 50 kB or more.
        labelled.extend(everywhere(api.table, resource, f"{selector},{RELEASE_LABEL}"))
        others.extend(everywhere(whole, resource, f"{selector},!{RELEASE_LABEL}"))

    services = everywhere(whole, INFERENCE_SERVICE, "")
    labelled, others = [one for one in services if release_of(one)], [*services]
    read_children(REPLICA_SET if standard else REVISION, SERVICE_LABEL)
    with contextlib.suppress(RefusedError):  # of the other mode: no Knative, or not for this user
        read_children(REVISION if standard else REPLICA_SET, SERVICE_LABEL)
    read_children(CONTROLLER_REVISION, ENTRIES)
    used = {f"{_service_of(one)}/{release_of(one)}" for one in labelled}
    return frozenset(used.union(*map(releases_named, others)))


def _service_of(document: Document) -> str:
    metadata = document["metadata"]
    labels: dict[str, str] = metadata.get("labels", {})
    return labels.get(SERVICE_LABEL) or labels.get(OF_SERVICE) or str(metadata["name"])
