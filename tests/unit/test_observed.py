"""Reading a service's state from an InferenceService, as either target writes it."""

from __future__ import annotations

from typing import Any

from deployer.observed import NOT_RUNNING, RELEASE_LABEL, Document, Observed, Phase, Share, read_observed

A, B = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb"
RELEASES: dict[str, str | None] = {"r1": A, "r2": B}


def document(ready: str = "True", **status: Any) -> Document:
    predictor = {
        "latestCreatedRevision": "r2",
        "latestReadyRevision": "r2",
        "latestRolledoutRevision": "r2",
        "traffic": [{"revisionName": "r2", "percent": 100}],
        **status.pop("predictor", {}),
    }
    conditions = [{"type": "Ready", "status": ready, **status.pop("condition", {})}]
    return {
        "metadata": {"name": "digits", "namespace": "team", "labels": {RELEASE_LABEL: B}},
        "spec": {"predictor": {}},
        "status": {
            "url": "http://digits",
            "conditions": conditions,
            "components": {"predictor": predictor},
            **status,
        },
    }


def read(of: Document, **more: Any) -> Observed:
    return read_observed(of, RELEASES, **more)


def test_ready() -> None:
    status = read(document())
    assert (status.phase, status.wanted, status.stable, status.revision) == (Phase.READY, B, B, "r2")
    assert (status.url, status.percent, status.serving) == ("http://digits", 100, B)
    assert status.traffic == (Share("r2", B, 100),)


def test_what_was_just_applied() -> None:
    bare = document()
    bare["status"] = {}
    status = read(bare)
    assert (status.phase, status.serving, status.stable) == (Phase.PENDING, None, None)


def test_a_failure_counts_if_it_names_the_newest_revision() -> None:
    failed = {"reason": "ModelLoadFailed", "message": "boom", "modelRevisionName": "r2"}
    verdict = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": failed}
    status = read(document("False", modelStatus=verdict))
    assert (status.phase, status.reason, status.message) == (Phase.FAILED, "ModelLoadFailed", "boom")
    for other in ("r1", ""):
        about = {**verdict, "lastFailureInfo": {**failed, "modelRevisionName": other}}
        assert read(document("False", modelStatus=about)).phase is Phase.PROGRESSING


def test_an_invalid_specification() -> None:
    status = read(document("Unknown", modelStatus={"transitionStatus": "InvalidSpec"}))
    assert (status.phase, status.reason) == (Phase.FAILED, "InvalidSpec")


def test_stopped() -> None:
    down = document("False", condition={"reason": NOT_RUNNING, "message": "start it"})
    status = read(down)
    assert (status.phase, status.reason, status.message) == (Phase.STOPPED, NOT_RUNNING, "start it")
    stopped = document("False")
    stopped["status"]["conditions"].append({"type": "Stopped", "status": "True"})
    assert read(stopped).phase is Phase.STOPPED


def test_progress_has_kserves_reason() -> None:
    status = read(document("False", condition={"reason": "RevisionMissing", "message": "wait"}))
    assert (status.phase, status.reason, status.message) == (Phase.PROGRESSING, "RevisionMissing", "wait")
    assert read(document(predictor={"latestReadyRevision": "r1"})).phase is Phase.PROGRESSING


def test_an_unknown_revision_is_not_ready() -> None:
    status = read_observed(document(), {})
    assert (status.phase, status.reason) == (Phase.PROGRESSING, "RevisionNotReady")
    assert "unknown" in status.message


def test_a_share_of_no_percent_answers_nothing() -> None:
    status = read(document(predictor={"traffic": [{"revisionName": "r2"}]}))
    assert (status.phase, status.serving) == (Phase.PROGRESSING, None)
    assert status.message == f"waiting for the traffic to be 100 % {B}"


def test_a_candidate_is_wanted_and_not_yet_stable() -> None:
    canary = document(
        predictor={
            "latestRolledoutRevision": "r1",
            "traffic": [{"revisionName": "r2", "percent": 10}, {"revisionName": "r1", "percent": 90}],
        }
    )
    canary["spec"]["predictor"]["canaryTrafficPercent"] = 10
    seen = read(canary)
    assert (seen.phase, seen.wanted, seen.candidate, seen.stable) == (Phase.READY, B, B, A)
    assert (seen.percent, seen.serving) == (10, A)
    assert read(document()).candidate is None
    assert read(canary, stable=B).candidate is None
