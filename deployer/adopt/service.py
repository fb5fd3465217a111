"""Reads an InferenceService of a TorchServe model into keys of `kdeploy.toml`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from deployer.adopt.found import Found
from deployer.config import OLD_MODES
from deployer.errors import ConfigError
from deployer.observed import Document
from deployer.overlay import find_faults, variable_fault

TARGET = "cluster"  # the name of the target that is written

_MODE = "serving.kserve.io/deploymentMode"
_QUANTITIES = {"cpu": "cpu", "memory": "memory", "nvidia.com/gpu": "gpu"}
_OVERLAY = ("serving", "overlay")
_PREDICTOR = ("spec", "predictor")
_RELEASE = re.compile(r"(.+)/[^/]+/[^/]+-[0-9a-f]{12}/?")
_OF_SERVERS = re.compile(r"(internal\.serving\.kserve\.io|kubectl\.kubernetes\.io)/.*")
_OWN_METADATA = ("kdeploy.dev/release", "kdeploy.dev/overlay", "app.kubernetes.io/managed-by")

_SCALING = {
    "minReplicas": "min-replicas",
    "maxReplicas": "max-replicas",
    "scaleMetric": "metric",
    "scaleTarget": "target",
}
# Fields whose value comes from elsewhere from now on.
_REPLACED = {
    "canaryTrafficPercent": "`kdeploy rollout --canary` splits the traffic",
    "timeout": "kdeploy derives it from serving.response-timeout",
    "terminationGracePeriodSeconds": "kdeploy derives it from serving.drain-seconds",
    "deploymentStrategy": "`kdeploy rollout --strategy` chooses it",
    "modelFormat": "kdeploy sets pytorch",
    "runtimeVersion": "set serving.image, if it is not kdeploy's",
}
# Fields that stay in the live object until they are removed, and that the new container would get.
_HARMFUL = {
    "args": "kdeploy's runtime has its own",
    "command": "kdeploy's runtime has its own",
    "readinessProbe": "kdeploy's runtime has a probe that waits for the model",
    "storage": "it and storageUri exclude each other",
}


def read_service(document: Document) -> Found:
    """Read an InferenceService. Raises ConfigError if its predictor is not a model of TorchServe."""
    found = Found()
    metadata, spec = _table(document, "metadata"), _table(document, "spec")
    name = str(metadata.get("name") or "")
    predictor = _table(spec, "predictor")
    kind, model = _find_model(predictor, name)
    found.set(("targets", TARGET, "kind"), "kserve")
    found.take("metadata.name", ("service", "name"), name)
    if namespace := metadata.get("namespace"):
        found.take("metadata.namespace", ("targets", TARGET, "namespace"), namespace)
    _read_metadata(found, metadata)
    for key in spec:
        if key != "predictor":
            found.note(
                f"spec.{key}", "stays", "in the live service: kdeploy neither changes it nor creates it"
            )
    _read_predictor(found, predictor, kind)
    _read_model(found, model, f"spec.predictor.{kind}")
    return found


def _find_model(predictor: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    kind = next((one for one in ("model", "pytorch") if isinstance(predictor.get(one), dict)), "")
    model = _table(predictor, kind)
    framework = _table(model, "modelFormat").get("name", "pytorch")
    if kind and framework == "pytorch":
        return kind, model
    what = "its predictor has no model of the format pytorch"
    if kind:
        what = f"its model has the format {framework}, and kdeploy serves pytorch"
    where = f"InferenceService {name}: spec.predictor"
    raise ConfigError(what, where=where, hint="Roll out the model under another name, and move the clients.")


def _read_metadata(found: Found, metadata: Mapping[str, Any]) -> None:
    for table in ("labels", "annotations"):
        for key, value in _table(metadata, table).items():
            field = f"metadata.{table}.{key}"
            if _OF_SERVERS.fullmatch(key):
                continue
            if key in _OWN_METADATA:
                found.note(field, "taken over", "kdeploy sets it")
            elif key == _MODE:
                mode = OLD_MODES.get(value, value)
                found.take(field, ("targets", TARGET, "deployment-mode"), mode)
            elif key == "serviceEnvelope":
                found.note(field, "left out", "kdeploy's adapter reads V1 and V2 itself, without an envelope")
            else:
                _overlay(found, field, ("metadata", table, key), value)


def _read_predictor(found: Found, predictor: Mapping[str, Any], kind: str) -> None:
    for key, value in predictor.items():
        field = f"spec.predictor.{key}"
        if key == kind or value in (None, "", [], {}):
            continue
        if ours := _SCALING.get(key):
            if value or key == "minReplicas":  # 0: without a maximum
                found.take(field, ("scaling", ours), value)
        elif key == "serviceAccountName":
            found.take(field, ("store", "service-account"), value)
        elif key in _REPLACED:
            found.note(field, "taken over", _REPLACED[key])
        else:
            _overlay(found, field, (*_PREDICTOR, key), value)
    scaling = found.tables.get("scaling", {})
    if isinstance(least := scaling.get("min-replicas"), int) and least and "max-replicas" not in scaling:
        found.set(("scaling", "max-replicas"), least)


def _read_model(found: Found, model: Mapping[str, Any], field: str) -> None:
    gpu = _table(_table(model, "resources"), "limits").get("nvidia.com/gpu")
    readers = {
        "storageUri": _read_storage,
        "protocolVersion": _read_protocol,
        "resources": _read_resources,
        "env": _read_variables,
        "runtime": _read_runtime,
    }
    for key, value in model.items():
        place = f"{field}.{key}"
        if key == "name" or value in (None, "", [], {}):
            continue
        if reader := readers.get(key):
            reader(found, place, value)
        elif key == "image":
            found.take(place, ("serving", "gpu-image" if gpu else "image"), value)
        elif key in _REPLACED:
            found.note(place, "taken over", _REPLACED[key])
        elif key in _HARMFUL:
            found.note(place, "left out", f"{_HARMFUL[key]}; remove this field before the rollout")
        else:
            _overlay(found, place, (*_PREDICTOR, "model", key), value)


def _read_runtime(found: Found, field: str, value: Any) -> None:
    what = f"kdeploy creates a ServingRuntime; to keep {value}, set serving.runtime"
    found.note(field, "taken over", what)


def _read_storage(found: Found, field: str, uri: Any) -> None:
    """Take the bucket or the claim of the model as the model store, with a folder for kdeploy's releases.

    For a release of kdeploy, take its model store.
    """
    if release := _RELEASE.fullmatch(str(uri)):
        found.take(field, ("store", "uri"), release[1])
        return
    parts = urlsplit(str(uri))
    if parts.scheme in ("s3", "gs", "pvc") and parts.netloc:
        found.take(field, ("store", "uri"), f"{parts.scheme}://{parts.netloc}/kdeploy")
    else:
        found.note(field, "left out", "set store.uri to a model store that the cluster can read")


def _read_protocol(found: Found, field: str, value: Any) -> None:
    if value in ("v1", "v2", "grpc-v2"):
        found.take(field, ("serving", "protocol-version"), value)
    else:
        found.note(field, "left out", f"kdeploy does not know the protocol {value}")


def _read_resources(found: Found, field: str, resources: Any) -> None:
    """Take the limits, else the requests, as `[serving]`'s; what differs goes to the overlay."""
    limits, requests = _table(resources, "limits"), _table(resources, "requests")
    for name, ours in _QUANTITIES.items():
        value = limits.get(name, requests.get(name))
        if value is not None:
            number = ours == "gpu" and str(value).isdigit()
            found.take(f"{field}.{name}", ("serving", ours), int(value) if number else str(value))
    for kind, table in (("limits", limits), ("requests", requests)):
        for name, value in table.items():
            if name not in _QUANTITIES or value != limits.get(name, value):
                path = (*_PREDICTOR, "model", "resources", kind, name)
                _overlay(found, f"{field}.{kind}.{name}", path, str(value))


def _read_variables(found: Found, field: str, variables: Any) -> None:
    kept: list[Any] = []
    for item in filter(_is_table, variables if isinstance(variables, list) else []):
        name = str(item.get("name"))
        place, value = f"{field}.{name}", item.get("value", "")
        source = next(_sources(item), None)
        fault = variable_fault(name, str(value))
        if fault:
            found.note(place, "left out", fault[0])
        elif source:
            found.take(place, ("serving", "env", name), source)
        elif "valueFrom" in item:
            kept = [*kept, item]
            _overlay(found, place, (*_PREDICTOR, "model", "env"), kept)
        else:
            found.take(place, ("serving", "env", name), str(value))


def _sources(item: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield the source of a variable, as `[serving.env]` has it."""
    for theirs, ours in (("secretKeyRef", "secret"), ("configMapKeyRef", "config-map")):
        reference = _table(_table(item, "valueFrom"), theirs)
        if reference and not reference.get("optional"):
            yield {ours: str(reference.get("name")), "key": str(reference.get("key"))}


def _overlay(found: Found, field: str, path: tuple[str, ...], value: Any) -> None:
    """Put a field into the overlay, unless kdeploy owns it."""
    patch: Any = value
    for key in reversed(path):
        patch = {key: patch}
    if fault := next(find_faults(patch), None):
        found.note(field, "left out", fault.what)
        return
    found.take(field, (*_OVERLAY, *path), value, fate="stays")


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _table(table: Any, key: str) -> dict[str, Any]:
    inner = table.get(key) if isinstance(table, dict) else None
    return inner if isinstance(inner, dict) else {}
