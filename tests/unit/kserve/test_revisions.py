"""Which release gets which requests, in both modes and with another user's canary."""

from __future__ import annotations

from typing import Any

from deployer.observed import NOT_SWITCHED, Document, Observed, Phase
from deployer.overlay import OVERLAY_LABEL
from deployer.targets.kserve.state.children import (
    Children,
    deployment_name,
    is_standard,
    name_of,
    own_children,
    release_of,
    release_pods,
)
from deployer.targets.kserve.state.revisions import find_url, observe, observe_briefly, split_replica_sets
from tests.unit.kserve.documents import A, B, condition, pod, replica_set, revision, service

READY = {"conditions": [condition("Ready", "True")]}


def shares(status: Observed) -> list[tuple[int, str | None]]:
    return [(share.percent, share.release) for share in status.traffic]


def test_standard_mode_during_a_rolling_update() -> None:
    sets = [replica_set(A, 9, wanted=2, available=2), replica_set(B, 10, wanted=1, available=1)]
    seen = observe(service(B, **READY), Children(replica_sets=sets))
    assert shares(seen) == [(33, B), (67, A)]
    assert (seen.phase, seen.serving, seen.replicas) == (Phase.PROGRESSING, A, (3, 3))


def test_standard_mode_before_kserve_updates_the_deployment() -> None:
    sets = [replica_set(A, 9, wanted=1, available=1)]
    seen = observe(service(B, **READY), Children(replica_sets=sets))
    assert (seen.phase, seen.reason) == (Phase.PROGRESSING, "RevisionNotReady")
    assert seen.message == f"the newest ready revision belongs to release {A}"


def test_rounded_shares_add_up() -> None:
    for counts in ([1, 1, 1], [1, 2, 4], [7, 11, 13]):
        sets = [replica_set(A, n, wanted=c, available=c) for n, c in enumerate(counts)]
        assert sum(share.percent for share in split_replica_sets(sets)) == 100
        assert sum(share.percent for share in split_replica_sets(sets, 70)) == 70


def test_only_the_predictors_own_objects_count() -> None:
    sets = [
        replica_set(B, 1, wanted=1, available=1),
        replica_set(B, 2, wanted=1, app="isvc.digits-canary-predictor"),
        replica_set(A, 3, wanted=1, app="isvc.digits-transformer"),
    ]
    assert observe(service(B, **READY), Children(replica_sets=sets)).phase is Phase.READY
    explainer = revision(B, 7)
    explainer["metadata"]["labels"]["component"] = "explainer"
    own = own_children(service(mode="Knative"), Children(revisions=[explainer, revision(A)]))
    assert [release_of(one) for one in own.revisions] == [A]


def overlaid(document: Document, digest: str = "0123456789ab") -> Document:
    document["metadata"]["labels"][OVERLAY_LABEL] = digest
    return document


def test_pods_with_another_overlay_of_the_target_are_old_ones() -> None:
    wanted = overlaid(service(A, **READY))
    old, new = replica_set(A, 9, wanted=1, available=1), overlaid(replica_set(A, 10, wanted=1, available=1))
    before = observe(wanted, Children(replica_sets=[old]))  # KServe has not updated the Deployment
    assert (before.phase, before.reason) == (Phase.PROGRESSING, NOT_SWITCHED)
    assert before.message == "pods without the target's current overlay still answer"
    assert observe(wanted, Children(replica_sets=[old, new])).phase is Phase.PROGRESSING
    assert observe(wanted, Children(replica_sets=[new])).phase is Phase.READY
    assert observe(service(A, **READY), Children(replica_sets=[new])).phase is Phase.PROGRESSING
    pods = [overlaid(pod(A, name="new")), overlaid(pod(A, name="older"), "ba9876543210"), pod(A, name="old")]
    assert [name_of(one) for one in release_pods(wanted, Children(pods=pods))] == ["new"]


def test_in_knative_mode_the_requests_have_to_go_to_the_revision_with_the_overlay() -> None:
    old, new = revision(A, 1), overlaid(revision(A, 2))
    names = [name_of(one) for one in (old, new)]

    def seen(answering: str) -> Observed:
        predictor = {"latestCreatedRevision": names[1], "latestReadyRevision": names[1]}
        traffic = [{"revisionName": answering, "percent": 100}]
        status = {"components": {"predictor": {**predictor, "traffic": traffic}}}
        return observe(
            overlaid(service(A, mode="Knative", **READY, **status)), Children(revisions=[old, new])
        )

    assert [seen(name).phase for name in names] == [Phase.PROGRESSING, Phase.READY]


def test_a_predictor_with_a_name() -> None:
    named = service(B, **READY)
    named["spec"]["predictor"]["name"] = "canary"
    assert deployment_name(named) == "digits-canary-predictor"
    sets = [
        replica_set(B, 1, available=1, app="isvc.digits-canary-predictor"),
        replica_set(A, 2, available=1),
    ]
    assert observe(named, Children(replica_sets=sets)).phase is Phase.READY


class TestCanaryOfAnotherUser:
    @staticmethod
    def seen(*weights: tuple[str, int]) -> Observed:
        document = service(B, **READY)
        document["spec"]["canary"] = [{"name": "canary", "trafficPercent": 10}]
        backends = [{"name": name, "weight": weight} for name, weight in weights]
        route: Document = {"metadata": {"name": "digits"}, "spec": {"rules": [{"backendRefs": backends}]}}
        canary = replica_set(A, 1, available=1, name="c-1", app="isvc.digits-canary-predictor")
        sets = [replica_set(B, 1, available=1), canary]
        routes = [route] if weights else []
        return observe(document, Children(replica_sets=sets, routes=routes))

    def test_the_route_has_its_share(self) -> None:
        status = self.seen(("digits-predictor", 90), ("digits-canary-predictor", 10))
        assert [(s.percent, s.release, s.foreign) for s in status.traffic] == [(90, B, False), (10, A, True)]
        assert status.phase is Phase.READY

    def test_a_canary_with_every_request_does_not_block_a_rollout(self) -> None:
        status = self.seen(("digits-predictor", 0), ("digits-canary-predictor", 100))
        assert [(s.percent, s.foreign) for s in status.traffic] == [(0, False), (100, True)]
        assert status.phase is Phase.READY

    def test_a_route_without_a_split(self) -> None:
        for weights in (
            [("digits-predictor", 1)],
            [],
            [("digits-predictor", 100), ("digits-canary-predictor", 0)],
        ):
            status = self.seen(*weights)
            assert [(share.percent, share.foreign) for share in status.traffic] == [(100, False)]

    def test_a_route_without_rules(self) -> None:
        document = service(B, **READY)
        document["spec"]["canary"] = [{"name": "canary"}]
        route: Document = {"metadata": {"name": "digits"}, "spec": {}}
        children = Children(replica_sets=[replica_set(B, available=1)], routes=[route])
        assert shares(observe(document, children)) == [(100, B)]


def test_knative_traffic() -> None:
    traffic = [
        {"revisionName": "digits-predictor-00002", "percent": 10, "latestRevision": True},
        {"revisionName": "digits-predictor-00001", "percent": 90, "tag": "prev"},
    ]
    named = {
        "latestReadyRevision": "digits-predictor-00002",
        "latestCreatedRevision": "digits-predictor-00002",
    }
    document = service(B, mode="Knative", components={"predictor": {**named, "traffic": traffic}}, **READY)
    document["spec"]["predictor"]["canaryTrafficPercent"] = 10
    known = [
        revision(A, 1, actualReplicas=2, desiredReplicas=2),
        revision(B, 2, actualReplicas=1, desiredReplicas=2),
    ]
    seen = observe(document, Children(revisions=known))
    assert shares(seen) == [(10, B), (90, A)]
    assert seen.replicas == (3, 4)
    # A list takes the newest revision's release from the service's label.
    assert shares(observe_briefly(document, [], {})) == [(10, B), (90, None)]
    assert shares(observe_briefly(document, [], {"digits-predictor-00001": A})) == [(10, B), (90, A)]


def test_a_list_in_standard_mode() -> None:
    sets = [replica_set(A, 1, available=1)]
    seen = observe_briefly(service(B, conditions=[condition("Ready", "False", "Late")]), sets, {})
    assert (seen.phase, seen.serving) == (Phase.PROGRESSING, A)


def test_terminating_pods_are_named() -> None:
    leaving = pod(A, limits={"nvidia.com/gpu": "1"}, deletionTimestamp="T")
    seen = observe(service(B, **READY), Children(pods=[leaving, pod(B, name="digits-2")]))
    assert seen.holding == ("pod digits-1 (1 nvidia.com/gpu)",)


def test_a_service_without_a_status_is_pending() -> None:
    bare: dict[str, Any] = {
        "metadata": {"name": "digits", "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"}}
    }
    assert is_standard(bare)
    assert observe(bare, Children()).phase is Phase.PENDING
    assert release_of(bare) is None


def test_the_url_of_a_release_is_its_tags_or_the_services() -> None:
    made = [revision(A, 1), revision(B, 2)]

    def served(*traffic: Document) -> Document:
        predictor = {"traffic": list(traffic)}
        return service(B, mode="Knative", url="http://digits", components={"predictor": predictor})

    split = served(
        {"revisionName": "digits-predictor-00002", "percent": 10, "tag": "latest", "url": "http://latest"},
        {"revisionName": "digits-predictor-00001", "percent": 90},
    )
    assert find_url(split, made, B) == "http://latest"
    assert find_url(split, made, A) is None
    assert find_url(split, made, "1.2-cccccccccccc") is None
    whole = served({"revisionName": "digits-predictor-00002", "percent": 100})
    assert find_url(whole, made, B) == "http://digits"
    assert find_url(service(B, mode="Knative"), made, B) is None
