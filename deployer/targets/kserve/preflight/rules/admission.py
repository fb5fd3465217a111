"""Checks that KServe's controller and Pod Security let a service start. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import UNSET

from deployer.config import USER_OF_NAMESPACE
from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts, claim_of
from deployer.targets.kserve.state.children import SERVING_CONTAINER

STOP = "serving.kserve.io/stop"
FROZEN = "serving.kserve.io/disable-auto-update"
USER_RANGE = "openshift.io/sa.scc.uid-range"  # START/SIZE or START-END
ENFORCE = "pod-security.kubernetes.io/enforce"


def check_frozen(live: Document | None) -> Iterator[Finding]:
    """Report the annotations of a live service that keep KServe from rolling out a release."""
    if not live:
        return
    name, annotations = live["metadata"]["name"], live["metadata"].get("annotations", {})
    for key, effect in ((STOP, "stops the service"), (FROZEN, "keeps KServe from updating the service")):
        if str(annotations.get(key, "")).lower() == "true":
            command = f"kubectl -n {live['metadata']['namespace']} annotate inferenceservice {name} {key}-"
            remedy = f"Remove it: `{command}`"
            yield failure("annotation", f"annotation {key} {effect}", f"InferenceService {name}", remedy)


def check_controller(_service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Check whether KServe's controller runs."""
    controller, name = facts.controller, "KServe controller"
    if controller is UNSET or not facts.config:
        return
    if controller is None:
        detail = "Deployment kserve/kserve-controller-manager not found"
        yield warning(
            name, detail, "", "If KServe is in another namespace, set `deployment-mode` for this target."
        )
    elif not controller.get("status", {}).get("availableReplicas"):
        detail = "Deployment kserve/kserve-controller-manager has no available pod"
        yield failure(name, detail, "namespace kserve", "Run `kubectl -n kserve get pods` to see why.")
    else:
        yield ok(name, "running")


def check_pod_security(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Check whether Pod Security rejects KServe's storage-initializer, which has no security context."""
    namespace, container = facts.namespace, facts.storage_container
    labels = namespace["metadata"].get("labels", {}) if namespace else {}
    if labels.get(ENFORCE) != "restricted" or claim_of(service) or container is UNSET:
        return
    context = ((container or {}).get("spec", {}).get("container", {}) or {}).get("securityContext") or {}
    if _is_restricted(context):
        yield ok("Pod Security", "restricted; the storage-initializer complies")
        return
    detail = "the namespace enforces restricted, and KServe's storage-initializer does not comply"
    remedy = (
        "Set `spec.container.securityContext` in ClusterStorageContainer `default`, or enforce baseline: "
        f"`kubectl label namespace {service['metadata']['namespace']} {ENFORCE}=baseline --overwrite`"
    )
    yield failure("Pod Security", detail, "ClusterStorageContainer default", remedy)


def check_user(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Check whether the namespace lets pods run as their user: on OpenShift, it assigns a range."""
    if not facts.namespace:
        return
    name = service["metadata"]["namespace"]
    assigned = (facts.namespace["metadata"].get("annotations") or {}).get(USER_RANGE)
    context = _context(service, facts)
    user, where = context.get("runAsUser"), "run-as-user"
    if assigned is None:
        if user is None and context.get("runAsNonRoot"):
            detail = f"namespace {name} assigns no user to pods, and the image's user is not a number"
            yield warning("user", detail, where, "Remove `run-as-user` of this target, or set a number.")
    elif user is None or user in _read_range(assigned):
        yield ok("user", f"the namespace assigns {assigned}")
    else:
        detail = f"pods run as user {user}, but namespace {name} assigns {assigned}"
        remedy = f'Set `run-as-user = "{USER_OF_NAMESPACE}"` for this target, or grant the anyuid constraint.'
        yield warning("user", detail, where, remedy)


def _context(service: Document, facts: ClusterFacts) -> Document:
    """Return the security context of the serving container: the runtime's, then the pod's, then its own."""
    containers = ((facts.runtime or {}).get("spec") or {}).get("containers") or []
    runtime: Document = next((one for one in containers if one.get("name") == SERVING_CONTAINER), {})
    predictor = service["spec"]["predictor"]
    levels = (predictor, runtime, predictor["model"])
    return {key: value for one in levels for key, value in (one.get("securityContext") or {}).items()}


def _read_range(text: str) -> range:
    """Read START/SIZE or START-END; empty if it is neither."""
    found = re.fullmatch(r"(\d+)([/-])(\d+)", text.strip())
    if not found:
        return range(0)
    start, number = int(found[1]), int(found[3])
    return range(start, start + number if found[2] == "/" else number + 1)


def _is_restricted(context: Document) -> bool:
    """Return whether a container's security context complies with Pod Security's `restricted`."""
    return (
        context.get("allowPrivilegeEscalation") is False
        and context.get("runAsNonRoot") is True
        and "ALL" in ((context.get("capabilities") or {}).get("drop") or [])
        and (context.get("seccompProfile") or {}).get("type") in ("RuntimeDefault", "Localhost")
    )
