"""Time and retries: the clock, the policy of attempts, and how long others may be silent.

It is passed in: a test gives a clock that does not wait, and short limits.
"""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from msgspec import Struct

Answer = TypeVar("Answer")


class Clock(Protocol):
    """What time it is, and a way to let it pass."""

    def now(self) -> float:
        """Return the seconds of a clock that only goes forward."""

    def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""

    def utc(self) -> dt.datetime:
        """Return the date and time in UTC, with its zone."""


class SystemClock(Struct, frozen=True):
    """This machine's clock."""

    def now(self) -> float:
        """Return the seconds of a clock that only goes forward."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        time.sleep(seconds)

    def utc(self) -> dt.datetime:
        """Return the date and time in UTC, with its zone."""
        return dt.datetime.now(dt.timezone.utc)


class Retry(Struct, frozen=True, kw_only=True):
    """How often something is tried, and the pauses between: twice as long each time, with jitter.

    `first` and `longest` are seconds. A server that asks for a pause gets it, up to `most` seconds.
    """

    attempts: int = 6
    first: float = 0.2
    longest: float = 2.0
    most: float = 30.0

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after so many failures, at least one: half of it or more is waited."""
        whole: float = min(self.first * 2 ** min(failures - 1, 30), self.longest)
        return whole * random.uniform(0.5, 1.0)  # noqa: S311 - it spreads requests


class Patience(Struct, frozen=True, kw_only=True):
    """The clock, the policy of attempts, and for how many seconds others may be silent or busy.

    `connect` and `answer` are of a request, `watch` of a watch, which is renewed every minute, `stream` of a
    stream to a pod, `program` of one that gives credentials. Within `gone` an object that is being deleted
    must be gone, and within `start` a pod must run.
    """

    clock: Clock = SystemClock()
    retry: Retry = Retry()
    connect: float = 5.0
    answer: float = 20.0
    watch: float = 65.0
    stream: float = 120.0
    program: float = 60.0
    gone: float = 15.0
    start: float = 600.0

    def again(self, work: Callable[[], Answer], *errors: type[Exception]) -> Answer:
        """Do the work until it ends without one of the errors, or the attempts are used up.

        An error may ask for a pause by an attribute `after`, in seconds; where that is too long it is raised.
        """
        for failures in range(1, self.retry.attempts):
            try:
                return work()
            except errors as error:
                after: float | None = getattr(error, "after", None)
                seconds = self.retry.pause(failures) if after is None else after
                if seconds > self.retry.most:
                    raise
            self.clock.sleep(seconds)
        return work()


PATIENCE = Patience()
