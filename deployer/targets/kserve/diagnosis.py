"""Why a release cannot come to serve, as soon as that is certain. Pure: documents in, a failure out.

Certain is what no waiting mends: an image that cannot be pulled, a container that ends again and
again, a GPU that no node has, a quota, a refusal, a specification that KServe takes for invalid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from deployer.target import Document
from deployer.targets.kserve.serving import Children, release_of

GPU = re.compile(r"Insufficient (\S*(?:gpu|mig)\S*)")
_SCALES_UP = ("TriggeredScaleUp", "Nominated")  # the autoscaler, or Karpenter, is bringing a node
_HOPELESS = {
    "CrashLoopBackOff": "it ends again and again",
    "ErrImagePull": "its image cannot be pulled",
    "ImagePullBackOff": "its image cannot be pulled",
    "InvalidImageName": "its image has no valid name",
    "ErrImageNeverPull": "its image is not there and may not be pulled",
    "CreateContainerConfigError": "it refers to something that is not there",
    "CreateContainerError": "it cannot be created",
    "RunContainerError": "it cannot be started",
}
_REFUSED = re.compile(
    r"exceeded quota|admission webhook .* denied the request|is forbidden|violates PodSecurity"
)
_REFUSING = ("FailedCreate", "InternalError")  # if the message says so
_REJECTING = ("ServerlessModeRejected", "VirtualServiceCRDNotFound")  # whatever it says
_BLOCKED = ("BlockedByFailedLoad", "InvalidSpec")


class Failure(Struct, frozen=True, kw_only=True):
    """What ended it: a reason as Kubernetes names it, a sentence, and whose log says more.

    `certain` is False for what may still be the verdict on what was there before.
    """

    reason: str
    message: str
    pod: str = ""
    container: str = ""
    previous: bool = False
    certain: bool = True


def diagnose(service: Document, children: Children) -> Failure | None:
    """Return why the InferenceService's release cannot come to serve, or None while it still may."""
    release = release_of(service)
    pods = [pod for pod in children.pods if release_of(pod) == release and _wanted(pod)]
    for pod in pods:
        if failure := diagnose_pod(pod, children.events):
            return failure
    made = [*children.replica_sets, *children.deployments, *children.revisions]
    made = [one for one in made if release_of(one) == release]
    return _of_conditions(made) or _of_events(service, made, children.events) or _of_model(service)


def diagnose_pod(pod: Document, events: list[Document]) -> Failure | None:
    """Return why a pod cannot come to run, or None while it still may."""
    return _of_containers(pod, events) or _of_scheduling(pod, events)


def explain_pod(pod: Document, events: list[Document]) -> str:
    """Return what a pod waits for, or why it ended: the last complaint, else its own words, or nothing."""
    ended = [state["terminated"] for _, state in _states(pod) if "terminated" in state]
    own = (ended[0].get("reason", ""), ended[0].get("message", "")) if ended else _waiting(pod)
    return _event(pod, events) or _join(*own)


def explain_waiting(service: Document, children: Children) -> tuple[str, str]:
    """Return in a word and a sentence what a release is waiting for; empty where nothing tells."""
    release = release_of(service)
    for pod in children.pods:
        if release_of(pod) != release or not _wanted(pod):
            continue
        if (waiting := _waiting(pod))[0]:
            return waiting
    return "", ""


def _waiting(pod: Document) -> tuple[str, str]:
    for condition in _conditions(pod):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return "Unschedulable", f"pod {_name(pod)}: {condition.get('message', '')}"
    for container, state in _states(pod):
        if waiting := state.get("waiting"):
            return str(waiting.get("reason", "Waiting")), f"container {container} of pod {_name(pod)}"
    return "", ""


def _of_containers(pod: Document, events: list[Document]) -> Failure | None:
    for name, state in _states(pod):
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        reason = waiting.get("reason", "")
        if name == "storage-initializer" and (ended.get("exitCode") or reason == "CrashLoopBackOff"):
            said = ended.get("message") or _last_words(pod, name)
            message = f"the model cannot be fetched by container {name} of pod {_name(pod)}"
            return Failure(
                reason="StorageInitializerFailed",
                message=_join(message, said),
                pod=_name(pod),
                container=name,
                previous=not ended,
            )
        if reason in _HOPELESS:
            message = f"container {name} of pod {_name(pod)}: {_HOPELESS[reason]}"
            crashed = reason == "CrashLoopBackOff"
            details = _last_words(pod, name) if crashed else waiting.get("message") or _event(pod, events)
            return Failure(
                reason=reason,
                message=_join(message, details),
                pod=_name(pod),
                container=name,
                previous=crashed,
            )
    return None


def _of_scheduling(pod: Document, events: list[Document]) -> Failure | None:
    if any(event.get("reason") in _SCALES_UP for event in _about(pod, events)):
        return None
    said = [c.get("message", "") for c in _conditions(pod) if c.get("reason") == "Unschedulable"]
    said += [e.get("message", "") for e in _about(pod, events) if e.get("reason") == "FailedScheduling"]
    if _scheduled(pod) or not (match := next(filter(None, map(GPU.search, said)), None)):
        return None
    message = f"no node has a free {match[1].rstrip('.,')} for pod {_name(pod)}: {match.string}"
    return Failure(reason="Unschedulable", message=message, pod=_name(pod))


def _of_conditions(made: list[Document]) -> Failure | None:
    for one in made:
        for condition in _conditions(one):
            reason, said = condition.get("reason", ""), condition.get("message", "")
            late = reason == "ProgressDeadlineExceeded" and condition.get("status") == "False"
            refused = condition.get("type") == "ReplicaFailure" and _REFUSED.search(said)
            if late or refused:
                named = "QuotaExceeded" if "exceeded quota" in said else reason
                return Failure(reason=named, message=_join(f"{one.get('kind')} {_name(one)}", said))
    return None


def _of_events(service: Document, made: list[Document], events: list[Document]) -> Failure | None:
    """Read refusals from events; one of the InferenceService counts if it is no older than the spec."""
    since = _applied_at(service)
    for one in (service, *made):
        for event in _about(one, events):
            reason, said = event.get("reason", ""), event.get("message", "")
            if one is service and _time(event) < since:
                continue
            if reason in _REJECTING or (reason in _REFUSING and _REFUSED.search(said)):
                named = "QuotaExceeded" if "exceeded quota" in said else reason
                return Failure(reason=named, message=_join(f"{one.get('kind')} {_name(one)}", said))
    return None


def _of_model(service: Document) -> Failure | None:
    """Read KServe's own verdict, which may be the one on the release before."""
    model = service.get("status", {}).get("modelStatus", {})
    if model.get("transitionStatus") not in _BLOCKED:
        return None
    failure = model.get("lastFailureInfo", {})
    reason = failure.get("reason") or model["transitionStatus"]
    certain = failure.get("time", "")[:19] > _applied_at(service)
    return Failure(reason=reason, message=_join("KServe says", failure.get("message", "")), certain=certain)


def _states(pod: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and state of each container, those that prepare first."""
    status = pod.get("status", {})
    for one in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        yield one.get("name", ""), one.get("state") or {}


def _last_words(pod: Document, container: str) -> str:
    """Say how a container's last run ended."""
    status = pod.get("status", {})
    for one in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        ended = (one.get("lastState") or {}).get("terminated")
        if one.get("name") == container and ended:
            code = f"{ended.get('reason', 'ended')}, exit code {ended.get('exitCode')}"
            return _join(code, ended.get("message", ""))
    return ""


def _wanted(pod: Document) -> bool:
    return "deletionTimestamp" not in pod["metadata"]


def _scheduled(pod: Document) -> bool:
    return bool(pod.get("spec", {}).get("nodeName"))


def _conditions(document: Document) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document.get("status", {}).get("conditions", [])
    return found


def _about(document: Document, events: list[Document]) -> list[Document]:
    uid = document["metadata"].get("uid")
    return [event for event in events if event.get("involvedObject", {}).get("uid") == uid]


def _event(document: Document, events: list[Document]) -> str:
    warnings = [event for event in _about(document, events) if event.get("type") == "Warning"]
    newest = max(warnings, key=_time, default=None)
    return f"{newest.get('reason')}: {newest.get('message', '')}" if newest else ""


def _time(event: Document) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp") or "")[:19]


def _applied_at(service: Document) -> str:
    """Return when the specification was last written, by the API server's clock, to the second."""
    fields = service["metadata"].get("managedFields", [])
    times = [f.get("time", "") for f in fields if "f:spec" in f.get("fieldsV1", {})]
    return max(times, default="")[:19]


def _name(document: Document) -> str:
    return str(document["metadata"]["name"])


def _join(text: str, more: str) -> str:
    more = " ".join(more.split())
    return f"{text}: {more}" if more else text
