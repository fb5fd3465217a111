"""Clocks for tests: a pause takes no time, or calls a function."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from deployer.patience import Clock, Patience


class FakeClock(Clock):
    """A clock whose time passes only when a test sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def utc(self) -> dt.datetime:
        return dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(seconds=self.seconds)


class PausingClock(Clock):
    """The system's clock, but `sleep` calls `pause` with the seconds instead of waiting."""

    def __init__(self, pause: Callable[[float], object]) -> None:
        self.pause = pause

    def sleep(self, seconds: float) -> None:
        self.pause(seconds)


def patience(pause: Callable[[float], object] = lambda seconds: None, **limits: Any) -> Patience:
    """Return a Patience whose pauses call `pause` and take no time; `limits` sets its other fields."""
    return Patience(clock=PausingClock(pause), **limits)
