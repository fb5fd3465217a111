"""Which release gets which requests, read from what KServe made of an InferenceService. Pure.

In Standard mode KServe reports neither revisions nor traffic: there the predictor's ReplicaSets are the
revisions, and their shares of the available pods the traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from deployer.observed import Document, Observed, Revision, Share, read_observed
from deployer.targets.kserve.state.children import (
    Children,
    deployment_name,
    is_standard,
    is_terminating,
    own_children,
    release_of,
)
from deployer.targets.kserve.state.pods import describe_held

_NUMBER = "deployment.kubernetes.io/revision"


def observe(service: Document, children: Children, *, stable: str | None = None) -> Observed:
    """Return what an InferenceService and its objects say; `stable` as in read_observed."""
    own = own_children(service, children)
    if is_standard(service):
        sets = sorted(own.replica_sets, key=_number)
        releases = {_name(one): release_of(one) for one in sets}
        shares = [*split_replica_sets(sets, 100 - _foreign(service, own)), *_canaries(service, children)]
        status = read_observed(service, releases, predictor=_predictor(sets), shares=shares, stable=stable)
        replicas = _count(sets, "availableReplicas"), sum(_wanted(one) for one in sets)
        revisions = [_revision(one, "availableReplicas", "replicas") for one in sets]
    else:
        releases = {_name(one): release_of(one) for one in own.revisions}
        status = read_observed(service, releases, stable=stable)
        replicas = _count(own.revisions, "actualReplicas"), _count(own.revisions, "desiredReplicas")
        revisions = [_revision(one, "actualReplicas", "actualReplicas") for one in own.revisions]
    held = tuple(describe_held(pod) for pod in children.pods if is_terminating(pod))
    return structs.replace(status, replicas=replicas, revisions=tuple(revisions), holding=held)


def observe_briefly(service: Document, sets: Sequence[Document], releases: dict[str, str | None]) -> Observed:
    """Return what a list shows of one service of many.

    `sets` are its ReplicaSets in Standard mode, `releases` those of Knative's revisions; a revision that is
    not among them is of the service's own release if it is the newest.
    """
    children = Children(replica_sets=list(sets))
    if is_standard(service):
        return observe(service, children)
    predictor = service.get("status", {}).get("components", {}).get("predictor", {})
    newest = predictor.get("latestCreatedRevision", "")
    return read_observed(service, {newest: release_of(service), **releases})


def find_url(service: Document, revisions: Sequence[Document], release: str) -> str | None:
    """Return the URL of one release in Knative mode: its tag's, or the service's where it gets all requests.

    None where the release is not in the split, or KServe has given it no tag.
    """
    status = service.get("status", {})
    releases = {_name(one): release_of(one) for one in revisions}
    for line in status.get("components", {}).get("predictor", {}).get("traffic", []):
        if releases.get(line.get("revisionName", "")) == release:
            url: str | None = line.get("url") or (status.get("url") if line.get("percent") == 100 else None)
            return url
    return None


def split_replica_sets(sets: Sequence[Document], percent: int = 100) -> list[Share]:
    """Return how `percent` of the requests is shared by the ReplicaSets' available pods, the newest first."""
    available = [(one, count) for one in reversed(sets) if (count := _status(one, "availableReplicas"))]
    total, given, counted = sum(count for _, count in available), 0, 0
    shares = []
    for one, count in available:  # so that rounding never makes more or less than `percent`
        counted += count
        upto = round(percent * counted / total)
        shares.append(Share(_name(one), release_of(one), upto - given))
        given = upto
    return shares


def _revision(document: Document, ready: str, pods: str) -> Revision:
    return Revision(_name(document), release_of(document), _status(document, ready), _status(document, pods))


def _predictor(sets: Sequence[Document]) -> Document:
    """Return what Knative would report of ReplicaSets, the newest last."""
    if not sets:
        return {}
    newest = sets[-1]
    alone = all(_status(one, "replicas") == 0 for one in sets[:-1])
    arrived = alone and _status(newest, "availableReplicas") >= _wanted(newest)
    serving = [_name(one) for one in sets if _status(one, "availableReplicas")]
    ready = _name(newest) if arrived else next((name for name in serving if name != _name(newest)), "")
    return {"latestCreatedRevision": _name(newest), "latestReadyRevision": ready}


def _foreign(service: Document, own: Children) -> int:
    """Return the percentage of the requests that canaries of somebody else get.

    KServe 0.20 accepts `spec.canary`, reports its percentage and splits nothing, so the routes are believed.
    """
    return sum(weight for _, weight in _foreign_weights(service, own))


def _foreign_weights(service: Document, own: Children) -> list[tuple[str, int]]:
    """Return the backends of the service's HTTPRoute that are not its predictor, with their percentages."""
    if not service.get("spec", {}).get("canary"):
        return []
    route = next((one for one in own.routes if _name(one) == service["metadata"]["name"]), {})
    rules = route.get("spec", {}).get("rules", [])
    backends = rules[0].get("backendRefs", []) if rules else []
    total = sum(one.get("weight", 1) for one in backends)
    return [
        (one["name"], round(100 * one.get("weight", 1) / total))
        for one in backends
        if total and one.get("weight", 1) and one["name"] != deployment_name(service)
    ]


def _canaries(service: Document, children: Children) -> list[Share]:
    releases = {
        str(labels.get("app", "")).removeprefix("isvc."): release_of(one)
        for one in children.replica_sets
        for labels in [one["metadata"].get("labels", {})]
    }
    weights = _foreign_weights(service, children)
    return [Share(name, releases.get(name), percent, foreign=True) for name, percent in weights]


def _number(replica_set: Document) -> int:
    return int(replica_set["metadata"].get("annotations", {}).get(_NUMBER, "0"))


def _name(document: Document) -> str:
    return str(document["metadata"]["name"])


def _wanted(replica_set: Document) -> int:
    return int(replica_set.get("spec", {}).get("replicas", 1))


def _count(documents: Sequence[Document], key: str) -> int:
    return sum(_status(one, key) for one in documents)


def _status(document: Document, key: str) -> int:
    value: Any = document.get("status", {}).get(key, 0)
    return int(value)
