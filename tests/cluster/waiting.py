"""Runs `watch_rollout` in a thread, while a test simulates the cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from deployer.observed import Observed
from deployer.targets.kserve import Cluster
from tests.cluster.calls import watch_rollout
from tests.cluster.play import Play


class Waiting:
    """`watch_rollout` in a thread, and the states that it observed."""

    def __init__(
        self, cluster: Cluster, play: Play, release: str, timeout: float, percent: int = 100
    ) -> None:
        self.observed: list[Observed] = []
        self._changed = threading.Condition()
        self.future: Future[float] = Future()
        threading.Thread(target=self._run, args=(cluster, play, release, timeout, percent)).start()

    def _run(self, cluster: Cluster, play: Play, release: str, timeout: float, percent: int) -> None:
        try:
            for status in watch_rollout(cluster, play.reference, release, timeout, percent):
                with self._changed:
                    self.observed.append(status)
                    self._changed.notify_all()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(time.monotonic())

    def until(self, test: Callable[[Observed], bool], seconds: float = 10) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(map(test, self.observed)), seconds), self.observed[-1:]

    def end(self, seconds: float = 20) -> float:
        """Return the time of its success, or raise its error."""
        return self.future.result(seconds)
