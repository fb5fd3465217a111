"""Reads a service and what belongs to it from the API server, once: with one look, or for a list of many."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from msgspec import structs

from deployer.errors import RefusedError
from deployer.observed import RELEASE_LABEL, Document, Live, Observed, Reference
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import UnknownKindError
from deployer.targets.kserve.client.resources import DEPLOYMENT, EVENT, HTTP_ROUTE, POD, REPLICA_SET, Resource
from deployer.targets.kserve.state.children import (
    SERVICE_LABEL,
    Children,
    is_over,
    is_standard,
    is_terminating,
    release_pods,
    selector,
)
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE, REVISION
from deployer.targets.kserve.state.pods import describe_held, is_ready
from deployer.targets.kserve.state.readiness import ReadinessEvaluator
from deployer.targets.kserve.state.revisions import observe, observe_briefly

_PODS_MAX = 8  # pods whose events are read


def selections(reference: Reference, *, standard: bool) -> dict[Resource, Mapping[str, str]]:
    """Return what belongs to a service, and the query that selects it."""
    labelled = selector(reference.name)
    made = (DEPLOYMENT, REPLICA_SET) if standard else (REVISION,)
    return {
        INFERENCE_SERVICE: {"fieldSelector": f"metadata.name={reference.name}"},
        POD: labelled,
        **dict.fromkeys(made, labelled),
    }


def gather(found: Callable[[Resource], list[Document]]) -> Children:
    """Return what belongs to a service, of each kind what is found."""
    return Children(
        pods=found(POD),
        events=found(EVENT),
        revisions=found(REVISION),
        deployments=found(DEPLOYMENT),
        replica_sets=found(REPLICA_SET),
    )


def read_live(api: Api, reference: Reference) -> Live | None:
    """Return a service and who answers its requests, with two requests; None where there is no service."""
    service = api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
    if service is None:
        return None
    kind = REPLICA_SET if is_standard(service) else REVISION
    children = gather(lambda one: _list(api, kind, reference) if one is kind else [])
    return Live(service, observe(service, structs.replace(children, routes=read_routes(api, service))))


def inspect(api: Api, reference: Reference, now: float) -> Live | None:
    """Return a service with what its pods and their events tell: why it fails, or what it waits for."""
    service = api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
    if service is None:
        return None
    kinds = (POD, REPLICA_SET, DEPLOYMENT) if is_standard(service) else (POD, REVISION)
    children = gather(lambda kind: _list(api, kind, reference) if kind in kinds else [])
    waiting = [pod for pod in release_pods(service, children) if not is_ready(pod)][:_PODS_MAX]
    events = [event for one in (service, *waiting) for event in _events(api, one)]
    children = structs.replace(children, events=events, routes=read_routes(api, service))
    status = ReadinessEvaluator(window=0).evaluate(service, children, now)
    return Live(service, status)


def read_routes(api: Api, service: Document) -> list[Document]:
    """Return the HTTPRoute that splits a service's traffic, where somebody has added a canary to it."""
    if not service.get("spec", {}).get("canary"):
        return []
    metadata = service["metadata"]
    try:
        route = api.get(HTTP_ROUTE, metadata["namespace"], metadata["name"])
    except (RefusedError, UnknownKindError):
        return []
    return [route] if route else []


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
            named = row["metadata"]
            releases[named["namespace"]][named["name"]] = named.get("labels", {}).get(RELEASE_LABEL)
    return [
        observe_briefly(one, sets[place], releases[place[0]])
        for one in services
        for place in [(one["metadata"]["namespace"], one["metadata"]["name"])]
    ]


def holding_pods(api: Api, reference: Reference) -> tuple[str, ...]:
    """Return the pods of a service that are being deleted and still hold their resources.

    Once the service is deleted, these are all of its pods: the cluster comes to them a little later.
    """
    service = api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
    stays = service is not None and not is_terminating(service)
    pods = [pod for pod in _list(api, POD, reference) if not is_over(pod)]
    return tuple(describe_held(pod) for pod in pods if is_terminating(pod) or not stays)


def _has_several(service: Document) -> bool:
    traffic = service.get("status", {}).get("components", {}).get("predictor", {}).get("traffic", [])
    return len(traffic) > 1


def _owner(row: Document) -> tuple[str, str]:
    metadata = row["metadata"]
    return metadata["namespace"], metadata.get("labels", {}).get(SERVICE_LABEL, "")


def _replica_set(row: Document) -> Document:
    """Return as much of a ReplicaSet as its row of a table tells."""
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


def _events(api: Api, about: Document) -> list[Document]:
    metadata = about["metadata"]
    try:
        about_it = {"fieldSelector": f"involvedObject.uid={metadata['uid']}"}
        return api.list(EVENT, metadata["namespace"], about_it)[0]
    except RefusedError:
        return []
