"""Reads TorchServe's config.properties into keys of `kdeploy.toml`. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from deployer.adopt.found import Found
from deployer.errors import ConfigError
from deployer.properties import DEFAULTS, check_entry

# Keys of a model in `model_snapshot`, and the keys of `[serving]`.
_OF_MODEL = {
    "minWorkers": "min-workers",
    "maxWorkers": "max-workers",
    "batchSize": "batch-size",
    "maxBatchDelay": "max-batch-delay",
    "responseTimeout": "response-timeout",
    "startupTimeout": "startup-timeout",
}
_NUMBERS = {
    "max_request_size": "max-request-size",
    "max_response_size": "max-response-size",
    "default_response_timeout": "response-timeout",
    "default_startup_timeout": "startup-timeout",
    "number_of_gpu": "gpu",
}
_NUMBER = re.compile("[0-9]{1,15}")
_NAMES = ("defaultVersion", "marName", "modelName", "modelUrl")
_ENVELOPES = {
    "kserve": "kdeploy's adapter reads V1 and V2 itself, and the handler still gets the instances as rows",
    "kservev2": "kdeploy's adapter reads V2 itself, and the handler still gets the inputs as rows",
    "json": "kdeploy's adapter reads `instances` itself; requests need the path /v1/models/NAME:predict",
    "body": "kdeploy has no such envelope: read row.get('data') or row.get('body') in the handler",
}


def read_properties(text: str, mar: str = "") -> Found:
    """Read a config.properties. `mar` is the file name of the archive, for a snapshot of several models."""
    found = Found()
    for key, value in parse_properties(text).items():
        if key in ("model_snapshot", "models"):
            _read_models(found, key, value, mar)
        elif key in _NUMBERS:
            _read_number(found, key, ("serving", _NUMBERS[key]), value)
        elif key == "default_workers_per_model":
            _read_workers(found, key, value)
        elif key == "service_envelope":
            _read_envelope(found, value)
        else:
            _read_entry(found, key, value)
    return found


def parse_properties(text: str) -> dict[str, str]:
    """Return the entries of a file in Java's format: `key=value`, `key: value`, continued lines, escapes."""
    entries = {}
    for line in _logical_lines(text):
        match = re.match(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", line, re.DOTALL)
        if match and match[1]:
            entries[_unescape(match[1])] = _unescape(match[2]).strip()
    return entries


def _logical_lines(text: str) -> Iterator[str]:
    pending = ""
    for line in [*text.splitlines(), ""]:
        stripped = line.lstrip()
        if not pending and stripped.startswith(("#", "!")):
            continue
        pending += stripped
        if (len(pending) - len(pending.rstrip("\\"))) % 2:
            pending = pending[:-1]
            continue
        if pending:
            yield pending
        pending = ""


def _unescape(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        code, letter = match.groups()
        return (
            chr(int(code, 16)) if code else {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}.get(letter, letter)
        )

    return re.sub(r"\\(?:u([0-9A-Fa-f]{4})|(.))", plain, text, flags=re.DOTALL)


def _read_models(found: Found, key: str, value: str, mar: str) -> None:
    """Read `model_snapshot`, or `models` with the same tables."""
    try:
        document = json.loads(value)
        models = document["models"] if key == "model_snapshot" else document
        every = [
            (name, version, dict(table))
            for name, versions in models.items()
            for version, table in versions.items()
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        found.note(key, "left out", "it is not JSON of models")
        return
    if not every:
        found.note(key, "left out", "it names no model")
        return
    name, _, table = _choose(every, mar)
    others = {one for one, _, _ in every} - {name}
    found.take(f"{key}: {name}", ("model", "name"), name)
    for field, inner in table.items():
        place = f"{key}: {name}.{field}"
        if field in _OF_MODEL:
            _read_number(found, place, ("serving", _OF_MODEL[field]), inner)
        elif field not in _NAMES:
            found.note(place, "left out", "write it into the model's model-config.yaml")
    for other in sorted(others):
        found.note(
            f"{key}: {other}", "left out", "kdeploy serves one model per project; take it over on its own"
        )


def _choose(every: list[tuple[str, str, dict[str, Any]]], mar: str) -> tuple[str, str, dict[str, Any]]:
    """Return the model of an archive, else the default version, else the first."""
    fits = [one for one in every if mar and one[2].get("marName") == mar] or every
    return next((one for one in fits if one[2].get("defaultVersion") is True), fits[0])


def _read_entry(found: Found, key: str, value: str) -> None:
    """Copy an entry to `[torchserve]`, unless kdeploy sets it."""
    try:
        check_entry(key, value)
    except ConfigError as error:
        found.note(key, "left out", error.what.removeprefix(f"kdeploy reserves {key}: "))
        return
    number = int(value) if _NUMBER.fullmatch(value) and str(int(value)) == value else value
    plain = {"true": True, "false": False}.get(value, number)
    if DEFAULTS.get(key) == plain:
        found.note(key, "taken over", "kdeploy sets the same value")
    else:
        found.take(key, ("torchserve", key), plain)


def _read_number(found: Found, field: str, path: tuple[str, ...], value: Any) -> None:
    """Take a whole number. TorchServe's JSON reader takes a number in quotes, too."""
    number = int(value) if _NUMBER.fullmatch(str(value)) else 0
    if number or (path[-1] == "gpu" and str(value).strip("0") == ""):
        found.take(field, path, number)
    else:
        found.note(field, "left out", f"{value!r} is not a number that kdeploy accepts")


def _read_workers(found: Found, key: str, value: str) -> None:
    if _NUMBER.fullmatch(value) and int(value):
        for ours in ("min-workers", "max-workers"):
            found.set(("serving", ours), int(value))
        found.note(key, "taken over", "serving.min-workers, serving.max-workers")
    else:
        found.note(key, "left out", f"{value!r} is not a number that kdeploy accepts")


def _read_envelope(found: Found, value: str) -> None:
    if value == "kservev2":
        found.set(("serving", "protocol-version"), "v2")
    found.note("service_envelope", "left out", _ENVELOPES.get(value, f"kdeploy does not know {value!r}"))
