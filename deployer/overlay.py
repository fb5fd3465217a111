"""Overlays: what users add to the InferenceService that kdeploy renders. Pure.

An overlay is a JSON merge patch (RFC 7396). In it, containers, volumes and variables merge by their names,
and mounts by their paths; any other list is replaced. It cannot change what kdeploy owns.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from deployer.leaks import find_credential
from deployer.observed import Document

Path = tuple[str, ...]

OVERLAY_LABEL = "kdeploy.dev/overlay"  # the digest of the target's overlay

VALUES_MAX = 20_000  # in one overlay; aliases in YAML can make billions of a few lines

# The lists that merge, and the key of their items. Variables, volumes and mounts are replaced as a whole: a
# variable with a value and a source, or a volume of two kinds, is invalid.
_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
}
_CONTAINERS = ("containers", "initContainers")

_PREDICTOR = ("spec", "predictor")
_MODEL = (*_PREDICTOR, "model")
_ONE_MODEL = "Leave it out: the predictor is the model of the release."
_SCALING = "Set `scaling.metric` and `scaling.target`."
_IMAGE = "Set `serving.image`, or `serving.gpu-image` if `serving.gpu` is set."
_COMMAND = "Leave it out: the command is part of the runtime. Set TorchServe's options in `[torchserve]`."
_PROBE = "Leave it out: the probe finds out whether the model is loaded. You can change its times."
_MESSAGE = "Leave it out: kdeploy reads there why a model cannot be loaded."

_OTHER_MODELS = (
    *("name", "workerSpec", "storageUris", "sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx"),
    *("huggingface", "pmml", "lightgbm", "paddle"),
)

# What kdeploy owns, with what to do instead.
_OWNED: dict[Path, str] = {
    ("metadata", "name"): "Set `service.name`.",
    ("metadata", "namespace"): "Set `namespace` of the target.",
    (*_PREDICTOR, "minReplicas"): "Set `scaling.min-replicas`.",
    (*_PREDICTOR, "maxReplicas"): "Set `scaling.max-replicas`.",
    (*_PREDICTOR, "scaleMetric"): "Set `scaling.metric`.",
    (*_PREDICTOR, "scaleTarget"): "Set `scaling.target`.",
    **{
        (*_PREDICTOR, name): _SCALING
        for name in ("scaleMetric", "scaleMetricType", "scaleTarget", "autoScaling")
    },
    (*_PREDICTOR, "canaryTrafficPercent"): "Run `kdeploy rollout --canary 10` to split the traffic.",
    (*_PREDICTOR, "deploymentStrategy"): "Run `kdeploy rollout --strategy recreate` to stop old pods first.",
    (*_PREDICTOR, "timeout"): "Set `serving.response-timeout`.",
    (*_PREDICTOR, "terminationGracePeriodSeconds"): "Set `serving.drain-seconds`.",
    **{(*_PREDICTOR, name): _ONE_MODEL for name in _OTHER_MODELS},
    (*_MODEL, "name"): _ONE_MODEL,
    (*_MODEL, "modelFormat"): _ONE_MODEL,
    (*_MODEL, "storage"): "Set `store.uri`.",
    (*_MODEL, "storageUri"): "Set `store.uri`.",
    (*_MODEL, "protocolVersion"): "Set `serving.protocol-version`.",
    (*_MODEL, "runtime"): "Set `serving.runtime`.",
    (*_MODEL, "runtimeVersion"): _IMAGE,
    (*_MODEL, "image"): _IMAGE,
    (*_MODEL, "ports"): "Leave it out: the ports follow from `serving.protocol-version`.",
    (*_MODEL, "command"): _COMMAND,
    (*_MODEL, "args"): _COMMAND,
    (*_MODEL, "terminationMessagePath"): _MESSAGE,
    (*_MODEL, "terminationMessagePolicy"): _MESSAGE,
    **{(*_MODEL, "readinessProbe", kind): _PROBE for kind in ("exec", "httpGet", "tcpSocket", "grpc")},
}
_OWNED_METADATA = re.compile(
    r"""kdeploy\.dev/.* | app\.kubernetes\.io/managed-by | app | component |
    serving\.kserve\.io/(inferenceservice|deploymentMode|enable-tag-routing|stop|disable-auto-update)""",
    re.VERBOSE,
)
# Where an overlay can have keys; elsewhere kdeploy and KServe own every key.
_PARTS = {
    (): ("apiVersion", "kind", "metadata", "spec"),
    ("metadata",): ("labels", "annotations", "name", "namespace"),
    ("spec",): ("predictor",),
}
_FIXED = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService"}
_TEXTS = ("labels", "annotations", "nodeSelector")  # tables whose values are texts
# What has to be a table, because kdeploy has entries in it or reads it.
_TABLES = {
    *(("metadata",), ("metadata", "labels"), ("metadata", "annotations"), ("spec",), _PREDICTOR, _MODEL),
}
_TABLES_OR_NULL = {
    *((*_PREDICTOR, name) for name in (*_TEXTS, "securityContext", "affinity")),
    *((*_MODEL, name) for name in ("resources", "securityContext", "readinessProbe")),
    *((*_MODEL, "resources", name) for name in ("requests", "limits")),
}
_MOUNT = "/mnt/models"
_NAMED = {
    "kserve-container": "Write it as `spec.predictor.model`: KServe merges the model into this container.",
    "storage-initializer": "Leave it out: KServe adds the container that downloads the model.",
    "queue-proxy": "Leave it out: Knative adds this container.",
}

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Fault(Struct, frozen=True):
    """What is wrong in an overlay: where, and what to do."""

    path: str
    what: str
    hint: str


def merge(document: Any, patch: Any, key: str = "") -> Any:
    """Return a document with an overlay merged into it. `key` is the key of both in their tables."""
    if isinstance(patch, list) and key in _KEYS:
        return _merge_items(document if isinstance(document, list) else [], patch, key)
    if not isinstance(patch, dict):
        return patch
    table = document if isinstance(document, dict) else {}
    kept = {name: value for name, value in table.items() if patch.get(name, "") is not None}
    return kept | {
        name: merge(table.get(name), value, name) for name, value in patch.items() if value is not None
    }


def _merge_items(items: list[Any], patch: list[Any], key: str) -> list[Any]:
    by = _KEYS[key]
    merged = {item[by]: item for item in items}
    for item in patch:
        old = merged.get(item[by]) if key in _CONTAINERS else None
        merged[item[by]] = merge(old, item)
    return list(merged.values())


def merge_all(service: Document, of_release: Sequence[Document], of_target: Sequence[Document]) -> Document:
    """Return an InferenceService with the overlays of its release and of its target.

    Those of the target are not part of the release, so a label with their digest tells its pods apart.
    """
    for overlay in (*of_release, *of_target):
        service = merge(service, overlay)
    if not of_target:
        return service
    text = json.dumps(of_target, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    label: Document = merge(service, {"metadata": {"labels": {OVERLAY_LABEL: digest}}})
    return label


def overlay_of(document: Document) -> str:
    """Return the digest of the target's overlays that a document was rendered with; empty without any."""
    return str(document["metadata"].get("labels", {}).get(OVERLAY_LABEL, ""))


def find_faults(overlay: Any) -> Iterator[Fault]:
    """Yield what is wrong in an overlay: what is not JSON, what has no name, and what kdeploy owns."""
    if broken := _json_fault(overlay):
        yield broken  # nothing else can be read
        return
    yield from _owned_faults(overlay)
    yield from _text_faults(overlay)
    predictor = _find(overlay, _PREDICTOR)
    yield from _pod_faults(predictor)
    model = predictor.get("model")
    yield from _container_faults(model if isinstance(model, dict) else {}, _join(_MODEL))


def _json_fault(overlay: Any) -> Fault | None:
    """Return the first value that is not JSON, or not the table that it has to be."""
    if not isinstance(overlay, dict):
        return Fault("", "an overlay is a table", "Begin it with `spec`, as an InferenceService does.")
    for count, (path, value) in enumerate(_walk(overlay)):
        if count == VALUES_MAX:
            hint = "Remove aliases and what is not needed."
            return Fault("", f"it has more than {VALUES_MAX:,} values", hint)
        if fault := _value_fault(path, value):
            return Fault(_join(path), *fault)
    return None


def _value_fault(path: tuple[Any, ...], value: Any) -> tuple[str, str] | None:
    key = path[-1] if path else ""
    if not isinstance(key, str):
        return f"the key {key} is not text", "Write it in quotes."
    if any(isinstance(text, str) and _NOT_TEXT.search(text) for text in (key, value)):
        return "it contains a NUL byte or is not UTF-8", "Write it in UTF-8."
    known = isinstance(value, dict | list | str | bool | int | float | None)
    if not known or (isinstance(value, float) and not math.isfinite(value)):
        return f"{value} is not a value of JSON", "Write it in quotes."
    if (path in _TABLES and not isinstance(value, dict)) or (
        path in _TABLES_OR_NULL and not isinstance(value, dict | None)
    ):
        return f"{_join(path)} is not a table", "Write it as in a pod's specification."
    return None


def _walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every value with its path; an item of a list has its number in it."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _walk(inner, (*path, f"[{key}]" if isinstance(value, list) else key))


def _owned_faults(overlay: Mapping[str, Any]) -> Iterator[Fault]:
    for path, known in _PARTS.items():
        for key in _find(overlay, path):
            if (*path, key) in _OWNED or key in known:
                continue
            hint = f"Keys here: {', '.join(known)}."
            yield Fault(_join((*path, key)), f"an overlay cannot set {_join((*path, key))}", hint)
    for path, hint in _OWNED.items():
        if path[-1] in _find(overlay, path[:-1]):
            yield Fault(_join(path), f"an overlay cannot set {_join(path)}: kdeploy sets it", hint)
    for key, value in _FIXED.items():
        if overlay.get(key, value) != value:
            yield Fault(key, f"an overlay is for {value}, not {overlay[key]}", "Remove the line.")


def _text_faults(overlay: Mapping[str, Any]) -> Iterator[Fault]:
    for path in (("metadata",), _PREDICTOR):
        for table in _TEXTS:
            for key, value in _find(overlay, (*path, table)).items():
                place = _join((*path, table, key))
                if _OWNED_METADATA.fullmatch(key):
                    yield Fault(
                        place, f"an overlay cannot set {key}", "Leave it out: kdeploy or KServe sets it."
                    )
                elif not isinstance(value, str | None):
                    yield Fault(place, f"expected text, got {json.dumps(value)}", "Write it in quotes.")


def _pod_faults(predictor: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong in the containers and volumes of a pod."""
    yield from _list_faults(predictor, "volumes", _join(_PREDICTOR))
    for kind in _CONTAINERS:
        yield from _list_faults(predictor, kind, _join(_PREDICTOR))
        for item in _items(predictor, kind):
            name = item.get("name")
            place = f"{_join(_PREDICTOR)}.{kind}.{name}"
            if name in _NAMED:
                yield Fault(place, f"an overlay cannot have a container {name}", _NAMED[name])
            yield from _container_faults(item, place)


def _container_faults(container: Mapping[str, Any], place: str) -> Iterator[Fault]:
    yield from _list_faults(container, "env", place)
    yield from _list_faults(container, "volumeMounts", place)
    for item in _items(container, "env"):
        name, value = str(item.get("name")), item.get("value")
        if fault := variable_fault(name, value if isinstance(value, str) else ""):
            yield Fault(f"{place}.env.{name}", *fault)
        elif not isinstance(item.get("valueFrom", {}), dict):
            yield Fault(
                f"{place}.env.{name}", "valueFrom is not a table", "Write it as in a pod's specification."
            )
        elif "value" in item and not isinstance(value, str):
            yield Fault(
                f"{place}.env.{name}", f"expected text, got {json.dumps(value)}", "Write it in quotes."
            )
    for item in _items(container, "volumeMounts"):
        path = str(item.get("mountPath")).rstrip("/")
        if f"{path}/".startswith(f"{_MOUNT}/"):
            hint = "Choose another folder."
            yield Fault(f"{place}.volumeMounts", f"KServe mounts the model at {_MOUNT}", hint)


def _list_faults(table: Mapping[str, Any], key: str, place: str) -> Iterator[Fault]:
    """Yield what is wrong in a list that merges: its type, items without a name, and names used twice."""
    items, by, seen = table.get(key, []), _KEYS[key], set()
    if not isinstance(items, list):
        yield Fault(f"{place}.{key}", f"{key} is not a list", "Write it as in a pod's specification.")
        return
    for number, item in enumerate(items):
        name = item.get(by) if isinstance(item, dict) else None
        if not (isinstance(name, str) and name):
            yield Fault(f"{place}.{key}[{number}]", f"an item of {key} has no {by}", f"Add its `{by}`.")
        elif name in seen:
            yield Fault(f"{place}.{key}[{number}]", f"two items of {key} have the {by} {name}", "Remove one.")
        seen.add(str(name))


def variable_fault(name: str, value: str) -> tuple[str, str] | None:
    """Return what is wrong with an environment variable of the serving container, and what to do; or None.

    The value is never part of it.
    """
    rename = "Remove it or rename it."
    if name == "PYTHONPATH":
        return f"invalid environment variable {name!r}: KServe refuses it", rename
    if name.startswith("KDEPLOY_"):
        reason = "kdeploy sets it, from serving.drain-seconds and serving.response-timeout"
        return f"invalid environment variable {name!r}: {reason}", rename
    if not _VARIABLE.fullmatch(name):
        reason = "a name consists of letters, digits and _"
        return f"invalid environment variable {name!r}: {reason}", rename
    if kind := find_credential(name, value):
        entry = f'{name} = {{ secret = "NAME", key = "KEY" }}'
        hint = (
            f"Put it into a Secret, and write `{entry}` in `[serving.env]`. "
            "If it is not confidential, use a ConfigMap: `config-map` in place of `secret`."
        )
        what = f"the value of {name} looks like {kind}, which everyone who reads the release could read"
        return what, hint
    return None


def _find(table: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return the table at a path, empty if there is none."""
    for key in path:
        inner = table.get(key)
        table = inner if isinstance(inner, dict) else {}
    return table


def _items(table: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items = table.get(key)
    return [one for one in items if isinstance(one, dict)] if isinstance(items, list) else []


def _join(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path)).replace(".[", "[")
