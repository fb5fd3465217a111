"""Describes every key of kdeploy.toml, from its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from deployer.config import json_schema

# The tables of kdeploy.toml, in the order of the page, and the schema's name of each.
TABLES = {
    "`[model]`": "Model",
    "`[service]`": "Service",
    "`[services.NAME]`": "ServiceTables",
    "`[serving]`": "Serving",
    "`[scaling]`": "Scaling",
    "`[store]`": "Store",
    "`[targets.NAME]`, kind `local`": "LocalTarget",
    "`[targets.NAME]`, kind `kserve`": "KServeTarget",
}


def configuration_page() -> str:
    """Describe each table, its keys, their types, defaults and meanings."""
    definitions = json_schema()["$defs"]
    lines = [_INTRODUCTION]
    for title, name in TABLES.items():
        text = " ".join(definitions[name]["description"].partition(": ")[2].split())
        lines += [
            f"\n## {title}\n",
            text[0].upper() + text[1:],
            "",
            "| key | value | default | meaning |",
            "|---|---|---|---|",
        ]
        lines += _rows(definitions[name])
    return "\n".join([*lines, _TORCHSERVE])


def _rows(definition: dict[str, Any]) -> Iterator[str]:
    required = definition["required"]
    for key, schema in definition["properties"].items():
        default = "required" if key in required else _default(schema.get("default"))
        yield f"| `{key}` | {_value(schema)} | {default} | {schema.get('description', '')} |"


def _default(value: object) -> str:
    return "" if value in (None, [], {}, ()) else f"`{json.dumps(value)}`"


def _value(schema: dict[str, Any]) -> str:
    """Return the values that a key takes, in words."""
    if "anyOf" in schema:
        return _value(next(one for one in schema["anyOf"] if one.get("type") != "null"))
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema["type"] == "array":
        return "list of files" if "anyOf" in schema["items"] else "list of strings"
    if schema["type"] == "object":
        return (
            "table of strings" if schema.get("additionalProperties", {}).get("type") == "string" else "table"
        )
    if schema["type"] in ("integer", "number"):
        return _number(schema)
    return {"string": "string", "boolean": "`true` or `false`"}[schema["type"]]


def _number(schema: dict[str, Any]) -> str:
    name = "integer" if schema["type"] == "integer" else "number"
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    if highest is not None:
        return f"{name} from {lowest} to {highest}"
    return f"{name}, at least {lowest}" if lowest is not None else name


_INTRODUCTION = """\
<!-- Made from the code by `make docs`. -->

# kdeploy.toml

kdeploy reads the nearest `kdeploy.toml`, in the current folder or in one above it. Paths are relative to the
folder of the file. Each key can also be set by [an environment variable](environment.md) or by a flag, as in
`--set serving.batch-size=4`. `kdeploy config` shows each value and its source.

[kdeploy.toml](kdeploy.toml) is an example with every key. [kdeploy.schema.json](kdeploy.schema.json) is the
schema for editors; `kdeploy config --schema` prints it.
"""

_TORCHSERVE = """
## `[torchserve]`

Keys and values of this table, such as `netty_client_threads = 4`, are copied to `config.properties`.
Keys that kdeploy sets itself are rejected.
"""
