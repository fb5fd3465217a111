"""Who owns which field of a live object, and whether applying a document would change it. Pure.

The API server records for every field who wrote it last (`metadata.managedFields`). What KServe's webhooks
add to an InferenceService is not ours, so it does not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from deployer.observed import Document
from deployer.quantity import parse_quantity

FIELD_MANAGER = "kdeploy"

_BESIDE = frozenset({"apiVersion", "kind", "metadata", "status"})
_SET_BY_SERVER = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}

_INSIDE = {FIELD_MANAGER, "manager", "kserve-controller-manager"}  # its controller's binary is `manager`

Path = tuple[str, ...]


class Drift(Struct, frozen=True):
    """A field that was changed outside of kdeploy; with no manager, it was taken out."""

    field: str
    manager: str = ""
    since: str = ""


def agrees(live: Document, wanted: Document) -> bool:
    """Return whether applying a document would leave the live object as it is.

    Where nobody keeps account of the fields, as on one node, they are compared as they are.
    """
    if not live["metadata"].get("managedFields"):
        return _labels(live) == _labels(wanted) and _content(live) == _content(wanted)
    leaves = dict(_leaves(wanted))
    if not all(_holds(live, path, value) for path, value in leaves.items()):
        return False
    return owned(live) <= leaves.keys() | _tables(leaves)


def _labels(document: Document) -> dict[str, str]:
    labels: dict[str, str] = document["metadata"].get("labels", {})
    return labels


def _content(document: Document) -> Document:
    return {key: value for key, value in document.items() if key not in _BESIDE}


def owned(live: Document) -> set[Path]:
    """Return the paths of the fields that kdeploy has applied; a list counts as one field."""
    found: set[Path] = set()
    for entry in live.get("metadata", {}).get("managedFields", []):
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply":
            found |= set(_paths(entry.get("fieldsV1", {})))
    return found


def owners(live: Document, path: Path) -> list[str]:
    """Return the managers that hold a field, the last writer last."""
    return [entry["manager"] for entry in _holders(live, path)]


def compare_with_applied(live: Document, applied: Document) -> list[Drift]:
    """Return the fields of an applied document that others hold now, or that are otherwise than applied."""
    ours = owned(live)
    found = []
    for path, value in _leaves(applied):
        holders = _holders(live, path)
        others = [entry for entry in holders if entry["manager"] not in _INSIDE]
        if others and (path not in ours or not _holds(live, path, value)):
            last = others[-1]
            found.append(Drift(".".join(path), last["manager"], last.get("time", "")))
        elif not holders and not _holds(live, path, value):
            found.append(Drift(".".join(path)))
    return found


def leave_to_others(wanted: Document, live: Document, paths: Sequence[Path]) -> Document:
    """Leave out of a document those of the fields that another manager holds."""
    for path in paths:
        if set(owners(live, path)) - {FIELD_MANAGER}:
            wanted = _without(wanted, path)
    return wanted


def _without(document: Document, path: Path) -> Document:
    name, *rest = path
    if not rest:
        return {key: value for key, value in document.items() if key != name}
    return {**document, name: _without(document[name], tuple(rest))}


def _holders(live: Document, path: Path) -> list[Document]:
    entries = sorted(live.get("metadata", {}).get("managedFields", []), key=lambda e: e.get("time", ""))
    return [entry for entry in entries if path in set(_paths(entry.get("fieldsV1", {})))]


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
    return same(value, wanted)


def same(live: Any, wanted: Any) -> bool:
    """Return whether a live value says what is wanted.

    KServe's webhooks write quantities their own way, and add keys to items of lists.
    """
    if isinstance(wanted, dict) and isinstance(live, dict):
        return all(key in live and same(live[key], value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(live, list):
        return len(live) == len(wanted) and all(map(same, live, wanted))
    return bool(live == wanted) or _is_same_quantity(live, wanted)


def _is_same_quantity(live: Any, wanted: Any) -> bool:
    if not (isinstance(live, str) and isinstance(wanted, str)):
        return False
    return parse_quantity(live) is not None and parse_quantity(live) == parse_quantity(wanted)
