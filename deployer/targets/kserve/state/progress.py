"""What happens right now to a release that is on its way, in a word and a sentence. Pure."""

from __future__ import annotations

from deployer.observed import Document
from deployer.targets.kserve.state.children import (
    INITIALIZER,
    SERVING_CONTAINER,
    Children,
    condition,
    is_standard,
    is_terminating,
    own_children,
    release_of,
    release_pods,
)
from deployer.targets.kserve.state.pods import (
    Container,
    back_off,
    containers,
    describe_held,
    explain_initializer,
    find_container,
    hindering_event,
    is_ready,
    is_scaling_up,
    is_scheduled,
    join,
    probe_message,
    running_first,
    scheduling_faults,
)

# The phrases of manifests/probe.py, and what they mean to somebody who waits.
_PROBES = {
    "TorchServe's management API does not answer": ("StartingTorchServe", "TorchServe is starting"),
    "installing the model's requirements": ("InstallingRequirements", "installing the model's requirements"),
    "no READY worker": ("LoadingModel", "loading the model: no READY worker yet"),
    "no model is loaded": ("LoadingModel", "loading the model: TorchServe has none yet"),
}


def describe_progress(service: Document, children: Children) -> tuple[str, str]:
    """Return what a release that is not ready yet is waiting for; empty where nothing tells."""
    if condition(service, "PredictorReady").get("status") == "True" and (told := _of_gateway(service))[0]:
        return told
    pods = release_pods(service, children)
    for pod in running_first([one for one in pods if not is_ready(one)]):
        if (told := _of_pod(pod, children)) != ("", ""):
            return told
    return ("", "") if pods else _of_deployment(service, children)


def _of_pod(pod: Document, children: Children) -> tuple[str, str]:
    name = pod["metadata"]["name"]
    if not is_scheduled(pod):
        return _of_scheduling(pod, children)
    initializer, serving = find_container(pod, INITIALIZER), find_container(pod, SERVING_CONTAINER)
    if initializer.running or initializer.failures:
        return _of_initializer(initializer)
    if serving.running:
        return _of_probe(pod, serving, children)
    if pause := back_off(serving):
        ended = (serving.ended or {}).get("reason", "ended")
        return "BackOff", join(f"the container has failed and starts again after {pause} s", ended)
    if hindered := hindering_event(pod, children.events):
        return hindered.partition(": ")[0], f"pod {name}: {hindered.partition(': ')[2]}"
    waits = next((one for one in containers(pod) if one.waiting), None)
    if waits is None:
        return "", ""
    if waits.waiting in ("ContainerCreating", "PodInitializing"):
        return "StartingContainer", f"starting container {waits.name}: its image may have to be pulled"
    where = f"{waits.waiting}: container {waits.name} of pod {name}"
    return waits.waiting, join(where, waits.waiting_message)


def _of_scheduling(pod: Document, children: Children) -> tuple[str, str]:
    faults = scheduling_faults(pod, children.events)
    if is_scaling_up(pod, children.events):
        return "ScalingUp", "waiting for a node that is being added"
    if not faults:
        return "Scheduling", "waiting for a node"
    ending = [describe_held(one) for one in children.pods if is_terminating(one)]
    still = f"; {ending[0]} is still terminating" if ending else ""
    return "Unschedulable", f"no node has room for pod {pod['metadata']['name']}: {faults[0]}{still}"


def _of_initializer(one: Container) -> tuple[str, str]:
    said = explain_initializer(one.message)
    if one.running:
        again = f", attempt {one.failures + 1}; the last one said: {said}" if one.failures else ""
        return "DownloadingModel", f"downloading the model{again}"
    times = "once" if one.failures == 1 else f"{one.failures} times"
    message = f"{INITIALIZER} has failed {times} and starts again after {back_off(one)} s"
    return "BackOff", join(message, said)


def _of_probe(pod: Document, serving: Container, children: Children) -> tuple[str, str]:
    if serving.failures and serving.ended:
        reason = serving.ended.get("reason", "Error")
        return "Restarted", join(
            "loading the model again after the container failed", reason, serving.message
        )
    said = probe_message(pod, children.events)
    for phrase, told in _PROBES.items():
        if phrase in said:
            detail = said.partition("; ")[2]
            return told[0], f"{told[1]}; {detail}" if detail else told[1]
    return "LoadingModel", f"loading the model: {said}" if said else "loading the model"


def _of_gateway(service: Document) -> tuple[str, str]:
    ingress = condition(service, "IngressReady")
    if ingress.get("status") == "True":
        return "", ""
    told = join(ingress.get("reason", ""), ingress.get("message", ""))
    return "WaitingForRoute", "waiting for the gateway to accept the route" + (f": {told}" if told else "")


def _of_deployment(service: Document, children: Children) -> tuple[str, str]:
    """Say what keeps the release from having a pod."""
    own = own_children(service, children)
    made = [*own.deployments, *own.replica_sets, *own.revisions]
    if any(release_of(one) == release_of(service) for one in made):
        return "CreatingPods", "waiting for Kubernetes to create the release's pods"
    what = "Deployment" if is_standard(service) else "Knative Service"
    return "WaitingForKServe", f"waiting for KServe to write the {what}"
