"""Describes what each command prints with `-o json`: the types behind it, as a page and as JSON Schemas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from deployer.adopt.found import Adopted
from deployer.bundle import Sealed
from deployer.diff import Change
from deployer.findings import Finding
from deployer.journal import Entry
from deployer.managed_fields import Drift
from deployer.observed import Document, Observed
from deployer.predict import Resized
from deployer.predict.metrics import Metric
from deployer.predict.models import RegisteredModel
from deployer.release import Release, Traffic
from deployer.rollout.plan import Strategy
from deployer.targets.local.protocol import Info


class Setting(Struct, forbid_unknown_fields=True):
    """The value of one key, and its source: `default`, the file, the variable or the flag."""

    value: Any
    source: str


class Plan(Struct, forbid_unknown_fields=True):
    """What a rollout would do. `stored` is null if the model store was not read."""

    release: Release
    stored: bool | None
    serving: str | None
    wanted: str | None
    traffic: Traffic
    strategy: Strategy
    unchanged: bool
    findings: tuple[Finding, ...]
    documents: tuple[Document, ...]


class ArchivedFile(Struct, forbid_unknown_fields=True):
    """A file of a model archive. `source` is null if kdeploy makes it, `sha256` if it was not read yet."""

    name: str
    bytes: int
    sha256: str | None
    source: str | None


class Contents(Struct, forbid_unknown_fields=True):
    """The files of a model archive. `path` is null with `--list`, which writes no archive."""

    path: str | None
    files: tuple[ArchivedFile, ...]


class ChangedDocument(Struct, forbid_unknown_fields=True):
    """A document that would change; the values of a Secret are hidden."""

    kind: str
    name: str
    changes: tuple[Change, ...]


class Answer(Struct, forbid_unknown_fields=True):
    """The prediction for one input, or the error: both if the prediction says that the model refused it."""

    image: str
    resized: Resized | None
    prediction: Any | UnsetType = UNSET
    milliseconds: float | UnsetType = UNSET
    saved: str | UnsetType = UNSET
    error: str | UnsetType = UNSET


class Status(Observed, frozen=True, kw_only=True):
    """The state of a service as in `kdeploy list`, and the fields that others changed."""

    drift: tuple[Drift, ...]


class StoredRelease(Release, frozen=True, kw_only=True):
    """A release in the model store: when it was pushed (UTC), and whether a target needs it."""

    pushed: str
    in_use: bool


class Error(Struct, forbid_unknown_fields=True):
    """What a command that fails prints to stderr."""

    code: str
    message: str
    where: str | None
    hint: str | None
    exit_code: int
    warnings: list[str] | UnsetType = UNSET
    traceback: str | UnsetType = UNSET


# The arguments of each command, and the type of what it prints.
OUTPUTS: dict[str, Any] = {
    "adopt": list[Adopted],
    "config": dict[str, Setting],
    "doctor": list[Finding],
    "push": Release,
    "archive": Contents,
    "releases": list[StoredRelease],
    "plan": Plan,
    "render": list[Document],
    "diff": list[ChangedDocument],
    "rollout": Observed,
    "rollout --dry-run": list[Document],
    "rollout history": list[Entry],
    "status": Status,
    "list": list[Observed],
    "predict": list[Answer],
    "local status": Info,
    "metrics": list[Metric],
    "models list": list[RegisteredModel],
    "models describe": list[dict[str, Any]],
}
_SECRET = {"type": "null", "title": "Secret"}  # what holds credentials is in no output
_NAMES = {"integer": "integer", "number": "number", "string": "string", "boolean": "boolean", "null": "null"}


def schemas() -> dict[str, Any]:
    """Return one JSON Schema per command, with shared definitions in `$defs`."""
    outputs = [*OUTPUTS.values(), Error]
    (*found, error), definitions = msgspec.json.schema_components(
        outputs, ref_template="#/$defs/{name}", schema_hook=_hook
    )
    for kind in {one for output in outputs for one in _structs(msgspec.inspect.type_info(output))}:
        definition = definitions[kind.__name__]
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for key in [key for key, field in definition["properties"].items() if _is_secret(field)]:
            del definition["properties"][key]
        if not kind.__struct_config__.omit_defaults:
            definition["required"] = [
                key for key in definition["properties"] if fields[key].default is not UNSET
            ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What kdeploy prints with -o json",
        "properties": {**dict(zip(OUTPUTS, found, strict=True)), "error": error},
        "$defs": definitions,
    }


def outputs_page() -> str:
    """Describe the output of each command, and the fields of each type."""
    schema = schemas()
    lines = ["| command | output |", "|---|---|"]
    lines += [f"| `kdeploy {command}` | {_name(schema['properties'][command])} |" for command in OUTPUTS]
    lines += ["| any command that fails, on stderr | [Error](#error) |"]
    for name, definition in sorted(schema["$defs"].items()):
        described = " ".join(definition.get("description", "").split()).replace("None", "null")
        lines += ["", f"### {name}", "", f"{described}", ""]
        lines += _fields(definition)
    return "\n".join([_INTRODUCTION, *lines]) + "\n"


def _fields(definition: dict[str, Any]) -> Iterator[str]:
    if "enum" in definition:
        yield ", ".join(f"`{value}`" for value in definition["enum"])
        return
    required = definition.get("required", [])
    yield "| field | type |"
    yield "|---|---|"
    for key, field in definition["properties"].items():
        optional = "" if key in required else ", optional"
        yield f"| `{key}` | {_name(field)}{optional} |"


def _name(schema: dict[str, Any]) -> str:
    """Return the type that a schema describes, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_name(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        inner = schema.get("items") or schema.get("prefixItems", [{}])[0]
        return f"list of {_name(inner)}"
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return f"table of {_name(inner)} by name" if inner else "object"
    return _NAMES.get(schema.get("type", ""), "any value")


def _structs(kind: msgspec.inspect.Type) -> Iterator[type[Struct]]:
    """Yield every struct that a type is made of."""
    if isinstance(kind, msgspec.inspect.StructType):
        yield kind.cls
        for field in kind.fields:
            yield from _structs(field.type)
    for name in ("item_type", "value_type"):
        if inner := getattr(kind, name, None):
            yield from _structs(inner)
    for inner in getattr(kind, "types", ()):
        yield from _structs(inner)


def _is_secret(schema: dict[str, Any]) -> bool:
    return _SECRET in schema.get("anyOf", [schema])


def _hook(kind: type) -> dict[str, Any]:
    if kind is Sealed:
        return _SECRET
    raise NotImplementedError  # as msgspec asks of a hook that does not know a type


_INTRODUCTION = """\
<!-- Made from the code by `make docs`. -->

# Output of `-o json`

With `-o json` a command prints one JSON value to stdout, and nothing else. Messages for people go to stderr.
[outputs.schema.json](outputs.schema.json) has the same types as JSON Schemas. Later versions can add fields;
they do not change the type of a field.

With `-o yaml`, `kdeploy status` and `kdeploy rollout` print the InferenceService instead. The other commands
print the same data as YAML.

A command that fails prints [an error](exit-codes.md#errors) as one JSON object to stderr.

## By command
"""
