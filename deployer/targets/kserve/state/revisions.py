"""Reads from the objects of an InferenceService which release gets which requests. Pure.

In Standard mode KServe reports neither revisions nor traffic. There the predictor's ReplicaSets are the
revisions, and their shares of the available pods are the traffic.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from deployer.observed import NOT_SWITCHED, Document, Observed, Phase, Revision, Share, read_observed
from deployer.targets.kserve.state.children import (
    Children,
    deployment_name,
    is_of_release,
    is_standard,
    is_terminating,
    name_of,
    own_children,
    release_of,
)
from deployer.targets.kserve.state.pods import describe_held

_NUMBER = "deployment.kubernetes.io/revision"


def observe(service: Document, children: Children, *, stable: str | None = None) -> Observed:
    """Read the status of an InferenceService and its objects; `stable` as in read_observed."""
    own, standard = own_children(service, children), is_standard(service)
    made = sorted(own.replica_sets, key=_number) if standard else own.revisions
    releases = {name_of(one): release_of(one) for one in made}
    if standard:
        foreign = _foreign_shares(service, children)
        shares = [*split_replica_sets(made, 100 - sum(share.percent for share in foreign)), *foreign]
        status = read_observed(service, releases, predictor=_predictor(made), shares=shares, stable=stable)
        ready, pods, wanted = "availableReplicas", "replicas", sum(_wanted(one) for one in made)
    else:
        status = read_observed(service, releases, stable=stable)
        ready, pods, wanted = (
            "actualReplicas",
            "actualReplicas",
            sum(_count(one, "desiredReplicas") for one in made),
        )
    revisions = tuple(
        Revision(name_of(one), release_of(one), _count(one, ready), _count(one, pods)) for one in made
    )
    status = _without_others(status, [name_of(one) for one in made if not is_of_release(service, one)])
    return structs.replace(
        status,
        replicas=(sum(one.ready for one in revisions), wanted),
        revisions=revisions,
        holding=tuple(describe_held(pod) for pod in children.pods if is_terminating(pod)),
    )


def _without_others(status: Observed, others: Sequence[str]) -> Observed:
    """Return a status that is not Ready while another revision is the newest or gets the requests.

    Revisions of one release differ if the target's overlay has changed in between.
    """
    answering = {share.revision for share in status.traffic if share.percent}
    if (
        status.phase is not Phase.READY
        or status.percent < 100
        or not {status.revision, *answering} & {*others}
    ):
        return status
    message = "pods without the target's current overlay still answer"
    return structs.replace(status, phase=Phase.PROGRESSING, reason=NOT_SWITCHED, message=message)


def observe_briefly(service: Document, sets: Sequence[Document], releases: dict[str, str | None]) -> Observed:
    """Read the status that a list of services shows.

    `sets` are the service's ReplicaSets in Standard mode. `releases` maps Knative's revisions to releases;
    the newest revision, if it is missing, is of the service's own release.
    """
    children = Children(replica_sets=list(sets))
    if is_standard(service):
        return observe(service, children)
    predictor = service.get("status", {}).get("components", {}).get("predictor", {})
    newest = predictor.get("latestCreatedRevision", "")
    return read_observed(service, {newest: release_of(service), **releases})


def find_url(service: Document, revisions: Sequence[Document], release: str) -> str | None:
    """Return the URL of one release in Knative mode: its tag's, or the service's if it gets all requests.

    None if the release gets no requests, or has no tag.
    """
    status = service.get("status", {})
    releases = {name_of(one): release_of(one) for one in revisions}
    for line in status.get("components", {}).get("predictor", {}).get("traffic", []):
        if releases.get(line.get("revisionName", "")) == release:
            url: str | None = line.get("url") or (status.get("url") if line.get("percent") == 100 else None)
            return url
    return None


def split_replica_sets(sets: Sequence[Document], percent: int = 100) -> list[Share]:
    """Divide `percent` of the requests by the ReplicaSets' available pods, the newest ReplicaSet first."""
    available = [(one, count) for one in reversed(sets) if (count := _count(one, "availableReplicas"))]
    total, given, counted = sum(count for _, count in available), 0, 0
    shares = []
    for one, count in available:  # cumulative, so that the rounded shares add up to `percent`
        counted += count
        upto = round(percent * counted / total)
        shares.append(Share(name_of(one), release_of(one), upto - given))
        given = upto
    return shares


def _predictor(sets: Sequence[Document]) -> Document:
    """Return the status that Knative would report for ReplicaSets, the newest last."""
    if not sets:
        return {}
    *older, newest = sets
    finished = all(_count(one, "replicas") == 0 for one in older)
    if finished and _count(newest, "availableReplicas") >= _wanted(newest):
        ready = name_of(newest)
    else:
        ready = next((name_of(one) for one in older if _count(one, "availableReplicas")), "")
    return {"latestCreatedRevision": name_of(newest), "latestReadyRevision": ready}


def _foreign_shares(service: Document, children: Children) -> list[Share]:
    """Return the percentage of the requests that the canaries of another user get.

    KServe 0.20 accepts `spec.canary`, reports its percentage and splits nothing, so only the service's
    HTTPRoute shows it: backends that are not the predictor.
    """
    if not service.get("spec", {}).get("canary"):
        return []
    route = next((one for one in children.routes if name_of(one) == name_of(service)), {})
    rules = route.get("spec", {}).get("rules", [])
    weights = {
        one["name"]: one.get("weight", 1) for one in (rules[0].get("backendRefs", []) if rules else [])
    }
    releases = {
        str(one["metadata"].get("labels", {}).get("app", "")).removeprefix("isvc."): release_of(one)
        for one in children.replica_sets
    }
    return [
        Share(name, releases.get(name), round(100 * weight / sum(weights.values())), foreign=True)
        for name, weight in weights.items()
        if weight and name != deployment_name(service)
    ]


def _number(replica_set: Document) -> int:
    return int(replica_set["metadata"].get("annotations", {}).get(_NUMBER, "0"))


def _wanted(replica_set: Document) -> int:
    return int(replica_set.get("spec", {}).get("replicas", 1))


def _count(document: Document, key: str) -> int:
    return int(document.get("status", {}).get(key, 0))
