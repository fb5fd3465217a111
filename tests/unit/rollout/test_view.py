"""A rollout's events, folded into a view and told in lines."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from deployer.events import Applied, Event, Pushed, StatusChanged, Warned
from deployer.observed import Observed, Phase, Reference, Share
from deployer.rollout.view import View, elapsed_text, lines, see, sentence

A, B = "1.0-aaaaaaaaaaaa", "1.1-bbbbbbbbbbbb"


def status(phase: Phase, **more: Any) -> Observed:
    return Observed(reference=Reference("team", "digits"), wanted=B, phase=phase, **more)


CANARY = (Share("digits-predictor-00010", B, 10), Share("digits-predictor-00009", A, 90))
ROLLOUT: list[Event] = [
    Warned("the handler reads a file that is not there"),
    Pushed(release=B, uri="s3://models/digits", bytes_written=9),
    Applied(service="team/digits", release=B),
    StatusChanged(status(Phase.PENDING, message="KServe has not written a status yet")),
    StatusChanged(status(Phase.PROGRESSING, reason="PodInitializing", message="container x", traffic=CANARY)),
]


def test_the_last_status_is_what_is_seen() -> None:
    seen = functools.reduce(see, ROLLOUT, View())
    assert lines(seen, 65) == [
        f"Progressing  team/digits  release {B}  1 min 05 s",
        "  container x",
        f"  digits-predictor-00010   10%  {B}",
        f"  digits-predictor-00009   90%  {A}",
    ]


def test_another_rollout_begins_anew() -> None:
    seen = functools.reduce(see, [*ROLLOUT, Applied(service="team/other", release=A)], View())
    assert seen == View("team/other")
    assert lines(seen, 0) == []


def test_a_revision_of_nobody_knows_what() -> None:
    told = status(Phase.READY, traffic=(Share("digits-predictor-00001", None, 100),))
    assert lines(View("team/digits", told), 0)[1:] == ["  digits-predictor-00001  100%  unknown release"]


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (status(Phase.READY, traffic=CANARY), f"Ready; traffic: 10% {B}, 90% {A}"),
        (status(Phase.PROGRESSING, reason="Loading", message="loading"), "Progressing (loading)"),
        (status(Phase.PROGRESSING, message="loading", seconds=30), "Progressing (loading (30 s))"),
        (status(Phase.PROGRESSING, reason="Loading"), "Progressing (Loading)"),
        (status(Phase.STOPPED, reason="Stopped", message="by hand"), "Stopped (Stopped: by hand)"),
        (status(Phase.FAILED, reason="CrashLoopBackOff", message="x"), "Failed"),  # the error says why
    ],
)
def test_a_status_in_one_line(of: Observed, told: str) -> None:
    assert sentence(of) == told


@pytest.mark.parametrize(("seconds", "told"), [(0.9, "0 s"), (59.9, "59 s"), (60, "1 min 00 s")])
def test_durations(seconds: float, told: str) -> None:
    assert elapsed_text(seconds) == told
