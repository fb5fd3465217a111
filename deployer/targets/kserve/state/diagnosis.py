"""Detects why a release cannot become ready, as soon as that is certain. Pure: documents in, a failure out.

Only what concerns the release counts: its own pods and ReplicaSets, and conditions written after the last
change. A failure that can pass by itself states how many seconds it must last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

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
    is_of_release,
    is_terminating,
    name_of,
    of_release,
    own_children,
    release_of,
    release_pods,
)
from deployer.targets.kserve.state.pods import (
    Container,
    containers,
    delaying_event,
    explain_initializer,
    is_ready,
    join,
    memory_limit,
    resources_of,
    scheduling_faults,
)

CANNOT_LOAD = 78  # exit code of the runtime's first process if the model cannot be loaded
ATTEMPTS = 3  # failed downloads before a release fails, if the next one could succeed

# Seconds that a state must last before it counts as a failure.
PULLS = 35.0  # the kubelet tries about three times to pull an image
SETTLED = 1.0  # a gateway or the scheduler can correct itself right after
SCALES_UP = 15.0  # an autoscaler checks every ten seconds, and then reports that it adds a node
STALE = 10.0  # KServe has processed this release by then
TRIED_AGAIN = 60.0  # Kubernetes has most likely tried again to create a pod that was rejected before
FIRST_TRACEBACK = 8.0  # a worker that fails again within this time does not recover by itself

_GPU = re.compile(r"Insufficient (\S*(?:gpu|mig)[^\s.,]*)")
_PULLING = ("ErrImagePull", "ImagePullBackOff")
_FINAL = {
    "InvalidImageName": "invalid image name",
    "ErrImageNeverPull": "the node does not have the image, and the pull policy is Never",
    "CreateContainerConfigError": "a ConfigMap or Secret that it refers to does not exist",
    "CreateContainerError": "cannot create the container",
    "RunContainerError": "cannot start the container",
}
# Answers of a registry or a model store that do not change with the next attempt.
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
_REJECTED = re.compile(
    r"exceeded quota|admission webhook .* denied the request|is forbidden|violates PodSecurity"
)
_REJECTING = ("FailedCreate", "InternalError")  # reasons of events that count if the message says so
_UNSUPPORTED = ("ServerlessModeRejected", "VirtualServiceCRDNotFound")  # reasons that always count
_LATE = "ProgressDeadlineExceeded"
# A gateway's reasons for rejecting a route; with others it can still accept it.
_ROUTE_REJECTED = re.compile(
    "NotAllowedByListeners|NoMatchingListenerHostname|NoMatchingParent|UnsupportedValue|IncompatibleFilters"
    "|RefNotPermitted|InvalidKind|UnsupportedProtocol"
)


class Failure(Struct, frozen=True, kw_only=True):
    """Why a release cannot become ready: Kubernetes' reason, a message, a hint, and where the details are.

    It counts once it has lasted `after` seconds. If `lines` is empty and a container is named, its log has
    the details; with `previous`, the log of its previous run.
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
    """Return why the InferenceService's release cannot become ready, or None while it still can.

    `before` counts earlier failures of containers, by pod uid and container name: they do not count.
    `spec_before` is the model status that the previous release left. `conditions_before` are the conditions
    of the Deployment and the ReplicaSets before this wait began.
    """
    for pod in release_pods(service, children):
        known = (before or {}).get(pod["metadata"].get("uid", ""), {})
        if failure := diagnose_pod(pod, children.events, known) or _diagnose_log(pod, children):
            return _explain_gpu(failure, service, children) if lacks_gpu(failure) else failure
    own = own_children(service, children)
    return (
        _diagnose_pod_creation(service, own, conditions_before)
        or _diagnose_deadline(service, own, conditions_before)
        or _diagnose_events(service, children.events)
        or _diagnose_route(service)
        or _diagnose_spec(service, spec_before)
    )


def diagnose_pod(
    pod: Document, events: Sequence[Document], before: Mapping[str, int] | None = None
) -> Failure | None:
    """Return why a pod cannot run, or None while it still can; `before` as in diagnose, for this pod."""
    if not is_ready(pod):
        for one in containers(pod):
            failures = one.failures - (before or {}).get(one.name, 0)
            if failures > 0 and (failure := _diagnose_end(pod, one, failures)):
                return failure
            starts = one.waiting and (failures > 0 or not one.ended)
            if starts and (failure := _diagnose_waiting(pod, one, events)):
                return failure
    fault = next(filter(_GPU.search, scheduling_faults(pod, events)), None)
    if fault is None:
        return None
    resource = _GPU.findall(fault)[0]
    message = f"no node has a free {resource} for pod {name_of(pod)}: {fault}"
    return Failure(reason="Unschedulable", message=message, pod=name_of(pod), after=SETTLED)


def _diagnose_end(pod: Document, one: Container, failures: int) -> Failure | None:
    """Detect a failure in how the last run of a container ended."""
    fail = partial(Failure, pod=name_of(pod), container=one.name, previous=one.running or bool(one.waiting))
    init = one.name == INITIALIZER
    if one.ended.get("reason") == "OOMKilled":
        limit, setting = memory_limit(pod, one.name), "`serving.memory`"
        if init:
            setting = "the limit in KServe's ClusterStorageContainer"
        return fail(
            reason="OOMKilled",
            message=f"{_place(pod, one)} exceeded its memory limit" + (f" of {limit}" if limit else ""),
            hint=f"Raise {setting}, then run `kdeploy rollout` again.",
        )
    if init:
        error = explain_initializer(one.message)
        if failures < ATTEMPTS and not _NO_MODEL.search(error):
            return None
        attempts = f" in {failures} attempts" if failures > 1 else ""
        return fail(
            reason="StorageInitializerFailed",
            message=join(f"the {INITIALIZER} could not download the model{attempts}", error),
            hint="Check the model store and its credentials with `kdeploy doctor`.",
            container="" if error else INITIALIZER,  # the log would only repeat the error
        )
    if one.name == SERVING_CONTAINER and one.ended.get("exitCode") == CANNOT_LOAD:
        first, *lines = one.message.splitlines() or ["the model cannot be loaded"]
        return fail(reason="ModelLoadFailed", message=first, lines=tuple(lines))
    return None


def _diagnose_waiting(pod: Document, one: Container, events: Sequence[Document]) -> Failure | None:
    """Detect a waiting container that cannot start."""
    fail, where = partial(Failure, reason=one.waiting, pod=name_of(pod)), _place(pod, one)
    error = one.waiting_message or delaying_event(pod, events)
    if one.waiting == "CrashLoopBackOff" and one.name != INITIALIZER:
        reason, code = one.ended.get("reason", "ended"), one.ended.get("exitCode")
        end = f"{reason}, exit code {code}" if one.ended else ""
        message = join(f"{where} fails repeatedly", end, one.message)
        return fail(message=message, container=one.name, previous=True)
    if one.waiting in _PULLING:
        return fail(
            message=join(f"cannot pull the image of {where}", error),
            hint="Set `serving.image` to an image that the nodes can pull.",
            after=0.0 if _NO_IMAGE.search(error) else PULLS,
        )
    if one.waiting in _FINAL:
        return fail(message=join(where, _FINAL[one.waiting], error))
    return None


def _place(pod: Document, one: Container) -> str:
    return f"container {one.name} of pod {name_of(pod)}"


def _diagnose_log(pod: Document, children: Children) -> Failure | None:
    """Detect a failure in the log of a running container that is not ready."""
    lines = children.logs.get(name_of(pod), ())
    if not lines or is_ready(pod):
        return None
    log = LoadLog()
    log.feed("\n".join(lines) + "\n")
    error = log.failure or last_traceback(lines)
    if not error:
        return None
    return Failure(
        reason="ModelLoadFailed",
        message=error,
        pod=name_of(pod),
        container=SERVING_CONTAINER,
        after=0.0 if log.failure else FIRST_TRACEBACK,
    )


def lacks_gpu(failure: Failure | None) -> bool:
    """Return whether the failure is a missing GPU, which a terminating pod can free."""
    return failure is not None and failure.reason == "Unschedulable"


def _explain_gpu(failure: Failure, service: Document, children: Children) -> Failure | None:
    """Add a hint to a missing GPU; return None while a terminating pod of the service holds one."""
    if any(is_terminating(pod) and _holds_gpu(pod) for pod in children.pods):
        return None
    for pod in own_children(service, children).pods:
        if not is_of_release(service, pod) and _holds_gpu(pod):
            hint = (
                f"Pod {name_of(pod)} of release {release_of(pod)} holds a GPU. Stop it first with `kdeploy "
                "rollout --strategy recreate`; the service does not answer until the new pod is ready."
            )
            return structs.replace(failure, hint=hint)
    return structs.replace(failure, hint="Free a GPU, or lower `serving.gpu`.")


def _holds_gpu(pod: Document) -> bool:
    return any(re.search("gpu|mig", name) for name in resources_of(pod))


def _diagnose_pod_creation(service: Document, own: Children, before: Sequence[Document]) -> Failure | None:
    """Detect that Kubernetes rejects the release's pods.

    KServe writes the new release's label on the Deployment immediately, and the Deployment repeats what any
    of its ReplicaSets reports. So the Deployment only counts if all ReplicaSets are of the release.
    """
    sets = of_release(service, own.replica_sets)
    made = sets if len(sets) < len(own.replica_sets) else [*sets, *own.deployments]
    for one in filter(_is_observed, made):
        found = condition(one, "ReplicaFailure")
        if _REJECTED.search(error := found.get("message", "")):
            after = TRIED_AGAIN if found in before else 0.0
            return _reject("FailedCreate", f"{one['kind']} {name_of(one)}", error, after)
    return None


def _diagnose_deadline(service: Document, own: Children, before: Sequence[Document]) -> Failure | None:
    """Detect that the Deployment or the revision of the release has exceeded its deadline."""
    others = [name_of(one) for one in own.replica_sets if not is_of_release(service, one)]
    for one in filter(_is_observed, own.deployments):
        late = condition(one, "Progressing")
        error = late.get("message", "")
        if late.get("reason") == _LATE and late not in before and not any(name in error for name in others):
            return Failure(reason=_LATE, message=join(f"Deployment {name_of(one)}", error))
    for one in of_release(service, own.revisions):
        for late in conditions(one):
            if late.get("status") == "False" and late.get("reason") in (_LATE, "ContainerMissing"):
                message = join(f"Revision {name_of(one)}", late.get("message", ""))
                return Failure(reason=late["reason"], message=message)
    return None


def _is_observed(document: Document) -> bool:
    """Return whether an object's conditions are about its current specification."""
    observed: int = document.get("status", {}).get("observedGeneration", 0)
    return observed >= int(document["metadata"].get("generation", 0))


def _diagnose_events(service: Document, events: Sequence[Document]) -> Failure | None:
    """Detect from its events that the InferenceService's current specification is rejected."""
    since = applied_at(service)
    for event in events_about(service, events):
        reason, error = event.get("reason", ""), event.get("message", "")
        rejected = reason in _UNSUPPORTED or (reason in _REJECTING and _REJECTED.search(error))
        if rejected and event_time(event) >= since:
            return _reject(reason, f"InferenceService {name_of(service)}", error)
    return None


def _reject(reason: str, where: str, error: str, after: float = 0.0) -> Failure:
    hint = "Fix the cause that the message names, then run `kdeploy rollout` again."
    if "exceeded quota" in error:
        reason = "QuotaExceeded"
        hint = "Raise the quota, or lower `serving.cpu`, `serving.memory` or `serving.gpu`."
    return Failure(reason=reason, message=join(where, error), hint=hint, after=after)


def _diagnose_route(service: Document) -> Failure | None:
    """Detect from KServe's status that the gateway rejects the route of ready pods."""
    ingress, predictor = condition(service, "IngressReady"), condition(service, "PredictorReady")
    reason = ingress.get("reason", "")
    if predictor.get("status") != "True" or ingress.get("status") != "False":
        return None
    if not _ROUTE_REJECTED.fullmatch(reason):
        return None
    message = join("the gateway rejects the service's route", ingress.get("message", ""))
    hint = "Allow the namespace in the Gateway's listeners. See them: `kubectl -n kserve get gateway -o yaml`"
    return Failure(reason=reason, message=message, hint=hint, after=SETTLED)


def _diagnose_spec(service: Document, before: Document | None) -> Failure | None:
    """Detect an invalid specification; what KServe has already reported before must last a while."""
    model = service.get("status", {}).get("modelStatus", {})
    info = model.get("lastFailureInfo") or {}
    if model.get("transitionStatus") != "InvalidSpec":
        return None
    same = before is not None and all(
        before.get(key) == model.get(key) for key in ("transitionStatus", "lastFailureInfo")
    )
    message = join("KServe reports an invalid specification", info.get("message", ""))
    return Failure(reason=info.get("reason") or "InvalidSpec", message=message, after=STALE if same else 0.0)


def applied_at(service: Document) -> str:
    """Return when the specification was last written, to the second, by the API server's clock."""
    fields = service["metadata"].get("managedFields", [])
    times = [f.get("time", "") for f in fields if "f:spec" in f.get("fieldsV1", {})]
    return max(times, default="")[:19]
