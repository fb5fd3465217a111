"""Checks the InferenceService itself for what KServe and Kubernetes reject or ignore. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document
from deployer.targets.kserve.preflight.rules.inputs import ClusterFacts, mode_of, model_of
from deployer.targets.kserve.preflight.rules.scaling import uses_keda

DOCUMENT_MAX = 1536 << 10  # bytes of an object, etcd's default limit


def check_name(service: Document, _facts: ClusterFacts) -> Iterator[Finding]:
    """Report that KServe derives a wrong URL from the name."""
    name = service["metadata"]["name"]
    if "-predictor" in name and mode_of(service) == "Knative":
        detail = f"invalid name {name}: KServe derives a wrong URL from a name that contains -predictor"
        yield failure("name", detail, "service.name", "Choose another name.")


def check_scale_to_zero(service: Document, _facts: ClusterFacts) -> Iterator[Finding]:
    """Report that KServe ignores zero replicas."""
    zero = service["spec"]["predictor"].get("minReplicas") == 0
    if zero and mode_of(service) == "Standard" and not uses_keda(service):
        detail = "min-replicas = 0 does not scale to zero in Standard mode: KServe runs 1 replica"
        remedy = "Set `scaling.min-replicas = 1`, use Knative mode, or scale on a Prometheus query."
        yield warning("replicas", detail, "scaling.min-replicas", remedy)


def check_protocol(service: Document, _facts: ClusterFacts) -> Iterator[Finding]:
    """Report that a service in gRPC does not answer REST."""
    if model_of(service).get("protocolVersion") == "grpc-v2":
        detail = "with grpc-v2, the only port of the service is gRPC: it does not answer V1, V2 and curl"
        remedy = 'Send requests in gRPC, or set `serving.protocol-version = "v2"`.'
        yield warning("protocol", detail, "serving.protocol-version", remedy)


def check_canary(service: Document, _facts: ClusterFacts) -> Iterator[Finding]:
    """Report that KServe ignores the canary, or takes a percentage that is not one."""
    percent = service["spec"]["predictor"].get("canaryTrafficPercent")
    if percent is None:
        return
    if not 0 <= percent <= 100:
        detail = f"invalid percentage {percent}"
        yield failure("canary", detail, "--canary", "Choose a value from 0 to 100.")
    elif mode_of(service) == "Standard":
        detail = "a canary has no effect in Standard mode: KServe sends every request to the new release"
        yield failure("canary", detail, "--canary", "Omit `--canary`, or use a cluster in Knative mode.")


def check_store(service: Document, _facts: ClusterFacts) -> Iterator[Finding]:
    """Check whether pods can reach the model store."""
    uri = model_of(service)["storageUri"]
    scheme, separator, _ = uri.partition("://")
    if scheme == "file" or not separator:
        detail = "a pod cannot read a model store in a folder of this machine"
        yield failure("model store", detail, "store.uri", "Choose a store that the cluster can reach.")
    else:
        yield ok("model store", uri)


def check_size(service: Document, _facts: ClusterFacts) -> Iterator[Finding]:
    """Report that the API server does not accept a document of this size."""
    size = len(msgspec.json.encode(service))
    if size > DOCUMENT_MAX:
        detail = f"the InferenceService has {size:,} bytes, but the API server accepts {DOCUMENT_MAX:,}"
        where = f"InferenceService {service['metadata']['name']}"
        yield failure("size", detail, where, "Shorten the values in `serving.env`.")
