"""Checks that a node has room for one more pod of a service. Pure.

An update starts a new pod before it stops an old one, so on a full node it never starts. An autoscaler can
add a node, so this warns and never refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal

from msgspec import UNSET

from deployer.findings import Finding, ok, warning
from deployer.observed import GPU, Document
from deployer.quantity import parse_quantity
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts, gpus_of, model_of, unchecked
from deployer.targets.kserve.state.children import SERVICE_LABEL, is_terminating, name_of
from deployer.targets.kserve.state.pods import requests_of

Amounts = Mapping[str, Decimal]
NONE = Decimal(0)


def check_room(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Check whether a node has room for one more pod."""
    gpus, wanted = gpus_of(service), _wanted(service)
    topic, where = ("GPU", "serving.gpu") if gpus else ("capacity", "serving.cpu")
    if facts.nodes is UNSET:
        if gpus:
            yield unchecked("GPU", "this user cannot list nodes", "whether the nodes have GPUs")
    elif not (large := large_nodes(facts.nodes, service)):
        if gpus or any(node.get("status", {}).get("allocatable") for node in facts.nodes):
            every = [_allocatable(node, service) for node in facts.nodes]
            detail = f"no node has {_lacking(every, wanted)} now"
            yield warning(topic, detail, where, "Add a larger node, or lower the request in `[serving]`.")
    elif facts.pods is not UNSET and facts.pods.keys() >= {name_of(node) for node in large}:
        free = {name_of(node): _free(node, facts.pods[name_of(node)], service) for node in large}
        fitting = [name for name, amounts in free.items() if _holds(amounts, wanted)]
        if fitting:
            held = f"{gpus} {GPU} free" if gpus else "room for one more pod"
            yield ok(topic, f"node {fitting[0]} has {held}")
            return
        lacking = _lacking(free.values(), wanted)
        if facts.live is not None and not _recreates(service):
            detail = f"an update starts a new pod before it stops the old one, and no node has {lacking} free"
            remedy = "Stop the old pod first with `--strategy recreate`, or free resources."
        else:
            detail, remedy = f"no node has {lacking} free now", "Free resources, or add a node."
        yield warning(topic, detail, where, remedy)


def large_nodes(nodes: Sequence[Document], service: Document) -> list[Document]:
    """Return the nodes that are large enough for a pod of a service if nothing else runs there."""
    wanted = _wanted(service)
    return [node for node in nodes if _holds(_allocatable(node, service), wanted)]


def has_gpu(node: Document) -> bool:
    """Return whether a node has GPUs."""
    return bool(_amounts(node.get("status", {}).get("allocatable", {})).get(GPU))


def gives_gpu_back(pod: Document) -> bool:
    """Return whether a pod is being deleted and still holds a GPU."""
    return is_terminating(pod) and bool(_pod_requests(pod).get(GPU))


def _recreates(service: Document) -> bool:
    strategy = service["spec"]["predictor"].get("deploymentStrategy") or {}
    return bool(strategy.get("type") == "Recreate")


def _amounts(quantities: Mapping[str, object]) -> dict[str, Decimal]:
    parsed = {key: parse_quantity(value) for key, value in quantities.items()}
    return {key: amount for key, amount in parsed.items() if amount is not None}


def _requests(container: Document) -> dict[str, Decimal]:
    return _amounts(requests_of(container))


def _wanted(service: Document) -> dict[str, Decimal]:
    """Return what one pod of a service requests, with the containers of its overlays."""
    predictor = service["spec"]["predictor"]
    containers = [model_of(service), *predictor.get("containers", [])]
    spec = {"containers": containers, "initContainers": predictor.get("initContainers", [])}
    return _pod_requests({"spec": spec})


def _pod_requests(pod: Document) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for container in pod.get("spec", {}).get("containers", []):
        for key, amount in _requests(container).items():
            total[key] = total.get(key, NONE) + amount
    for container in pod.get("spec", {}).get("initContainers", []):
        for key, amount in _requests(container).items():
            total[key] = max(total.get(key, NONE), amount)
    return total


def _allocatable(node: Document, service: Document) -> dict[str, Decimal]:
    """Return what pods of a service can request of a node; nothing if the node accepts none."""
    predictor = service["spec"]["predictor"]
    taints = node.get("spec", {}).get("taints") or []
    tolerations = predictor.get("tolerations") or []
    labels = node.get("metadata", {}).get("labels", {})
    selected = (predictor.get("nodeSelector") or {}).items() <= labels.items()
    if not selected or any(_keeps_off(taint, tolerations) for taint in taints):
        return {}
    if node.get("spec", {}).get("unschedulable"):
        return {}
    return _amounts(node.get("status", {}).get("allocatable", {}))


def _keeps_off(taint: Document, tolerations: Sequence[Document]) -> bool:
    """Return whether a taint keeps pods off its node.

    Kubernetes lets a pod that requests a GPU tolerate the taint of that name.
    """
    if taint.get("effect") not in ("NoSchedule", "NoExecute") or taint["key"] == GPU:
        return False
    return not any(
        one.get("effect") in (None, "", taint["effect"])
        and one.get("key") in (None, "", taint["key"])
        and (one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", ""))
        for one in tolerations
    )


def _free(node: Document, pods: Sequence[Document], service: Document) -> dict[str, Decimal]:
    """Return what is free on a node; if the service's own pods are stopped first, they do not count."""
    free, metadata = _allocatable(node, service), service["metadata"]
    own = (metadata["namespace"], metadata["name"]) if _recreates(service) else None
    for pod in pods:
        if own == (pod["metadata"].get("namespace"), pod["metadata"].get("labels", {}).get(SERVICE_LABEL)):
            continue
        for key, amount in _pod_requests(pod).items():
            free[key] = free.get(key, NONE) - amount
    return free


def _holds(amounts: Amounts, wanted: Amounts) -> bool:
    return all(amounts.get(key, NONE) >= amount for key, amount in wanted.items())


def _lacking(every: Iterable[Amounts], wanted: Amounts) -> str:
    """Name the resources that no node has enough of, or only GPUs; all of them if no single one is short."""
    known = list(every)
    most = {key: max((one.get(key, NONE) for one in known), default=NONE) for key in wanted}
    short = {key: amount for key, amount in wanted.items() if most[key] < amount} or dict(wanted)
    short = {GPU: short[GPU]} if GPU in short else short
    return ", ".join(f"{_text(amount)} {key}" for key, amount in sorted(short.items()))


def _text(amount: Decimal) -> str:
    for unit, size in (("Gi", 1024**3), ("Mi", 1024**2)):
        if amount >= size and amount % size == 0:
            return f"{amount / size:f}{unit}"
    return f"{amount.normalize():f}"
