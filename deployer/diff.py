"""Compares documents with live objects, for display. Pure.

Additions by the API server and KServe's webhooks do not count as changes. Values of a Secret are never shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from deployer.managed_fields import same
from deployer.observed import Document

HIDDEN, CHANGED = "(hidden)", "(changed)"

_SERVERS = frozenset(
    {"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"}
)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"  # contains a Secret's values


class Change(Struct, frozen=True):
    """One field: its path, and its value before and after; None if it does not exist."""

    path: str
    before: Any
    after: Any


class Diff(Struct, frozen=True, kw_only=True):
    """One object that would change; `before` is None if it would be created."""

    kind: str
    name: str
    before: Document | None
    after: Document
    changes: tuple[Change, ...]


def compare(live: Document | None, after: Document) -> Diff | None:
    """Return what would change in a live object, or None if nothing would."""
    if after["kind"] == "Secret":
        live, after = _hide(live, None) if live else None, _hide(after, live)
    before = _shown(live) if live else None
    settled = _settle(before, _shown(after))
    changes = tuple(_changes(before, settled, ""))
    if not changes:
        return None
    name = after["metadata"]["name"]
    return Diff(kind=after["kind"], name=name, before=before, after=settled, changes=changes)


def _hide(secret: Document, live: Document | None) -> Document:
    """Return a Secret that shows of each value only whether it differs from the live one."""
    held = live.get("data", {}) if live else {}
    data = {
        key: CHANGED if key in held and held[key] != value else HIDDEN
        for key, value in secret.get("data", {}).items()
    }
    return {**secret, "data": data}


def _shown(document: Document) -> Document:
    """Return an object without what the API server adds, its keys in order."""
    metadata = {key: value for key, value in document["metadata"].items() if key not in _SERVERS}
    annotations = metadata.pop("annotations", {})
    kept = {key: value for key, value in annotations.items() if key != _LAST_APPLIED}
    if kept:
        metadata["annotations"] = kept
    shown = {key: value for key, value in document.items() if key != "status"} | {"metadata": metadata}
    ordered: Document = msgspec.to_builtins(shown, order="deterministic")
    return ordered


def _settle(before: Any, after: Any) -> Any:
    """Return `after`, with each value written as in `before` if both mean the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        return {key: _settle(before.get(key), value) for key, value in after.items()}
    return before if same(before, after) else after


def _changes(before: Any, after: Any, path: str) -> Iterator[Change]:
    """Yield every field that differs; items of lists of different lengths are not compared."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _changes(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changes(old, new, f"{path}[{index}]")
    elif before != after:
        yield Change(path, before, after)
