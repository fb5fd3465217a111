"""Whether the cluster's own parts let a service come to life: KServe's controller, Pod Security. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET, UnsetType

from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document

STOP = "serving.kserve.io/stop"
FROZEN = "serving.kserve.io/disable-auto-update"
ENFORCE = "pod-security.kubernetes.io/enforce"
Seen = Document | None | UnsetType


def check_frozen(live: Document | None) -> Iterator[Finding]:
    """Yield which annotations of a live service keep KServe from rolling anything out."""
    if not live:
        return
    name, annotations = live["metadata"]["name"], live["metadata"].get("annotations", {})
    for key, effect in ((STOP, "stops the service"), (FROZEN, "keeps KServe from updating the service")):
        if str(annotations.get(key, "")).lower() == "true":
            place = f"-n {live['metadata']['namespace']}"
            remedy = f"`kubectl {place} annotate inferenceservice {name} {key}-` removes it"
            yield failure("annotation", f"annotation {key} {effect}", f"InferenceService {name}", remedy)


def check_controller(controller: Seen) -> Iterator[Finding]:
    """Yield whether KServe's controller runs; nothing where its Deployment may not be read."""
    if controller is UNSET:
        return
    name = "KServe's controller"
    if controller is None:
        detail = "there is no Deployment kserve/kserve-controller-manager"
        remedy = "if KServe is in another namespace, set deployment-mode for this target"
        yield warning(name, detail, "", remedy)
    elif not controller.get("status", {}).get("availableReplicas"):
        detail = "not running: Deployment kserve/kserve-controller-manager has no available pod"
        yield failure(name, detail, "namespace kserve", "`kubectl -n kserve get pods` shows why")
    else:
        yield ok(name, "running")


def check_pod_security(service: Document, namespace: Seen, container: Seen) -> Iterator[Finding]:
    """Yield that Pod Security refuses KServe's storage-initializer, which has no security context.

    `container` is KServe's ClusterStorageContainer.
    """
    labels = namespace["metadata"].get("labels", {}) if namespace else {}
    downloads = not service["spec"]["predictor"]["model"]["storageUri"].startswith("pvc://")
    if labels.get(ENFORCE) != "restricted" or not downloads or container is UNSET:
        return
    context = ((container or {}).get("spec", {}).get("container", {}) or {}).get("securityContext") or {}
    if _is_restricted(context):
        yield ok("Pod Security", "restricted, and the storage-initializer conforms")
        return
    detail = "namespace enforces restricted, and KServe's storage-initializer has no such security context"
    remedy = (
        "set spec.container.securityContext in ClusterStorageContainer default, or enforce baseline: "
        f"`kubectl label namespace {service['metadata']['namespace']} {ENFORCE}=baseline --overwrite`"
    )
    yield failure("Pod Security", detail, "ClusterStorageContainer default", remedy)


def _is_restricted(context: Document) -> bool:
    """Return whether a container's security context is what Pod Security's `restricted` wants."""
    return (
        context.get("allowPrivilegeEscalation") is False
        and context.get("runAsNonRoot") is True
        and "ALL" in ((context.get("capabilities") or {}).get("drop") or [])
        and (context.get("seccompProfile") or {}).get("type") in ("RuntimeDefault", "Localhost")
    )
