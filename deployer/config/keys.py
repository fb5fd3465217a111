"""Finds the dotted keys of the config, such as `serving.batch-size`, and their types. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from msgspec import Meta, Struct, structs

from deployer.config.schema import (
    Config,
    KServeTarget,
    LocalTarget,
    ServiceTables,
    TargetConfig,
    Variable,
    VariableSource,
)
from deployer.errors import ConfigError

_SECRET = re.compile(r"key|secret|token|password|credential|sas", re.IGNORECASE)


@cache
def fields(struct: type[Struct]) -> dict[str, Any]:
    """Return the keys of a table, with their types."""
    return {item.encode_name: item.type for item in structs.fields(struct)}


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _keys(struct: type[Struct], prefix: str = "") -> Iterator[str]:
    for key, kind in fields(struct).items():
        yield from _keys(kind, f"{prefix}{key}.") if _is_table(kind) else [prefix + key]


KEYS = tuple(_keys(Config))  # without those below names that users choose


def target_type(table: Any) -> type[Struct]:
    """Return the schema of a target by its kind: local if it is unknown."""
    kind = table.get("kind") if isinstance(table, dict) else None
    return KServeTarget if kind == KServeTarget.__struct_config__.tag else LocalTarget


def type_of(path: Sequence[str], data: Any, where: str) -> Any:
    """Return the type of a key in a config. `data` has the kinds of its targets.

    Raises ConfigError, with `where`, for an unknown key.
    """
    if path[0] == "services" and len(path) > 3 and path[2] in fields(ServiceTables):
        return type_of(path[2:], None, where)
    kind: Any = Config
    for depth, name in enumerate(path):
        kind = target_type(data) if kind == TargetConfig else bare(kind)
        kind = VariableSource if kind == bare(Variable) else kind
        if _is_table(kind):
            if name == kind.__struct_config__.tag_field:
                return Literal["local", "kserve"]
            if name not in fields(kind):
                raise _unknown_key(path[: depth + 1], fields(kind), where)
            kind = fields(kind)[name]
        else:
            kind = get_args(kind)[-1] if get_origin(kind) is dict else Any
        data = data.get(name) if isinstance(data, dict) else None
    return kind


def bare(kind: Any) -> Any:
    """Return a type without its annotations."""
    return kind.__origin__ if get_origin(kind) is Annotated else kind


def choices(kind: Any) -> list[str]:
    """Return the values of a type that allows only some; else an empty list."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [value for inner in get_args(kind) for value in choices(inner)]


def renamed(kind: Any) -> dict[str, str]:
    """Return the other names that a type accepts, each with the value that it stands for."""
    names: dict[str, str] = {}
    for inner in get_args(kind):
        names |= (inner.extra or {}).get("formerly", {}) if isinstance(inner, Meta) else renamed(inner)
    return names


def hint_of(kind: Any) -> str | None:
    """Return the hint of a type's form, or None."""
    for inner in get_args(kind):
        extra = (inner.extra or {}) if isinstance(inner, Meta) else {"hint": hint_of(inner)}
        if hint := extra.get("hint"):
            return str(hint)
    return None


def _unknown_key(path: Sequence[str], known: Collection[str], where: str) -> ConfigError:
    key, name, table = ".".join(path), path[-1], path[:-1]
    if list(table) == ["store"] and _SECRET.search(name):
        return ConfigError(
            f"{key}: credentials do not belong in a config",
            where=where,
            hint="Remove it. kdeploy reads credentials from the cloud tools' variables and files.",
        )
    if list(table) == ["model"] and name in ("archive", "mar"):
        hint = "Run `kdeploy push --mar FILE` to release a finished archive, without this key."
        return ConfigError(f"unknown key {key}", where=where, hint=hint)
    elsewhere = {other.rpartition(".")[2]: other for other in KEYS}
    candidates = [".".join([*table, near]) for near in difflib.get_close_matches(name, known, 1, 0.5)]
    candidates += [elsewhere[near] for near in difflib.get_close_matches(name, elsewhere, 1, 0.8)]
    hint = f"Did you mean {candidates[0]}?" if candidates else f"Keys of this table: {', '.join(known)}."
    return ConfigError(f"unknown key {key}", where=where, hint=hint)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested tables by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
