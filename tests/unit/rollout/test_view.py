"""The view of a rollout, and its text."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from deployer.events import Applied, Event, Pushed, StatusChanged, Warned
from deployer.observed import Observed, Phase, Reference, Share
from deployer.rollout.view import View, elapsed_text, format_lines, status_text, update

A, B = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb"


def status(phase: Phase, **more: Any) -> Observed:
    return Observed(reference=Reference("team", "digits"), wanted=B, phase=phase, **more)


CANARY = (Share("digits-predictor-00010", B, 10), Share("digits-predictor-00009", A, 90))
ROLLOUT: list[Event] = [
    Warned("the handler reads a missing file"),
    Pushed(release=B, uri="s3://models/digits", bytes_written=9),
    Applied(service="team/digits", release=B),
    StatusChanged(status(Phase.PENDING, message="KServe has not written a status yet")),
    StatusChanged(status(Phase.PROGRESSING, reason="PodInitializing", message="container x", traffic=CANARY)),
]


def test_a_view_shows_the_last_status() -> None:
    seen = functools.reduce(update, ROLLOUT, View())
    assert format_lines(seen, 65) == [
        f"Progressing  team/digits  release {B}  1 min 05 s",
        "  container x",
        f"  digits-predictor-00010   10%  {B}",
        f"  digits-predictor-00009   90%  {A}",
    ]


def test_another_rollout_resets_the_view() -> None:
    seen = functools.reduce(update, [*ROLLOUT, Applied(service="team/other", release=A)], View())
    assert seen == View("team/other")
    assert format_lines(seen, 0) == []


def test_a_revision_of_an_unknown_release() -> None:
    ready = status(Phase.READY, traffic=(Share("digits-predictor-00001", None, 100),))
    assert format_lines(View("team/digits", ready), 0)[1:] == [
        "  digits-predictor-00001  100%  unknown release"
    ]


@pytest.mark.parametrize(
    ("of", "text"),
    [
        (status(Phase.READY, traffic=CANARY), f"Ready; traffic: 10% {B}, 90% {A}"),
        (status(Phase.PROGRESSING, reason="Loading", message="loading"), "Progressing (loading)"),
        (status(Phase.PROGRESSING, message="loading", seconds=30), "Progressing (loading (30 s))"),
        (status(Phase.PROGRESSING, reason="Loading"), "Progressing (Loading)"),
        (status(Phase.STOPPED, reason="Stopped", message="by hand"), "Stopped (Stopped: by hand)"),
        (status(Phase.FAILED, reason="CrashLoopBackOff", message="x"), "Failed"),  # the error has the reason
    ],
)
def test_a_status_in_one_line(of: Observed, text: str) -> None:
    assert status_text(of) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0 s"), (59.9, "59 s"), (60, "1 min 00 s")])
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert elapsed_text(seconds) == text
