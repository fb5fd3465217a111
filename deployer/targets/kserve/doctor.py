"""What a deployment to a cluster needs, found out without changing anything."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from deployer.errors import KdeployError
from deployer.target import Reference
from deployer.targets.kserve.api import Api
from deployer.targets.kserve.capabilities import ClusterFacts, find_facts
from deployer.targets.kserve.checks import HOST_LABEL_MAX, fits_a_node, longest_label
from deployer.targets.kserve.permissions import missing
from deployer.targets.kserve.refusals import RefusedError
from deployer.targets.kserve.resources import NODE

GPU = "nvidia.com/gpu"


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that was looked at, what was found, and how to mend it."""

    name: str
    status: Literal["ok", "warning", "failure"]
    detail: str
    remedy: str = ""


def examine(api: Api, reference: Reference, *, mode: str | None, gpu: int) -> list[Finding]:
    """Look at everything that a rollout of a service depends on. Changes nothing."""
    try:
        facts = find_facts(api)
    except KdeployError as error:
        return [Finding(name="cluster", status="failure", detail=str(error), remedy=error.hint or "")]
    mode = mode or facts.default_mode
    return [
        Finding(name="cluster", status="ok", detail=f"Kubernetes {facts.kubernetes}"),
        _kserve(facts),
        _mode(facts, mode),
        _host(reference, mode),
        _permissions(api, reference.namespace, mode),
        *([_gpu(api, gpu)] if gpu else []),
    ]


def _kserve(facts: ClusterFacts) -> Finding:
    if not facts.kserve:
        remedy = "install KServe, or choose another context"
        return Finding(name="KServe", status="failure", detail="it is not installed", remedy=remedy)
    return Finding(
        name="KServe", status="ok", detail=facts.kserve_version or "of a version that may not be read"
    )


def _mode(facts: ClusterFacts, mode: str) -> Finding:
    if mode == "Knative" and not facts.knative:
        return Finding(
            name="deployment mode",
            status="failure",
            detail="Knative, which is not installed",
            remedy='set deployment-mode = "Standard" for this target',
        )
    known = mode if facts.configured_mode else f"{mode}, which is a guess: KServe's ConfigMap may not be read"
    return Finding(name="deployment mode", status="ok", detail=known)


def _host(reference: Reference, mode: str) -> Finding:
    label = longest_label(reference, mode)
    if len(label) > HOST_LABEL_MAX:
        remedy = f"shorten the name of the model or the namespace by {len(label) - HOST_LABEL_MAX}"
        return Finding(name="host name", status="failure", detail=f"{label} is too long", remedy=remedy)
    return Finding(name="host name", status="ok", detail=label)


def _permissions(api: Api, namespace: str, mode: str) -> Finding:
    lacking = missing(api, namespace, mode)
    if lacking:
        detail = "this user may not " + ", ".join(map(str, lacking))
        remedy = "`kdeploy render --rbac` prints the Role that grants it"
        return Finding(name="permissions", status="failure", detail=detail, remedy=remedy)
    return Finding(name="permissions", status="ok", detail=f"all that are needed in namespace {namespace}")


def _gpu(api: Api, count: int) -> Finding:
    try:
        nodes, _ = api.list(NODE, None)
    except RefusedError:
        remedy = "ask who runs the cluster whether its nodes have GPUs"
        return Finding(name="GPU", status="warning", detail="nodes may not be listed", remedy=remedy)
    if fits_a_node(GPU, count, nodes):
        return Finding(name="GPU", status="ok", detail=f"a node has {count} of {GPU}")
    # An autoscaler may bring such a node, so that this is no failure yet.
    remedy = "is NVIDIA's device plugin running, or does an autoscaler bring such nodes?"
    return Finding(name="GPU", status="warning", detail=f"no node has {count} of {GPU} now", remedy=remedy)
