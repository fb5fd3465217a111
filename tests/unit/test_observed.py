"""The state of a service, read from an InferenceService as either target writes it."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.observed import (
    NOT_RUNNING,
    RELEASE_LABEL,
    Document,
    Observed,
    Phase,
    Reference,
    Share,
    read_observed,
)
from tests.bundles import A, B, C

RELEASES: dict[str, str | None] = {"r1": A, "r2": B, "r3": C}


def document(ready: str = "True", *, canary: int | None = None, **status: Any) -> Document:
    predictor = {
        "latestCreatedRevision": "r2",
        "latestReadyRevision": "r2",
        "latestRolledoutRevision": "r2",
        "traffic": [{"revisionName": "r2", "percent": 100}],
        **status.pop("predictor", {}),
    }
    conditions = [{"type": "Ready", "status": ready, **status.pop("condition", {})}]
    return {
        "metadata": {"name": "demo", "namespace": "team", "labels": {RELEASE_LABEL: B}},
        "spec": {"predictor": {} if canary is None else {"canaryTrafficPercent": canary}},
        "status": {
            "url": "http://demo",
            "conditions": conditions,
            "components": {"predictor": predictor},
            **status,
        },
    }


def split(percent: int, stable: str = "r1", rest: int | None = None) -> Document:
    return {
        "latestRolledoutRevision": "r1",
        "traffic": [
            {"revisionName": "r2", "percent": percent},
            {"revisionName": stable, "percent": 100 - percent if rest is None else rest},
        ],
    }


def read(of: Document, **more: Any) -> Observed:
    return read_observed(of, RELEASES, **more)


class TestReady:
    def test_one_release_with_all_requests(self) -> None:
        seen = read(document())
        assert (seen.phase, seen.reason, seen.message) == (Phase.READY, "", "")
        assert (seen.reference, seen.wanted, seen.stable) == (Reference("team", "demo"), B, B)
        assert (seen.candidate, seen.revision, seen.url) == (None, "r2", "http://demo")
        assert (seen.percent, seen.serving) == (100, B)
        assert seen.traffic == (Share("r2", B, 100),)

    @pytest.mark.parametrize("percent", [0, 10, 50])
    def test_a_canary_with_its_wanted_traffic(self, percent: int) -> None:
        seen = read(document(canary=percent, predictor=split(percent)))
        assert (seen.phase, seen.percent) == (Phase.READY, percent)
        assert (seen.stable, seen.candidate) == (A, B)
        assert seen.serving == (B if percent == 50 else A)

    @pytest.mark.parametrize(
        ("canary", "predictor", "wanted"),
        [
            (50, split(10), f"50% {B}, 50% {A}"),
            (None, split(10), f"100% {B}"),  # promoted, but not in effect yet
            (10, {"latestRolledoutRevision": "r1"}, f"10% {B}, 90% {A}"),
            (10, split(10, stable="r3"), f"10% {B}, 90% {A}"),  # the rest goes to another release
            (None, {"traffic": [{"revisionName": "r2"}]}, f"100% {B}"),
        ],
    )
    def test_unwanted_traffic_is_not_ready(
        self, canary: int | None, predictor: Document, wanted: str
    ) -> None:
        seen = read(document(canary=canary, predictor=predictor))
        assert (seen.phase, seen.reason) == (Phase.PROGRESSING, "TrafficNotSwitched")
        assert seen.message == f"waiting for the traffic to be {wanted}"

    def test_the_recorded_stable_release_must_get_the_rest(self) -> None:
        of = document(canary=10, predictor=split(10))
        assert read(of, stable=A).phase is Phase.READY
        wrong = read(of, stable=C)
        assert (wrong.phase, wrong.stable) == (Phase.PROGRESSING, C)

    def test_without_a_known_stable_release_any_release_can_get_the_rest(self) -> None:
        seen = read_observed(document(canary=10, predictor=split(10)), {"r2": B})
        assert (seen.phase, seen.stable, seen.percent) == (Phase.READY, None, 10)

    @pytest.mark.parametrize("rolled_out", ["", None, "r2"])
    def test_a_canary_without_a_stable_release_gets_all_requests(self, rolled_out: str | None) -> None:
        seen = read(document(canary=10, predictor={"latestRolledoutRevision": rolled_out}))
        assert (seen.phase, seen.percent) == (Phase.READY, 100)

    def test_foreign_traffic_does_not_count(self) -> None:
        seen = read(document(), shares=[Share("r2", B, 80), Share("canary", B, 20, foreign=True)])
        assert seen.phase is Phase.READY
        only = read(document(), shares=[Share("canary", B, 100, foreign=True)])
        assert only.phase is Phase.PROGRESSING

    def test_revisions_and_traffic_can_be_passed_in(self) -> None:
        predictor = {"latestCreatedRevision": "r2", "latestReadyRevision": "r2"}
        bare = document()
        bare["status"]["components"] = {}
        seen = read(bare, predictor=predictor, shares=[Share("r2", B, 100)])
        assert (seen.phase, seen.stable, seen.candidate) == (Phase.READY, None, B)


class TestNotReady:
    def test_a_service_without_a_status_is_pending(self) -> None:
        bare = document()
        bare["status"] = {}
        seen = read(bare)
        assert (seen.phase, seen.serving, seen.stable, seen.revision) == (Phase.PENDING, None, None, None)

    def test_an_older_ready_revision_is_not_enough(self) -> None:
        assert read(document(predictor={"latestReadyRevision": "r1"})).phase is Phase.PROGRESSING

    @pytest.mark.parametrize(("releases", "named"), [({}, "unknown"), ({"r2": A}, A)])
    def test_a_ready_revision_of_another_release_is_not_enough(
        self, releases: dict[str, str | None], named: str
    ) -> None:
        seen = read_observed(document(), releases)
        assert (seen.phase, seen.reason) == (Phase.PROGRESSING, "RevisionNotReady")
        assert seen.message == f"the newest ready revision belongs to release {named}"

    def test_progress_has_the_reason_of_kserve(self) -> None:
        seen = read(document("False", condition={"reason": "RevisionMissing", "message": "wait"}))
        assert (seen.phase, seen.reason, seen.message) == (Phase.PROGRESSING, "RevisionMissing", "wait")

    def test_a_failure_counts_if_it_names_the_newest_revision(self) -> None:
        failed = {"reason": "ModelLoadFailed", "message": "boom", "modelRevisionName": "r2"}
        model = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": failed}
        seen = read(document("False", modelStatus=model))
        assert (seen.phase, seen.reason, seen.message) == (Phase.FAILED, "ModelLoadFailed", "boom")
        for other in ("r1", ""):
            about = {**model, "lastFailureInfo": {**failed, "modelRevisionName": other}}
            assert read(document("False", modelStatus=about)).phase is Phase.PROGRESSING

    def test_an_invalid_specification_has_failed(self) -> None:
        seen = read(document("Unknown", modelStatus={"transitionStatus": "InvalidSpec"}))
        assert (seen.phase, seen.reason) == (Phase.FAILED, "InvalidSpec")

    def test_a_stopped_service(self) -> None:
        down = read(document("False", condition={"reason": NOT_RUNNING, "message": "start it"}))
        assert (down.phase, down.reason, down.message) == (Phase.STOPPED, NOT_RUNNING, "start it")
        stopped = document("False")
        stopped["status"]["conditions"].append({"type": "Stopped", "status": "True"})
        assert read(stopped).phase is Phase.STOPPED

    def test_a_service_without_a_namespace_is_in_the_default_namespace(self) -> None:
        seen = read({"metadata": {"name": "demo"}})
        assert str(seen.reference) == "default/demo"
