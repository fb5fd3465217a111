"""Why a release cannot become ready, as soon as that is certain. Pure: documents in, a failure out.

Only what is about this release counts: its own pods and ReplicaSets, and conditions that were written after
the last change. A failure that may pass by itself names the seconds that it must last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from deployer.load_log import LoadLog, last_traceback
from deployer.observed import Document
from deployer.targets.kserve.state.children import (
    INITIALIZER,
    SERVING_CONTAINER,
    Children,
    condition,
    conditions,
    event_time,
    events_about,
    is_terminating,
    own_children,
    release_of,
    release_pods,
)
from deployer.targets.kserve.state.pods import (
    Container,
    containers,
    explain_initializer,
    hindering_event,
    is_ready,
    join,
    memory_limit,
    resources_of,
    scheduling_faults,
)

CANNOT_LOAD = 78  # how the runtime's first process ends the container when the model cannot be loaded
ATTEMPTS = 3  # failed downloads after which waiting is over, where the next one could succeed

# Seconds that a state must last before it counts as a failure.
PULLS = 35.0  # about three attempts of the kubelet to pull an image
SETTLED = 1.0  # a gateway or the scheduler may speak up right after
SCALES_UP = 15.0  # an autoscaler looks every ten seconds, and then says that it adds a node
STALE = 10.0  # KServe has surely come round to this release
TRIED_AGAIN = 60.0  # Kubernetes has most likely tried again to create a pod that was refused before
FIRST_TRACEBACK = 8.0  # a worker that fails once more within this is not a passing fault

_GPU = re.compile(r"Insufficient (\S*(?:gpu|mig)[^\s.,]*)")
_PULLING = ("ErrImagePull", "ImagePullBackOff")
_HOPELESS = {
    "InvalidImageName": "invalid image name",
    "ErrImageNeverPull": "the image is not on the node and must not be pulled",
    "CreateContainerConfigError": "it refers to something that does not exist",
    "CreateContainerError": "it cannot be created",
    "RunContainerError": "it cannot be started",
}
# What a registry or a model store says that asking again does not change.
_NO_IMAGE = re.compile(
    r"not found|manifest unknown|unauthorized|denied|forbidden|\b40[134]\b|no such image|invalid reference",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"\b40[134]\b|forbidden|access ?denied|unauthorized|authenticationfailed|authorizationfailure"
    r"|nosuchbucket|bucket does not exist|container does not exist|no such (?:bucket|container)"
    r"|no model found|no such file|does not exist|invalidaccesskeyid|signaturedoesnotmatch"
    r"|unable to locate credentials|could not find default credentials|certificate verify failed"
    r"|not supported|cannot recognize storage type",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"exceeded quota|admission webhook .* denied the request|is forbidden|violates PodSecurity"
)
_REFUSING = ("FailedCreate", "InternalError")  # if the message says so
_REJECTING = ("ServerlessModeRejected", "VirtualServiceCRDNotFound")  # whatever it says
_LATE = "ProgressDeadlineExceeded"
_REVISION_FAILED = (_LATE, "ContainerMissing")
# What a gateway says of a route that it will not accept; other reasons may pass.
_ROUTE_REFUSED = frozenset(
    [
        "NotAllowedByListeners",
        "NoMatchingListenerHostname",
        "NoMatchingParent",
        "UnsupportedValue",
        "IncompatibleFilters",
        "RefNotPermitted",
        "InvalidKind",
        "UnsupportedProtocol",
    ]
)


class Failure(Struct, frozen=True, kw_only=True):
    """A reason as Kubernetes names it, a sentence, what to do, and the lines or the log that say more.

    It counts once it has lasted `after` seconds. Where `lines` are empty and a container is named, the
    container's log says more: that of its run before where `previous` is set.
    """

    reason: str
    message: str
    hint: str = ""
    pod: str = ""
    container: str = ""
    previous: bool = False
    lines: tuple[str, ...] = ()
    after: float = 0.0


def diagnose(
    service: Document,
    children: Children,
    before: Mapping[str, Mapping[str, int]] | None = None,
    spec_before: Document | None = None,
    conditions_before: Sequence[Document] = (),
) -> Failure | None:
    """Return why the InferenceService's release cannot become ready, or None while it still may.

    `before` counts the failures of containers, by pod uid and name, that are older than what is waited for.
    `spec_before` is the model status that the release before left, `conditions_before` are those that its
    Deployment and ReplicaSets had before the release was waited for once more.
    """
    for pod in release_pods(service, children):
        known = (before or {}).get(pod["metadata"].get("uid", ""), {})
        if failure := diagnose_pod(pod, children.events, known) or _of_log(pod, children):
            return failure if failure.reason != "Unschedulable" else _of_place(failure, service, children)
    return (
        _of_deployment(service, children, conditions_before)
        or _of_revisions(service, children)
        or _of_events(service, children.events)
        or _of_route(service)
        or _of_spec(service, spec_before)
    )


def diagnose_pod(
    pod: Document, events: Sequence[Document], before: Mapping[str, int] | None = None
) -> Failure | None:
    """Return why a pod cannot run, or None while it still may; `before` counts failures that do not count."""
    if not is_ready(pod):
        for one in containers(pod):
            failed = one.failures - (before or {}).get(one.name, 0)
            if failure := _of_container(pod, one, failed, events):
                return failure
    return _of_scheduling(pod, events)


def _of_container(pod: Document, one: Container, failed: int, events: Sequence[Document]) -> Failure | None:
    if failed > 0 and (failure := _of_end(pod, one, failed)):
        return failure
    if one.waiting and (failed > 0 or one.ended is None):
        return _of_waiting(pod, one, events)
    return None


def _of_end(pod: Document, one: Container, failed: int) -> Failure | None:
    """Read how the last run of a container ended."""
    ended, name = one.ended or {}, str(pod["metadata"]["name"])
    where, previous = f"container {one.name} of pod {name}", one.running or bool(one.waiting)
    if ended.get("reason") == "OOMKilled":
        limit = memory_limit(pod, one.name)
        what = (
            "serving.memory" if one.name != INITIALIZER else "the limit in KServe's ClusterStorageContainer"
        )
        return Failure(
            reason="OOMKilled",
            message=f"{where} was killed for memory" + (f"; its limit is {limit}" if limit else ""),
            hint=f"raise {what}, then run `kdeploy rollout` again",
            pod=name,
            container=one.name,
            previous=previous,
        )
    if one.name == INITIALIZER:
        said = explain_initializer(one.message)
        if not _NO_MODEL.search(said) and failed < ATTEMPTS:
            return None
        attempts = f"{failed} attempts of the " if failed > 1 else "the "
        return Failure(
            reason="StorageInitializerFailed",
            message=join(f"{attempts}{INITIALIZER} could not download the model", said),
            hint="check the model store and its credentials: `kdeploy doctor`",
            pod=name,
            container="" if said else one.name,  # or its log would say the same once more
            previous=previous,
        )
    if one.name == SERVING_CONTAINER and ended.get("exitCode") == CANNOT_LOAD:
        first, *lines = one.message.splitlines() or ["the model cannot be loaded"]
        return Failure(
            reason="ModelLoadFailed",
            message=first,
            pod=name,
            container=one.name,
            previous=previous,
            lines=tuple(lines),
        )
    return None


def _of_waiting(pod: Document, one: Container, events: Sequence[Document]) -> Failure | None:
    """Read what a container waits for, where that cannot come."""
    name = str(pod["metadata"]["name"])
    where = f"container {one.name} of pod {name}"
    said = join(one.waiting_message or hindering_event(pod, events))
    if one.waiting == "CrashLoopBackOff" and one.name != INITIALIZER:
        ended = one.ended or {}
        code = f"{ended.get('reason', 'ended')}, exit code {ended.get('exitCode')}" if ended else ""
        message = join(f"{where} fails again and again", code, one.message)
        return Failure(reason=one.waiting, message=message, pod=name, container=one.name, previous=True)
    if one.waiting in _PULLING:
        return Failure(
            reason=one.waiting,
            message=join(f"the image of {where} cannot be pulled", said),
            hint="set serving.image to an image that the nodes can pull",
            pod=name,
            after=0.0 if _NO_IMAGE.search(said) else PULLS,
        )
    if one.waiting in _HOPELESS:
        return Failure(reason=one.waiting, message=join(where, _HOPELESS[one.waiting], said), pod=name)
    return None


def _of_scheduling(pod: Document, events: Sequence[Document]) -> Failure | None:
    said = next(filter(_GPU.search, scheduling_faults(pod, events)), None)
    if not said:
        return None
    lacking = _GPU.search(said)
    name = lacking[1] if lacking else ""
    message = f"no node has a free {name} for pod {pod['metadata']['name']}: {said}"
    return Failure(reason="Unschedulable", message=message, pod=pod["metadata"]["name"], after=SETTLED)


def lacks_gpu(failure: Failure | None) -> bool:
    """Return whether a failure is that no node has a free GPU, which a pod that ends may give back."""
    return failure is not None and failure.reason == "Unschedulable"


def _of_place(failure: Failure, service: Document, children: Children) -> Failure | None:
    """Doubt that a GPU is missing while a pod of the service gives one back; say the way out otherwise."""
    if any(is_terminating(pod) and _holds_gpu(pod) for pod in children.pods):
        return None
    release = release_of(service)
    others = [
        pod
        for pod in own_children(service, children).pods
        if release_of(pod) != release and _holds_gpu(pod) and not is_terminating(pod)
    ]
    hint = "free a GPU, or lower serving.gpu"
    if others:
        hint = (
            f"pod {others[0]['metadata']['name']} of release {release_of(others[0])} holds one: "
            "`kdeploy rollout --strategy recreate` stops it first (the service does not answer meanwhile)"
        )
    return structs.replace(failure, hint=hint)


def _holds_gpu(pod: Document) -> bool:
    return any(re.search("gpu|mig", name) for name in resources_of(pod))


def _of_log(pod: Document, children: Children) -> Failure | None:
    """Read the log of a container that runs and is not ready, where its runtime says nothing by itself."""
    lines = children.logs.get(pod["metadata"]["name"], ())
    if not lines or is_ready(pod):
        return None
    log = LoadLog()
    log.feed("\n".join(lines) + "\n")
    said = log.failure or last_traceback(lines)
    if not said:
        return None
    return Failure(
        reason="ModelLoadFailed",
        message=said,
        pod=pod["metadata"]["name"],
        container=SERVING_CONTAINER,
        after=0.0 if log.failure else FIRST_TRACEBACK,
    )


def _of_deployment(service: Document, children: Children, before: Sequence[Document]) -> Failure | None:
    """Read that pods are refused, or late, where that is about the release.

    KServe writes the new release's label on the Deployment at once. Its deadline is the one of the release
    before until it is observed again, and it repeats what any of its ReplicaSets reports of refused pods.
    """
    own = own_children(service, children)
    others = [_name(one) for one in own.replica_sets if release_of(one) != release_of(service)]
    made = _of_release(service, own.replica_sets)
    for one in filter(_is_observed, made if others else [*made, *own.deployments]):
        found = condition(one, "ReplicaFailure")
        if _REFUSED.search(refused := found.get("message", "")):
            after = TRIED_AGAIN if found in before else 0.0
            return _refusal("FailedCreate", f"{one['kind']} {_name(one)}", refused, after)
    for one in filter(_is_observed, own.deployments):
        late = condition(one, "Progressing")
        said = late.get("message", "")
        if late.get("reason") == _LATE and late not in before and not any(name in said for name in others):
            return Failure(reason=_LATE, message=join(f"Deployment {_name(one)}", said))
    return None


def _is_observed(document: Document) -> bool:
    """Return whether an object's conditions are of its present specification."""
    observed: int = document.get("status", {}).get("observedGeneration", 0)
    return observed >= int(document["metadata"].get("generation", 0))


def _of_revisions(service: Document, children: Children) -> Failure | None:
    for one in _of_release(service, own_children(service, children).revisions):
        for found in conditions(one):
            if found.get("status") == "False" and found.get("reason") in _REVISION_FAILED:
                message = join(f"Revision {_name(one)}", found.get("message", ""))
                return Failure(reason=found["reason"], message=message)
    return None


def _of_release(service: Document, made: list[Document]) -> list[Document]:
    release = release_of(service)
    return [one for one in made if release_of(one) == release]


def _name(document: Document) -> str:
    return str(document["metadata"]["name"])


def _of_events(service: Document, events: Sequence[Document]) -> Failure | None:
    """Read from the InferenceService's events that it is refused; one that is older than the spec is not."""
    since = applied_at(service)
    for event in events_about(service, list(events)):
        reason, said = event.get("reason", ""), event.get("message", "")
        if event_time(event) < since:
            continue
        if reason in _REJECTING or (reason in _REFUSING and _REFUSED.search(said)):
            return _refusal(reason, f"InferenceService {service['metadata']['name']}", said)
    return None


def _refusal(reason: str, who: str, said: str, after: float = 0.0) -> Failure:
    if "exceeded quota" in said:
        hint = "raise the quota, or lower what the release asks for: serving.cpu, memory, gpu"
        return Failure(reason="QuotaExceeded", message=join(who, said), hint=hint, after=after)
    hint = "change what the message names, then run `kdeploy rollout` again"
    return Failure(reason=reason, message=join(who, said), hint=hint, after=after)


def _of_route(service: Document) -> Failure | None:
    """Read from KServe's status that the gateway refuses the route; the pods are ready by then."""
    ingress = condition(service, "IngressReady")
    if condition(service, "PredictorReady").get("status") != "True" or ingress.get("status") != "False":
        return None
    if ingress.get("reason") not in _ROUTE_REFUSED:
        return None
    return Failure(
        reason=ingress["reason"],
        message=join("the gateway refuses the service's route", ingress.get("message", "")),
        hint="allow the namespace in the Gateway's listeners: `kubectl -n kserve get gateway -o yaml`",
        after=SETTLED,
    )


def _of_spec(service: Document, before: Document | None) -> Failure | None:
    """Believe that the specification is invalid; what the release before left must last a while to count."""
    model = service.get("status", {}).get("modelStatus", {})
    if model.get("transitionStatus") != "InvalidSpec":
        return None
    told = model.get("lastFailureInfo", {})
    same = before is not None and (before.get("transitionStatus"), before.get("lastFailureInfo")) == (
        model["transitionStatus"],
        model.get("lastFailureInfo"),
    )
    reason = told.get("reason") or model["transitionStatus"]
    message = join("KServe reports an invalid specification", told.get("message", ""))
    return Failure(reason=reason, message=message, after=STALE if same else 0.0)


def applied_at(service: Document) -> str:
    """Return when the specification was last written, by the API server's clock, to the second."""
    fields = service["metadata"].get("managedFields", [])
    times = [f.get("time", "") for f in fields if "f:spec" in f.get("fieldsV1", {})]
    return max(times, default="")[:19]
