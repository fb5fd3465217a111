"""A clock that a test owns: nothing waits, and sleeping lets the time pass."""

from __future__ import annotations

import datetime as dt


class FakeClock:
    """Implements deployer.patience.Clock."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def utc(self) -> dt.datetime:
        return dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(seconds=self.seconds)
