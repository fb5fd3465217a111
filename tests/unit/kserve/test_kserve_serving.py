"""Which release serves, from documents as KServe, Knative and the Deployment controller write them."""

from __future__ import annotations

from typing import Any

from deployer.target import RELEASE_LABEL, Document, Phase, read_status
from deployer.targets.kserve.serving import (
    Children,
    assume_serving,
    count_replicas,
    describe_serving,
    is_standard,
    release_of,
    serves_release,
)

A, B = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb"


def service(release: str = B, mode: str = "Standard", ready: str = "True", **predictor: Any) -> Document:
    return {
        "metadata": {"name": "digits", "namespace": "team", "labels": {RELEASE_LABEL: release}},
        "status": {
            "deploymentMode": mode,
            "conditions": [{"type": "Ready", "status": ready}],
            "components": {"predictor": predictor},
        },
    }


def replica_set(release: str, number: int, *, wanted: int, available: int, **labels: str) -> Document:
    return {
        "metadata": {
            "name": f"digits-{number}",
            "labels": {RELEASE_LABEL: release, **labels},
            "annotations": {"deployment.kubernetes.io/revision": str(number)},
        },
        "spec": {"replicas": wanted},
        "status": {"replicas": wanted, "availableReplicas": available},
    }


def shares(document: Document) -> list[tuple[int, str | None]]:
    return [(share.percent, share.release) for share in read_status(document).traffic]


def test_standard_in_the_middle_of_a_rolling_update() -> None:
    sets = [replica_set(A, 9, wanted=2, available=2), replica_set(B, 10, wanted=1, available=1)]
    seen = describe_serving(service(), Children(replica_sets=sets))
    assert shares(seen) == [(33, B), (67, A)]
    assert not serves_release(seen)
    assert read_status(seen).phase is Phase.PROGRESSING


def test_standard_at_its_end() -> None:
    sets = [replica_set(A, 9, wanted=0, available=0), replica_set(B, 10, wanted=2, available=2)]
    seen = describe_serving(service(), Children(replica_sets=sets))
    assert shares(seen) == [(100, B)]
    assert serves_release(seen)
    assert read_status(seen).phase is Phase.READY


def test_standard_before_the_deployment_was_touched() -> None:
    seen = describe_serving(service(B), Children(replica_sets=[replica_set(A, 9, wanted=1, available=1)]))
    assert not serves_release(seen)
    status = read_status(seen)
    assert (status.phase, status.reason) == (Phase.PROGRESSING, "RevisionNotReady")


def test_what_is_no_predictors_does_not_count() -> None:
    sets = [
        replica_set(B, 1, wanted=1, available=1),
        replica_set(B, 2, wanted=1, available=0, component="explainer"),
    ]
    assert serves_release(describe_serving(service(), Children(replica_sets=sets)))


def test_without_any_replica_set_nothing_is_known() -> None:
    seen = describe_serving(service(), Children())
    assert shares(seen) == []
    assert not serves_release(seen)


def test_knative() -> None:
    traffic = [
        {"revisionName": "r2", "percent": 10, "latestRevision": True},
        {"revisionName": "r1", "percent": 90, "tag": "prev"},
    ]
    wanted = service(mode="Serverless", traffic=traffic, latestReadyRevision="r2", latestCreatedRevision="r2")
    known = [{"metadata": {"name": n, "labels": {RELEASE_LABEL: r}}} for n, r in (("r1", A), ("r2", B))]
    seen = describe_serving(wanted, Children(revisions=known))
    assert shares(seen) == [(10, B), (90, A)]
    assert serves_release(seen)
    assert not serves_release(describe_serving(wanted, Children(revisions=known[:1])))
    # A list looks at no revisions: the newest is the service's own, the others are told by their names.
    assert shares(assume_serving(wanted)) == [(10, B), (90, None)]


def test_a_list_assumes_nothing_of_what_is_still_coming() -> None:
    coming = service(mode="Knative", latestReadyRevision="r1", latestCreatedRevision="r2")
    assert assume_serving(coming) == coming
    assert shares(assume_serving(service())) == [(100, B)]
    assert read_status(assume_serving(service())).phase is Phase.READY
    assert read_status(assume_serving(service(ready="False"))).phase is Phase.PROGRESSING


def test_before_there_is_a_status() -> None:
    bare = {
        "metadata": {"name": "digits", "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"}}
    }
    assert is_standard(bare)
    assert describe_serving(bare, Children()) == bare
    assert release_of(bare) is None


def test_replicas_are_counted_over_what_serves() -> None:
    def counted(mode: str, children: Children) -> Document:
        document: Document = count_replicas(service(mode=mode, url="u"), children)
        predictor = document["status"]["components"]["predictor"]
        assert predictor["url"] == "u"
        return predictor["replicas"]

    sets = [replica_set(A, 1, wanted=2, available=1), replica_set(B, 2, wanted=1, available=0)]
    transformer = replica_set(B, 3, wanted=5, available=5, component="transformer")
    assert counted("Standard", Children(replica_sets=[*sets, transformer])) == {"ready": 1, "wanted": 3}
    revision = {"metadata": {"name": "r"}, "status": {"actualReplicas": 1, "desiredReplicas": 2}}
    assert counted("Serverless", Children(revisions=[revision])) == {"ready": 1, "wanted": 2}
    assert count_replicas({"metadata": {}}, Children()) == {"metadata": {}}
