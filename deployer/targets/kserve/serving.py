"""Which release serves, read from what KServe made of an InferenceService. Pure.

KServe copies an InferenceService's labels to the Revisions and ReplicaSets that it makes, so each of
them carries the id of its release; the generations that KServe reports are not the InferenceService's.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from deployer.target import RELEASE_LABEL, Document

SERVICE_LABEL = "serving.kserve.io/inferenceservice"
COMPONENT_LABEL = "component"
MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
_NUMBER = "deployment.kubernetes.io/revision"


class Children(Struct, frozen=True, kw_only=True):
    """What belongs to one InferenceService, as it is in the cluster."""

    pods: list[Document] = []
    events: list[Document] = []
    revisions: list[Document] = []
    deployments: list[Document] = []
    replica_sets: list[Document] = []


def release_of(document: Document) -> str | None:
    """Return the release that an object was made for, by its label."""
    label: str | None = document["metadata"].get("labels", {}).get(RELEASE_LABEL)
    return label


def describe_serving(service: Document, children: Children) -> Document:
    """Return the InferenceService with the release of each revision in its traffic.

    In Standard mode, where KServe reports neither revisions nor traffic, they are the Deployment's
    ReplicaSets and their shares of the available pods.
    """
    predictor = service.get("status", {}).get("components", {}).get("predictor", {})
    if is_standard(service):
        predictor = _standard(predictor, children.replica_sets)
    else:
        releases = {one["metadata"]["name"]: release_of(one) for one in children.revisions}
        traffic = [
            {**share, "release": releases.get(share.get("revisionName", ""))}
            for share in predictor.get("traffic", [])
        ]
        predictor = {**predictor, "traffic": traffic}
    status = service.get("status", {})
    if not status:
        return service
    return {
        **service,
        "status": {**status, "components": {**status.get("components", {}), "predictor": predictor}},
    }


def count_replicas(service: Document, children: Children) -> Document:
    """Return the InferenceService with the predictor's replicas: how many are ready, and how many wanted."""
    if not service.get("status"):
        return service
    if is_standard(service):
        owned = [one for one in children.replica_sets if _component(one) == "predictor"]
        ready = sum(_status(one, "availableReplicas") for one in owned)
        wanted = sum(int(one["spec"].get("replicas", 1)) for one in owned)
    else:
        ready = sum(_status(one, "actualReplicas") for one in children.revisions)
        wanted = sum(_status(one, "desiredReplicas") for one in children.revisions)
    status = service["status"]
    components = status.get("components", {})
    predictor = {**components.get("predictor", {}), "replicas": {"ready": ready, "wanted": wanted}}
    return {**service, "status": {**status, "components": {**components, "predictor": predictor}}}


def assume_serving(service: Document) -> Document:
    """Return the InferenceService as if what is Ready were of its own release: all that a list can tell."""
    predictor = service.get("status", {}).get("components", {}).get("predictor", {})
    newest = predictor.get("latestReadyRevision")
    if is_standard(service):
        newest = f"{service['metadata']['name']}-predictor"
        conditions = {c["type"]: c.get("status") for c in service.get("status", {}).get("conditions", [])}
        ready = 1 if conditions.get("Ready") == "True" else 0
        assumed = {"metadata": {**service["metadata"], "name": newest, "annotations": {}}, "spec": {}}
        return describe_serving(
            service, Children(replica_sets=[{**assumed, "status": {"availableReplicas": ready}}])
        )
    if newest != predictor.get("latestCreatedRevision"):
        return service
    return describe_serving(
        service, Children(revisions=[{"metadata": {**service["metadata"], "name": newest}}])
    )


def is_standard(service: Document) -> bool:
    """Return whether an InferenceService is served by a Deployment and not by Knative."""
    written = service["metadata"].get("annotations", {}).get(MODE_ANNOTATION)
    mode = service.get("status", {}).get("deploymentMode") or written
    return mode in ("Standard", "RawDeployment")


def serves_release(service: Document) -> bool:
    """Return whether the newest revision, ready, is of the release that the InferenceService names.

    The InferenceService is one that `describe_serving` has returned: what is not known does not serve.
    """
    predictor = service.get("status", {}).get("components", {}).get("predictor", {})
    newest = predictor.get("latestReadyRevision")
    shares = [share for share in predictor.get("traffic", []) if share.get("revisionName") == newest]
    return bool(newest) and bool(shares) and all(s.get("release") == release_of(service) for s in shares)


def _standard(predictor: Document, replica_sets: list[Document]) -> Document:
    owned = [one for one in replica_sets if _component(one) == "predictor"]
    if not owned:
        return predictor
    newest = max(owned, key=_number)
    available = {one["metadata"]["name"]: _status(one, "availableReplicas") for one in owned}
    total = sum(available.values())
    name = newest["metadata"]["name"]
    wanted = newest.get("spec", {}).get("replicas", 1)
    alone = all(_status(one, "replicas") == 0 for one in owned if one is not newest)
    arrived = available[name] >= wanted and alone
    traffic = [
        {
            "revisionName": one["metadata"]["name"],
            "percent": round(100 * available[one["metadata"]["name"]] / total),
            "latestRevision": one is newest,
            "release": release_of(one),
        }
        for one in sorted(owned, key=_number, reverse=True)
        if available[one["metadata"]["name"]]
    ]
    ready = name if arrived else predictor.get("latestReadyRevision", "")
    return {**predictor, "latestCreatedRevision": name, "latestReadyRevision": ready, "traffic": traffic}


def _number(replica_set: Document) -> int:
    return int(replica_set["metadata"].get("annotations", {}).get(_NUMBER, "0"))


def _status(document: Document, key: str) -> int:
    value: Any = document.get("status", {}).get(key, 0)
    return int(value)


def _component(document: Document) -> str:
    return str(document["metadata"].get("labels", {}).get(COMPONENT_LABEL, "predictor"))
