"""The logs of a service: every container of every pod, what prepares them included."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from deployer.errors import KdeployError
from deployer.target import Document, Reference
from deployer.targets.kserve.api import Api
from deployer.targets.kserve.diagnosis import Failure
from deployer.targets.kserve.resources import INFERENCE_SERVICE, POD
from deployer.targets.kserve.watching import Watching, selections

LAST_LINES = 20

_DAY = 86400.0  # seconds


def last_lines(api: Api, namespace: str, failure: Failure) -> tuple[str, ...]:
    """Return the last lines of the container that failed; none where there is no log to be had."""
    if not failure.container:
        return ()
    try:
        lines = api.log(namespace, failure.pod, failure.container, tail=LAST_LINES, previous=failure.previous)
        return tuple(lines)
    except KdeployError:  # it never started, or its node is gone: the failure itself is told
        return ()


def read_logs(api: Api, pods: Sequence[Document], *, previous: bool) -> Iterator[str]:
    """Yield the lines of every container, each with its pod's name; with `previous` of its run before."""
    for pod in pods:
        for container in _started(pod):
            if previous and not _ran_before(container):
                yield f"{pod['metadata']['name']} {container['name']}: there was no run before this one"
            else:
                yield from _read(api, pod["metadata"], container["name"], previous=previous)


def follow_logs(api: Api, reference: Reference) -> Iterator[str]:
    """Yield the lines of every container as they come, mixed, of pods that come later, too.

    Ends when the service is deleted.
    """
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    seen: set[tuple[str, str, int]] = set()

    def run(watching: Watching, metadata: Document, container: str) -> None:
        for line in _read(api, metadata, container, follow=True):
            lines.put(line)
            watching.wake()

    everything = selections(reference, standard=True)
    with Watching(api, reference, {one: everything[one] for one in (INFERENCE_SERVICE, POD)}) as watching:
        while not watching.complete or watching.service:
            watching.wait(_DAY)
            for pod in watching.children.pods:
                for container in _started(pod):
                    this = (pod["metadata"]["uid"], container["name"], container["restartCount"])
                    if this not in seen:
                        seen.add(this)
                        arguments = (watching, pod["metadata"], container["name"])
                        threading.Thread(target=run, args=arguments, daemon=True).start()
            while not lines.empty():
                yield lines.get()


def _started(pod: Document) -> list[Document]:
    """Return the states of a pod's containers that have started once, in the order in which they do."""
    status = pod.get("status", {})
    states = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return [one for one in states if not (one.get("state") or {}).get("waiting") or _ran_before(one)]


def _ran_before(container: Document) -> bool:
    return bool(container.get("restartCount") or (container.get("lastState") or {}).get("terminated"))


def _read(
    api: Api, metadata: Document, container: str, *, follow: bool = False, previous: bool = False
) -> Iterator[str]:
    name = metadata["name"]
    try:
        for line in api.log(metadata["namespace"], name, container, follow=follow, previous=previous):
            yield f"{name} {container}: {line}"
    except KdeployError as error:
        yield f"{name} {container}: no log: {error.what}"
