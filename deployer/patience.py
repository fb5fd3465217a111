"""The clock, the retry policy and the time limits. They are passed in, so that tests do not wait."""

from __future__ import annotations

import datetime as dt
import random
import time
from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct

Answer = TypeVar("Answer")


class Clock:
    """This machine's clock. Tests pass another one."""

    def now(self) -> float:
        """Return the seconds of a clock that only goes forward."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def utc(self) -> dt.datetime:
        """Return the date and time in UTC, with its zone."""
        return dt.datetime.now(dt.timezone.utc)


class Retry(Struct, frozen=True, kw_only=True):
    """The number of attempts, and the pauses between them: twice as long each time, with jitter.

    `first`, `longest` and `most` are seconds; `most` is the longest pause that a server can ask for.
    """

    attempts: int = 6
    first: float = 0.2
    longest: float = 2.0
    most: float = 30.0

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after one or more failures: between half and all of the full pause."""
        whole: float = min(self.first * 2 ** min(failures - 1, 30), self.longest)
        return whole * random.uniform(0.5, 1.0)  # noqa: S311 - it spreads requests


class Patience(Struct, frozen=True, kw_only=True):
    """The clock, the retry policy, and time limits in seconds.

    `connect` and `answer` limit a request, `watch` a watch (renewed every minute), `stream` a stream to a
    pod, `program` a credential plugin, `gone` the deletion of an object, `start` the start of a pod.
    """

    clock: Clock = Clock()
    retry: Retry = Retry()
    connect: float = 5.0
    answer: float = 20.0
    watch: float = 65.0
    stream: float = 120.0
    program: float = 60.0
    gone: float = 15.0
    start: float = 600.0

    def again(
        self,
        work: Callable[[], Answer],
        *errors: type[Exception],
        progress: Callable[[], object] = lambda: None,
    ) -> Answer:
        """Repeat the work until it does not raise one of the errors, or no attempts are left.

        Attempts are counted from the last change of `progress()`. An error can ask for a pause with an
        attribute `after`, in seconds; a pause over the limit raises it.
        """
        failures, before = 0, progress()
        while True:
            try:
                return work()
            except errors as error:
                now = progress()
                failures, before = (failures + 1 if now == before else 1), now
                after: float | None = getattr(error, "after", None)
                seconds = self.retry.pause(failures) if after is None else after
                if failures >= self.retry.attempts or seconds > self.retry.most:
                    raise
            self.clock.sleep(seconds)


PATIENCE = Patience()
