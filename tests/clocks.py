"""Clocks and patience for tests: pauses take no time, or do what a test says."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from deployer.patience import Patience, SystemClock


class FakeClock:
    """A clock that a test owns: nothing waits, and sleeping lets the time pass."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def utc(self) -> dt.datetime:
        return dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(seconds=self.seconds)


class PausingClock(SystemClock, frozen=True):
    """The system's clock, but its sleep calls `pause` with the seconds and takes no time by itself."""

    pause: Callable[[float], object] = lambda seconds: None

    def sleep(self, seconds: float) -> None:
        self.pause(seconds)


def patience(pause: Callable[[float], object] = lambda seconds: None, **limits: Any) -> Patience:
    """Return a patience whose pauses take no time; `limits` are the seconds of Patience's fields."""
    return Patience(clock=PausingClock(pause), **limits)
