"""Checks a cluster as a target, and says which checks of a release could not be made. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from deployer.bundle import Bundle
from deployer.config import Store
from deployer.errors import KdeployError
from deployer.findings import Finding, failure, ok, warning
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.preflight.capabilities import Discovery
from deployer.targets.kserve.preflight.permissions import check_permissions, needed, needed_for_store
from deployer.targets.kserve.preflight.rules.cluster import ClusterFacts
from deployer.targets.kserve.preflight.rules.documents import gpus_of

_ASK = "ask an admin"


def examine(api: Api, discovery: Discovery, namespace: str, mode: str | None, store: Store) -> list[Finding]:
    """Check what every rollout to a namespace depends on; `mode` is the target's own deployment mode."""
    try:
        found = [ok("cluster", f"Kubernetes {discovery.kubernetes} at {api.where}"), _kserve(discovery)]
        if not discovery.kserve:
            return found
        found.append(ok("Knative", "installed" if discovery.knative else "not installed"))
        if not discovery.config and not mode:
            detail = f"{discovery.mode} is a guess: KServe's ConfigMap cannot be read"
            found.append(warning("deployment mode", detail, "", "set deployment-mode for this target"))
        wanted = [*needed(mode or discovery.mode), *needed_for_store(store)]
        return [*found, _ingress(discovery), check_permissions(api, namespace, wanted)]
    except KdeployError as error:
        return [failure("cluster", error.what, error.where or "", error.hint or "")]


def unchecked(bundle: Bundle, facts: ClusterFacts) -> Iterator[Finding]:
    """Yield which checks of a bundle could not be made, because this user may not read what they need."""
    if gpus_of(bundle.service) and facts.nodes is UNSET:
        yield _unchecked("GPU", "nodes may not be listed", "whether its nodes have GPUs")
    if bundle.storage_uri.startswith("pvc://") and facts.claim is UNSET:
        yield _unchecked("claim", "claims may not be read", "whether it exists and is Bound")
    if bundle.runtime is None and facts.runtime is UNSET:
        yield _unchecked("runtime", "the cluster's runtimes may not be read", "whether it serves pytorch")


def _unchecked(name: str, why: str, question: str) -> Finding:
    return Finding(name=name, status="ok", detail=f"not checked: {why}", remedy=f"{_ASK} {question}")


def _kserve(discovery: Discovery) -> Finding:
    if not discovery.kserve:
        return failure("KServe", "it is not installed", "", "install KServe, or choose another context")
    version = discovery.version or "of a version that cannot be read"
    default = discovery.config.deployment_mode if discovery.config else None
    return ok("KServe", f"{version}, {default} mode by default" if default else version)


def _ingress(discovery: Discovery) -> Finding:
    config = discovery.config
    if config is None:
        return ok("ingress", "as KServe's ConfigMap says, which cannot be read")
    way = f"Gateway {config.gateway}" if config.gateway else f"ingress class {config.ingress_class}"
    hosts = config.path_template or config.domain_template
    return ok("ingress", f"{way}, {config.url_scheme}://, {hosts}, domain {config.domain}")
