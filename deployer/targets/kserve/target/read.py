"""Reads services and the objects that belong to them: one service, a list of many, or the releases in use."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping

from msgspec import structs

from deployer.errors import RefusedError
from deployer.inuse import releases_named
from deployer.observed import RELEASE_LABEL, Document, Live, Observed, Reference
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import UnknownKindError
from deployer.targets.kserve.client.resources import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    HTTP_ROUTE,
    POD,
    REPLICA_SET,
    Resource,
)
from deployer.targets.kserve.state.children import (
    SERVICE_LABEL,
    Children,
    has_ended,
    is_standard,
    is_terminating,
    release_of,
    release_pods,
    selector,
)
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, REVISION
from deployer.targets.kserve.state.pods import describe_held, is_ready
from deployer.targets.kserve.state.readiness import ReadinessEvaluator
from deployer.targets.kserve.state.revisions import observe, observe_briefly
from deployer.targets.kserve.target.journal import ENTRIES, OF_SERVICE

_PODS_MAX = 8  # pods whose events are read

Query = Mapping[str, str]


def selections(reference: Reference, *, standard: bool) -> dict[Resource, Query]:
    """Return the kinds of objects that belong to a service, with the queries that select them."""
    labelled = selector(reference.name)
    made = (DEPLOYMENT, REPLICA_SET) if standard else (REVISION,)
    named = {"fieldSelector": f"metadata.name={reference.name}"}
    return {INFERENCE_SERVICE: named, POD: labelled, **dict.fromkeys(made, labelled)}


def gather(found: Callable[[Resource], list[Document]]) -> Children:
    """Return the objects that belong to a service; `found` returns those of one kind."""
    return Children(
        pods=found(POD),
        events=found(EVENT),
        revisions=found(REVISION),
        deployments=found(DEPLOYMENT),
        replica_sets=found(REPLICA_SET),
    )


def read_live(api: Api, reference: Reference) -> Live | None:
    """Return a service and the releases that answer, by two requests; None if it does not exist."""
    service = api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
    if service is None:
        return None
    kind = REPLICA_SET if is_standard(service) else REVISION
    children = gather(lambda one: _list(api, kind, reference) if one is kind else [])
    return Live(service, observe(service, structs.replace(children, routes=read_routes(api, service))))


def inspect(api: Api, reference: Reference, now: float) -> Live | None:
    """Return a service with the reason that its pods and their events give for not being ready."""
    service = api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
    if service is None:
        return None
    kinds = (POD, REPLICA_SET, DEPLOYMENT) if is_standard(service) else (POD, REVISION)
    children = gather(lambda kind: _list(api, kind, reference) if kind in kinds else [])
    waiting = [pod for pod in release_pods(service, children) if not is_ready(pod)][:_PODS_MAX]
    events: list[Document] = []
    for one in (service, *waiting):
        about = {"fieldSelector": f"involvedObject.uid={one['metadata']['uid']}"}
        with contextlib.suppress(RefusedError):
            events += api.list(EVENT, one["metadata"]["namespace"], about)[0]
    children = structs.replace(children, events=events, routes=read_routes(api, service))
    return Live(service, ReadinessEvaluator(window=0).evaluate(service, children, now))


def read_routes(api: Api, service: Document) -> list[Document]:
    """Return the HTTPRoute that splits a service's traffic, if another user added a canary to it."""
    if not service.get("spec", {}).get("canary"):
        return []
    metadata = service["metadata"]
    with contextlib.suppress(RefusedError, UnknownKindError):
        route = api.get(HTTP_ROUTE, metadata["namespace"], metadata["name"])
        return [route] if route else []
    return []


def list_observed(api: Api, namespace: str | None) -> list[Observed]:
    """Return the state of every service of a namespace, or of all: two requests for a thousand services."""
    services, _ = api.list(INFERENCE_SERVICE, namespace)
    sets: dict[tuple[str, str], list[Document]] = defaultdict(list)
    if any(is_standard(one) for one in services):
        for row in _table(api, REPLICA_SET, namespace):
            if row["cells"].get("Current"):
                sets[_owner(row)].append(_replica_set(row))
    releases: dict[str, dict[str, str | None]] = defaultdict(dict)
    if any(not is_standard(one) and _has_several(one) for one in services):
        for row in _table(api, REVISION, namespace):
            releases[row["metadata"]["namespace"]][row["metadata"]["name"]] = release_of(row)
    return [
        observe_briefly(one, sets[place], releases[place[0]])
        for one in services
        for place in [(one["metadata"]["namespace"], one["metadata"]["name"])]
    ]


def holding_pods(api: Api, reference: Reference) -> tuple[str, ...]:
    """Return the pods of a service that are being deleted and still hold their resources.

    After the service is deleted, these are all of its pods: the cluster deletes them a little later.
    """
    service = api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
    stays = service is not None and not is_terminating(service)
    pods = [pod for pod in _list(api, POD, reference) if not has_ended(pod)]
    return tuple(describe_held(pod) for pod in pods if is_terminating(pod) or not stays)


def releases_in_use(api: Api, namespace: str, *, standard: bool) -> frozenset[str]:
    """Return `NAME/ID` of every release that is served, wanted, in a journal or in a storage URI.

    Reads all namespaces if the user can list them, else the one given. Raises TargetError.
    """

    def read(resource: Resource, labels: str, *, brief: bool = False) -> list[Document]:
        def ask(where: str | None) -> list[Document]:
            query = {"labelSelector": labels}
            return api.table(resource, where, query) if brief else api.list(resource, where, query)[0]

        try:
            return ask(None)
        except RefusedError:
            return ask(namespace)

    def read_children(resource: Resource, labels: str) -> None:
        # The metadata of objects with a release label is enough: a pod template is 50 kB or more.
        labelled.extend(read(resource, f"{labels},{RELEASE_LABEL}", brief=True))
        others.extend(read(resource, f"{labels},!{RELEASE_LABEL}"))

    services = read(INFERENCE_SERVICE, "")
    labelled, others = [one for one in services if release_of(one)], [*services]
    read_children(REPLICA_SET if standard else REVISION, SERVICE_LABEL)
    with contextlib.suppress(RefusedError):  # the other mode: without Knative, or not allowed
        read_children(REVISION if standard else REPLICA_SET, SERVICE_LABEL)
    read_children(CONTROLLER_REVISION, ENTRIES)
    used = {f"{_service_of(one)}/{release_of(one)}" for one in labelled}
    return frozenset(used.union(*map(releases_named, others)))


def _service_of(document: Document) -> str:
    metadata = document["metadata"]
    labels: dict[str, str] = metadata.get("labels", {})
    return labels.get(SERVICE_LABEL) or labels.get(OF_SERVICE) or str(metadata["name"])


def _has_several(service: Document) -> bool:
    traffic = service.get("status", {}).get("components", {}).get("predictor", {}).get("traffic", [])
    return len(traffic) > 1


def _owner(row: Document) -> tuple[str, str]:
    metadata = row["metadata"]
    return metadata["namespace"], metadata.get("labels", {}).get(SERVICE_LABEL, "")


def _replica_set(row: Document) -> Document:
    """Return the part of a ReplicaSet that its row of a table contains."""
    cells = row["cells"]
    status = {"replicas": cells.get("Current", 0), "availableReplicas": cells.get("Ready", 0)}
    return {"metadata": row["metadata"], "spec": {"replicas": cells.get("Desired", 0)}, "status": status}


def _table(api: Api, resource: Resource, namespace: str | None) -> list[Document]:
    try:
        return api.table(resource, namespace, {"labelSelector": SERVICE_LABEL})
    except (RefusedError, UnknownKindError):
        return []


def _list(api: Api, resource: Resource, reference: Reference) -> list[Document]:
    try:
        return api.list(resource, reference.namespace, selector(reference.name))[0]
    except (RefusedError, UnknownKindError):
        return []
