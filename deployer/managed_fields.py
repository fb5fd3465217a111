"""Compares documents with live objects by the managers of their fields. Pure.

The API server records the managers of every field in `metadata.managedFields`. Fields that KServe's webhooks
add to an InferenceService are not kdeploy's, so they do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from deployer.observed import Document
from deployer.quantity import parse_quantity

FIELD_MANAGER = "kdeploy"

_NOT_CONTENT = frozenset({"apiVersion", "kind", "metadata", "status"})
_IDENTITY = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}
_INSIDE = {FIELD_MANAGER, "manager", "kserve-controller-manager"}  # `manager` is KServe's controller

Path = tuple[str, ...]


class Drift(Struct, frozen=True):
    """A field that was changed outside of kdeploy; without a manager, it was removed."""

    field: str
    manager: str = ""
    since: str = ""


def agrees(live: Document, wanted: Document) -> bool:
    """Return whether applying a document would leave the live object unchanged.

    On the local target no fields are managed, so labels and content are compared.
    """
    if not live["metadata"].get("managedFields"):
        return _content(live) == _content(wanted)
    leaves = dict(_leaves(wanted))
    if not all(_holds(live, path, value) for path, value in leaves.items()):
        return False
    tables = {path[:length] for path in leaves for length in range(1, len(path))}
    return owned(live) <= leaves.keys() | tables


def _content(document: Document) -> tuple[Document, Document]:
    content = {key: value for key, value in document.items() if key not in _NOT_CONTENT}
    return document["metadata"].get("labels", {}), content


def owned(live: Document) -> set[Path]:
    """Return the paths of the fields that kdeploy has applied; a list counts as one field."""
    found: set[Path] = set()
    for entry in live.get("metadata", {}).get("managedFields", []):
        if entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply":
            found |= set(_paths(entry.get("fieldsV1", {})))
    return found


def compare_with_applied(live: Document, applied: Document) -> list[Drift]:
    """Return the fields of an applied document that other managers have changed, taken over or removed."""
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


def find_dropped(sent: Any, stored: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of fields that a server did not store: those that are not in its schema."""
    if isinstance(sent, dict) and isinstance(stored, dict):
        for key, value in sent.items():
            place = f"{path}.{key}".lstrip(".")
            if key in stored:
                yield from find_dropped(value, stored[key], place)
            elif value not in (None, {}, [], ""):
                yield place
    elif isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        for number, (one, other) in enumerate(zip(sent, stored, strict=True)):
            yield from find_dropped(one, other, f"{path}[{number}]")


def leave_to_others(wanted: Document, live: Document, paths: Sequence[Path]) -> Document:
    """Return a document without those of the fields that another manager holds."""
    for path in paths:
        if any(entry["manager"] != FIELD_MANAGER for entry in _holders(live, path)):
            wanted = _without(wanted, path)
    return wanted


def _without(document: Document, path: Path) -> Document:
    name, *rest = path
    if not rest:
        return {key: value for key, value in document.items() if key != name}
    return {**document, name: _without(document[name], tuple(rest))}


def _holders(live: Document, path: Path) -> list[Document]:
    """Return the entries of the managers that hold a field, the last writer last."""
    entries = sorted(live.get("metadata", {}).get("managedFields", []), key=lambda e: e.get("time", ""))
    return [entry for entry in entries if path in set(_paths(entry.get("fieldsV1", {})))]


def _leaves(document: Document, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every field of a document except those that identify it."""
    for key, value in document.items():
        path = (*prefix, key)
        if path in _IDENTITY:
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, path)
        else:
            yield path, value


def _paths(fields: dict[str, Any], prefix: Path = ()) -> Iterator[Path]:
    """Yield the paths in a `fieldsV1`; a list is one path."""
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
    """Return whether a live value means the same as a wanted one.

    KServe's webhooks rewrite quantities and add keys to the items of lists.
    """
    if isinstance(wanted, dict) and isinstance(live, dict):
        return all(key in live and same(live[key], value) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(live, list):
        return len(live) == len(wanted) and all(map(same, live, wanted))
    if isinstance(wanted, str) and isinstance(live, str) and live != wanted:
        return parse_quantity(live) is not None and parse_quantity(live) == parse_quantity(wanted)
    return bool(live == wanted)
