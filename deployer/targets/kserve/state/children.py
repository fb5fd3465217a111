"""The objects that KServe makes for an InferenceService, and which of them are its own predictor's. Pure.

KServe copies an InferenceService's labels to everything that it makes, so each object carries the ID of its
release. The objects of a canary that somebody else added carry the same labels: only `app` tells them apart.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, structs

from deployer.observed import RELEASE_LABEL, Document

SERVICE_LABEL = "serving.kserve.io/inferenceservice"
COMPONENT_LABEL = "component"
MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
SERVING_CONTAINER = "kserve-container"
INITIALIZER = "storage-initializer"


class Children(Struct, frozen=True, kw_only=True):
    """What belongs to one InferenceService, as it is in the cluster.

    `routes` are its HTTPRoutes, read only where somebody else splits its traffic. `logs` are the last lines
    of serving containers, by pod name, where only the log can tell why a model does not load.
    """

    pods: list[Document] = []
    events: list[Document] = []
    revisions: list[Document] = []
    deployments: list[Document] = []
    replica_sets: list[Document] = []
    routes: list[Document] = []
    logs: dict[str, tuple[str, ...]] = {}


def selector(name: str) -> dict[str, str]:
    """Return the query that selects everything that KServe makes for a service."""
    return {"labelSelector": f"{SERVICE_LABEL}={name}"}


def release_of(document: Document) -> str | None:
    """Return the release that an object was made for, by its label."""
    label: str | None = document["metadata"].get("labels", {}).get(RELEASE_LABEL)
    return label


def is_standard(service: Document) -> bool:
    """Return whether an InferenceService is served by a Deployment and not by Knative."""
    written = service["metadata"].get("annotations", {}).get(MODE_ANNOTATION)
    mode = service.get("status", {}).get("deploymentMode") or written
    return mode in ("Standard", "RawDeployment")


def deployment_name(service: Document) -> str:
    """Return the name of the predictor's Deployment and Service in Standard mode."""
    named = service.get("spec", {}).get("predictor", {}).get("name")
    return "-".join(filter(None, (service["metadata"]["name"], named, "predictor")))


def own_children(service: Document, children: Children) -> Children:
    """Return what belongs to the service's own predictor: not to a canary, a transformer or an explainer."""
    app = f"isvc.{deployment_name(service)}" if is_standard(service) else None

    def own(documents: list[Document]) -> list[Document]:
        labelled = ((one, one["metadata"].get("labels", {})) for one in documents)
        return [
            one
            for one, labels in labelled
            if labels.get(COMPONENT_LABEL, "predictor") == "predictor" and app in (None, labels.get("app"))
        ]

    return structs.replace(
        children,
        pods=own(children.pods),
        revisions=own(children.revisions),
        deployments=own(children.deployments),
        replica_sets=own(children.replica_sets),
    )


def release_pods(service: Document, children: Children) -> list[Document]:
    """Return the predictor's pods of the service's release that neither are being deleted nor have ended."""
    release = release_of(service)
    pods = own_children(service, children).pods
    return [one for one in pods if release_of(one) == release and not (is_terminating(one) or is_over(one))]


def is_over(pod: Document) -> bool:
    """Return whether a pod has ended for good, as an evicted one: another one takes its place."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def is_terminating(document: Document) -> bool:
    """Return whether an object is being deleted: a pod keeps its resources until it is gone."""
    return "deletionTimestamp" in document["metadata"]


def conditions(document: Document) -> list[dict[str, Any]]:
    """Return an object's conditions."""
    found: list[dict[str, Any]] = document.get("status", {}).get("conditions") or []
    return found


def condition(document: Document, kind: str) -> dict[str, Any]:
    """Return one of an object's conditions, empty where it has none of that type."""
    return next((one for one in conditions(document) if one.get("type") == kind), {})


def events_about(document: Document, events: list[Document]) -> list[Document]:
    """Return the events about an object, the oldest first."""
    uid = document["metadata"].get("uid")
    return sorted((one for one in events if one.get("involvedObject", {}).get("uid") == uid), key=event_time)


def event_time(event: Document) -> str:
    """Return when an event was seen last, to the second, as the API server writes times."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or "")[:19]
