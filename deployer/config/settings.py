"""Folds defaults < `kdeploy.toml` < `KDEPLOY_*` < flags; each value keeps its source."""

from __future__ import annotations

import copy
import difflib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_origin

import msgspec
from msgspec import Struct

from deployer.config.checks import check_config, text_fault
from deployer.config.environment import is_service_link, variable
from deployer.config.schema import (
    Config,
    KServeTarget,
    LocalTarget,
    TargetConfig,
    TorchServeValue,
)
from deployer.errors import ConfigError
from deployer.files import is_file, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "kdeploy.toml"

# Used by commands that need no project: the target is kubeconfig's cluster.
_NO_PROJECT: dict[str, Any] = {
    "model": {"name": "unnamed", "version": "none", "handler": "none"},
    "targets": {"cluster": {"kind": "kserve"}},
}

_SECRET = re.compile(r"key|secret|token|password|credential|sas", re.IGNORECASE)

_HINTS = {
    "model.name": "lower-case letters, digits and -, a letter first, at most 46 characters",
    "model.version": 'text of letters, digits, ".", "_" and "-", in quotes: version = "1.0"',
    "store.endpoint": "http:// or https://, a host, perhaps a port; credentials are never part of it",
    "store.create-claim": 'a size, such as "10Gi"',
    "serving.cpu": 'processors, or thousandths of one: "2", "500m"',
    "serving.memory": 'a size, such as "2Gi"',
    "targets.kind": 'the kinds of target: "local", "kserve"',
    "targets.namespace": "lower-case letters, digits and -",
    "targets.ingress": "http:// or https:// and an address, or port-forward",
}
# msgspec's names of types, in plain words.
_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "a table",
    "array": "a list",
}


class Settings(Struct, frozen=True, kw_only=True):
    """A config, the folder that its paths are relative to, and where each value came from.

    `sources` maps dotted keys (`serving.batch-size`) to `default`, the file's path, the variable's
    name or the flag.
    """

    config: Config
    root: Path
    path: Path | None
    sources: dict[str, str]

    def values(self) -> Iterator[tuple[str, Any, str]]:
        """Yield every key with its value as plain data and its source, in the order of the schema."""
        flat = _flatten(msgspec.to_builtins(self.config))
        for key, value in flat.items():
            yield key, value, self.sources.get(key, "default")

    def service(self, name: str | None) -> str:
        """Return the given service name, else the project's. Raises ConfigError if there is none."""
        if name or self.path or "model.name" in self.sources:
            return name or self.config.model.name
        raise ConfigError(
            f"no service name, and no {FILE_NAME} in this folder or above",
            hint="pass the name, as in `kdeploy status NAME`; `kdeploy list` shows the services",
        )

    def located(self, where: str) -> str:
        """Return `kdeploy.toml: KEY` with what set the key in place of the file's usual name."""
        file, _, key = where.partition(": ")
        return f"{self.sources.get(key, self.path or FILE_NAME)}: {key}" if file == FILE_NAME else where


def find_file(start: Path) -> Path | None:
    """Return the nearest `kdeploy.toml`, in `start` or a folder above it."""
    candidates = (folder / FILE_NAME for folder in (start, *start.parents))
    return next((path for path in candidates if is_file(path)), None)


def load_settings(
    path: Path | None,
    *,
    environment: Mapping[str, str],
    flags: Mapping[str, str],
    folder: Path,
    allow_no_project: bool = False,
) -> Settings:
    """Fold the defaults, the file, the environment and the flags into one checked `Settings`.

    Without a `path` no file is read, and paths are relative to `folder`; with
    `allow_no_project` the target then is kubeconfig's cluster. `flags` maps dotted keys to text. Raises
    ConfigError, which names the source of the wrong value.
    """
    data = read_file(path) if path else copy.deepcopy(_NO_PROJECT) if allow_no_project else {}
    try:
        config, sources = _fold(data, path, environment, flags)
    except RecursionError as error:
        raise ConfigError("a value is nested too deeply", where=str(path or FILE_NAME)) from error
    root = path.resolve().parent if path else folder.resolve()
    return Settings(config=config, root=root, path=path, sources=sources)


def _fold(
    data: dict[str, Any], path: Path | None, environment: Mapping[str, str], flags: Mapping[str, str]
) -> tuple[Config, dict[str, str]]:
    """Return the checked config, and where each of its values came from."""
    sources = {key: str(path) for key in _flatten(data) if path}
    overrides = [(key, text, name) for name, key, text in _from_environment(environment, data)]
    overrides += [(key, text, f"--set {key}") for key, text in flags.items()]
    for key, text, source in overrides:
        _set(data, key, text, source)
        # A table that was set whole replaces what was known of its entries.
        sources = {known: value for known, value in sources.items() if not known.startswith(f"{key}.")}
        sources.update(dict.fromkeys(_flatten(_nested(key, _get(data, key))), source))
    config = _convert(data, sources, path)
    check_config(config, lambda key: f"{sources.get(key, path or FILE_NAME)}: {key}")
    return config, sources


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML file and refuse keys that the schema does not know."""
    try:
        data: dict[str, Any] = tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise ConfigError("no such file", where=str(path), hint="`kdeploy init` writes one") from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path)) from error
    _refuse_unknown(data, Config, "", str(path))
    return data


@cache
def _fields(struct: type[Struct]) -> dict[str, Any]:
    return {item.encode_name: item.type for item in msgspec.structs.fields(struct)}


def _struct_of(kind: Any) -> type[Struct] | None:
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def _refuse_unknown(data: Mapping[str, Any], struct: type[Struct], prefix: str, where: str) -> None:
    known = _fields(struct)
    for key, value in data.items():
        if key not in known:
            if key == struct.__struct_config__.tag_field:
                continue
            if prefix == "store." and _SECRET.search(key):
                raise ConfigError(
                    f"store.{key}: credentials do not belong in a config",
                    where=where,
                    hint="kdeploy reads them from the cloud tools' variables and files",
                )
            raise ConfigError(
                f"unknown key {prefix}{key}", where=where, hint=_nearest(f"{prefix}{key}", prefix, known)
            )
        inner = _struct_of(known[key])
        if inner and isinstance(value, dict):
            _refuse_unknown(value, inner, f"{prefix}{key}.", where)
        elif (prefix, key) == ("", "targets") and isinstance(value, dict):
            for name, target in value.items():
                if schema := _target_of(target):
                    _refuse_unknown(target, schema, f"targets.{name}.", where)


def _target_of(target: Any) -> type[Struct] | None:
    """Return the schema of a target by its kind; None if that is unknown."""
    kind = target.get("kind") if isinstance(target, dict) else None
    return next((s for s in (LocalTarget, KServeTarget) if s.__struct_config__.tag == kind), None)


def _nearest(key: str, prefix: str, known: Mapping[str, Any]) -> str:
    """Suggest the nearest key: of the same table, of that name elsewhere, or of the whole schema."""
    word = key.rsplit(".", 1)[-1]
    close = [prefix + name for name in difflib.get_close_matches(word, known, n=1, cutoff=0.5)]
    elsewhere = [path for path in KEYS if path.rsplit(".", 1)[-1] == word]
    candidates = close + elsewhere + difflib.get_close_matches(key, KEYS, n=1)
    return f"did you mean {candidates[0]}?" if candidates else f"known here: {', '.join(known)}"


def _keys(struct: type[Struct], prefix: str = "") -> Iterator[str]:
    for key, kind in _fields(struct).items():
        inner = _struct_of(kind)
        if inner:
            yield from _keys(inner, f"{prefix}{key}.")
        else:
            yield prefix + key


KEYS = tuple(_keys(Config))  # every key of the schema but the names that users choose


def _from_environment(
    environment: Mapping[str, str], data: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Yield (variable, key, text) for each `KDEPLOY_*` variable that sets a key.

    Variables of other tables are ignored, and what Kubernetes sets for a Service whose name begins with
    `kdeploy`. An unknown one within our tables is an error.
    """
    names = {variable(key): key for key in KEYS}
    targets = data.get("targets")
    for target, table in {"local": {}, **(targets if isinstance(targets, dict) else {})}.items():
        fields = _fields(_target_of(table) or LocalTarget)
        names |= {variable(f"targets.{target}.{key}"): f"targets.{target}.{key}" for key in fields}
    tables = tuple(variable(table) + "_" for table in _fields(Config))
    for name, text in sorted(environment.items()):
        if is_service_link(name, text) and (name not in names or "://" in text):
            continue
        if name in names:
            yield name, names[name], text
        elif name.startswith(variable("torchserve") + "_"):
            yield name, "torchserve." + name[len(variable("torchserve")) + 1 :].lower(), text
        elif name.startswith(tables):
            close = difflib.get_close_matches(name, names, n=1)
            raise ConfigError(
                "unknown variable",
                where=name,
                hint=f"did you mean {close[0]}?" if close else "unset it",
            )


def _set(data: dict[str, Any], key: str, text: str, source: str) -> None:
    """Set a dotted key from text, as the type that the schema wants there."""
    *tables, last = key.split(".")
    if fault := text_fault(key + text):
        raise ConfigError(fault, where=f"{source}: {key}", hint="write it in UTF-8")
    if tables[:1] != ["targets"]:
        _refuse_unknown(_nested(key, None), Config, "", source)
    table = data
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{name} is not a table", where=source)
    if len(tables) == 2 and tables[0] == "targets":
        _set_of_target(table, ".".join(tables), last, text, source)
    else:
        table[last] = _parse(text, _leaf_type(tables, last), source, key)


def _set_of_target(target: dict[str, Any], prefix: str, last: str, text: str, source: str) -> None:
    """Set a key of a target, whose kind says which keys it has; a new one is local by default."""
    if last == "kind":
        target[last] = text
        return
    target.setdefault("kind", "local")
    kind = _target_of(target) or LocalTarget
    _refuse_unknown({last: None}, kind, f"{prefix}.", source)
    target[last] = _parse(text, _fields(kind)[last], source, f"targets.{last}")


def _leaf_type(tables: list[str], last: str) -> Any:
    if tables == ["torchserve"]:
        return TorchServeValue
    if tables == ["serving", "env"]:
        return str
    struct: type[Struct] = Config
    for name in tables:
        struct = _struct_of(_fields(struct).get(name)) or Config
    return _fields(struct).get(last, Any)


def _parse(text: str, kind: Any, source: str, key: str) -> Any:
    """Parse the text of a variable or flag: words and numbers as they are, the rest as JSON."""
    if kind is TorchServeValue:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return msgspec.to_builtins(msgspec.convert(text, kind, strict=False))
    except msgspec.ValidationError as plain:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, (list, dict)):
            return value
        plain_kind = get_origin(getattr(kind, "__origin__", kind))  # what Annotated annotates
        hint = "write lists and tables as JSON" if plain_kind in (tuple, dict) else None
        raise ConfigError(_sentence(plain), where=source, hint=hint or _HINTS.get(key)) from plain


def _get(data: Mapping[str, Any], key: str) -> Any:
    value: Any = data
    for name in key.split("."):
        value = value[name]
    return value


def _nested(key: str, value: Any) -> dict[str, Any]:
    head, _, tail = key.partition(".")
    return {head: _nested(tail, value) if tail else value}


def _flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _convert(data: dict[str, Any], sources: Mapping[str, str], path: Path | None) -> Config:
    try:
        return msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        key = schema_key = _path_of(error)
        if key.partition(".")[0] == "targets" and isinstance(data["targets"], dict):
            key = key.replace("targets", f"targets.{_wrong_target(data['targets'])}", 1)
        below = (name for inner, name in sources.items() if key and inner.startswith(f"{key}."))
        source = sources.get(key) or next(below, str(path) if path else FILE_NAME)
        if missing := re.match(r"Object missing required field `(.+?)`", str(error)):
            lacking = f"{key}.{missing[1]}".strip(".")
            hint = _HINTS.get(f"{schema_key}.{missing[1]}")
            hint = hint if path else f"no {FILE_NAME} in this folder or above: `kdeploy init` writes one"
            raise ConfigError(f"{lacking} is not set", where=source, hint=hint) from error
        where = f"{source}: {key}" if key else source
        raise ConfigError(_sentence(error), where=where, hint=_HINTS.get(schema_key)) from error


def _path_of(error: msgspec.ValidationError) -> str:
    match = re.search(r" - at `(?:key in )?\$\.?(.*)`$", str(error))
    return re.sub(r"\[.*?\]", "", match.group(1)) if match else ""


def _wrong_target(targets: Mapping[str, Any]) -> str:
    """Name the first invalid target: an error's path does not contain the keys of a mapping."""

    def wrong(target: object) -> bool:
        try:
            msgspec.convert(target, TargetConfig)
        except msgspec.ValidationError:
            return True
        return False

    return next(name for name, target in targets.items() if wrong(target))


def _sentence(error: msgspec.ValidationError) -> str:
    text = re.sub(r" - at `.*`$", "", str(error))
    text = re.sub(r" matching regex .*", " of another form", text, flags=re.DOTALL)
    text = re.sub(r"`([a-z| ]+)`", lambda match: _type_text(match[1]), text)
    return text[0].lower() + text[1:]


def _type_text(kinds: str) -> str:
    return " or ".join(_TYPES.get(kind, kind) for kind in kinds.split(" | ") if kind != "null")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of `kdeploy.toml`, for editors."""
    schema = msgspec.json.schema(Config)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FILE_NAME, **schema}
