"""Whether a node has room for one more pod of a service. Pure.

An update starts a new pod before it stops an old one, so on a full node it never starts. An autoscaler may
add a node, so this warns and never refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal

from msgspec import UNSET, UnsetType

from deployer.findings import Finding, ok, warning
from deployer.observed import Document
from deployer.quantity import parse_quantity
from deployer.targets.kserve.preflight.rules.documents import GPU, gpus_of
from deployer.targets.kserve.state.children import SERVICE_LABEL, is_terminating

Amounts = Mapping[str, Decimal]


def check_room(
    service: Document,
    live: Document | None,
    nodes: Sequence[Document] | UnsetType,
    pods: Mapping[str, Sequence[Document]] | UnsetType,
) -> Iterator[Finding]:
    """Yield whether a node has room for one more pod; nothing where nodes or pods cannot be listed.

    `pods` are those of each node that is large enough, by its name.
    """
    if nodes is UNSET:
        return
    wanted = _requests(service["spec"]["predictor"]["model"])
    if not gpus_of(service) and not any(node.get("status", {}).get("allocatable") for node in nodes):
        return
    large = large_nodes(nodes, service)
    if not large:
        what = _lacking([_allocatable(node) for node in nodes], wanted)
        yield _warning(
            service, f"no node has {what} now", "add such a node, or lower what [serving] asks for"
        )
        return
    if pods is UNSET or not all(_name(node) in pods for node in large):
        return
    leaves = {service["metadata"]["name"]} if _recreates(service) and live is not None else set()
    free = {_name(node): _free(node, pods[_name(node)], leaves, service) for node in large}
    fitting = [name for name, amounts in free.items() if _holds(amounts, wanted)]
    if fitting:
        gpus = gpus_of(service)
        held = f"{gpus} of {GPU} free" if gpus else "room for one more pod"
        yield ok(_topic(service), f"node {fitting[0]} has {held}")
        return
    lacking = _lacking(free.values(), wanted)
    if live is not None and not _recreates(service):
        detail = f"an update starts a new pod before it stops the old one, and no node has {lacking} free"
        remedy = "`--strategy recreate` stops the old pod first; or free some"
    else:
        detail, remedy = f"no node has {lacking} free now", "free some, or add a node"
    yield _warning(service, detail, remedy)


def large_nodes(nodes: Sequence[Document], service: Document) -> list[Document]:
    """Return the nodes that are large enough for a pod of a service, if nothing else runs there."""
    wanted = _requests(service["spec"]["predictor"]["model"])
    return [node for node in nodes if _holds(_allocatable(node), wanted)]


def has_gpu(node: Document) -> bool:
    """Return whether pods may ask for GPUs of a node."""
    return bool(_allocatable(node).get(GPU))


def gives_gpu_back(pod: Document) -> bool:
    """Return whether a pod is being deleted and still holds a GPU."""
    return is_terminating(pod) and bool(_pod_requests(pod).get(GPU))


def _topic(service: Document) -> str:
    return "GPU" if gpus_of(service) else "capacity"


def _warning(service: Document, detail: str, remedy: str) -> Finding:
    where = "serving.gpu" if gpus_of(service) else "serving.cpu"
    return warning(_topic(service), detail, where, remedy)


def _recreates(service: Document) -> bool:
    strategy = service["spec"]["predictor"].get("deploymentStrategy") or {}
    return bool(strategy.get("type") == "Recreate")


def _requests(container: Document) -> dict[str, Decimal]:
    """Return what a container asks for; a limit without a request counts as one."""
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {key: amount for key, value in asked.items() if (amount := parse_quantity(value)) is not None}


def _pod_requests(pod: Document) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for container in pod.get("spec", {}).get("containers", []):
        for key, amount in _requests(container).items():
            total[key] = total.get(key, Decimal(0)) + amount
    for container in pod.get("spec", {}).get("initContainers", []):
        for key, amount in _requests(container).items():
            total[key] = max(total.get(key, Decimal(0)), amount)
    return total


def _allocatable(node: Document) -> dict[str, Decimal]:
    """Return what pods of a node may ask for; nothing where new ones are kept off it."""
    taints = node.get("spec", {}).get("taints") or []
    # A pod that asks for a GPU tolerates the taint of that name by itself.
    kept_off = any(one.get("effect") in ("NoSchedule", "NoExecute") and one["key"] != GPU for one in taints)
    if kept_off or node.get("spec", {}).get("unschedulable"):
        return {}
    found = node.get("status", {}).get("allocatable", {})
    return {key: amount for key, value in found.items() if (amount := parse_quantity(value)) is not None}


def _free(
    node: Document, pods: Sequence[Document], leaves: set[str], service: Document
) -> dict[str, Decimal]:
    """Return what is left of a node; pods of a service that is stopped first leave theirs."""
    free = _allocatable(node)
    for pod in pods:
        metadata = pod["metadata"]
        same = metadata.get("namespace") == service["metadata"]["namespace"]
        if same and metadata.get("labels", {}).get(SERVICE_LABEL) in leaves:
            continue
        for key, amount in _pod_requests(pod).items():
            free[key] = free.get(key, Decimal(0)) - amount
    return free


def _holds(amounts: Amounts, wanted: Amounts) -> bool:
    return all(amounts.get(key, Decimal(0)) >= amount for key, amount in wanted.items())


def _lacking(every: Iterable[Amounts], wanted: Amounts) -> str:
    """Say what no node has enough of; all that is wanted where no single resource is short."""
    known = list(every)
    most = {key: max((one.get(key, Decimal(0)) for one in known), default=Decimal(0)) for key in wanted}
    short = {key: amount for key, amount in wanted.items() if most[key] < amount} or dict(wanted)
    short = {GPU: short[GPU]} if GPU in short else short
    return ", ".join(f"{_text(amount)} {key}" for key, amount in sorted(short.items()))


def _text(amount: Decimal) -> str:
    if amount >= 1024**2 and amount % 1024**2 == 0:
        gi = amount / 1024**3
        return f"{gi.normalize():f}Gi" if gi == gi.to_integral() else f"{(amount / 1024**2).normalize():f}Mi"
    return f"{amount.normalize():f}"


def _name(node: Document) -> str:
    return str(node["metadata"]["name"])
