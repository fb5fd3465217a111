"""The objects that KServe makes for an InferenceService, and which of them belong to its predictor. Pure.

KServe copies an InferenceService's labels to everything that it makes, so each object carries the ID of its
release. The objects of another user's canary carry the same labels; only `app` differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct, structs

from deployer.observed import RELEASE_LABEL, Document
from deployer.overlay import overlay_of

SERVICE_LABEL = "serving.kserve.io/inferenceservice"
COMPONENT_LABEL = "component"
MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
SERVING_CONTAINER = "kserve-container"
INITIALIZER = "storage-initializer"


class Children(Struct, frozen=True, kw_only=True):
    """The objects of one InferenceService, as read from the cluster.

    `routes` are its HTTPRoutes, read only if another user splits its traffic. `logs` are the last lines of
    serving containers by pod name, read only if nothing else reports why a model does not load.
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


def name_of(document: Document) -> str:
    """Return an object's name."""
    return str(document["metadata"]["name"])


def release_of(document: Document) -> str | None:
    """Return the release that an object belongs to, by its label."""
    label: str | None = document["metadata"].get("labels", {}).get(RELEASE_LABEL)
    return label


def is_of_release(service: Document, document: Document) -> bool:
    """Return whether an object belongs to the service's release, with the service's overlay."""
    return (release_of(document), overlay_of(document)) == (release_of(service), overlay_of(service))


def of_release(service: Document, documents: Iterable[Document]) -> list[Document]:
    """Return the objects that belong to the service's release, with the service's overlay."""
    return [one for one in documents if is_of_release(service, one)]


def is_standard(service: Document) -> bool:
    """Return whether an InferenceService runs as a Deployment, without Knative."""
    annotated = service["metadata"].get("annotations", {}).get(MODE_ANNOTATION)
    mode = service.get("status", {}).get("deploymentMode") or annotated
    return mode in ("Standard", "RawDeployment")


def deployment_name(service: Document) -> str:
    """Return the name of the predictor's Deployment and Service in Standard mode."""
    predictor = service.get("spec", {}).get("predictor", {}).get("name")
    return "-".join(filter(None, (name_of(service), predictor, "predictor")))


def own_children(service: Document, children: Children) -> Children:
    """Return the objects of the service's own predictor: not of a canary, transformer or explainer."""
    app = f"isvc.{deployment_name(service)}" if is_standard(service) else None

    def is_own(document: Document) -> bool:
        labels = document["metadata"].get("labels", {})
        return labels.get(COMPONENT_LABEL, "predictor") == "predictor" and app in (None, labels.get("app"))

    return structs.replace(
        children,
        pods=list(filter(is_own, children.pods)),
        revisions=list(filter(is_own, children.revisions)),
        deployments=list(filter(is_own, children.deployments)),
        replica_sets=list(filter(is_own, children.replica_sets)),
    )


def release_pods(service: Document, children: Children) -> list[Document]:
    """Return the predictor's pods of the service's release that have not ended and are not terminating."""
    pods = of_release(service, own_children(service, children).pods)
    return [pod for pod in pods if not (is_terminating(pod) or has_ended(pod))]


def has_ended(pod: Document) -> bool:
    """Return whether a pod has ended, for example because it was evicted."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def is_terminating(document: Document) -> bool:
    """Return whether an object is being deleted; a pod keeps its resources until it is gone."""
    return "deletionTimestamp" in document["metadata"]


def conditions(document: Document) -> list[dict[str, Any]]:
    """Return an object's conditions."""
    found: list[dict[str, Any]] = document.get("status", {}).get("conditions") or []
    return found


def condition(document: Document, kind: str) -> dict[str, Any]:
    """Return an object's condition of one type, empty if it has none."""
    return next((one for one in conditions(document) if one.get("type") == kind), {})


def events_about(document: Document, events: Sequence[Document]) -> list[Document]:
    """Return the events about an object, the oldest first."""
    uid = document["metadata"].get("uid")
    return sorted((one for one in events if one.get("involvedObject", {}).get("uid") == uid), key=event_time)


def event_time(event: Document) -> str:
    """Return when an event was last seen, to the second, in the API server's format."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or "")[:19]
