"""When a release counts as ready or failed, over time."""

from __future__ import annotations

from typing import Any

from deployer.observed import Document, Phase
from deployer.targets.kserve.state.children import Children
from deployer.targets.kserve.state.diagnosis import PULLS, SCALES_UP, SETTLED
from deployer.targets.kserve.state.readiness import LOGS, STEP, ReadinessEvaluator
from tests.unit.kserve.documents import GPU, A, B, condition, event, pod, replica_set, revision, service


def knative(
    release: str = A, *, ready: str = "True", percent: int | None = None, **predictor: Any
) -> Document:
    named = {
        "latestCreatedRevision": "digits-predictor-00001",
        "latestReadyRevision": "digits-predictor-00001",
    }
    traffic = [{"revisionName": "digits-predictor-00001", "percent": 100, "latestRevision": True}]
    document = service(
        release,
        mode="Knative",
        conditions=[condition("Ready", ready)],
        components={"predictor": {**named, "traffic": traffic, **predictor}},
    )
    if percent is not None:
        document["spec"]["predictor"]["canaryTrafficPercent"] = percent
    return document


def of(*releases: str) -> Children:
    return Children(revisions=[revision(release, number) for number, release in enumerate(releases, 1)])


def test_ready_must_last() -> None:
    readiness = ReadinessEvaluator(window=2)
    status = readiness.evaluate(knative(), of(A), 10)
    assert (status.phase, status.message) == (Phase.PROGRESSING, "ready; must stay ready for 2 s")
    assert (readiness.in_window, readiness.recheck_at) == (True, 12)
    assert readiness.evaluate(knative(), of(A), 11.9).phase is Phase.PROGRESSING
    assert readiness.evaluate(knative(), of(A), 12).phase is Phase.READY
    assert not readiness.in_window


def test_an_interruption_restarts_the_window() -> None:
    readiness = ReadinessEvaluator(window=2)
    readiness.evaluate(knative(), of(A), 10)
    assert readiness.evaluate(knative(ready="False"), of(A), 11).phase is Phase.PROGRESSING
    assert not readiness.in_window
    readiness.evaluate(knative(), of(A), 11.5)
    assert readiness.recheck_at == 13.5


def test_the_ready_revision_must_be_of_the_release() -> None:
    readiness = ReadinessEvaluator(window=0)
    status = readiness.evaluate(knative(B), of(A), 10)
    assert (status.phase, status.reason) == (Phase.PROGRESSING, "WaitingForKServe")
    assert (
        readiness.evaluate(knative(B), Children(), 10).phase is Phase.PROGRESSING
    )  # its revision's label is unknown
    assert readiness.evaluate(knative(B), of(B), 10).phase is Phase.READY


class TestTraffic:
    """Ready requires the wanted percentage of requests, and the rest for the stable release."""

    @staticmethod
    def split(first: int, percent: int | None, *, rolled_out: str = "digits-predictor-00001") -> Document:
        traffic = [
            {"revisionName": "digits-predictor-00002", "percent": first, "latestRevision": True},
            {"revisionName": "digits-predictor-00001", "percent": 100 - first, "tag": "prev"},
        ]
        return knative(
            B,
            percent=percent,
            latestCreatedRevision="digits-predictor-00002",
            latestReadyRevision="digits-predictor-00002",
            latestRolledoutRevision=rolled_out,
            traffic=[line for line in traffic if line["percent"]],
        )

    def phase(self, document: Document, stable: str | None = None) -> Phase:
        return ReadinessEvaluator(window=0, stable=stable).evaluate(document, of(A, B), 0).phase

    def test_the_percentage_must_be_the_wanted_one(self) -> None:
        assert self.phase(self.split(10, 10)) is Phase.READY
        assert self.phase(self.split(10, 50)) is Phase.PROGRESSING
        assert self.phase(self.split(10, 0)) is Phase.PROGRESSING
        assert self.phase(self.split(0, 0)) is Phase.READY

    def test_a_promotion_waits_for_all_requests(self) -> None:
        status = ReadinessEvaluator(window=0).evaluate(self.split(10, None), of(A, B), 0)
        assert (status.phase, status.reason) == (Phase.PROGRESSING, "TrafficNotSwitched")
        assert status.message == f"waiting for the traffic to be 100% {B}"
        assert self.phase(self.split(100, None)) is Phase.READY

    def test_the_rest_must_go_to_the_stable_release(self) -> None:
        assert self.phase(self.split(10, 10), stable=A) is Phase.READY
        status = ReadinessEvaluator(window=0, stable="0.9-cccccccccccc").evaluate(
            self.split(10, 10), of(A, B), 0
        )
        assert status.phase is Phase.PROGRESSING
        assert status.message == f"waiting for the traffic to be 10% {B}, 90% 0.9-cccccccccccc"

    def test_a_first_release_gets_every_request_despite_a_percentage(self) -> None:
        assert self.phase(self.split(100, 10, rolled_out="digits-predictor-00002")) is Phase.READY


def test_a_service_without_a_status_is_pending() -> None:
    status = ReadinessEvaluator(window=0).evaluate(service(), Children(), 10)
    assert (status.phase, status.message) == (Phase.PENDING, "waiting for KServe to write a status")


def test_a_failure_that_can_pass_must_last() -> None:
    refused = {"reason": "ErrImagePull", "message": "connection refused"}
    unready, waits = service(conditions=[condition("Ready", "False")]), pod(main={"waiting": refused})
    readiness = ReadinessEvaluator(window=0)
    assert readiness.evaluate(unready, Children(pods=[waits]), 10).phase is Phase.PROGRESSING
    assert readiness.recheck_at == min(10 + STEP, 10 + PULLS)
    assert (
        readiness.evaluate(unready, Children(pods=[pod(main={"running": {}})]), 30).phase is Phase.PROGRESSING
    )
    assert readiness.evaluate(unready, Children(pods=[waits]), 30 + PULLS - 1).phase is Phase.PROGRESSING
    assert readiness.evaluate(unready, Children(pods=[waits]), 29 + 2 * PULLS).phase is Phase.FAILED


def test_a_failed_container_has_a_hint_about_its_log() -> None:
    crashed = pod(main={"waiting": {"reason": "CrashLoopBackOff"}, "restarts": 2, "last": {"exitCode": 1}})
    status = ReadinessEvaluator(window=0).evaluate(service(conditions=[]), Children(pods=[crashed]), 0)
    assert (status.phase, status.hint) == (Phase.FAILED, LOGS)


def test_a_missing_gpu_does_not_fail_while_another_pod_frees_one() -> None:
    missing = pod(node="", conditions=[condition("PodScheduled", "False", "Unschedulable", GPU)])
    unready, found = service(conditions=[condition("Ready", "False")]), Children(pods=[missing])
    returns = [True]
    readiness = ReadinessEvaluator(window=0, gpu_returns=lambda: returns[0])
    assert readiness.evaluate(unready, found, 10).phase is Phase.PROGRESSING
    assert readiness.recheck_at == 10 + SETTLED
    assert readiness.evaluate(unready, found, 10 + SETTLED).phase is Phase.PROGRESSING
    assert readiness.recheck_at == 10 + SETTLED + STEP / 10
    returns[0] = False
    assert readiness.evaluate(unready, found, 20).phase is Phase.FAILED


def test_a_missing_gpu_does_not_fail_until_an_autoscaler_had_time() -> None:
    missing = pod(node="", conditions=[condition("PodScheduled", "False", "Unschedulable", GPU)])
    unready, found = service(conditions=[condition("Ready", "False")]), Children(pods=[missing])
    readiness = ReadinessEvaluator(window=0, may_scale_up=lambda: True)
    assert readiness.evaluate(unready, found, 10).phase is Phase.PROGRESSING
    assert readiness.evaluate(unready, found, 9 + SCALES_UP).phase is Phase.PROGRESSING
    comes = Children(pods=[missing], events=[event("digits-1", "TriggeredScaleUp", "pool 0->1")])
    assert readiness.evaluate(unready, comes, 10 + SCALES_UP).reason == "ScalingUp"
    assert readiness.evaluate(unready, found, 11 + SCALES_UP).phase is Phase.PROGRESSING
    assert readiness.evaluate(unready, found, 11 + 2 * SCALES_UP).phase is Phase.FAILED


def test_a_lasting_state_is_reported_again() -> None:
    readiness, found = ReadinessEvaluator(window=0), Children(pods=[pod(main={"running": {}})])
    unready = service(conditions=[condition("Ready", "False")])
    assert readiness.evaluate(unready, found, 10).seconds == 0
    assert readiness.recheck_at == 10 + STEP
    assert readiness.evaluate(unready, found, 10 + STEP).seconds == STEP
    assert readiness.evaluate(unready, Children(), 10 + STEP).seconds == 0


def test_a_finished_update_in_standard_mode_is_ready() -> None:
    ready = service(B, conditions=[condition("Ready", "True")])
    sets = [replica_set(A, 9, wanted=0), replica_set(B, 10, wanted=2, available=2)]
    assert ReadinessEvaluator(window=0).evaluate(ready, Children(replica_sets=sets), 0).phase is Phase.READY
