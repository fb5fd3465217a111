"""Merges defaults < `kdeploy.toml` < `KDEPLOY_*` < flags; each value keeps its source."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_origin

import msgspec
from msgspec import Struct

from deployer.config.checks import SERVICE_NAMES, check_config, is_service_name, text_fault, to_service_name
from deployer.config.environment import keys_from_environment
from deployer.config.keys import bare, choices, fields, flatten, hint_of, renamed, type_of
from deployer.config.model_config import read_model_config
from deployer.config.overlays import read_overlays
from deployer.config.schema import (
    Config,
    ServiceTables,
    TargetConfig,
    TorchServeValue,
    Variable,
    VariableSource,
)
from deployer.config.services import merge_service
from deployer.errors import ConfigError, use_one_of
from deployer.files import is_file, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "kdeploy.toml"

# For commands that need no project: the target is kubeconfig's cluster.
_NO_PROJECT: dict[str, Any] = {
    "model": {"name": "unnamed", "version": "none", "handler": "none"},
    "targets": {"cluster": {"kind": "kserve"}},
}

# Keys of `[model]` that a finished archive replaces.
_FILES = ("handler", "serialized-file", "model-file", "extra-files", "requirements-file", "config-file")

# msgspec's names of types, in plain words.
_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "a table",
    "array": "a list",
}


class ReadyArchive(Struct, frozen=True):
    """A finished model archive in place of the project's files.

    `folder` has its files, `manifest` its MANIFEST.json, and `model` the keys of `[model]` that stand for it.
    """

    path: Path
    folder: Path
    manifest: dict[str, Any]
    model: dict[str, str]


class Settings(Struct, frozen=True, kw_only=True):
    """A config, the folder that its paths are relative to, and the source of each value.

    `sources` maps dotted keys (`serving.batch-size`) to `default`, the file's path, the variable's
    name or the flag. `warnings` are about settings that have no effect, `notes` about values with another
    name.
    """

    config: Config
    root: Path
    path: Path | None
    sources: dict[str, str]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ready: ReadyArchive | None = None

    def values(self) -> Iterator[tuple[str, Any, str]]:
        """Yield every key with its value as plain data and its source, in the order of the schema."""
        for key, value in flatten(msgspec.to_builtins(self.config)).items():
            yield key, value, self.sources.get(key, "default")

    def service(self, name: str | None) -> str:
        """Return the given service name, else the project's. Raises ConfigError if there is none."""
        config = self.config
        if name or config.service.name:
            return name or config.service.name or ""
        if not self.path and "model.name" not in self.sources:
            raise ConfigError(
                f"no service name, and no {FILE_NAME} in this folder or above",
                hint="Pass the name, as in `kdeploy status NAME`. Run `kdeploy list` to list the services.",
            )
        if config.services:
            raise ConfigError(
                f"several services: {', '.join(config.services)}",
                where=self.located(f"{FILE_NAME}: services"),
                hint="Name one, as in `kdeploy rollout --service NAME` and `kdeploy status NAME`, "
                "or set service.name as the default.",
            )
        name = to_service_name(config.model.name) if self.ready else config.model.name
        if not is_service_name(name):
            raise ConfigError(
                f"the model's name {config.model.name!r} cannot be the name of a service",
                where=self.located(f"{FILE_NAME}: model.name"),
                hint=f"Set service.name. {SERVICE_NAMES}",
            )
        return name

    def located(self, where: str) -> str:
        """Return `kdeploy.toml: KEY` with the source of the key in place of the file's usual name."""
        file, _, key = where.partition(": ")
        source = self.sources.get(key, str(self.path or FILE_NAME))
        return _place(source, key) if file == FILE_NAME else where


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
    service: str | None = None,
    ready: ReadyArchive | None = None,
    allow_no_project: bool = False,
) -> Settings:
    """Merge the defaults, the file, the environment and the flags into one checked `Settings`.

    `service` is the service to choose among several, `ready` an archive that replaces the project's files.
    Without a `path` no file is read, and paths are relative to `folder`; with `allow_no_project` the target
    then is kubeconfig's cluster. `flags` maps dotted keys to text. Raises ConfigError, which names the source
    of the wrong value.
    """
    data = read_file(path) if path else copy.deepcopy(_NO_PROJECT) if allow_no_project else {}
    root = path.resolve().parent if path else folder.resolve()
    try:
        settings = _merge(copy.deepcopy(data), path, environment, flags, root, service, ready)
        for other in settings.config.services:  # so that a mistake does not wait until the service is chosen
            if other != settings.config.service.name:
                _merge(copy.deepcopy(data), path, environment, flags, root, other, ready)
        return settings
    except RecursionError as error:
        raise ConfigError("a value is nested too deeply", where=str(path or FILE_NAME)) from error


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises ConfigError."""
    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise ConfigError(
            "file not found", where=str(path), hint="Run `kdeploy init` to write one."
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"invalid TOML: {error}", where=str(path)) from error


def _merge(
    data: dict[str, Any],
    path: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, str],
    root: Path,
    service: str | None,
    ready: ReadyArchive | None,
) -> Settings:
    """Return the checked settings."""
    sources = {key: str(path) for key in flatten(data) if path}
    overrides = [(key, text, name) for name, key, text in keys_from_environment(environment, data)]
    overrides += [(key, text, f"--set {key}") for key, text in flags.items()]
    # What chooses a service, or changes one, comes before the service's own values.
    of_services = [one for one in overrides if one[0].startswith(("service.", "services."))]
    _override(data, sources, of_services)
    sources |= merge_service(data, service, str(path or FILE_NAME))
    _override(data, sources, [one for one in overrides if one not in of_services])
    notes = tuple(_rename(data, sources))
    warnings = list(_apply_ready(data, sources, ready)) if ready else []
    warnings += _apply_model_config(data, sources, ready.folder if ready else root)
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise _explained(error, data, sources, path) from error
    where = partial(_where, sources, path)
    config = read_overlays(config, root, where)
    check_config(config, where)
    return Settings(
        config=config,
        root=root,
        path=path,
        sources=sources,
        warnings=tuple(warnings),
        notes=notes,
        ready=ready,
    )


def _rename(data: dict[str, Any], sources: Mapping[str, str]) -> Iterator[str]:
    """Replace other names of values, in place; yield a note for each."""
    for key, value in flatten(data).items():
        path = key.split(".")
        with suppress(ConfigError):  # an unknown key, which is reported later
            if isinstance(value, str) and (name := renamed(type_of(path, data, "")).get(value)):
                table = data
                for step in path[:-1]:
                    table = table[step]
                table[path[-1]] = name
                yield f"{_place(sources.get(key, FILE_NAME), key)}: {value} is read as {name}"


def _apply_ready(data: dict[str, Any], sources: dict[str, str], ready: ReadyArchive) -> Iterator[str]:
    """Take the model's files from a finished archive, and what else is not set; yield warnings."""
    model = data.setdefault("model", {})
    if not isinstance(model, dict):
        return  # the schema refuses it
    for key in _FILES:
        model.pop(key, None)
        sources.pop(f"model.{key}", None)
    for key, value in ready.model.items():
        if key not in model:
            model[key], sources[f"model.{key}"] = value, str(ready.path)
        elif model[key] != value:
            place = _place(sources.get(f"model.{key}", FILE_NAME), f"model.{key}")
            yield f"{place}: {model[key]} replaces {value} of {ready.path.name}"


def _apply_model_config(data: dict[str, Any], sources: dict[str, str], root: Path) -> Iterator[str]:
    """Take the settings of the model's model-config.yaml where nothing else sets them; yield warnings."""
    model, serving = data.get("model"), data.setdefault("serving", {})
    if not isinstance(model, dict) or not isinstance(serving, dict):
        return  # the schema refuses it
    file = read_model_config(model.get("config-file"), root)
    for key, value in file.defaults(serving).items():
        serving[key], sources[f"serving.{key}"] = value, str(root / file.file)
    for key, overruled in file.overruled(serving):
        place = _place(sources[f"serving.{key}"], f"serving.{key}")
        yield f"{place}: {serving[key]} overrides {overruled}"
    gpus = serving.get("gpu", 0)
    if isinstance(gpus, int):
        yield from file.doubts(gpus)


def _override(
    data: dict[str, Any], sources: dict[str, str], overrides: Iterable[tuple[str, str, str]]
) -> None:
    """Set keys from texts, and note their sources."""
    for key, text, source in overrides:
        value = _set(data, key, text, source)
        # A value for a whole table replaces the sources of its entries.
        for known in [known for known in sources if known.startswith(f"{key}.")]:
            del sources[known]
        sources.update(dict.fromkeys(flatten({key: value}), source))


def _set(data: dict[str, Any], key: str, text: str, source: str) -> Any:
    """Set a dotted key from text, converted to the key's type, and return its value."""
    if fault := text_fault(key + text):
        raise ConfigError(fault, where=_place(source, key), hint="Write the value in UTF-8.")
    *tables, last = path = key.split(".")
    table = data
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{name} is not a table", where=source)
    if len(path) == 3 and path[0] == "targets" and last != "kind":
        table.setdefault("kind", "local")
    table[last] = _parse(text, type_of(path, data, source), source)
    return table[last]


def _parse(text: str, kind: Any, source: str) -> Any:
    """Parse the text of a variable or flag: words and numbers as they are, the rest as JSON."""
    if kind is Any:
        with suppress(ValueError, RecursionError):
            return json.loads(text)
        return text
    if text in renamed(kind):
        return text  # replaced when all values are known
    if bare(kind) == bare(Variable):
        with suppress(ValueError, RecursionError):
            value = json.loads(text)
            if isinstance(value, dict) and value.keys() <= {*fields(VariableSource)}:
                return value
        return text
    if kind == TorchServeValue:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return msgspec.to_builtins(msgspec.convert(text, kind, strict=False))
    except msgspec.ValidationError as error:
        with suppress(ValueError, RecursionError):
            value = json.loads(text)
            if isinstance(value, list | dict):
                return value
        is_nested = get_origin(bare(kind)) in (tuple, dict)
        hint = "Write lists and tables as JSON." if is_nested else _hint(kind, text)
        raise ConfigError(_sentence(str(error)), where=source, hint=hint) from error


def _explained(
    error: msgspec.ValidationError, data: dict[str, Any], sources: Mapping[str, str], path: Path | None
) -> ConfigError:
    """Return the error for a config that does not fit the schema, with the source of the wrong value."""
    what, _, place = str(error).partition(" - at `$.")
    steps = [step for step in re.sub(r"\[.*?\]", "", place).rstrip("`").split(".") if step]
    # msgspec's path does not contain the keys of a mapping.
    if place.startswith("targets["):
        steps.insert(1, _first_misfit(data["targets"], TargetConfig))
    elif place.startswith("services["):
        steps.insert(1, _first_misfit(data["services"], ServiceTables))
    elif place.startswith("serving.env["):
        steps.insert(2, _first_misfit(data["serving"]["env"], Variable))
    field = re.fullmatch("Object (missing required|contains unknown) field `(.+)`", what, re.DOTALL)
    steps += [field[2]] if field else []
    source = _source(steps, sources) or str(path or FILE_NAME)
    kind = type_of(steps, data, source)  # raises the error for an unknown key
    key = ".".join(steps)
    if field:
        hint = _hint(kind, "") if path else f"Run `kdeploy init` to write a {FILE_NAME}."
        return ConfigError(f"{key} is not set", where=source, hint=hint)
    return ConfigError(_sentence(what), where=_place(source, key), hint=_hint(kind, what))


def _where(sources: Mapping[str, str], path: Path | None, key: str) -> str:
    """Return the place where a key was set."""
    return _place(_source(key.split("."), sources) or str(path or FILE_NAME), key)


def _place(source: str, key: str) -> str:
    """Return the place of a key in its source. The flag `--set KEY` names the key itself."""
    if source == f"--set {key}":
        return source
    return f"{source}.{key}" if ": " in source else f"{source}: {key}"  # of a service's tables


def _source(path: list[str], sources: Mapping[str, str]) -> str | None:
    """Return the source of a key, else of the nearest one that has a source."""
    for depth in range(len(path), 0, -1):
        key = ".".join(path[:depth])
        for known, source in sources.items():
            if f"{known}.".startswith(f"{key}."):
                return source
    return None


def _first_misfit(table: Mapping[str, Any], kind: Any) -> str:
    """Return the key of the first value that is not of a type."""

    def fits(value: object) -> bool:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            return False
        return True

    return next(name for name, value in table.items() if not fits(value))


def _hint(kind: Any, wrong: str) -> str | None:
    """Return the hint for a wrong value of a type. `wrong` ends with the value."""
    if (hint := hint_of(kind)) or not (values := choices(kind)):
        return hint
    return use_one_of(wrong.rpartition(" ")[2].strip("'"), values)


def _sentence(what: str) -> str:
    """Return an error of msgspec in plain words."""

    def in_words(match: re.Match[str]) -> str:
        return " or ".join(_TYPES.get(kind, kind) for kind in match[1].split(" | ") if kind != "null")

    text = re.sub("^Expected .* matching regex .*", "Invalid value", what, flags=re.DOTALL)
    text = re.sub(r"`([a-z| ]+)`", in_words, text.replace("enum value", "value"))
    return text[0].lower() + text[1:]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of `kdeploy.toml`, for editors."""
    schema = msgspec.json.schema(Config)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FILE_NAME, **schema}
