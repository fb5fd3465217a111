"""Who owns which field of a live object, and whether applying a document would change it. Pure.

The API server keeps for every field who wrote it last (`metadata.managedFields`). What KServe's
webhooks add to an InferenceService is not ours, so it is no difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from deployer.target import Document

FIELD_MANAGER = "kdeploy"

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS = {None: Decimal(1), "m": Decimal("0.001")}
_UNITS |= {unit: Decimal(1000) ** power for power, unit in enumerate("kMGT", 1)}
_UNITS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGT", 1)}
_SET_BY_SERVER = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}

Path = tuple[str, ...]


def agrees(live: Document, wanted: Document) -> bool:
    """Return whether applying a document would leave the live object as it is.

    Where nobody keeps account of the fields, as on one node, they are compared as they are.
    """
    if not live["metadata"].get("managedFields"):
        return _labels(live) == _labels(wanted) and bool(live["spec"] == wanted["spec"])
    leaves = dict(_leaves(wanted))
    if not all(_holds(live, path, value) for path, value in leaves.items()):
        return False
    return owned(live) <= leaves.keys() | _tables(leaves)


def _labels(document: Document) -> dict[str, str]:
    labels: dict[str, str] = document["metadata"].get("labels", {})
    return labels


def owned(live: Document) -> set[Path]:
    """Return the paths of the fields that kdeploy has applied; a list counts as one field."""
    found: set[Path] = set()
    for entry in live.get("metadata", {}).get("managedFields", []):
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply":
            found |= set(_paths(entry.get("fieldsV1", {})))
    return found


def owners(live: Document, path: Path) -> list[str]:
    """Return the managers that hold a field, the last writer last."""
    entries = sorted(live.get("metadata", {}).get("managedFields", []), key=lambda e: e.get("time", ""))
    return [entry["manager"] for entry in entries if path in set(_paths(entry.get("fieldsV1", {})))]


def _leaves(document: Document, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every field that a document says, but those that name it."""
    for key, value in document.items():
        path = (*prefix, key)
        if path in _SET_BY_SERVER:
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, path)
        else:
            yield path, value


def _tables(leaves: dict[Path, Any]) -> set[Path]:
    return {path[:length] for path in leaves for length in range(1, len(path))}


def _paths(fields: dict[str, Any], prefix: Path = ()) -> Iterator[Path]:
    """Yield the paths in a `fieldsV1`; at a list's first item its own path, once."""
    for key, inner in fields.items():
        if key.startswith("f:"):
            path = (*prefix, key[2:])
            if not any(name.startswith("f:") for name in inner):
                yield path
            yield from _paths(inner, path)


def _holds(live: Document, path: Path, wanted: Any) -> bool:
    value: Any = live
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return _same(value, wanted)


def _same(live: Any, wanted: Any) -> bool:
    """Compare values; KServe's webhooks write quantities their own way, and add keys to items of lists."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return all(key in live and _same(live[key], value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(live, list):
        return len(live) == len(wanted) and all(map(_same, live, wanted))
    return bool(live == wanted) or (_amount(live) is not None and _amount(live) == _amount(wanted))


def _amount(value: Any) -> Decimal | None:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    return Decimal(match[1]) * _UNITS[match[2]] if match else None
