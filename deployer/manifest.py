"""Renders the documents of a release: its InferenceService, its ServingRuntime and its ServiceAccount.

Pure, except that it reads the files in `manifests/`. A filter writes every text as one JSON string, which is
also YAML, so that no value can become structure.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deployer import load_log
from deployer.bundle import Bundle, Sealed
from deployer.config import Scaling, Serving, overlays_of
from deployer.observed import Capabilities, Document, Reference
from deployer.overlay import merge_all
from deployer.properties import GRPC_PORT, INFERENCE_PORT, MANAGEMENT_PORT, METRICS_PORT
from deployer.release import Release, Traffic
from deployer.shipped import shipped
from deployer.storage_access import StorageAccess

if TYPE_CHECKING:
    from jinja2 import Environment

MARGIN = 10  # seconds added to the longest request, and to the first process's drain
USER = 1000  # model-server, the user of TorchServe's images
GRPC = "grpc-v2"  # the protocol version
RUNTIME_PREFIX = "kdeploy-torchserve-"

# The parts of the first process, in the order of their imports.
_PARTS = (
    "probe.py",
    "places.py",
    "http_messages.py",
    "apis.py",
    "status.py",
    "upstream.py",
    "front.py",
    "grpc_messages.py",
    "grpc_front.py",
    "first_process.py",
)
_IMPORT_OF_A_PART = re.compile(r"^from (deployer|manifests)\.\w+ import (\([^)]*\)|.*)\n", re.MULTILINE)

# Texts that PyYAML does not quote, and that other readers such as Go's read as a number or a boolean.
_AMBIGUOUS = re.compile(r"[-+.0-9]|[yYnN]$")


def render(
    release: Release,
    *,
    storage_uri: str,
    namespace: str,
    capabilities: Capabilities,
    scaling: Scaling,
    service: str | None = None,
    traffic: Traffic | None = None,
    access: StorageAccess | None = None,
    overlays: Sequence[Document] = (),
) -> Bundle:
    """Render the documents of a release. The default of `service` is the model's name.

    With `access`, the service runs as a ServiceAccount that can read the model store; the bundle's sealed
    Secret holds its credentials, if any. If `serving` names a runtime, it exists in the cluster, and none is
    rendered. `overlays` are the target's, and are merged after the release's own. A ServiceAccount that one
    of them names exists in the cluster.
    """
    serving, reference = release.serving, Reference(namespace, service or release.name)
    # The local target only has kdeploy's own runtime.
    named = None if capabilities.local_storage_only else serving.runtime
    spec = release.runtime or render_runtime(serving)
    drain = {  # seconds after SIGTERM, for the first process
        "KDEPLOY_DRAIN_SECONDS": str(serving.drain_seconds),
        "KDEPLOY_GRACE_SECONDS": str(serving.drain_seconds + serving.response_timeout),
    }
    values = {
        "name": reference.name,
        "namespace": namespace,
        "release": release,
        "serving": serving,
        "scaling": scaling,
        "image": _image(serving, named),
        "traffic": traffic or Traffic(),
        "storage_uri": storage_uri,
        "deployment_mode": capabilities.deployment_mode,
        "runtime": named or runtime_name(spec),
        "env": serving.env if named else {**serving.env, **drain},
        "service_account": access.service_account(reference.name) if access else "",
        "user": 0 if named or capabilities.assigns_user else USER,
        "pod_labels": access.pod_labels if access else {},
        "grpc_port": GRPC_PORT if serving.protocol_version == GRPC and not named else None,
        **_timeouts(serving, capabilities, named),
    }
    rendered = _document("inferenceservice.yaml.j2", values)
    merged = merge_all(rendered, overlays_of(serving), overlays)
    account = merged["spec"]["predictor"].get("serviceAccountName")
    if account != rendered["spec"]["predictor"].get("serviceAccountName"):
        access = None
    several = scaling.max_replicas > 1 and not capabilities.local_storage_only
    return Bundle(
        service=merged,
        runtime=None if named else _runtime_document(spec, namespace),
        account=_render_account(access, reference) if access else None,
        secret=render_secret(access, reference) if access else None,
        extras=(_budget(reference),) if several else (),
    )


def _budget(service: Reference) -> Document:
    """Render a PodDisruptionBudget: a drain of nodes takes one pod of a service at a time."""
    labels = {"serving.kserve.io/inferenceservice": service.name, "component": "predictor"}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(Reference(service.namespace, f"{service.name}-kdeploy")),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": labels}},
    }


def render_runtime(serving: Serving | None = None) -> Document:
    """Render the spec of kdeploy's own ServingRuntime, which is part of every release that uses it.

    It depends on the protocol version: a runtime for gRPC has another port.
    """
    values = {
        "image": Serving().image,
        "inference_port": INFERENCE_PORT,
        "metrics_port": METRICS_PORT,
        "grpc_port": GRPC_PORT if serving and serving.protocol_version == GRPC else None,
        "probe": f"{_part('probe.py')}\n\nraise SystemExit(missing({MANAGEMENT_PORT}) or None)\n",
        "program": first_process(),
    }
    return _document("servingruntime.yaml.j2", values)


def runtime_name(spec: Document) -> str:
    """Name a ServingRuntime by its content, so that it never changes under its name."""
    digest = hashlib.sha256(msgspec.json.encode(spec, order="deterministic")).hexdigest()
    return f"{RUNTIME_PREFIX}{digest[:8]}"


def first_process() -> str:
    """Return the program of the container's first process: the sources of its parts, joined."""
    reader = Path(load_log.__file__).read_text("utf-8")
    return _IMPORT_OF_A_PART.sub("", "\n\n".join([reader, *map(_part, _PARTS)]))


def _part(name: str) -> str:
    return (shipped("manifests") / name).read_text("utf-8")


def _runtime_document(spec: Document, namespace: str) -> Document:
    metadata = _metadata(Reference(namespace, runtime_name(spec)))
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": metadata,
        "spec": spec,
    }


def _render_account(access: StorageAccess, service: Reference) -> Document | None:
    """Render the ServiceAccount that a service runs as; None if it already exists."""
    if access.account:
        return None
    name, secret = access.service_account(service.name), access.secret_name(service.name)
    annotations = access.account_annotations | ({} if secret else access.annotations)
    account: Document = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(Reference(service.namespace, name), annotations),
    }
    return account | ({"secrets": [{"name": secret}]} if secret else {})


def render_secret(access: StorageAccess, service: Reference) -> Sealed | None:
    """Render the Secret that lets a service read the model store; None if kdeploy creates none."""
    if not access.data:
        return None
    reference = Reference(service.namespace, access.secret_name(service.name))
    return Sealed(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": _metadata(reference, access.annotations),
            "type": "Opaque",
            "data": {key: b64encode(text.encode()).decode() for key, text in sorted(access.data.items())},
        }
    )


def _metadata(reference: Reference, annotations: Mapping[str, str] | None = None) -> Document:
    metadata: Document = {
        "name": reference.name,
        "namespace": reference.namespace,
        "labels": {"app.kubernetes.io/managed-by": "kdeploy"},
    }
    return metadata | ({"annotations": dict(sorted(annotations.items()))} if annotations else {})


def _timeouts(serving: Serving, capabilities: Capabilities, named: str | None) -> dict[str, int]:
    """Return the seconds after which a gateway aborts a request, and those that a pod gets to end.

    In Knative mode one number is both. A runtime of the cluster can ignore SIGTERM, and would keep its GPU
    for the whole period, so it gets Kubernetes' default (0).
    """
    request = serving.response_timeout + MARGIN
    drained = serving.drain_seconds + request
    if capabilities.deployment_mode == "Knative":
        return {"timeout": drained, "termination_grace_period": 0}
    return {"timeout": request, "termination_grace_period": 0 if named else drained}


def _image(serving: Serving, runtime: str | None) -> str:
    """Return the image; empty if the config has none and the cluster's runtime has one."""
    key = "gpu_image" if serving.gpu else "image"
    chosen: str = getattr(serving, key)
    return "" if runtime and chosen == getattr(Serving(), key) else chosen


def _document(template: str, values: dict[str, Any]) -> Document:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same parser in C, if available
    document: Document = yaml.load(_environment().get_template(template).render(values), loader)  # noqa: S506
    return document


def encode_yaml(documents: Sequence[Document]) -> str:
    """Encode documents as one YAML stream, for `kubectl apply -f -` and GitOps."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Write text with line breaks as blocks, and no aliases."""

        def ignore_aliases(self, _data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else '"' if _AMBIGUOUS.match(value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump_all(list(documents), Dumper=Dumper, sort_keys=False, explicit_start=True, width=110)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(shipped("manifests")),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - YAML, not HTML: the filter below escapes
    )
    environment.filters["yaml"] = _quote
    return environment


def _quote(value: object) -> str:
    """Write a string in double quotes and ASCII, which YAML reads as the same string."""
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {type(value).__name__}")
    # JSON writes characters above U+FFFF as two surrogates, which YAML does not join.
    parts = re.split("([\U00010000-\U0010ffff])", value)
    wide = (f"\\U{ord(c):08x}" for c in parts[1::2])
    return '"' + "".join(json.dumps(text)[1:-1] + next(wide, "") for text in parts[::2]) + '"'
