"""Reads what the checks of a service depend on: each object once, several at the same time."""

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
    NODE,
    NODE_POOL,
    POD,
    QUOTA,
    SCALED_OBJECT,
    SECRET,
    SERVICE_ACCOUNT,
    STORAGE_CLASS,
)
from deployer.targets.kserve.preflight.capabilities import Discovery
from deployer.targets.kserve.preflight.rules.admission import ENFORCE
from deployer.targets.kserve.preflight.rules.capacity import gives_gpu_back, has_gpu, large_nodes
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts, claim_of, mode_of, model_of
from deployer.targets.kserve.preflight.rules.references import named_objects, pull_secrets
from deployer.targets.kserve.preflight.rules.runtimes import flags_of
from deployer.targets.kserve.preflight.rules.scaling import uses_keda
from deployer.targets.kserve.state.kinds import (
    CLUSTER_SERVING_RUNTIME,
    INFERENCE_SERVICE,
    SERVING_RUNTIME,
    STORAGE_CONTAINER,
)

NODES_MAX = 20  # with more nodes, their pods are not read

Reads = dict[str, Callable[[], Any]]  # by the field of ClusterFacts


def read_facts(
    api: Api, discovery: Discovery, bundle: Bundle, target: KServeTarget, store: Store
) -> ClusterFacts:
    """Read everything that a service's documents depend on, as far as this user can. Raises TargetError."""
    reference = bundle.reference
    live = api.get(INFERENCE_SERVICE, reference.namespace, reference.name)
    found = _read(_first(api, discovery, bundle))
    found |= _read(_second(api, discovery, bundle, found))
    return ClusterFacts(
        live=live,
        domain_template=target.domain_template,
        makes_claim=bool(store.create_claim),
        named=_read_named(api, bundle.service),
        **found,
    )


def _first(api: Api, discovery: Discovery, bundle: Bundle) -> Reads:
    service = bundle.service
    namespace, runtime = service["metadata"]["namespace"], model_of(service)["runtime"]
    reads: Reads = {
        "namespace": lambda: discovery.namespace(namespace),
        "config": lambda: discovery.config,
        "controller": lambda: discovery.controller,
        "nodes": lambda: api.list(NODE, None)[0],
        "quotas": lambda: api.list(QUOTA, namespace)[0],
        "limits": lambda: api.list(LIMIT_RANGE, namespace)[0],
    }
    account = service["spec"]["predictor"].get("serviceAccountName", "default")
    if bundle.account is None and account != "default":
        reads["account"] = lambda: api.get(SERVICE_ACCOUNT, namespace, account)
    if mode_of(service) == "Knative":
        reads["knative"] = lambda: discovery.knative
        reads["defaults"] = lambda: api.get(CONFIG_MAP, "knative-serving", "config-defaults")
    if uses_keda(service):
        reads["keda"] = lambda: SCALED_OBJECT.plural in api.kinds(SCALED_OBJECT)
    if claim := claim_of(service):
        reads["claim"] = lambda: api.get(CLAIM, namespace, claim)
    if bundle.runtime is None:  # KServe looks in the namespace first
        reads["runtime"] = lambda: (
            api.get(SERVING_RUNTIME, namespace, runtime) or api.get(CLUSTER_SERVING_RUNTIME, None, runtime)
        )
    return reads


def _second(api: Api, discovery: Discovery, bundle: Bundle, found: Mapping[str, Any]) -> Reads:
    """Return what has to be read after the first facts are known."""
    service, reads = bundle.service, Reads()
    mode, config = mode_of(service), discovery.config
    if mode == "Standard" and config and config.gateway:
        namespace, _, gateway = config.gateway.partition("/")
        reads["gateway"] = lambda: api.get(GATEWAY, namespace, gateway)
    if config and config.deployment_mode not in (None, mode):
        reads["version"] = lambda: discovery.version
    if nodes := found.get("nodes"):
        reads["pods"] = lambda: _read_pods(api, nodes, service)
    labels = (found.get("namespace") or {}).get("metadata", {}).get("labels", {})
    if labels.get(ENFORCE) == "restricted":
        reads["storage_container"] = lambda: api.get(STORAGE_CONTAINER, None, "default")
    if mode == "Knative" and flags_of(service, bundle.runtime or found.get("runtime")):
        reads["features"] = lambda: api.get(CONFIG_MAP, "knative-serving", "config-features")
    claim = found.get("claim") or {}
    if claim.get("status", {}).get("phase") == "Pending" and (name := claim["spec"].get("storageClassName")):
        reads["storage_class"] = lambda: api.get(STORAGE_CLASS, None, name)
    return reads


def _read_named(api: Api, service: Document) -> dict[tuple[str, str], Any]:
    """Return the keys of the Secrets and ConfigMaps that the pods name; no value is kept."""
    resources = {"Secret": SECRET, "ConfigMap": CONFIG_MAP}
    objects = sorted({one.object for one in (*named_objects(service), *pull_secrets(service))})

    def read(kind: str, name: str) -> frozenset[str] | None:
        found = api.get(resources[kind], service["metadata"]["namespace"], name)
        return None if found is None else frozenset({**found.get("data", {}), **found.get("binaryData", {})})

    reads = [partial(_try, partial(read, *one)) for one in objects]
    return dict(zip(objects, ask_all(reads), strict=True))


def _read(reads: Reads) -> dict[str, Any]:
    found = zip(reads, ask_all([partial(_try, read) for read in reads.values()]), strict=True)
    return {name: value for name, value in found if value is not UNSET}


def _try(read: Callable[[], Any]) -> Any:
    """Return what was read: None if the cluster does not know the kind, UNSET if this user cannot read it."""
    try:
        return read()
    except UnknownKindError:
        return None
    except RefusedError:
        return UNSET


def _read_pods(api: Api, nodes: Sequence[Document], service: Document) -> dict[str, list[Document]]:
    """Return the pods of each node that is large enough for a pod of the service. Raises RefusedError."""
    large = large_nodes(nodes, service)
    return _pods_of(api, large) if len(large) <= NODES_MAX else {}


def returns_gpu(api: Api) -> bool:
    """Return whether a pod on a node with GPUs is being deleted, which frees its GPU soon."""
    try:
        nodes = [node for node in api.list(NODE, None)[0] if has_gpu(node)]
        every = _pods_of(api, nodes[:NODES_MAX])
    except RefusedError:
        return False
    return any(gives_gpu_back(pod) for pods in every.values() for pod in pods)


def may_scale_up(api: Api) -> bool:
    """Return whether the cluster has an autoscaler for nodes; assume it if this user cannot read it."""
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
