"""The fold over statuses: its three ends, on recorded and on invented sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.errors import ConfigError, ConflictError, KdeployError, RolloutFailedError, RolloutTimeoutError
from deployer.release import Traffic
from deployer.rollout import decide_recreate, decide_traffic, read_outcome, recreating, watch_rollout
from deployer.target import Entry, Live, Phase, Reference, Share, Status

SERVICE = Reference("default", "digits")
A, B = "1.0-aaaaaaaaaaaa", "1.0-bbbbbbbbbbbb"


class Scripted:
    """A target that shows given statuses, and then nothing more until the time is over."""

    def __init__(self, *statuses: Status, history: list[Entry] | None = None) -> None:
        self.statuses = statuses
        self._history = history or []

    def watch(self, reference: Reference, timeout: float, stable: str | None) -> Iterator[Status]:
        yield from self.statuses

    def history(self, reference: Reference) -> list[Entry]:
        return self._history


def status(phase: Phase, release: str | None = B, **more: Any) -> Status:
    return Status(reference=SERVICE, release=release, phase=phase, **more)


def watched(*statuses: Status) -> list[Status]:
    return list(watch_rollout(Scripted(*statuses), SERVICE, B, 5))  # type: ignore[arg-type]


def test_it_ends_when_the_release_serves() -> None:
    script = [status(Phase.PENDING), status(Phase.PROGRESSING), status(Phase.READY)]
    assert watched(*script, status(Phase.FAILED)) == script


def test_a_status_that_did_not_change_is_not_told_again() -> None:
    script = [status(Phase.PROGRESSING), status(Phase.PROGRESSING), status(Phase.READY)]
    assert watched(*script) == script[1:]


def test_a_failure_ends_it_and_says_who_still_answers() -> None:
    failed = status(
        Phase.FAILED,
        reason="ModelLoadFailed",
        message="No module named 'foo'.",
        traffic=(Share("digits-predictor-00001", A, 100),),
    )
    with pytest.raises(RolloutFailedError) as caught:
        watched(status(Phase.PROGRESSING), failed)
    assert caught.value.what == (
        f"release {B} cannot become ready: ModelLoadFailed: No module named 'foo'; {A} still answers requests"
    )
    assert caught.value.hint == (
        f"fix the cause, then run `kdeploy rollout` again. "
        f"{B} stays applied and takes over if it becomes ready. "
        f"To go back: `kdeploy rollout --release {A}`"
    )


def test_a_failure_without_another_release_has_no_way_back() -> None:
    failed = status(Phase.FAILED, reason="OOMKilled", hint="raise serving.memory", log=("a", "b"))
    with pytest.raises(RolloutFailedError, match=r"OOMKilled\n  \| a\n  \| b$") as caught:
        watched(failed)
    assert caught.value.hint == (
        f"raise serving.memory. {B} stays applied and takes over if it becomes ready"
    )


def test_a_failure_where_the_target_has_given_up_promises_nothing() -> None:
    with pytest.raises(RolloutFailedError) as caught:
        watched(status(Phase.FAILED, given_up=True, hint="fix it"))
    assert caught.value.hint == f"fix it. {B} stays applied and is not started again before that"


def test_a_time_out_is_no_failure_and_says_where_it_stood() -> None:
    with pytest.raises(RolloutTimeoutError, match=rf"after 5 s waiting for release {B}: loading"):
        watched(status(Phase.PROGRESSING, reason="Loading", message="loading"))
    with pytest.raises(RolloutTimeoutError, match=rf"release {B}$") as caught:
        watched()
    assert "takes over when it is ready" in (caught.value.hint or "")


@pytest.mark.parametrize("other", [A, None])
def test_another_release_is_a_conflict(other: str | None) -> None:
    with pytest.raises(ConflictError, match="was applied"):
        watched(status(Phase.PROGRESSING), status(Phase.READY, other))


@pytest.mark.parametrize(
    ("release", "told"),
    [(A, f"alice@laptop applied release {A} at 12:03:11 UTC while"), (B, f"release {A} was applied while")],
)
def test_a_conflict_names_who_did_it_where_the_history_tells(release: str, told: str) -> None:
    entry = Entry(release=release, who="alice@laptop", when="2026-01-01T12:03:11Z")
    target = Scripted(status(Phase.READY, A), history=[entry])
    with pytest.raises(ConflictError, match=told):
        list(watch_rollout(target, SERVICE, B, 5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "last", "outcome"),
    [
        (RolloutFailedError("x"), status(Phase.FAILED, reason="ImagePullBackOff"), "ImagePullBackOff"),
        (RolloutFailedError("x"), status(Phase.FAILED), "Failed"),
        (RolloutFailedError("x"), None, "Failed"),
        (RolloutTimeoutError("x"), None, "TimedOut"),
        (ConflictError("x"), None, "Replaced"),
        (KdeployError("the network broke"), None, None),
    ],
)
def test_how_a_wait_has_ended(error: KdeployError, last: Status | None, outcome: str | None) -> None:
    assert read_outcome(error, last) == outcome


STATUSES = st.lists(st.builds(status, st.sampled_from(Phase), st.sampled_from([A, B])), max_size=8)


@given(STATUSES)
def test_it_never_believes_another_release_or_goes_on_after_an_end(script: list[Status]) -> None:
    seen: list[Status] = []
    try:
        seen.extend(watch_rollout(Scripted(*script), SERVICE, B, 5))  # type: ignore[arg-type]
    except KdeployError:
        pass
    else:
        assert (seen[-1].phase, seen[-1].release) == (Phase.READY, B)
    assert sum(one.phase in (Phase.READY, Phase.FAILED) or one.release != B for one in seen) <= 1


def live(release: str, *shares: tuple[str, int], **more: Any) -> Live:
    traffic = tuple(Share(f"r{number}", one, percent) for number, (one, percent) in enumerate(shares))
    return Live({}, status(Phase.READY, release, traffic=traffic, **more))


class TestDecideTraffic:
    def test_all_requests(self) -> None:
        assert decide_traffic(100, B, None) == (Traffic(), "")

    def test_a_canary_gets_its_share_and_the_stable_release_the_rest(self) -> None:
        assert decide_traffic(10, B, live(A, (A, 100), stable=A)) == (Traffic(10, A), "")
        assert decide_traffic(50, B, live(B, (B, 10), (A, 90), stable=A)) == (Traffic(50, A), "")
        assert decide_traffic(10, B, live(A, (A, 100))) == (Traffic(10, A), "")  # no revision says so itself

    @pytest.mark.parametrize("before", [None, live(A)])
    def test_a_first_release_is_rolled_out_at_once(self, before: Live | None) -> None:
        traffic, note = decide_traffic(10, B, before)
        assert traffic == Traffic()
        assert note == f"{B} is the first release: it gets all requests, not 10 %"

    @pytest.mark.parametrize("percent", [0, 10, 99])
    def test_a_release_that_is_rolled_out_keeps_all_requests(self, percent: int) -> None:
        traffic, note = decide_traffic(percent, B, live(B, (B, 100), stable=B))
        assert traffic == Traffic()
        assert "rolled out already" in note

    def test_the_stable_release_is_no_canary_of_itself(self) -> None:
        assert decide_traffic(10, A, live(B, (B, 10), (A, 90), stable=A))[0] == Traffic()


class TestDecideRecreate:
    def test_it_is_said_what_it_costs(self) -> None:
        recreate, note = decide_recreate("recreate", B, live(A, (A, 100)), standard=True)
        assert recreate
        assert "does not answer" in note

    def test_it_is_used_where_no_release_answers(self) -> None:
        stuck = live(A, running=(A,))
        assert decide_recreate(None, B, stuck, standard=True) == (
            True,
            f"no release answers requests, so the pods of {A} are stopped first",
        )
        assert decide_recreate(None, B, live(B, running=(A, B)), standard=True)[0]
        for strategy, before, standard in (
            (None, live(A, (A, 100), running=(A,)), True),
            (None, live(B, running=(B,)), True),
            (None, live(A), True),
            (None, None, True),
            (None, stuck, False),
            ("rolling", stuck, True),
        ):
            assert decide_recreate(strategy, B, before, standard=standard) == (False, "")

    def test_only_standard_mode_can_do_it(self) -> None:
        with pytest.raises(ConfigError, match="Standard mode"):
            decide_recreate("recreate", B, None, standard=False)


def test_documents_that_make_room_first_are_new_ones() -> None:
    service = {"kind": "InferenceService", "spec": {"predictor": {"minReplicas": 1}}}
    made = recreating([{"kind": "ServingRuntime"}, service])
    assert made[1]["spec"]["predictor"] == {"minReplicas": 1, "deploymentStrategy": {"type": "Recreate"}}
    assert (made[0], "deploymentStrategy" in service["spec"]["predictor"]) == (
        {"kind": "ServingRuntime"},
        False,
    )
