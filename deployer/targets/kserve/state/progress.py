"""Describes what an unready release waits for: a reason and a message. Pure."""

from __future__ import annotations

from deployer.observed import Document
from deployer.targets.kserve.state.children import (
    INITIALIZER,
    SERVING_CONTAINER,
    Children,
    condition,
    is_standard,
    is_terminating,
    name_of,
    of_release,
    own_children,
    release_pods,
)
from deployer.targets.kserve.state.pods import (
    Container,
    back_off,
    containers,
    delaying_event,
    describe_held,
    explain_initializer,
    find_container,
    is_ready,
    is_scaling_up,
    is_scheduled,
    join,
    probe_message,
    scheduling_faults,
)

# The messages of manifests/probe.py: the reason and the sentence for each.
_PROBES = {
    "TorchServe's management API does not answer": ("StartingTorchServe", "TorchServe is starting"),
    "installing the model's requirements": ("InstallingRequirements", "installing the model's requirements"),
    "no READY worker": ("LoadingModel", "loading the model: no READY worker yet"),
    "no model is loaded": ("LoadingModel", "loading the model: TorchServe has none yet"),
}


def describe_progress(service: Document, children: Children) -> tuple[str, str]:
    """Return the reason and the message of what an unready release waits for; empty if that is unknown."""
    ingress = condition(service, "IngressReady")
    if condition(service, "PredictorReady").get("status") == "True" and ingress.get("status") != "True":
        reason = join(ingress.get("reason", ""), ingress.get("message", ""))
        return "WaitingForRoute", join("waiting for the gateway to accept the route", reason)
    pods = release_pods(service, children)
    if not pods:
        return _describe_creation(service, children)
    unready = sorted((pod for pod in pods if not is_ready(pod)), key=_rank)
    described = (_describe_pod(pod, children) for pod in unready)
    return next((found for found in described if found[0]), ("", ""))


def _rank(pod: Document) -> tuple[bool, bool, str]:
    """Order pods by how far they have advanced."""
    return not find_container(pod, SERVING_CONTAINER).running, not is_scheduled(pod), name_of(pod)


def _describe_pod(pod: Document, children: Children) -> tuple[str, str]:
    name, events = name_of(pod), children.events
    initializer, serving = find_container(pod, INITIALIZER), find_container(pod, SERVING_CONTAINER)
    if not is_scheduled(pod):
        return _describe_scheduling(pod, children)
    if initializer.running or initializer.failures:
        return _describe_initializer(initializer)
    if serving.running:
        return _describe_loading(pod, serving, children)
    if pause := back_off(serving):
        reason = serving.ended.get("reason", "ended")
        return "BackOff", join(f"the container has failed and starts again after {pause} s", reason)
    if delay := delaying_event(pod, events):
        return delay.partition(": ")[0], f"pod {name}: {delay.partition(': ')[2]}"
    waits = next((one for one in containers(pod) if one.waiting), None)
    if waits is None:
        return "", ""
    if waits.waiting in ("ContainerCreating", "PodInitializing"):
        return "StartingContainer", f"starting container {waits.name}; its image may have to be pulled"
    where = f"{waits.waiting}: container {waits.name} of pod {name}"
    return waits.waiting, join(where, waits.waiting_message)


def _describe_scheduling(pod: Document, children: Children) -> tuple[str, str]:
    if is_scaling_up(pod, children.events):
        return "ScalingUp", "waiting for a node that the autoscaler adds"
    faults = scheduling_faults(pod, children.events)
    if not faults:
        return "Scheduling", "waiting for a node"
    ending = next(
        (f"; {describe_held(one)} is terminating" for one in children.pods if is_terminating(one)), ""
    )
    return "Unschedulable", f"no node has room for pod {name_of(pod)}: {faults[0]}{ending}"


def _describe_initializer(one: Container) -> tuple[str, str]:
    error = explain_initializer(one.message)
    if one.running:
        again = f", attempt {one.failures + 1}; the last one failed: {error}" if one.failures else ""
        return "DownloadingModel", f"downloading the model{again}"
    times = "once" if one.failures == 1 else f"{one.failures} times"
    return "BackOff", join(
        f"{INITIALIZER} has failed {times} and starts again after {back_off(one)} s", error
    )


def _describe_loading(pod: Document, serving: Container, children: Children) -> tuple[str, str]:
    if serving.failures and serving.ended:
        reason = serving.ended.get("reason", "Error")
        return "Restarted", join(
            "loading the model again after the container failed", reason, serving.message
        )
    message = probe_message(pod, children.events)
    for phrase, (reason, sentence) in _PROBES.items():
        if phrase in message:
            detail = message.partition("; ")[2]
            return reason, f"{sentence}; {detail}" if detail else sentence
    return "LoadingModel", join("loading the model", message)


def _describe_creation(service: Document, children: Children) -> tuple[str, str]:
    own = own_children(service, children)
    if of_release(service, [*own.deployments, *own.replica_sets, *own.revisions]):
        return "CreatingPods", "waiting for Kubernetes to create the release's pods"
    kind = "Deployment" if is_standard(service) else "Knative Service"
    return "WaitingForKServe", f"waiting for KServe to write the {kind}"
