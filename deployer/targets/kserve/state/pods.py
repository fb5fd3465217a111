"""What a pod's status and events say: what runs, what failed, and what the pod waits for. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from deployer.observed import Document
from deployer.targets.kserve.state.children import (
    INITIALIZER,
    SERVING_CONTAINER,
    condition,
    conditions,
    event_time,
    events_about,
)

# Warning events that say why a pod does not run; others, such as MissingClusterDNS, hinder nothing.
_HINDERING = frozenset(
    [
        "BackOff",
        "ErrImageNeverPull",
        "Failed",
        "FailedAttachVolume",
        "FailedBinding",
        "FailedCreatePodContainer",
        "FailedCreatePodSandBox",
        "FailedMapVolume",
        "FailedMount",
        "FailedScheduling",
        "FailedSync",
        "InspectFailed",
        "InvalidDiskCapacity",
        "NetworkNotReady",
        "NotTriggerScaleUp",
        "ProvisioningFailed",
    ]
)
_PROGRESSING = ("Scheduled", "SuccessfulAttachVolume", "Pulling", "Pulled", "Created", "Started")
_SCALES_UP = ("TriggeredScaleUp", "Nominated")  # by the cluster autoscaler, by Karpenter
_PROBE = re.compile(r"^(?:Readiness|Startup|Liveness) probe (?:failed|errored)[^:]*: *", re.DOTALL)
_LOG_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d[ T][\d:.,]+ +\d* *\S+ +(?P<level>[A-Z]+) +(?:\[[^\]]*\] *)?")
_UNEXPECTED = "Unexpected error during storage initialization: "
_BACK_OFF_FIRST, _BACK_OFF_MAX = 10, 300  # seconds, as the kubelet has them


class Container(Struct, frozen=True, kw_only=True):
    """A container of a pod: its state now, how its last run ended, and how many runs have failed."""

    name: str
    running: bool = False
    ready: bool = False
    started: str = ""
    waiting: str = ""
    waiting_message: str = ""
    ended: Document | None = None
    failures: int = 0

    @property
    def message(self) -> str:
        """The message that its last run left."""
        return str((self.ended or {}).get("message") or "").strip()


def containers(pod: Document) -> list[Container]:
    """Return the containers of a pod, those that prepare it first."""
    status = pod.get("status", {})
    found = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return [_read_container(one) for one in found]


def find_container(pod: Document, name: str) -> Container:
    """Return a container of a pod; one that the kubelet has not reported yet has no state."""
    return next((one for one in containers(pod) if one.name == name), Container(name=name))


def count_failures(pod: Document) -> dict[str, int]:
    """Return how often each container of a pod has failed, by name."""
    return {one.name: one.failures for one in containers(pod)}


def back_off(container: Container) -> int:
    """Return how many seconds the kubelet waits before the next attempt; 0 while no attempt is due."""
    failed = container.ended is not None and container.failures > 0
    if container.running or not failed:
        return 0
    return int(min(_BACK_OFF_FIRST * 2 ** min(container.failures - 1, 10), _BACK_OFF_MAX))


def is_ready(pod: Document) -> bool:
    """Return whether a pod gets requests."""
    return condition(pod, "Ready").get("status") == "True"


def is_scheduled(pod: Document) -> bool:
    """Return whether a pod is on a node."""
    return bool(pod.get("spec", {}).get("nodeName"))


def is_scaling_up(pod: Document, events: Sequence[Document]) -> bool:
    """Return whether a node is being added for a pod."""
    return any(one.get("reason") in _SCALES_UP for one in events_about(pod, list(events)))


def scheduling_faults(pod: Document, events: Sequence[Document]) -> list[str]:
    """Return why a pod has no node yet; nothing while a node is being added for it."""
    about = events_about(pod, list(events))
    if is_scheduled(pod) or is_scaling_up(pod, events):
        return []
    said = [one.get("message", "") for one in conditions(pod) if one.get("reason") == "Unschedulable"]
    return said + [one.get("message", "") for one in about if one.get("reason") == "FailedScheduling"]


def hindering_event(pod: Document, events: Sequence[Document]) -> str:
    """Return the newest event that says why a pod does not run, or nothing if it has come farther since."""
    every = events_about(pod, list(events))
    since = max((event_time(one) for one in every if one.get("reason") in _PROGRESSING), default="")
    about = [
        one
        for one in every
        if one.get("type") == "Warning" and one.get("reason") in _HINDERING and event_time(one) >= since
    ]
    return f"{about[-1].get('reason')}: {about[-1].get('message', '')}" if about else ""


def probe_message(pod: Document, events: Sequence[Document]) -> str:
    """Return what the newest failed probe of a pod said, or nothing."""
    about = [one for one in events_about(pod, list(events)) if one.get("reason") == "Unhealthy"]
    return " ".join(_PROBE.sub("", about[-1].get("message", "")).split()) if about else ""


def explain_pod(pod: Document, events: Sequence[Document]) -> str:
    """Return what a pod waits for, or why it ended; nothing where nothing tells."""
    ended = [one for one in containers(pod) if one.ended and not one.running]
    if ended:
        own = join(str((ended[0].ended or {}).get("reason", "")), ended[0].message)
    else:
        own = next((f"{one.waiting}: container {one.name}" for one in containers(pod) if one.waiting), "")
    scheduled = condition(pod, "PodScheduled")
    unscheduled = (
        join(scheduled["reason"], scheduled["message"]) if scheduled.get("status") == "False" else ""
    )
    return hindering_event(pod, events) or unscheduled or own


def explain_initializer(message: str) -> str:
    """Return the error in what KServe's storage-initializer left, without log prefixes and INFO lines."""
    lines = []
    for line in message.splitlines():
        found = _LOG_PREFIX.match(line)
        if found and found["level"] in ("INFO", "DEBUG"):
            continue
        text = line[found.end() :] if found else line
        if text.strip() and not text.startswith(("Traceback ", "  ")):
            lines.append(text.strip().removeprefix(_UNEXPECTED))
    return " ".join(lines[-3:]) or " ".join(message.split())


def resources_of(pod: Document) -> dict[str, str]:
    """Return what the containers of a pod ask for, by resource; what several ask for is joined by a plus."""
    found: dict[str, str] = {}
    for one in pod.get("spec", {}).get("containers", []):
        resources = one.get("resources") or {}
        for key, value in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
            found[key] = f"{found[key]} + {value}" if key in found else str(value)
    return found


def memory_limit(pod: Document, container: str) -> str:
    """Return the memory limit of one container, or nothing."""
    spec = pod.get("spec", {})
    every = [*spec.get("initContainers", []), *spec.get("containers", [])]
    limits = [(one.get("resources") or {}).get("limits") or {} for one in every if one["name"] == container]
    return str(limits[0].get("memory", "")) if limits else ""


def describe_held(pod: Document) -> str:
    """Say which pod is being deleted, and what it holds until it is gone: GPUs first of all."""
    held = resources_of(pod)
    scarce = {key: value for key, value in held.items() if "/" in key} or held
    what = ", ".join(f"{value} {key}" for key, value in sorted(scarce.items()))
    return f"pod {pod['metadata']['name']}" + (f" ({what})" if what else "")


def join(*parts: str) -> str:
    """Join the parts that say something, on one line."""
    return ": ".join(text for part in parts if (text := " ".join(part.split())))


def _read_container(status: dict[str, Any]) -> Container:
    state, last = status.get("state") or {}, (status.get("lastState") or {}).get("terminated")
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or last
    over = state.get("terminated")
    restarts, init = int(status.get("restartCount", 0)), status.get("name") == INITIALIZER
    succeeded = over is not None and over.get("exitCode") == 0 and over.get("reason") != "OOMKilled"
    failed = over is not None or (bool(waiting) and last is not None)
    return Container(
        name=status.get("name", ""),
        running="running" in state,
        ready=bool(status.get("ready")),
        started=(state.get("running") or {}).get("startedAt", ""),
        waiting=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        ended=None if init and succeeded else ended,
        failures=0 if init and succeeded else restarts + failed,
    )


def running_first(pods: Sequence[Document]) -> Iterator[Document]:
    """Yield pods with those first that have come the farthest."""

    def rank(pod: Document) -> tuple[bool, bool, str]:
        serving = find_container(pod, SERVING_CONTAINER)
        return (not serving.running, not is_scheduled(pod), pod["metadata"]["name"])

    yield from sorted(pods, key=rank)
