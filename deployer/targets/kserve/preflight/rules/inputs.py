"""What the rules read: facts about a cluster, and fields of an InferenceService. Pure.

A rule takes the InferenceService and the facts, and yields findings: none if it does not apply.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from deployer.findings import Finding
from deployer.observed import GPU, Document
from deployer.quantity import parse_quantity
from deployer.targets.kserve.state.children import MODE_ANNOTATION
from deployer.targets.kserve.state.settings import KServeConfig

Seen = Document | None | UnsetType  # None: not found; UNSET: not readable by this user, or not needed


class ClusterFacts(Struct, frozen=True, kw_only=True):
    """What was read of the cluster."""

    live: Document | None = None  # the InferenceService in the cluster
    namespace: Seen = UNSET
    config: KServeConfig | None = None
    domain_template: str | None = None  # the target's own; replaces KServe's if that cannot be read
    makes_claim: bool = False  # the model store creates its claim
    version: str | None = None
    knative: bool = True
    keda: bool | UnsetType = UNSET
    features: Seen = UNSET  # ConfigMap knative-serving/config-features
    controller: Seen = UNSET
    defaults: Seen = UNSET  # ConfigMap knative-serving/config-defaults
    nodes: list[Document] | UnsetType = UNSET
    pods: dict[str, list[Document]] | UnsetType = UNSET  # by node, of each node that is large enough
    quotas: list[Document] = []
    limits: list[Document] = []
    storage_container: Seen = UNSET  # KServe's ClusterStorageContainer
    claim: Seen = UNSET
    storage_class: Seen = UNSET
    runtime: Seen = UNSET
    gateway: Seen = UNSET
    account: Seen = UNSET  # the ServiceAccount of the pods, if kdeploy does not create it
    # The keys of the Secrets and ConfigMaps that pods name, by kind and name; as Seen if there are none.
    named: dict[tuple[str, str], frozenset[str] | UnsetType | None] = {}


def mode_of(service: Document) -> str:
    """Return the deployment mode that an InferenceService asks for."""
    return str(service["metadata"].get("annotations", {}).get(MODE_ANNOTATION, ""))


def model_of(service: Document) -> dict[str, Any]:
    """Return the model of an InferenceService's predictor."""
    model: dict[str, Any] = service["spec"]["predictor"]["model"]
    return model


def gpus_of(service: Document) -> int:
    """Return how many GPUs one pod requests."""
    return int(parse_quantity(model_of(service).get("resources", {}).get("limits", {}).get(GPU)) or 0)


def claim_of(service: Document) -> str:
    """Return the name of the claim that holds the model; empty for other model stores."""
    scheme, _, path = str(model_of(service)["storageUri"]).partition("://")
    return path.partition("/")[0] if scheme == "pvc" else ""


def unchecked(name: str, reason: str, question: str) -> Finding:
    """Report a check that was not made, because the user cannot read what it needs."""
    return Finding(
        name=name, status="ok", detail=f"not checked: {reason}", remedy=f"Ask an administrator {question}."
    )
