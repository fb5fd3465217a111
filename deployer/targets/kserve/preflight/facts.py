"""Reads what the checks of a service depend on: each object once, and several at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from msgspec import UNSET

from deployer.bundle import Bundle
from deployer.config import KServeTarget, Store
from deployer.errors import RefusedError
from deployer.observed import Document
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.client.api_errors import UnknownKindError
from deployer.targets.kserve.client.parallel import ask_all
from deployer.targets.kserve.client.resources import (
    CLAIM,
    CONFIG_MAP,
    GATEWAY,
    LIMIT_RANGE,
    NAMESPACE,
    NODE,
    NODE_POOL,
    POD,
    QUOTA,
    STORAGE_CLASS,
)
from deployer.targets.kserve.preflight.capabilities import Discovery
from deployer.targets.kserve.preflight.rules.admission import ENFORCE
from deployer.targets.kserve.preflight.rules.capacity import gives_gpu_back, has_gpu, large_nodes
from deployer.targets.kserve.preflight.rules.cluster import ClusterFacts
from deployer.targets.kserve.preflight.rules.documents import mode_of
from deployer.targets.kserve.preflight.rules.runtimes import Seen, find_runtime, flags_of
from deployer.targets.kserve.state.kinds import (
    CLUSTER_SERVING_RUNTIME,
    INFERENCE_SERVICE,
    SERVING_RUNTIME,
    STORAGE_CONTAINER,
)

NODES_MAX = 20  # in a larger cluster the pods of its nodes are not read

Asked = dict[str, Callable[[], Any]]


def read_facts(
    api: Api, discovery: Discovery, bundle: Bundle, target: KServeTarget, store: Store
) -> ClusterFacts:
    """Read all that a service's documents depend on, but what may not be read. Raises TargetError."""
    reference = bundle.reference
    live = api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
    found = _read(_first(api, discovery, bundle))
    found |= _read(_second(api, discovery, bundle, found))
    return ClusterFacts(
        live=live, domain_template=target.domain_template, makes_claim=bool(store.create_claim), **found
    )


def _first(api: Api, discovery: Discovery, bundle: Bundle) -> Asked:
    service = bundle.service
    namespace, model = service["metadata"]["namespace"], service["spec"]["predictor"]["model"]
    scheme, _, path = model["storageUri"].partition("://")
    asked: Asked = {
        "namespace": lambda: api.get(NAMESPACE, None, namespace),
        "config": lambda: discovery.config,
        "controller": lambda: discovery.controller,
        "nodes": lambda: api.list(NODE, None)[0],
        "quotas": lambda: api.list(QUOTA, namespace)[0],
        "limits": lambda: api.list(LIMIT_RANGE, namespace)[0],
    }
    if mode_of(service) == "Knative":
        asked["knative"] = lambda: discovery.knative
        asked["defaults"] = lambda: api.get(CONFIG_MAP, "knative-serving", "config-defaults")
    if scheme == "pvc":
        asked["claim"] = lambda: api.get(CLAIM, namespace, path.partition("/")[0])
    if bundle.runtime is None:
        asked["runtime"] = lambda: _runtime(api, namespace, model["runtime"])
    return asked


def _second(api: Api, discovery: Discovery, bundle: Bundle, found: Mapping[str, Any]) -> Asked:
    """Ask for what only some clusters make interesting."""
    service, asked = bundle.service, Asked()
    mode, config = mode_of(service), discovery.config
    if mode == "Standard" and config and config.gateway:
        space, _, gateway = config.gateway.partition("/")
        asked["gateway"] = lambda: api.get(GATEWAY, space, gateway)
    if config and config.deployment_mode not in (None, mode):
        asked["version"] = lambda: discovery.version
    if nodes := found.get("nodes"):
        asked["pods"] = lambda: read_pods(api, nodes, service)
    labels = (found.get("namespace") or {}).get("metadata", {}).get("labels", {})
    if labels.get(ENFORCE) == "restricted":
        asked["storage_container"] = lambda: api.get(STORAGE_CONTAINER, None, "default")
    runtime: Seen = find_runtime(bundle, found.get("runtime", UNSET))
    if mode == "Knative" and flags_of(service, runtime or None):
        asked["features"] = lambda: api.get(CONFIG_MAP, "knative-serving", "config-features")
    claim = found.get("claim") or {}
    if claim.get("status", {}).get("phase") == "Pending" and (name := claim["spec"].get("storageClassName")):
        asked["storage_class"] = lambda: api.get(STORAGE_CLASS, None, name)
    return asked


def _runtime(api: Api, namespace: str, name: str) -> Document | None:
    """Look for a runtime where KServe does: in the namespace, then in the cluster."""
    return api.get(SERVING_RUNTIME, namespace, name) or api.get(CLUSTER_SERVING_RUNTIME, None, name)


def _read(asked: Asked) -> dict[str, Any]:
    found = zip(asked, ask_all([partial(_answer, ask) for ask in asked.values()]), strict=True)
    return {name: value for name, value in found if value is not UNSET}


def _answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except UnknownKindError:
        return None
    except RefusedError:
        return UNSET


def read_pods(api: Api, nodes: Sequence[Document], service: Document) -> dict[str, list[Document]]:
    """Return the pods of each node that is large enough for a pod of a service. Raises RefusedError."""
    large = large_nodes(nodes, service)
    return _pods_of(api, large) if len(large) <= NODES_MAX else {}


def returns_gpu(api: Api) -> bool:
    """Return whether some pod on a node with GPUs is being deleted, so that its GPU is free soon."""
    try:
        nodes = [node for node in api.list(NODE, None)[0] if has_gpu(node)]
        every = _pods_of(api, nodes[:NODES_MAX])
    except RefusedError:
        return False
    return any(gives_gpu_back(pod) for pods in every.values() for pod in pods)


def may_scale_up(api: Api) -> bool:
    """Return whether the cluster has an autoscaler for nodes, or may have one where that is unknown."""
    try:
        if api.get(CONFIG_MAP, "kube-system", "cluster-autoscaler-status"):
            return True
        return bool(api.list(NODE_POOL, None)[0])
    except UnknownKindError:
        return False
    except RefusedError:
        return True


def _pods_of(api: Api, nodes: Sequence[Document]) -> dict[str, list[Document]]:
    def ask(name: str) -> list[Document]:
        active = f"spec.nodeName={name},status.phase!=Succeeded,status.phase!=Failed"
        return api.list(POD, None, {"fieldSelector": active})[0]

    names = [str(node["metadata"]["name"]) for node in nodes]
    return dict(zip(names, ask_all([partial(ask, name) for name in names]), strict=True))
