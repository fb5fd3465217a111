"""Reads a pod's status and events: its containers, their failures, and what delays it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from deployer.observed import Document
from deployer.targets.kserve.state.children import (
    INITIALIZER,
    condition,
    conditions,
    event_time,
    events_about,
    name_of,
)

# Warning events that explain why a pod does not run. Others, such as MissingClusterDNS, delay nothing.
_DELAYING = re.compile(
    "BackOff|ErrImageNeverPull|Failed|FailedAttachVolume|FailedBinding|FailedCreatePodContainer"
    "|FailedCreatePodSandBox|FailedMapVolume|FailedMount|FailedScheduling|FailedSync|InspectFailed"
    "|InvalidDiskCapacity|NetworkNotReady|NotTriggerScaleUp|ProvisioningFailed"
)
_ADVANCING = ("Scheduled", "SuccessfulAttachVolume", "Pulling", "Pulled", "Created", "Started")
_SCALES_UP = ("TriggeredScaleUp", "Nominated")  # the cluster autoscaler's event, and Karpenter's
_PROBE = re.compile(r"^(?:Readiness|Startup|Liveness) probe (?:failed|errored)[^:]*: *", re.DOTALL)
_LOG_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d[ T][\d:.,]+ +\d* *\S+ +(?P<level>[A-Z]+) +(?:\[[^\]]*\] *)?")
_UNEXPECTED = "Unexpected error during storage initialization: "
_BACK_OFF_FIRST, _BACK_OFF_MAX = 10, 300  # seconds, the kubelet's


class Container(Struct, frozen=True, kw_only=True):
    """A container of a pod: its state, how its last run ended, and how many runs have failed."""

    name: str
    running: bool = False
    waiting: str = ""
    waiting_message: str = ""
    ended: Document = {}
    failures: int = 0

    @property
    def message(self) -> str:
        """The termination message of its last run."""
        return str(self.ended.get("message") or "").strip()


def containers(pod: Document) -> list[Container]:
    """Return the containers of a pod, init containers first."""
    status = pod.get("status", {})
    found = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return [_read_container(one) for one in found]


def _read_container(status: dict[str, Any]) -> Container:
    name, state = status.get("name", ""), status.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    last = (status.get("lastState") or {}).get("terminated") or {}
    if name == INITIALIZER and ended.get("exitCode") == 0 and ended.get("reason") != "OOMKilled":
        return Container(name=name)  # it has succeeded, even if earlier attempts failed
    return Container(
        name=name,
        running="running" in state,
        waiting=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        ended=ended or last,
        failures=int(status.get("restartCount", 0)) + bool(ended or (waiting and last)),
    )


def find_container(pod: Document, name: str) -> Container:
    """Return a container of a pod; it has no state until the kubelet reports one."""
    return next((one for one in containers(pod) if one.name == name), Container(name=name))


def count_failures(pod: Document) -> dict[str, int]:
    """Return how often each container of a pod has failed, by name."""
    return {one.name: one.failures for one in containers(pod)}


def back_off(container: Container) -> int:
    """Return the seconds until the kubelet starts a failed container again, else 0."""
    if container.running or not (container.ended and container.failures):
        return 0
    return int(min(_BACK_OFF_FIRST * 2 ** min(container.failures - 1, 10), _BACK_OFF_MAX))


def is_ready(pod: Document) -> bool:
    """Return whether a pod receives requests."""
    return condition(pod, "Ready").get("status") == "True"


def is_scheduled(pod: Document) -> bool:
    """Return whether a pod has a node."""
    return bool(pod.get("spec", {}).get("nodeName"))


def is_scaling_up(pod: Document, events: Sequence[Document]) -> bool:
    """Return whether an autoscaler adds a node for a pod."""
    return any(one.get("reason") in _SCALES_UP for one in events_about(pod, events))


def scheduling_faults(pod: Document, events: Sequence[Document]) -> list[str]:
    """Return why a pod has no node; nothing while an autoscaler adds one."""
    if is_scheduled(pod) or is_scaling_up(pod, events):
        return []
    reports = [one for one in conditions(pod) if one.get("reason") == "Unschedulable"]
    reports += [one for one in events_about(pod, events) if one.get("reason") == "FailedScheduling"]
    return [one.get("message", "") for one in reports]


def delaying_event(pod: Document, events: Sequence[Document]) -> str:
    """Return the newest event that explains why a pod does not run; nothing if it has advanced since."""
    every = events_about(pod, events)
    since = max((event_time(one) for one in every if one.get("reason") in _ADVANCING), default="")
    about = [
        f"{reason}: {one.get('message', '')}"
        for one in every
        if one.get("type") == "Warning" and event_time(one) >= since
        if _DELAYING.fullmatch(reason := one.get("reason", ""))
    ]
    return about[-1] if about else ""


def probe_message(pod: Document, events: Sequence[Document]) -> str:
    """Return the message of a pod's newest failed probe, or nothing."""
    about = [one.get("message", "") for one in events_about(pod, events) if one.get("reason") == "Unhealthy"]
    return join(_PROBE.sub("", about[-1])) if about else ""


def explain_pod(pod: Document, events: Sequence[Document]) -> str:
    """Return what a pod waits for, or why it has ended; nothing if that is unknown."""
    states = containers(pod)
    ended = [
        join(one.ended.get("reason", ""), one.message) for one in states if one.ended and not one.running
    ]
    waits = [f"{one.waiting}: container {one.name}" for one in states if one.waiting]
    scheduled = condition(pod, "PodScheduled")
    unscheduled = [scheduled["reason"], scheduled["message"]] if scheduled.get("status") == "False" else []
    return delaying_event(pod, events) or join(*unscheduled) or next(iter((*ended, *waits)), "")


def explain_initializer(message: str) -> str:
    """Return the error in a message of KServe's storage-initializer, without log prefixes and INFO lines."""
    lines = []
    for line in message.splitlines():
        found = _LOG_PREFIX.match(line)
        if found and found["level"] in ("INFO", "DEBUG"):
            continue
        text = line[found.end() :] if found else line
        if text.strip() and not text.startswith(("Traceback ", "  ")):
            lines.append(text.strip().removeprefix(_UNEXPECTED))
    return " ".join(lines[-3:]) or join(message)


def requests_of(container: Document) -> dict[str, Any]:
    """Return what a container requests, by resource; a limit without a request counts as one."""
    resources = container.get("resources") or {}
    return {**(resources.get("limits") or {}), **(resources.get("requests") or {})}


def resources_of(pod: Document) -> dict[str, str]:
    """Return what the containers of a pod request, by resource; several requests are joined by a plus."""
    found: dict[str, str] = {}
    for one in pod.get("spec", {}).get("containers", []):
        for key, value in requests_of(one).items():
            found[key] = f"{found[key]} + {value}" if key in found else str(value)
    return found


def memory_limit(pod: Document, container: str) -> str:
    """Return the memory limit of one container, or nothing."""
    spec = pod.get("spec", {})
    every = [*spec.get("initContainers", []), *spec.get("containers", [])]
    limits = [(one.get("resources") or {}).get("limits") or {} for one in every if one["name"] == container]
    return str(limits[0].get("memory", "")) if limits else ""


def describe_held(pod: Document) -> str:
    """Name a terminating pod and what it holds: its GPUs, or else everything that it requests."""
    held = resources_of(pod)
    scarce = {key: value for key, value in held.items() if "/" in key} or held
    amounts = ", ".join(f"{value} {key}" for key, value in sorted(scarce.items()))
    return f"pod {name_of(pod)}" + (f" ({amounts})" if amounts else "")


def join(*parts: str) -> str:
    """Join the parts that are not empty on one line, with colons."""
    return ": ".join(text for part in parts if (text := " ".join(part.split())))
