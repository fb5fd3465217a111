"""Checks whether a cluster can be a target at all. Changes nothing."""

from __future__ import annotations

from deployer.config import Store
from deployer.errors import KdeployError
from deployer.findings import Finding, failure, ok, warning
from deployer.targets.kserve.client.api import Api
from deployer.targets.kserve.preflight.capabilities import Discovery
from deployer.targets.kserve.preflight.permissions import check_permissions, needed, needed_for_store


def examine(api: Api, discovery: Discovery, namespace: str, mode: str | None, store: Store) -> list[Finding]:
    """Check what every rollout to a namespace depends on; `mode` is the target's own deployment mode."""
    try:
        found = [ok("cluster", f"Kubernetes {api.version()} at {api.where}")]
        if not discovery.kserve:
            remedy = "Install KServe, or choose another context."
            return [*found, failure("KServe", "KServe is not installed", "", remedy)]
        found.append(_describe_kserve(discovery))
        found.append(ok("Knative", "installed" if discovery.knative else "not installed"))
        if not discovery.config and not mode:
            detail = f"assuming {discovery.mode}: this user cannot read KServe's ConfigMap"
            found.append(warning("deployment mode", detail, "", "Set `deployment-mode` for this target."))
        wanted = [*needed(mode or discovery.mode), *needed_for_store(store)]
        return [*found, _describe_ingress(discovery), check_permissions(api, namespace, wanted)]
    except KdeployError as error:
        return [failure("cluster", error.what, error.where or "", error.hint or "")]


def _describe_kserve(discovery: Discovery) -> Finding:
    version = discovery.version or "unknown version"
    default = discovery.config.deployment_mode if discovery.config else None
    return ok("KServe", f"{version}, {default} mode by default" if default else version)


def _describe_ingress(discovery: Discovery) -> Finding:
    config = discovery.config
    if config is None:
        return ok("ingress", "unknown: this user cannot read KServe's ConfigMap")
    ingress = f"Gateway {config.gateway}" if config.gateway else f"ingress class {config.ingress_class}"
    hosts = config.path_template or config.domain_template
    return ok("ingress", f"{ingress}, {config.url_scheme}://, {hosts}, domain {config.domain}")
