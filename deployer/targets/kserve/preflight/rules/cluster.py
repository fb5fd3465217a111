"""Checks before the first write what KServe would reject or ignore on this cluster. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import UNSET, structs

from deployer.bundle import Bundle
from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.admission import (
    check_controller,
    check_frozen,
    check_pod_security,
    check_user,
)
from deployer.targets.kserve.preflight.rules.capacity import check_room
from deployer.targets.kserve.preflight.rules.documents import (
    check_canary,
    check_name,
    check_protocol,
    check_scale_to_zero,
    check_size,
    check_store,
)
from deployer.targets.kserve.preflight.rules.inputs import (
    ClusterFacts,
    Seen,
    claim_of,
    mode_of,
    unchecked,
)
from deployer.targets.kserve.preflight.rules.quotas import check_quotas
from deployer.targets.kserve.preflight.rules.references import check_references
from deployer.targets.kserve.preflight.rules.runtimes import check_features, check_runtime
from deployer.targets.kserve.preflight.rules.scaling import check_autoscaler_change, check_scaling
from deployer.targets.kserve.state.children import is_standard
from deployer.targets.kserve.state.settings import KSERVE_NAMESPACE, KServeConfig

REVISION_TIMEOUT_MAX = 600  # seconds, Knative's default
_MAX_TIMEOUT = "max-revision-timeout-seconds"
_DEFAULTS = "ConfigMap knative-serving/config-defaults"
HOST_LABEL_MAX, HOST_MAX = 63, 253  # bytes of one label of a host name, and of all of it
_SHARED = {"ReadWriteMany", "ReadOnlyMany"}


def check(bundle: Bundle, facts: ClusterFacts) -> list[Finding]:
    """Return what every rule finds: failures, warnings, and what is as it should be."""
    if bundle.runtime:
        facts = structs.replace(facts, runtime=bundle.runtime)
    return [finding for rule in _RULES for finding in rule(bundle.service, facts)]


def _check_namespace(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    name, found = service["metadata"]["namespace"], facts.namespace
    if found is None:
        remedy = f"Create it with `kubectl create namespace {name}`, or choose another with `-n`."
        yield failure("namespace", f"namespace {name} not found", "namespace", remedy)
        return
    labels = found["metadata"].get("labels", {}) if found else {}
    if name == KSERVE_NAMESPACE or "control-plane" in labels:
        detail = f"namespace {name} belongs to a control plane: KServe does not download models there"
        yield failure("namespace", detail, "namespace", "Choose another namespace with `-n`.")
    elif found and found.get("status", {}).get("phase") == "Terminating":
        remedy = "Wait until it is deleted, then create it again."
        yield failure("namespace", f"namespace {name} is being deleted", "namespace", remedy)
    else:
        yield ok("namespace", name)


def _check_live(_service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    yield from check_frozen(facts.live)


def _check_mode(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    topic, mode, live = "deployment mode", mode_of(service), facts.live
    live_mode = "Standard" if live and is_standard(live) else "Knative"
    default = facts.config.deployment_mode if facts.config else None
    if live and live_mode != mode:
        detail = f"the service uses {live_mode} mode, and KServe cannot change it to {mode}"
        remedy = f'Set `deployment-mode = "{live_mode}"` for this target, or delete the service first.'
        yield failure(topic, detail, "deployment-mode", remedy)
    elif mode == "Knative" and not facts.knative:
        remedy = 'Install Knative Serving, or set `deployment-mode = "Standard"` for this target.'
        yield failure(topic, "Knative is not installed", "deployment-mode", remedy)
    elif _is_old(facts.version) and default and default != mode:
        detail = f"KServe {facts.version} does not know mode {mode}, and would choose {default}"
        remedy = f'Upgrade KServe to 0.16, or set `deployment-mode = "{default}"` for this target.'
        yield failure(topic, detail, "deployment-mode", remedy)
    else:
        yield ok(topic, mode)


def _is_old(version: str | None) -> bool:
    """Return whether KServe is older than the names Standard and Knative."""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return found is not None and (int(found[1]), int(found[2])) < (0, 16)


def _check_host(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    url, mode = (facts.live or {}).get("status", {}).get("url"), mode_of(service)
    names = list(_hosts(service, facts))
    label = max((label for name in names for label in name.split(".")), key=len, default="")
    longest = max(names, key=len, default="")
    for what, size, limit in (
        (f"host name label {label}", len(label), HOST_LABEL_MAX),
        (f"host name {longest}", len(longest), HOST_MAX),
    ):
        if size > limit and not url:
            detail = f"{what} has {size} characters, but DNS allows {limit}"
            remedy = f"Shorten the name of the service or the namespace by {size - limit}."
            if mode == "Standard" and not facts.config:
                remedy += " If KServe's `domainTemplate` is not its default, set `domain-template`."
            yield failure("host name", detail, "service.name", remedy)
            return
    yield ok("host name", url or next(iter(names), "unknown: KServe's domainTemplate uses more than names"))


def _hosts(service: Document, facts: ClusterFacts) -> Iterator[str]:
    """Yield the host names that contain the service's name, and the names of Knative's revision and tag."""
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    if mode_of(service) != "Standard":
        yield from (f"{name}-predictor-00001", f"latest-{name}-predictor")
        return
    template = facts.domain_template
    config = facts.config or (KServeConfig(domain_template=template) if template else KServeConfig())
    yield from filter(None, (config.host(one, namespace) for one in (name, f"{name}-predictor")))


def _check_timeout(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Report that a revision's timeout, which is also its pods' grace period, exceeds Knative's maximum."""
    timeout = service["spec"]["predictor"].get("timeout")
    if mode_of(service) != "Knative" or timeout is None:
        return
    data = (facts.defaults or {}).get("data") or {}
    most = int(data.get(_MAX_TIMEOUT, REVISION_TIMEOUT_MAX))
    if timeout > most:
        detail = f"a revision needs a timeout of {timeout} s, but Knative allows {most} s"
        remedy = (
            f"Lower `serving.response-timeout` by {timeout - most}, or raise `{_MAX_TIMEOUT}` in {_DEFAULTS}."
        )
        yield failure("timeout", detail, "serving.response-timeout", remedy)


def _check_claim(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    predictor, claim, namespace = service["spec"]["predictor"], facts.claim, service["metadata"]["namespace"]
    name = claim_of(service)
    if not name:
        return
    if claim is UNSET:
        yield unchecked("claim", "this user cannot read claims", "whether the claim is Bound")
        return
    if claim is None and facts.makes_claim:
        yield ok("claim", f"{name}; the first push creates it")
        return
    if claim is None:
        detail = f"PersistentVolumeClaim {name} not found in namespace {namespace}"
        remedy = 'Create it, or set `create-claim = "10Gi"` in `[store]`.'
        yield failure("claim", detail, "store.uri", remedy)
        return
    phase = claim.get("status", {}).get("phase", "Pending")
    if phase != "Bound" and not (phase == "Pending" and _binds_later(facts.storage_class)):
        detail = f"PersistentVolumeClaim {name} is {phase}: a pod that mounts it cannot start"
        remedy = f"Run `kubectl -n {namespace} describe pvc {name}` to see why."
        yield failure("claim", detail, "store.uri", remedy)
        return
    modes = set(claim["spec"].get("accessModes", []))
    several = predictor.get("maxReplicas", 1) > 1 or "canaryTrafficPercent" in predictor
    if several and not modes & _SHARED:
        detail = f"claim {name} is {', '.join(sorted(modes))}: replicas on other nodes cannot start"
        remedy = "Use a claim that is ReadWriteMany or ReadOnlyMany, or one replica."
        yield warning("claim", detail, "store.uri", remedy)
    else:
        yield ok("claim", f"{name}, {phase}")


def _binds_later(storage_class: Seen) -> bool:
    """Return whether Kubernetes binds the claim with its first pod; assume it if the class is unreadable."""
    if storage_class is UNSET:
        return True
    return (storage_class or {}).get("volumeBindingMode") == "WaitForFirstConsumer"


def _check_gateway(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    name = facts.config.gateway if facts.config else None
    if mode_of(service) != "Standard" or not name or facts.gateway is UNSET:
        return
    if facts.gateway is None:
        detail = f"Gateway {name} not found: no request would reach the service"
        remedy = "Create it, or change `kserveIngressGateway`."
        yield failure("Gateway", detail, "ConfigMap kserve/inferenceservice-config", remedy)
    else:
        yield ok("Gateway", name)


_RULES = (
    _check_namespace,
    check_controller,
    _check_live,
    _check_mode,
    _check_host,
    check_runtime,
    check_features,
    check_references,
    check_pod_security,
    check_user,
    check_quotas,
    check_room,
    _check_timeout,
    _check_claim,
    _check_gateway,
    check_name,
    check_protocol,
    check_scale_to_zero,
    check_scaling,
    check_autoscaler_change,
    check_canary,
    check_store,
    check_size,
)
