"""The logs of a service: every container of every pod, what prepares them included.

A log that breaks off, as API servers and what stands before them end long answers, is gone on with where it
broke: no line comes twice, and none is missing.
"""

from __future__ import annotations

import queue
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from deployer.errors import KdeployError, NotFoundError
from deployer.observed import Document, Reference
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import NoLogError, PassingError
from deployer.targets.kserve.client.resources import POD
from deployer.targets.kserve.client.watch import Watching
from deployer.targets.kserve.state.diagnosis import Failure
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE
from deployer.targets.kserve.target.read import selections

LAST_LINES = 20
TAIL_LINES = 400

_DAY = 86400.0  # seconds
_LASTED = 5.0  # seconds after which a log that breaks off is no failure that repeats itself
_LAG = 1.0  # seconds that a Pod's status is behind its container
_TIME = re.compile(r"(?P<second>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(?P<zone>Z|[+-]\d\d:\d\d) ")


def last_lines(api: Api, namespace: str, failure: Failure) -> tuple[str, ...]:
    """Return the last lines of the container that failed; none where there is no log to be had."""
    if not failure.container:
        return ()
    log = _Log(api, {"namespace": namespace, "name": failure.pod}, failure.container)
    try:
        return tuple(log.read(**_of_the_run(previous=failure.previous), tailLines=str(LAST_LINES)))
    except KdeployError:  # it never started, or its node is gone: the failure itself is told
        return ()


def tail(api: Api, pod: Document, container: str) -> tuple[str, ...]:
    """Return the last lines of a container that runs, enough for several tracebacks; none without a log."""
    log = _Log(api, pod["metadata"], container)
    try:
        return tuple(log.read(**_of_the_run(previous=False), tailLines=str(TAIL_LINES)))
    except KdeployError:
        return ()


def read_logs(api: Api, pods: Sequence[Document], *, previous: bool) -> Iterator[str]:
    """Yield the lines of every container, each with its pod's name; with `previous` of its run before.

    Where one container has no log, a line says why. Raises TargetError where none can be asked for.
    """
    for pod in pods:
        for container in _started(pod):
            start = f"{pod['metadata']['name']} {container['name']}"
            if previous and not _ran_before(container):
                yield f"{start}: there was no run before this one"
                continue
            try:
                log = _Log(api, pod["metadata"], container["name"])
                yield from (f"{start}: {line}" for line in log.read(**_of_the_run(previous=previous)))
            except NoLogError as error:
                yield f"{start}: no log: {error.what}"


def follow_logs(api: Api, reference: Reference) -> Iterator[str]:
    """Yield the lines of every container as they come, mixed, of pods that come later, too.

    Ends when the service is deleted. Raises TargetError where a log broke off and cannot be gone on with.
    """
    lines: queue.SimpleQueue[str | KdeployError] = queue.SimpleQueue()
    followed: dict[tuple[str, str], _Followed] = {}
    everything = selections(reference, standard=True)
    chosen = {one: everything[one] for one in (INFERENCE_SERVICE, POD)}
    with Watching(api, reference.namespace, chosen) as watching:

        def say(line: str | KdeployError | None) -> None:
            if line is not None:
                lines.put(line)
            watching.post()

        while not watching.complete or watching.of(INFERENCE_SERVICE):
            watching.wait(_DAY)
            for pod in watching.of(POD):
                for container in _started(pod):
                    this = (pod["metadata"]["uid"], container["name"])
                    if this not in followed:
                        followed[this] = _Followed(_Log(api, pod["metadata"], container["name"]), say)
                    followed[this].see(container)
            while not lines.empty():
                line = lines.get()
                if isinstance(line, KdeployError):
                    raise line
                yield line


class _Log:
    """One container's log, over all of its runs, and how far it was read."""

    def __init__(self, api: Api, metadata: Document, container: str) -> None:
        self.name = f"{metadata['name']} {container}"
        self.sleep = api.patience.clock.sleep
        self._api = api
        self._place = (metadata["namespace"], metadata["name"], container)
        # The API server goes on from a second, so what was read of the last one is known by the line.
        self._second: datetime | None = None
        self._since: dict[str, str] = {}
        self._read: Counter[str] = Counter()

    def read(self, **options: str) -> Iterator[str]:
        """Yield the lines that were not read before, to the end. Raises NoLogError, TargetError."""
        breaks, patience = 0, self._api.patience
        while True:
            response = self._api.open_log(*self._place, {**options, **self._since})
            began = patience.clock.now()
            try:
                for line in self._new(self._api.read_log(response)):
                    breaks = 0
                    yield line
            except PassingError:
                breaks = 1 if patience.clock.now() - began > _LASTED else breaks + 1
                if breaks == patience.retry.attempts:
                    raise
            else:
                return
            patience.clock.sleep(patience.retry.pause(breaks) if breaks > 1 else 0.0)

    def _new(self, lines: Iterator[str]) -> Iterator[str]:
        """Yield what lines say, without their times, but those that were read before."""
        before = self._read.copy()
        for line in lines:
            time_ = _TIME.match(line)
            if before[line]:
                before[line] -= 1
            elif time_ is None:  # the node's own words
                yield line
            else:
                self._remember(line, time_)
                yield line[time_.end() :]

    def _remember(self, line: str, time_: re.Match[str]) -> None:
        second = datetime.fromisoformat(time_["second"] + time_["zone"].replace("Z", "+00:00"))
        if self._second is None or second > self._second:
            self._second = second
            self._since = {"sinceTime": time_["second"] + time_["zone"]}
            self._read.clear()
        if second == self._second:
            self._read[line] += 1


class _Followed:
    """A container whose log is read by a thread while it runs, and again once it runs again."""

    def __init__(self, log: _Log, say: Callable[[str | KdeployError | None], None]) -> None:
        self._log, self._say, self._sleep = log, say, log.sleep
        self._run = -1  # how often it had been started again when its log was last opened
        self._reading = False
        self._told = ""  # why there is no log right now

    def see(self, container: Document) -> None:
        """Take in its state: where it goes on and nobody reads, read."""
        run, running = container["restartCount"], "running" in (container.get("state") or {})
        if not self._reading and (run != self._run or running):
            self._reading, again = True, run == self._run
            self._run = run
            threading.Thread(target=self._read, args=[again], daemon=True).start()

    def _read(self, again: bool) -> None:
        # An API server may end a log that goes on, and the status of a container that ended comes late.
        self._sleep(_LAG if again else 0.0)
        try:
            for line in self._log.read(follow="true"):
                self._say(f"{self._log.name}: {line}")
            self._told = ""
        except NoLogError as error:
            gone = again and isinstance(error.__cause__, NotFoundError)  # it was read to its end
            if not gone and error.what != self._told:
                self._say(f"{self._log.name}: no log: {error.what}")
            self._told = error.what
        except KdeployError as error:
            self._say(error)
        self._reading = False
        self._say(None)


def _of_the_run(*, previous: bool) -> dict[str, str]:
    return {"previous": "true"} if previous else {}


def _started(pod: Document) -> list[Document]:
    """Return the states of a pod's containers that have started once, in the order in which they do."""
    status = pod.get("status", {})
    states = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return [one for one in states if not (one.get("state") or {}).get("waiting") or _ran_before(one)]


def _ran_before(container: Document) -> bool:
    return bool(container.get("restartCount") or (container.get("lastState") or {}).get("terminated"))
