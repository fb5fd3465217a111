"""Reads the logs of a service: every container of every pod, init containers included.

A log that breaks off, as API servers and proxies end long answers, is resumed where it broke: no line is
repeated, and none is missing.
"""

from __future__ import annotations

import math
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
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE
from deployer.targets.kserve.target.read import selections
from deployer.targets.log_lines import WHOLE, Part, is_probe, last

LAST_LINES = 20  # lines that a failure shows
TAIL_LINES = 400  # lines that hold several tracebacks

_STARTS = ("sinceSeconds", "tailLines")  # parameters that say where a log begins
_DAY = 86400.0  # seconds
_LASTED = 5.0  # seconds after which a log that breaks off counts as a new failure
_LAG = 1.0  # seconds by which a pod's status is behind its container
_TIME = re.compile(r"(?P<second>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(?P<zone>Z|[+-]\d\d:\d\d) ")


def last_lines(
    api: Api, pod: Document, container: str, count: int, *, previous: bool = False
) -> tuple[str, ...]:
    """Return the last lines of a container in the pod with this metadata, or nothing if it has no log.

    With `previous`, they are those of its run before.
    """
    try:
        return tuple(_Log(api, pod, container).read(**_of_the_run(previous), tailLines=str(count)))
    except KdeployError:  # it never started, or its node is gone
        return ()


def read_logs(api: Api, pods: Sequence[Document], *, previous: bool, part: Part = WHOLE) -> Iterator[str]:
    """Yield the lines of every container after its pod's name; with `previous`, those of its run before.

    `part` applies to each container. If a container has no log, one line says why. Raises TargetError.
    """
    for pod in pods:
        for container in _started(pod):
            start = f"{pod['metadata']['name']} {container['name']}"
            if previous and not _ran_before(container):
                yield f"{start}: the container has no previous run"
                continue
            try:
                log = _Log(api, pod["metadata"], container["name"])
                lines = log.read_part(part, **_of_the_run(previous))
                yield from (f"{start}: {line}" for line in lines)
            except NoLogError as error:
                yield f"{start}: no log: {error.what}"


def follow_logs(api: Api, reference: Reference, part: Part = WHOLE) -> Iterator[str]:
    """Yield the lines of every container as they arrive, also those of new pods.

    `part` applies to the containers that have started by now. Ends when the service is deleted. Raises
    TargetError if a log broke off and cannot be resumed.
    """
    lines: queue.SimpleQueue[str | KdeployError] = queue.SimpleQueue()
    followed: dict[tuple[str, str], _Followed] = {}
    everything = selections(reference, standard=True)
    chosen = {one: everything[one] for one in (INFERENCE_SERVICE, POD)}
    with Watching(api, reference.namespace, chosen) as watching:

        def send(line: str | KdeployError | None) -> None:
            if line is not None:
                lines.put(line)
            watching.post()

        while not watching.complete or watching.of(INFERENCE_SERVICE):
            watching.wait(_DAY)
            for pod in watching.of(POD):
                for container in _started(pod):
                    this = (pod["metadata"]["uid"], container["name"])
                    if this not in followed:
                        log = _Log(api, pod["metadata"], container["name"])
                        followed[this] = _Followed(log, send, part)
                    followed[this].update(container)
            part = WHOLE if watching.complete else part
            while not lines.empty():
                line = lines.get()
                if isinstance(line, KdeployError):
                    raise line
                yield line


class _Log:
    """One container's log over all of its runs, and the position up to which it was read."""

    def __init__(self, api: Api, metadata: Document, container: str) -> None:
        self.name = f"{metadata['name']} {container}"
        self.patience = api.patience
        self._api = api
        self._place = (metadata["namespace"], metadata["name"], container)
        # The API server resumes at a full second, so the lines already read of the last one are remembered.
        self._second: datetime | None = None
        self._since: dict[str, str] = {}
        self._read: Counter[str] = Counter()
        self._lines = 0  # the number of lines received

    def read_part(self, part: Part, **options: str) -> Iterator[str]:
        """Yield a part of the lines, to the end; with `follow`, to that of the container.

        Raises NoLogError, TargetError.
        """
        if part.since is not None:
            options["sinceSeconds"] = str(max(math.ceil(part.since), 1))
        if part.tail is not None:
            follow = options.pop("follow", None)
            yield from self._read_last(part.tail, options)
            if follow is None:
                return
            options["follow"] = follow
        yield from self.read(**options)

    def _read_last(self, count: int, options: dict[str, str]) -> Sequence[str]:
        """Read the last lines. The probe's are not counted, so this reads more until there are enough."""
        asked = 2 * count + 100
        while True:
            self._second, self._since, self._lines = None, {}, 0
            self._read.clear()
            shown = list(self.read(**options, tailLines=str(asked)))
            if len(shown) >= count or self._lines < asked:
                return last(shown, count)
            asked *= 8

    def read(self, **options: str) -> Iterator[str]:
        """Yield the lines not read before, to the end. Raises NoLogError, TargetError."""
        breaks, patience = 0, self.patience
        while True:
            if self._since:  # after the first lines, reading continues at their time
                options = {name: value for name, value in options.items() if name not in _STARTS}
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
        """Yield the texts of lines without their times, except the probe's and those read before."""
        before = self._read.copy()
        for line in lines:
            self._lines += 1
            time_ = _TIME.match(line)
            if before[line]:
                before[line] -= 1
            elif time_ is None:  # a message of the node
                yield line
            else:
                self._remember(line, time_)
                if not is_probe(line):
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
    """A container whose log a thread reads while it runs, and again when it runs again."""

    def __init__(self, log: _Log, send: Callable[[str | KdeployError | None], None], part: Part) -> None:
        self._log, self._send, self._part = log, send, part
        self._run = -1  # the container's restart count when its log was last opened
        self._reading = False
        self._reported = ""  # why there is no log right now

    def update(self, container: Document) -> None:
        """Start to read the log if the container runs and no thread reads it."""
        run, running = container["restartCount"], "running" in (container.get("state") or {})
        if not self._reading and (run != self._run or running):
            self._reading, again = True, run == self._run
            self._run = run
            threading.Thread(target=self._read, args=[again], daemon=True).start()

    def _read(self, again: bool) -> None:
        # An API server can end the log of a running container, and the status of an ended one arrives late.
        self._log.patience.clock.sleep(_LAG if again else 0.0)
        try:
            part, self._part = self._part, WHOLE
            for line in self._log.read_part(part, follow="true"):
                self._send(f"{self._log.name}: {line}")
            self._reported = ""
        except NoLogError as error:
            gone = again and isinstance(error.__cause__, NotFoundError)  # it was read to its end
            if not gone and error.what != self._reported:
                self._send(f"{self._log.name}: no log: {error.what}")
            self._reported = error.what
        except KdeployError as error:
            self._send(error)
        self._reading = False
        self._send(None)


def _of_the_run(previous: bool) -> dict[str, str]:
    return {"previous": "true"} if previous else {}


def _started(pod: Document) -> list[Document]:
    """Return the states of a pod's containers that have started at least once, in starting order."""
    status = pod.get("status", {})
    states = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return [one for one in states if not (one.get("state") or {}).get("waiting") or _ran_before(one)]


def _ran_before(container: Document) -> bool:
    return bool(container.get("restartCount") or (container.get("lastState") or {}).get("terminated"))
