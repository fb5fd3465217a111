"""What applying documents would change of live objects, to be shown. Pure.

What the API server and KServe's webhooks add does not count as a change. Values of a Secret are never shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from deployer.managed_fields import same
from deployer.observed import Document

HIDDEN, CHANGED = "(hidden)", "(changed)"

_SERVERS = frozenset(
    {"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"}
)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"  # of a Secret, it holds its values


class Change(Struct, frozen=True):
    """One field: its path, and its value before and after; None where it is not there."""

    path: str
    before: Any
    after: Any


class Diff(Struct, frozen=True, kw_only=True):
    """One object that would change; `before` is None for one that would be new."""

    kind: str
    name: str
    before: Document | None
    after: Document
    changes: tuple[Change, ...]


def compare(live: Document | None, after: Document) -> Diff | None:
    """Return what becomes of a live object, or None where nothing does."""
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
    """Return a Secret without its values: only whether each differs from the live one's."""
    held = live.get("data", {}) if live else {}
    told = {
        key: CHANGED if key in held and held[key] != value else HIDDEN
        for key, value in secret.get("data", {}).items()
    }
    return {**secret, "data": told}


def _shown(document: Document) -> Document:
    """Return what people write of an object, its keys in order."""
    metadata = {key: value for key, value in document["metadata"].items() if key not in _SERVERS}
    annotations = metadata.pop("annotations", {})
    kept = {key: value for key, value in annotations.items() if key != _LAST_APPLIED}
    if kept:
        metadata["annotations"] = kept
    shown: Document = _sorted({**document, "metadata": metadata})
    shown.pop("status", None)
    return shown


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(inner) for key, inner in sorted(value.items())}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _settle(before: Any, after: Any) -> Any:
    """Return what comes after, written as before where it says the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        return {key: _settle(before.get(key), value) for key, value in after.items()}
    return before if same(before, after) else after


def _changes(before: Any, after: Any, path: str) -> Iterator[Change]:
    """Yield every field that differs; one that holds others only as a whole."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _changes(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _changes(old, new, f"{path}[{index}]")
    elif before != after:
        yield Change(path, before, after)
