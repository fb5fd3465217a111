"""What KServe and Kubernetes would refuse in the documents alone, found out before the first write. Pure.

Each rule yields findings: nothing where it does not apply, `ok` where it holds.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator

import msgspec

from deployer.bundle import Bundle
from deployer.config import NAME_PATTERN
from deployer.findings import Finding, failure, ok, warning
from deployer.observed import Document
from deployer.targets.kserve.state.children import MODE_ANNOTATION

GPU = "nvidia.com/gpu"
DOCUMENT_MAX = 1536 << 10  # bytes of an object that etcd takes unless it is set otherwise
_SECRET_MAX = 1 << 20  # bytes of a Secret's values together
_ANNOTATIONS_MAX = 256 << 10  # bytes of an object's annotations together
_SCHEMES = ("gs", "s3", "pvc", "https")  # of those that KServe fetches from, the ones that a model store has


def mode_of(service: Document) -> str:
    """Return the deployment mode that an InferenceService asks for."""
    return str(service["metadata"].get("annotations", {}).get(MODE_ANNOTATION, ""))


def gpus_of(service: Document) -> int:
    """Return the GPUs that a replica asks for."""
    return int(service["spec"]["predictor"]["model"].get("resources", {}).get("limits", {}).get(GPU, 0))


def check_bundle(bundle: Bundle) -> Iterator[Finding]:
    """Yield what the documents of a bundle alone tell."""
    service = bundle.service
    yield from _name(service)
    yield from _replicas(service)
    yield from _environment(service)
    yield from _canary(service)
    yield from _storage(service)
    yield from _gpu(service)
    yield from _sizes(bundle)


def _name(service: Document) -> Iterator[Finding]:
    name = service["metadata"]["name"]
    if not re.match(NAME_PATTERN, name):
        remedy = "lower-case letters, digits and -, a letter first"
        yield failure("name", f"KServe takes no service of the name {name!r}", "model.name", remedy)
    elif "-predictor" in name and mode_of(service) == "Knative":
        detail = f"{name}: KServe derives its URL wrongly from a name with -predictor in it"
        yield failure("name", detail, "model.name", "choose another name")


def _replicas(service: Document) -> Iterator[Finding]:
    predictor = service["spec"]["predictor"]
    least, most = predictor.get("minReplicas", 1), predictor.get("maxReplicas", 0)
    if least < 0 or most < 0:
        detail = f"there cannot be {min(least, most)} replicas"
        yield failure("replicas", detail, "scaling.min-replicas", "0 or more")
    elif least > most != 0:
        detail = f"at least {least} replicas are more than the {most} that there may be at most"
        yield failure("replicas", detail, "scaling.min-replicas", "raise scaling.max-replicas")
    elif least == 0 and mode_of(service) == "Standard":
        detail = "min-replicas = 0 does not scale to zero in Standard mode: KServe runs 1 replica"
        remedy = "set scaling.min-replicas = 1, or use a cluster in Knative mode"
        yield warning("replicas", detail, "scaling.min-replicas", remedy)


def _environment(service: Document) -> Iterator[Finding]:
    if any(one["name"] == "PYTHONPATH" for one in service["spec"]["predictor"]["model"].get("env", [])):
        detail = "KServe refuses PYTHONPATH: it would let a service load other code than its image's"
        yield failure("environment", detail, "serving.env", "put modules into model.extra-files")


def _canary(service: Document) -> Iterator[Finding]:
    percent = service["spec"]["predictor"].get("canaryTrafficPercent")
    if percent is None:
        return
    if not 0 <= percent <= 100:
        detail = f"{percent} is no percentage, which KServe itself does not look at"
        yield failure("canary", detail, "--canary", "0 to 100")
    elif mode_of(service) == "Standard":
        detail = "a canary does nothing in Standard mode: KServe sends every request to the new release"
        yield failure("canary", detail, "--canary", "leave --canary out, or use a cluster in Knative mode")


def _storage(service: Document) -> Iterator[Finding]:
    uri = service["spec"]["predictor"]["model"]["storageUri"]
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        detail = "a pod cannot reach a model store in a folder of this machine"
        yield failure("model store", detail, "store.uri", "use one that the cluster reaches")
    elif scheme not in _SCHEMES:
        remedy = f"one of {', '.join(f'{one}://' for one in _SCHEMES)}"
        yield failure("model store", f"KServe fetches no release from {scheme}://", "store.uri", remedy)
    else:
        yield ok("model store", uri)


def _gpu(service: Document) -> Iterator[Finding]:
    resources = service["spec"]["predictor"]["model"].get("resources", {})
    limit, request = (resources.get(key, {}).get(GPU) for key in ("limits", "requests"))
    if request is not None and request != limit:
        detail = f"{request} of {GPU} are requested and {limit or 0} are the limit, which must be the same"
        yield failure("GPU", detail, "serving.gpu", "Kubernetes shares no GPU: push the release again")


def _sizes(bundle: Bundle) -> Iterator[Finding]:
    for document in (*bundle.beside, bundle.service):
        kind, metadata = document["kind"], document["metadata"]
        for what, size, limit in (
            (f"the {kind}", len(msgspec.json.encode(document)), DOCUMENT_MAX),
            (f"what the {kind} holds", _held(document), _SECRET_MAX),
            (f"the {kind}'s annotations", _text(metadata.get("annotations", {})), _ANNOTATIONS_MAX),
        ):
            if size > limit:
                detail = f"{what} would have {size:,} bytes, and the API server takes {limit:,}"
                yield failure("size", detail, f"{kind} {metadata['name']}", "say less in kdeploy.toml")


def _held(document: Document) -> int:
    if document["kind"] != "Secret":
        return 0
    return sum(len(b64decode(value)) for value in document.get("data", {}).values())


def _text(annotations: dict[str, str]) -> int:
    return sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items())
