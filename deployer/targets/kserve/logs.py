"""The logs of a service: every container of every pod, what prepares them included."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from deployer.errors import KdeployError
from deployer.target import Document
from deployer.targets.kserve.api import Api
from deployer.targets.kserve.diagnosis import Failure

LAST_LINES = 20


def last_lines(api: Api, namespace: str, failure: Failure) -> tuple[str, ...]:
    """Return the last lines of the container that failed; none where there is no log to be had."""
    if not failure.container:
        return ()
    try:
        lines = api.log(namespace, failure.pod, failure.container, tail=LAST_LINES, previous=failure.previous)
        return tuple(lines)
    except KdeployError:  # it never started, or its node is gone: the failure itself is told
        return ()


def read_logs(api: Api, pods: Sequence[Document], *, follow: bool) -> Iterator[str]:
    """Yield the lines of every container, each with its pod's name; with `follow` as they come, mixed."""
    streams = [(pod["metadata"], name) for pod in pods for name in _containers(pod)]
    if not follow:
        for metadata, container in streams:
            yield from _read(api, metadata, container, follow=False)
        return
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def run(metadata: Document, container: str) -> None:
        for line in _read(api, metadata, container, follow=True):
            lines.put(line)
        lines.put(None)

    for stream in streams:
        threading.Thread(target=run, args=stream, daemon=True).start()
    open_streams = len(streams)
    while open_streams:
        line = lines.get()
        if line is None:
            open_streams -= 1
        else:
            yield line


def _containers(pod: Document) -> list[str]:
    """Return the containers of a pod that have started once, in the order in which they do."""
    status = pod.get("status", {})
    states = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return [
        one["name"]
        for one in states
        if not (one.get("state") or {}).get("waiting") or one.get("restartCount")
    ]


def _read(api: Api, metadata: Document, container: str, *, follow: bool) -> Iterator[str]:
    try:
        for line in api.log(metadata["namespace"], metadata["name"], container, follow=follow):
            yield f"{metadata['name']} {container}: {line}"
    except KdeployError as error:
        yield f"{metadata['name']} {container}: no log: {error.what}"
