"""What KServe would refuse or ignore later and in worse words, found out before the first write. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from deployer.errors import ConfigError
from deployer.target import Document, Reference
from deployer.targets.kserve.capabilities import KSERVE_NAMESPACE
from deployer.targets.kserve.serving import MODE_ANNOTATION, is_standard

HOST_LABEL_MAX = 63  # bytes of one label of a host name
_SCHEMES = ("gs", "s3", "pvc", "http", "https", "hdfs", "webhdfs", "oci", "oci+native", "hf")


def check_service(service: Document, live: Document | None, namespace_labels: dict[str, str]) -> None:
    """Raise ConfigError for the first rule that an InferenceService breaks.

    `live` is the one that is there already; `namespace_labels` are empty where they may not be read.
    """
    metadata = service["metadata"]
    reference = Reference(metadata["namespace"], metadata["name"])
    mode = metadata.get("annotations", {}).get(MODE_ANNOTATION, "")
    for fault in (
        *_place(reference, namespace_labels),
        *_names(reference, mode),
        *_mode(live, mode),
        *_spec(service, mode),
    ):
        raise fault


def longest_label(reference: Reference, mode: str) -> str:
    """Return the longest label that a service's name becomes part of: a host's, or a Knative revision's."""
    if mode == "Standard":
        return f"{reference.name}-predictor-{reference.namespace}"
    return f"{reference.name}-predictor-00001"


def fits_a_node(resource: str, count: int, nodes: list[Document]) -> bool:
    """Return whether any node could ever hold so many of a resource."""
    return any(int(node.get("status", {}).get("allocatable", {}).get(resource, 0)) >= count for node in nodes)


def _place(reference: Reference, labels: dict[str, str]) -> Iterator[ConfigError]:
    if reference.namespace == KSERVE_NAMESPACE or "control-plane" in labels:
        yield ConfigError(
            f"KServe fetches no models in namespace {reference.namespace}: it is a control plane's",
            where="namespace",
            hint="roll out to another namespace",
        )


def _names(reference: Reference, mode: str) -> Iterator[ConfigError]:
    label = longest_label(reference, mode)
    if len(label) > HOST_LABEL_MAX:
        yield ConfigError(
            f"the host name {label} has {len(label)} characters, and DNS takes {HOST_LABEL_MAX}",
            where="model.name",
            hint=f"shorten the name of the model or the namespace by {len(label) - HOST_LABEL_MAX}",
        )
    if "-predictor" in reference.name and mode == "Knative":
        yield ConfigError(
            f"{reference.name}: KServe derives its URL wrongly from a name with -predictor in it",
            where="model.name",
            hint="choose another name",
        )


def _mode(live: Document | None, wanted: str) -> Iterator[ConfigError]:
    mode = "Standard" if live and is_standard(live) else "Knative"
    if live and wanted and wanted != mode:
        yield ConfigError(
            f"{live['metadata']['name']} is served in {mode} mode, which KServe never changes to {wanted}",
            where="deployment-mode",
            hint=f'set deployment-mode = "{mode}" for this target, or delete the service first',
        )


def _spec(service: Document, mode: str) -> Iterator[ConfigError]:
    predictor = service["spec"]["predictor"]
    if mode == "Standard" and "canaryTrafficPercent" in predictor:
        yield ConfigError(
            "a canary does nothing in Standard mode: KServe sends every request to the new release",
            where="--canary",
            hint="leave --canary out, or use a cluster in Knative mode",
        )
    uri = predictor["model"]["storageUri"]
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        yield ConfigError(
            "a pod cannot reach a model store in a folder of this machine",
            where="store.uri",
            hint="use one that the cluster reaches",
        )
    elif scheme not in _SCHEMES:
        yield ConfigError(f"KServe fetches nothing from {scheme}://", where="store.uri")
