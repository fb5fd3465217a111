"""What KServe would refuse or ignore on this very cluster, found out before the first write. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import UNSET, Struct, UnsetType

from deployer.bundle import Bundle
from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document, Reference
from deployer.targets.kserve.preflight.rules.admission import (
    check_controller,
    check_frozen,
    check_pod_security,
)
from deployer.targets.kserve.preflight.rules.capacity import check_room
from deployer.targets.kserve.preflight.rules.documents import check_bundle, mode_of
from deployer.targets.kserve.preflight.rules.quotas import check_quotas
from deployer.targets.kserve.preflight.rules.runtimes import Seen, check_features, check_runtime, find_runtime
from deployer.targets.kserve.state.children import is_standard
from deployer.targets.kserve.state.settings import KSERVE_NAMESPACE, KServeConfig

REVISION_TIMEOUT_MAX = 600  # seconds, Knative's default
_MAX_TIMEOUT = "max-revision-timeout-seconds"
HOST_LABEL_MAX, HOST_MAX = 63, 253  # bytes of one label of a host name, and of all of it
_SHARED = {"ReadWriteMany", "ReadOnlyMany"}


class ClusterFacts(Struct, frozen=True, kw_only=True):
    """What the checks read of the cluster; UNSET is what may not be read, or need not be."""

    live: Document | None = None  # the InferenceService that is there already
    namespace: Seen = UNSET
    config: KServeConfig | None = None
    domain_template: str | None = None  # the target's own, where KServe's may not be read
    makes_claim: bool = False  # as the model store is set to do
    version: str | None = None
    knative: bool = True
    features: Seen = UNSET
    controller: Seen = UNSET
    defaults: Seen = UNSET  # Knative's ConfigMap config-defaults
    nodes: list[Document] | UnsetType = UNSET
    pods: dict[str, list[Document]] | UnsetType = UNSET  # of each node that is large enough
    quotas: list[Document] = []
    limits: list[Document] = []
    storage_container: Seen = UNSET
    claim: Seen = UNSET
    storage_class: Seen = UNSET
    runtime: Seen = UNSET  # the one of the cluster's own that is named
    gateway: Seen = UNSET


def check(bundle: Bundle, facts: ClusterFacts) -> list[Finding]:
    """Return everything that is found: what is broken, what may go wrong, and what holds."""
    service = bundle.service
    reference = bundle.reference
    runtime = find_runtime(bundle, facts.runtime)
    return [
        *_namespace(reference, facts),
        *(check_controller(facts.controller) if facts.config else ()),
        *check_frozen(facts.live),
        *_mode(service, facts),
        *_host(reference, mode_of(service), facts),
        *check_runtime(service, runtime),
        *check_features(service, runtime, facts.features),
        *check_pod_security(service, facts.namespace, facts.storage_container),
        *check_quotas(service, facts.quotas, facts.limits),
        *check_room(service, facts.live, facts.nodes, facts.pods),
        *_timeout(service, facts),
        *_claim(service, facts),
        *_gateway(service, facts),
        *check_bundle(bundle),
    ]


def _namespace(reference: Reference, facts: ClusterFacts) -> Iterator[Finding]:
    found = facts.namespace
    if found is None:
        remedy = f"`kubectl create namespace {reference.namespace}` makes it; or choose another with -n"
        yield failure("namespace", f"there is no namespace {reference.namespace}", "namespace", remedy)
        return
    labels = found["metadata"].get("labels", {}) if found else {}
    if reference.namespace == KSERVE_NAMESPACE or "control-plane" in labels:
        detail = f"KServe fetches no models in namespace {reference.namespace}: it is a control plane's"
        yield failure("namespace", detail, "namespace", "roll out to another namespace")
    elif found and found.get("status", {}).get("phase") == "Terminating":
        remedy = "wait until it is gone, and create it anew"
        yield failure("namespace", f"namespace {reference.namespace} is being deleted", "namespace", remedy)
    else:
        yield ok("namespace", reference.namespace)


def _mode(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    name, mode, live = "deployment mode", mode_of(service), facts.live
    lived = "Standard" if live and is_standard(live) else "Knative"
    default = facts.config.deployment_mode if facts.config else None
    if live and lived != mode:
        detail = f"it is served in {lived} mode, which KServe never changes to {mode}"
        remedy = f'set deployment-mode = "{lived}" for this target, or delete the service first'
        yield failure(name, detail, "deployment-mode", remedy)
    elif mode == "Knative" and not facts.knative:
        remedy = 'set deployment-mode = "Standard" for this target'
        yield failure(name, "Knative, which is not installed", "deployment-mode", remedy)
    elif _is_old(facts.version) and default and default != mode:
        detail = f"KServe {facts.version} knows {mode} by its former name alone, and would choose {default}"
        remedy = f'KServe 0.16 knows it; or set deployment-mode = "{default}" for this target'
        yield failure(name, detail, "deployment-mode", remedy)
    else:
        yield ok(name, mode)


def _is_old(version: str | None) -> bool:
    """Return whether KServe is known to be older than its modes' names."""
    found = re.match(r"(\d+)\.(\d+)", version or "")
    return found is not None and (int(found[1]), int(found[2])) < (0, 16)


def _host(reference: Reference, mode: str, facts: ClusterFacts) -> Iterator[Finding]:
    url = (facts.live or {}).get("status", {}).get("url")
    names = list(_hosts(reference, mode, facts))
    label = max((label for name in names for label in name.split(".")), key=len, default="")
    longest = max(names, key=len, default="")
    for what, size, limit in (
        (f"the host name {label}", len(label), HOST_LABEL_MAX),
        (f"the host {longest}", len(longest), HOST_MAX),
    ):
        if size > limit and not url:
            detail = f"{what} has {size} characters, and DNS takes {limit}"
            remedy = f"shorten the name of the model or the namespace by {size - limit}"
            if mode == "Standard" and not facts.config:
                remedy += "; if KServe's domainTemplate is not its default, say it as domain-template"
            yield failure("host name", detail, "model.name", remedy)
            return
    unknown = "by a domainTemplate that depends on more than names"
    yield ok("host name", url or next(iter(names), unknown))


def _hosts(reference: Reference, mode: str, facts: ClusterFacts) -> Iterator[str]:
    """Yield the names that a service's own becomes part of: hosts, or a Knative revision's and tag's."""
    name = reference.name
    if mode != "Standard":
        yield from (f"{name}-predictor-00001", f"latest-{name}-predictor")
        return
    config = facts.config or KServeConfig()
    if facts.domain_template and not facts.config:
        config = KServeConfig(domain_template=facts.domain_template)
    for one in (name, f"{name}-predictor"):
        if host := config.host(one, reference.namespace):
            yield host


def _timeout(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Yield that a revision's timeout, which is the grace period of its pods, is more than Knative allows."""
    timeout = service["spec"]["predictor"].get("timeout")
    if mode_of(service) != "Knative" or timeout is None:
        return
    data = (facts.defaults or {}).get("data") or {} if facts.defaults is not UNSET else {}
    most = int(data.get(_MAX_TIMEOUT, REVISION_TIMEOUT_MAX))
    if timeout > most:
        detail = (
            f"{timeout} s for a prediction and the drain are more than Knative's maximum of {most} s "
            "for a revision"
        )
        remedy = (
            f"lower serving.response-timeout by {timeout - most}, or raise {_MAX_TIMEOUT} in config-defaults"
        )
        yield failure("timeout", detail, "serving.response-timeout", remedy)


def _claim(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    predictor = service["spec"]["predictor"]
    scheme, _, path = predictor["model"]["storageUri"].partition("://")
    claim, place, namespace = facts.claim, path.partition("/")[0], service["metadata"]["namespace"]
    if scheme != "pvc" or claim is UNSET:
        return
    if claim is None and facts.makes_claim:
        yield ok("claim", f"{place}, which the first push makes")
        return
    if claim is None:
        detail = f"there is no PersistentVolumeClaim {place} in namespace {namespace}"
        remedy = 'make it, or set create-claim = "10Gi" in [store]'
        yield failure("claim", detail, "store.uri", remedy)
        return
    phase = claim.get("status", {}).get("phase", "Pending")
    if phase != "Bound" and not (phase == "Pending" and _binds_later(facts.storage_class)):
        detail = f"PersistentVolumeClaim {place} is {phase}, and a pod that mounts it would wait"
        yield failure("claim", detail, "store.uri", f"`kubectl describe pvc {place}` says why")
        return
    modes = set(claim["spec"].get("accessModes", []))
    several = predictor.get("maxReplicas", 1) > 1 or "canaryTrafficPercent" in predictor
    if several and not modes & _SHARED:
        detail = f"claim {place} is {', '.join(sorted(modes))}: replicas on other nodes cannot start"
        remedy = "use a claim that is ReadWriteMany or ReadOnlyMany, or one replica"
        yield warning("claim", detail, "store.uri", remedy)
    else:
        yield ok("claim", f"{place}, {phase}")


def _binds_later(storage_class: Seen) -> bool:
    """Return whether a claim is bound with the first pod; one whose class may not be read, may be."""
    if storage_class is UNSET:
        return True
    return (storage_class or {}).get("volumeBindingMode") == "WaitForFirstConsumer"


def _gateway(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    name = facts.config.gateway if facts.config else None
    if mode_of(service) != "Standard" or not name or facts.gateway is UNSET:
        return
    if facts.gateway is None:
        detail = f"there is no Gateway {name}, which KServe is set to use: the service would get no way in"
        yield failure("Gateway", detail, "ConfigMap kserve/inferenceservice-config", "create it")
    else:
        yield ok("Gateway", name)
