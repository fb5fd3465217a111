"""The fold over statuses: its three ends, on recorded and on invented sequences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployer.errors import ConflictError, KdeployError, RolloutFailedError, RolloutTimeoutError
from deployer.rollout import read_outcome, watch_rollout
from deployer.target import Entry, Phase, Reference, Share, Status, read_status

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
SERVICE = Reference("default", "digits")
A, B = "1.0-aaaaaaaaaaaa", "1.0-bbbbbbbbbbbb"


class Scripted:
    """A target that shows given statuses, and then nothing more until the time is over."""

    def __init__(self, *statuses: Status, history: list[Entry] | None = None) -> None:
        self.statuses = statuses
        self._history = history or []

    def watch(self, reference: Reference, timeout: float) -> Iterator[Status]:
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


def test_what_cannot_heal_ends_it_and_says_what_goes_on_serving() -> None:
    failed = status(
        Phase.FAILED,
        reason="ModelLoadFailed",
        message="No module named 'foo'.",
        traffic=(Share("digits-predictor-00001", A, 100),),
    )
    with pytest.raises(RolloutFailedError) as caught:
        watched(status(Phase.PROGRESSING), failed)
    assert caught.value.what == (
        f"release {B} cannot serve: ModelLoadFailed: No module named 'foo'; {A} goes on serving"
    )
    assert "kdeploy logs" in (caught.value.hint or "")


def test_a_time_out_is_no_failure_and_says_where_it_stood() -> None:
    with pytest.raises(RolloutTimeoutError, match=r"after 5 s: ProgressDeadline: waiting"):
        watched(status(Phase.PROGRESSING, reason="ProgressDeadline", message="waiting"))
    with pytest.raises(RolloutTimeoutError, match=r"after 5 s$"):
        watched()


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


@pytest.mark.parametrize("path", sorted(SNAPSHOTS.glob("*.json")), ids=lambda path: path.stem)
def test_recorded_statuses(path: Path) -> None:
    recorded = json.loads(path.read_text())
    read = read_status(recorded["document"])
    assert read.phase.value == recorded["expected"]["phase"]
    assert read.release == recorded["expected"]["release"]
    assert read.reason == recorded["expected"]["reason"]
    assert [[s.release, s.percent] for s in read.traffic] == recorded["expected"]["traffic"]


def test_there_are_recorded_statuses() -> None:
    assert len(list(SNAPSHOTS.glob("*.json"))) >= 5
