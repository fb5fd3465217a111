"""Reading what is observed of a service from an InferenceService, as either target writes it."""

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
    def test_all_requests(self) -> None:
        seen = read(document())
        assert (seen.phase, seen.reason, seen.message) == (Phase.READY, "", "")
        assert (seen.reference, seen.wanted, seen.stable) == (Reference("team", "demo"), B, B)
        assert (seen.candidate, seen.revision, seen.url) == (None, "r2", "http://demo")
        assert (seen.percent, seen.serving) == (100, B)
        assert seen.traffic == (Share("r2", B, 100),)

    @pytest.mark.parametrize("percent", [0, 10, 50])
    def test_the_wanted_share_beside_the_stable_release(self, percent: int) -> None:
        seen = read(document(canary=percent, predictor=split(percent)))
        assert (seen.phase, seen.percent) == (Phase.READY, percent)
        assert (seen.stable, seen.candidate) == (A, B)
        assert seen.serving == (B if percent == 50 else A)

    @pytest.mark.parametrize(
        ("canary", "predictor", "wanted"),
        [
            (50, split(10), f"50% {B}, 50% {A}"),
            (None, split(10), f"100% {B}"),  # promoted, and not in effect yet
            (10, {"latestRolledoutRevision": "r1"}, f"10% {B}, 90% {A}"),
            (10, split(10, stable="r3"), f"10% {B}, 90% {A}"),  # the rest goes to another release
            (None, {"traffic": [{"revisionName": "r2"}]}, f"100% {B}"),
        ],
    )
    def test_other_traffic_than_the_wanted_is_not_ready(
        self, canary: int | None, predictor: Document, wanted: str
    ) -> None:
        seen = read(document(canary=canary, predictor=predictor))
        assert (seen.phase, seen.reason) == (Phase.PROGRESSING, "TrafficNotSwitched")
        assert seen.message == f"waiting for the traffic to be {wanted}"

    def test_the_release_that_is_recorded_as_stable_counts(self) -> None:
        of = document(canary=10, predictor=split(10))
        assert read(of, stable=A).phase is Phase.READY
        wrong = read(of, stable=C)
        assert (wrong.phase, wrong.stable) == (Phase.PROGRESSING, C)

    def test_where_no_stable_release_is_known_any_other_gets_the_rest(self) -> None:
        seen = read_observed(document(canary=10, predictor=split(10)), {"r2": B})
        assert (seen.phase, seen.stable, seen.percent) == (Phase.READY, None, 10)

    @pytest.mark.parametrize("rolled_out", ["", None, "r2"])
    def test_with_nothing_beside_it_a_release_is_wanted_to_get_all(self, rolled_out: str | None) -> None:
        seen = read(document(canary=10, predictor={"latestRolledoutRevision": rolled_out}))
        assert (seen.phase, seen.percent) == (Phase.READY, 100)

    def test_what_others_send_elsewhere_is_left_out(self) -> None:
        seen = read(document(), shares=[Share("r2", B, 80), Share("canary", B, 20, foreign=True)])
        assert seen.phase is Phase.READY
        only = read(document(), shares=[Share("canary", B, 100, foreign=True)])
        assert only.phase is Phase.PROGRESSING

    def test_revisions_and_traffic_may_be_told(self) -> None:
        predictor = {"latestCreatedRevision": "r2", "latestReadyRevision": "r2"}
        bare = document()
        bare["status"]["components"] = {}
        seen = read(bare, predictor=predictor, shares=[Share("r2", B, 100)])
        assert (seen.phase, seen.stable, seen.candidate) == (Phase.READY, None, B)


class TestNotReady:
    def test_what_was_just_applied(self) -> None:
        bare = document()
        bare["status"] = {}
        seen = read(bare)
        assert (seen.phase, seen.serving, seen.stable, seen.revision) == (Phase.PENDING, None, None, None)

    def test_an_older_revision_says_nothing_of_the_newest(self) -> None:
        assert read(document(predictor={"latestReadyRevision": "r1"})).phase is Phase.PROGRESSING

    @pytest.mark.parametrize(("releases", "named"), [({}, "unknown"), ({"r2": A}, A)])
    def test_a_revision_of_another_release(self, releases: dict[str, str | None], named: str) -> None:
        seen = read_observed(document(), releases)
        assert (seen.phase, seen.reason) == (Phase.PROGRESSING, "RevisionNotReady")
        assert seen.message == f"the newest ready revision belongs to release {named}"

    def test_progress_has_kserves_reason(self) -> None:
        seen = read(document("False", condition={"reason": "RevisionMissing", "message": "wait"}))
        assert (seen.phase, seen.reason, seen.message) == (Phase.PROGRESSING, "RevisionMissing", "wait")

    def test_a_failure_counts_if_it_names_the_newest_revision(self) -> None:
        failed = {"reason": "ModelLoadFailed", "message": "boom", "modelRevisionName": "r2"}
        verdict = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": failed}
        seen = read(document("False", modelStatus=verdict))
        assert (seen.phase, seen.reason, seen.message) == (Phase.FAILED, "ModelLoadFailed", "boom")
        for other in ("r1", ""):
            about = {**verdict, "lastFailureInfo": {**failed, "modelRevisionName": other}}
            assert read(document("False", modelStatus=about)).phase is Phase.PROGRESSING

    def test_an_invalid_specification(self) -> None:
        seen = read(document("Unknown", modelStatus={"transitionStatus": "InvalidSpec"}))
        assert (seen.phase, seen.reason) == (Phase.FAILED, "InvalidSpec")

    def test_stopped(self) -> None:
        down = read(document("False", condition={"reason": NOT_RUNNING, "message": "start it"}))
        assert (down.phase, down.reason, down.message) == (Phase.STOPPED, NOT_RUNNING, "start it")
        stopped = document("False")
        stopped["status"]["conditions"].append({"type": "Stopped", "status": "True"})
        assert read(stopped).phase is Phase.STOPPED

    def test_a_service_without_a_namespace_is_in_the_default_one(self) -> None:
        seen = read({"metadata": {"name": "demo"}})
        assert str(seen.reference) == "default/demo"
