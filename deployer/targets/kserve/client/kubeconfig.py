"""A kubeconfig, read as kubectl reads it: several files merged, one context chosen, other files taken in.

No file that it names is read without bounds, and no error quotes what is in one: it may be a secret.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from msgspec import Struct

from deployer.errors import ConfigError
from deployer.files import expanded, read_bytes, read_text

_LISTS = {"contexts": "context", "clusters": "cluster", "users": "user"}
_FILES = ("certificate-authority", "client-certificate", "client-key")  # of which NAME-data is the content
_KUBECONFIG_MAX = 16 << 20  # bytes


class Chosen(Struct, frozen=True):
    """One context of a kubeconfig: what it is called, and the entries that it names.

    `folder` is where the user's entry was read, which paths in it are relative to.
    """

    name: str
    context: dict[str, Any]
    cluster: dict[str, Any]
    user: dict[str, Any]
    folder: Path


def read_kubeconfig(files: str, name: str | None) -> Chosen:
    """Read the context that is named, or the current one, from files separated as in KUBECONFIG.

    A file that is not there is passed over. Raises ConfigError.
    """
    try:
        return _choose(_merge(files), name)
    except _WrongError as error:
        raise ConfigError(
            f"no cluster can be found there: {error}",
            where=f"kubeconfig {files}",
            hint="name one with --kubeconfig or KUBECONFIG, and a context of it with --context",
        ) from None


class _WrongError(Exception):
    """What is wrong with a kubeconfig, in words that quote nothing of it but names."""


def _merge(files: str) -> dict[str, Any]:
    """Return the entries of all files by list and name, with their folders: the first of a name counts."""
    merged: dict[str, Any] = {kind: {} for kind in _LISTS}
    found = False
    for file in filter(None, files.split(os.pathsep)):
        path = expanded(file)
        document = _document(path)
        if document is None:
            continue
        found = True
        merged["current"] = merged.get("current") or document.get("current-context")
        for kind, entry in _LISTS.items():
            for one in document.get(kind) or []:
                merged[kind].setdefault(one["name"], (one.get(entry) or {}, path.absolute().parent))
    if not found:
        raise _WrongError("there is no such file")
    return merged


def _document(path: Path) -> dict[str, Any] | None:
    """Return what a file holds, None where there is none; its lists hold tables with names."""
    import yaml

    try:
        document = yaml.safe_load(read_bytes(path, _KUBECONFIG_MAX))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _WrongError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError):
        raise _WrongError("it is not valid YAML") from None
    lists = [document.get(kind) or [] for kind in _LISTS] if isinstance(document, dict) else [None]
    for kind, entries in zip(_LISTS.values(), lists, strict=False):
        if not isinstance(entries, list) or not all(_is_entry(one, kind) for one in entries):
            raise _WrongError("it is not a kubeconfig")
    found: dict[str, Any] = document
    return found


def _is_entry(one: Any, kind: str) -> bool:
    named = isinstance(one, dict) and isinstance(one.get("name"), str)
    return named and isinstance(one.get(kind) or {}, dict)


def _choose(merged: dict[str, Any], name: str | None) -> Chosen:
    name = name or merged["current"]
    if not name:
        raise _WrongError("it has no current context")
    context, _ = _named(merged, "contexts", name)
    cluster, cluster_folder = _named(merged, "clusters", str(context.get("cluster") or ""))
    if not isinstance(cluster.get("server"), str):
        raise _WrongError(f"its cluster {context['cluster']} has no server")
    user, folder = merged["users"].get(str(context.get("user") or ""), ({}, cluster_folder))
    return Chosen(
        name, context, _with_contents(cluster, cluster_folder), _with_contents(user, folder), folder
    )


def _named(merged: dict[str, Any], kind: str, name: str) -> tuple[dict[str, Any], Path]:
    if name not in merged[kind]:
        raise _WrongError(f"it has no {_LISTS[kind]} {name}")
    found: tuple[dict[str, Any], Path] = merged[kind][name]
    return found


def _with_contents(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return an entry with the contents of the files that it names in place of their names."""
    entry = dict(entry)
    for key in (*_FILES, "tokenFile"):
        file = entry.pop(key, None)
        data = "token" if key == "tokenFile" else f"{key}-data"
        if not file or entry.get(data):
            continue
        try:
            path = folder / str(file)
            entry[data] = (
                read_text(path).strip() if key == "tokenFile" else base64.b64encode(read_bytes(path)).decode()
            )
        except OSError as error:
            raise _WrongError(f"its {key} cannot be read: {error.strerror}") from error
    return entry
