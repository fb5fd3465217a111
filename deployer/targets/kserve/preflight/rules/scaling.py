"""Checks that the deployment mode and the cluster can scale a service as it asks. Pure.

In Standard mode KServe makes a HorizontalPodAutoscaler, for CPU or memory, or a ScaledObject of KEDA. In
Knative mode, Knative's autoscaler counts requests.
"""

from __future__ import annotations

from collections.abc import Iterator

from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts, gpus_of, mode_of
from deployer.targets.kserve.state.children import deployment_name

CLASS = "serving.kserve.io/autoscalerClass"
_KNATIVE_CLASS = "autoscaling.knative.dev/class"  # with Knative's own HPA extension, cpu and memory work
_METRIC = "scaling.metric"
_OF_MODE = {"Standard": ("cpu", "memory", "prometheus"), "Knative": ("concurrency", "rps")}


def metric_of(service: Document) -> str:
    """Return the metric that replicas are added for; empty for the default of the deployment mode."""
    predictor = service["spec"]["predictor"]
    return "prometheus" if uses_keda(service) else str(predictor.get("scaleMetric") or "")


def uses_keda(service: Document) -> bool:
    """Return whether KServe makes a ScaledObject for a service."""
    return (service["metadata"].get("annotations") or {}).get(CLASS) == "keda"


def check_scaling(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Check the metric, what it needs, and whether replicas are added for a metric that fits GPUs."""
    metric, mode, predictor = metric_of(service), mode_of(service), service["spec"]["predictor"]
    grows = predictor.get("maxReplicas", 1) > max(predictor.get("minReplicas", 1), 1)
    if metric and metric not in _OF_MODE[mode] and not _has_own_class(service):
        detail = f"cannot scale on {metric} in {mode} mode"
        remedy = f"Use {' or '.join(_OF_MODE[mode])}, or the other deployment mode."
        yield failure("scaling", detail, _METRIC, remedy)
    elif metric == "prometheus" and facts.keda is False:
        detail = "KEDA is not installed, and KServe needs it to scale on a Prometheus query"
        yield failure("scaling", detail, _METRIC, "Install KEDA before KServe's controller starts.")
    elif metric:
        yield ok("scaling", metric)
    elif grows and gpus_of(service) and mode == "Standard":
        detail = "replicas are added for CPU usage, which says little about the load of a GPU"
        remedy = 'Set `scaling.metric = "prometheus"`, or `min-replicas` to `max-replicas`.'
        yield warning("scaling", detail, _METRIC, remedy)


def check_autoscaler_change(service: Document, facts: ClusterFacts) -> Iterator[Finding]:
    """Report that KServe keeps the autoscaler of the other class beside the new one, and restarts pods."""
    live = facts.live
    if live is None or mode_of(service) != "Standard" or uses_keda(live) == uses_keda(service):
        return
    kind = "hpa" if uses_keda(service) else "scaledobject"
    detail = "a change to or from prometheus restarts the pods, and KServe keeps the old autoscaler"
    place = f"-n {service['metadata']['namespace']} delete {kind} {deployment_name(service)}"
    yield warning("scaling", detail, _METRIC, f"Delete it during the rollout: `kubectl {place}`.")


def _has_own_class(service: Document) -> bool:
    """Return whether an overlay chooses the class of Knative's autoscaler."""
    return _KNATIVE_CLASS in (service["metadata"].get("annotations") or {})
