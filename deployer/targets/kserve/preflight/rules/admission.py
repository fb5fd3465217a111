"""Checks that KServe's controller and Pod Security let a service start. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts, claim_of

STOP = "serving.kserve.io/stop"
FROZEN = "serving.kserve.io/disable-auto-update"
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


def _is_restricted(context: Document) -> bool:
    """Return whether a container's security context complies with Pod Security's `restricted`."""
    return (
        context.get("allowPrivilegeEscalation") is False
        and context.get("runAsNonRoot") is True
        and "ALL" in ((context.get("capabilities") or {}).get("drop") or [])
        and (context.get("seccompProfile") or {}).get("type") in ("RuntimeDefault", "Localhost")
    )
