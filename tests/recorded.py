"""Recorded states of a real KServe, as documents: see tests/snapshots/README.md."""

from __future__ import annotations

import json
from pathlib import Path

from deployer.observed import Document
from deployer.targets.kserve.state.children import Children

FOLDER = Path(__file__).parent / "snapshots" / "recorded"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))

# The recordings have no uids and times: a uid is made of the object's kind and name, and every time is TIME.
TIME = "2026-01-01T10:00:00Z"


def documents(name: str) -> list[Document]:
    """Return the objects of a state, by its number or its full name."""
    path = next(path for path in sorted(FOLDER.glob("*.json")) if path.stem.startswith(name))
    found: list[Document] = json.loads(path.read_text().replace('"T"', f'"{TIME}"'))
    for document in found:
        document["metadata"]["uid"] = f"{document['kind']}/{document['metadata']['name']}"
        for owner in document["metadata"].get("ownerReferences", []):
            owner["uid"] = f"{owner['kind']}/{owner['name']}"
        if document["kind"] == "Event":
            about = document["involvedObject"]
            about["uid"] = f"{about['kind']}/{about['name']}"
    return found


def state(name: str) -> tuple[Document, Children]:
    """Return a state's InferenceService and its children.

    If a state was recorded without ReplicaSets, they are derived from its pods, or from a Deployment whose
    pods all belong to one ReplicaSet.
    """
    found = documents(name)

    def of(kind: str) -> list[Document]:
        return [one for one in found if one["kind"] == kind]

    sets = of("ReplicaSet") or _from_pods(of("Pod")) or _from_deployments(of("Deployment"))
    children = Children(
        pods=of("Pod"),
        events=of("Event"),
        revisions=of("Revision"),
        deployments=of("Deployment"),
        replica_sets=sets,
        routes=of("HTTPRoute"),
    )
    return of("InferenceService")[0], children


def _from_pods(pods: list[Document]) -> list[Document]:
    made: dict[str, Document] = {}
    for pod in pods:
        metadata = pod["metadata"]
        ready = any(
            c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])
        )
        if "deletionTimestamp" in metadata or not metadata.get("ownerReferences"):
            continue
        one = made.setdefault(metadata["ownerReferences"][0]["name"], _replica_set(metadata, 0, 0))
        one["metadata"]["name"] = metadata["ownerReferences"][0]["name"]
        one["spec"]["replicas"] += 1
        one["status"]["replicas"] += 1
        one["status"]["availableReplicas"] += ready
    # Oldest first: the ReplicaSet of the wanted release is the newest.
    return sorted(made.values(), key=lambda one: one["status"]["availableReplicas"], reverse=True)


def _from_deployments(deployments: list[Document]) -> list[Document]:
    made = []
    for one in deployments:
        status = one["status"]
        if status.get("updatedReplicas") == status.get("replicas"):
            made.append(
                _replica_set(one["metadata"], one["spec"]["replicas"], status.get("availableReplicas", 0))
            )
    return made


def _replica_set(metadata: Document, replicas: int, available: int) -> Document:
    return {
        "kind": "ReplicaSet",
        "metadata": {"name": f"{metadata['name']}-derived", "labels": metadata["labels"]},
        "spec": {"replicas": replicas},
        "status": {"replicas": replicas, "availableReplicas": available},
    }
