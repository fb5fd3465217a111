"""The kinds of KServe's and Knative's objects, and those that kdeploy writes. Pure."""

from __future__ import annotations

from deployer.errors import TargetError
from deployer.observed import Document
from deployer.targets.kserve.client.resources import (
    DISRUPTION_BUDGET,
    SECRET,
    SERVICE_ACCOUNT,
    Resource,
)

INFERENCE_SERVICE = Resource("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService")
SERVING_RUNTIME = Resource("serving.kserve.io", "v1alpha1", "servingruntimes", "ServingRuntime")
CLUSTER_SERVING_RUNTIME = Resource(
    "serving.kserve.io", "v1alpha1", "clusterservingruntimes", "ClusterServingRuntime", namespaced=False
)
STORAGE_CONTAINER = Resource(
    "serving.kserve.io", "v1alpha1", "clusterstoragecontainers", "ClusterStorageContainer", namespaced=False
)
KNATIVE_SERVICE = Resource("serving.knative.dev", "v1", "services", "Service")
REVISION = Resource("serving.knative.dev", "v1", "revisions", "Revision")

WRITTEN = (INFERENCE_SERVICE, SERVING_RUNTIME, SECRET, SERVICE_ACCOUNT)
EXTRAS = (DISRUPTION_BUDGET,)  # which a service can run without
_BY_KIND = {(resource.api_version, resource.kind): resource for resource in (*WRITTEN, *EXTRAS)}


def resource_of(document: Document) -> Resource:
    """Return the resource of a document. Raises TargetError for a kind that kdeploy never writes."""
    kind = (document.get("apiVersion", ""), document.get("kind", ""))
    if kind not in _BY_KIND:
        raise TargetError(f"kdeploy does not apply documents of kind {' '.join(kind)}")
    return _BY_KIND[kind]
