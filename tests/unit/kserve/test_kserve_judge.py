"""When Ready and failure are believed: a clock that the test moves, documents as KServe writes them."""

from __future__ import annotations

from typing import Any

from deployer.target import RELEASE_LABEL, Document, Phase
from deployer.targets.kserve.judge import DOUBT, UNSCHEDULED, Judge
from deployer.targets.kserve.serving import Children

A, B = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb"
BLOCKED = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": {"reason": "ModelLoadFailed"}}


def service(release: str = A, *, ready: str = "True", **status: Any) -> Document:
    conditions = [{"type": "Ready", "status": ready}]
    predictor = {
        "latestCreatedRevision": "r1",
        "latestReadyRevision": "r1",
        "traffic": [{"revisionName": "r1", "percent": 100, "latestRevision": True}],
    }
    return {
        "metadata": {"name": "digits", "namespace": "team", "labels": {RELEASE_LABEL: release}},
        "spec": {"predictor": {}},
        "status": {"conditions": conditions, "components": {"predictor": predictor}, **status},
    }


def children(release: str = A) -> Children:
    return Children(revisions=[{"metadata": {"name": "r1", "labels": {RELEASE_LABEL: release}}}])


def test_ready_must_last() -> None:
    judge = Judge(window=2)
    assert judge.look(service(), children(), 10).phase is Phase.PROGRESSING
    assert (judge.in_window, judge.look_again) == (True, 12)
    assert judge.look(service(), children(), 11.9).phase is Phase.PROGRESSING
    assert judge.look(service(), children(), 12).phase is Phase.READY
    assert not judge.in_window


def test_what_is_interrupted_begins_anew() -> None:
    judge = Judge(window=2)
    judge.look(service(), children(), 10)
    assert judge.look(service(ready="False"), children(), 11).phase is Phase.PROGRESSING
    assert not judge.in_window
    judge.look(service(), children(), 11.5)
    assert judge.look_again == 13.5


def test_a_window_of_nothing() -> None:
    assert Judge(window=0).look(service(), children(), 10).phase is Phase.READY


def test_the_serving_revision_must_be_of_the_release() -> None:
    judge = Judge(window=0)
    assert judge.look(service(B), children(A), 10).phase is Phase.PROGRESSING
    assert judge.look(service(B), Children(), 10).phase is Phase.PROGRESSING  # its label is not known
    assert judge.look(service(B), children(B), 10).phase is Phase.READY


def test_before_kserve_has_looked() -> None:
    bare = service()
    del bare["status"]
    status = Judge(window=0).look(bare, Children(), 10)
    assert (status.phase, status.message) == (Phase.PENDING, "KServe has not written a status yet")


def test_a_verdict_that_was_there_before_is_doubted() -> None:
    judge = Judge(window=0, before=BLOCKED)
    old = service(B, ready="False", modelStatus={**BLOCKED, "copies": {"totalCopies": 1}})
    assert judge.look(old, children(), 10).phase is Phase.PROGRESSING
    assert judge.look_again == 10 + DOUBT
    assert judge.look(old, children(), 10 + DOUBT).phase is Phase.FAILED


def test_a_verdict_that_changed_is_believed() -> None:
    judge = Judge(window=0, before=BLOCKED)
    new = {**BLOCKED, "lastFailureInfo": {"reason": "RuntimeUnhealthy", "message": "exit 3"}}
    status = judge.look(service(B, ready="False", modelStatus=new), children(), 10)
    assert (status.phase, status.reason, status.message) == (
        Phase.FAILED,
        "RuntimeUnhealthy",
        "KServe says: exit 3",
    )


def test_without_anything_before_it_is_believed() -> None:
    assert (
        Judge(window=0).look(service(ready="False", modelStatus=BLOCKED), children(), 1).phase is Phase.FAILED
    )


def test_the_doubt_ends_when_it_heals() -> None:
    judge = Judge(window=0, before=BLOCKED)
    judge.look(service(ready="False", modelStatus=BLOCKED), children(), 10)
    assert judge.look(service(), children(), 11).phase is Phase.READY


def test_a_node_that_an_autoscaler_brings_is_told_after_that_there_is_none() -> None:
    judge = Judge(window=0)
    said = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: 3 Insufficient nvidia.com/gpu."}
    metadata = {"name": "digits-1", "uid": "1", "labels": {RELEASE_LABEL: A}}
    pod = {"metadata": metadata, "status": {"conditions": [{**said, "reason": "Unschedulable"}]}}
    found, unready = Children(pods=[pod]), service(ready="False")
    assert judge.look(unready, found, 10).phase is Phase.PROGRESSING
    assert judge.look_again == 10 + UNSCHEDULED
    assert judge.look(unready, found, 10 + UNSCHEDULED).phase is Phase.FAILED
