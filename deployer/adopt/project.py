"""Writes a project that serves what served before: from a model archive, a config.properties, a service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from deployer.adopt.found import Adopted, Found, encode_toml
from deployer.adopt.service import TARGET, read_service
from deployer.adopt.torchserve import read_properties
from deployer.archive.extra_files import ExtraFiles
from deployer.archive.ready import files_of, read_manifest, read_model, unpack
from deployer.config import FILE_NAME, is_service_name, load_settings, to_service_name
from deployer.errors import ConfigError
from deployer.files import exists, read_text, remove_tree, walk
from deployer.observed import Document
from deployer.scaffold import IGNORED

FILES = "model"  # the folder with the files of the archive

_FILE_KEYS = ("handler", "serialized-file", "model-file", "requirements-file", "config-file")
_OF_MANIFEST = {"createdOn", "runtime", "model", "archiverVersion"}
_OF_MODEL = {
    "modelName",
    "modelVersion",
    "handler",
    "serializedFile",
    "modelFile",
    "requirementsFile",
    "configFile",
}
_ORDER = ("service", "serving", "scaling", "torchserve", "store")
_HEAD = "# `kdeploy config` shows every setting, its value and its source."
_WITHOUT = {"name": "my-model", "version": "1.0", "handler": "handler.py"}  # until there are files


class Written(Struct, frozen=True):
    """The content of a new kdeploy.toml, what became of each field, and what is still wrong in it."""

    text: str
    lines: tuple[Adopted, ...]
    paths: tuple[Path, ...] = ()
    fault: ConfigError | None = None


def read_yaml_service(path: Path) -> Document:
    """Return the InferenceService in a YAML file. Raises ConfigError."""
    import yaml

    try:
        documents = [one for one in yaml.safe_load_all(read_text(path)) if isinstance(one, dict)]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", where="--isvc") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"invalid YAML: {error}", where=str(path)) from error
    every = [item for one in documents for item in (one.get("items") or [one] if _is_list(one) else [one])]
    found = [one for one in every if isinstance(one, dict) and one.get("kind") == "InferenceService"]
    if len(found) != 1:
        what = f"{len(found)} InferenceServices, expected one"
        raise ConfigError(what, where=str(path), hint="Write the InferenceService of the model into a file.")
    return found[0]


def _is_list(document: Document) -> bool:
    return document.get("kind") == "List" and isinstance(document.get("items"), list)


def write_project(
    folder: Path,
    *,
    mar: Path | None = None,
    properties: Path | None = None,
    service: Document | None = None,
    name: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Written:
    """Write a kdeploy.toml, and the files of an archive; with `dry_run`, only return the content.

    Raises ConfigError or ArchiveError, before writing anything, for what cannot be read, and for a
    kdeploy.toml that exists, unless `force` replaces it.
    """
    file, files = folder / FILE_NAME, folder / FILES
    if exists(file) and not (force or dry_run):
        hint = "Add `--force` to replace it, or choose another folder."
        raise ConfigError("file already exists", where=str(file), hint=hint)
    if mar and exists(files) and not dry_run:  # it can be the user's: nothing replaces it
        hint = "Remove or rename it: the files of the archive need this name."
        raise ConfigError("folder already exists", where=str(files), hint=hint)
    found = Found()
    if properties:
        found.add(_read_properties(properties, mar))
    if service:
        found.add(read_service(service))
    building, new = folder / ".kdeploy" / FILES, not exists(folder)
    try:
        building.parent.mkdir(parents=True, exist_ok=True)
        if mar:
            remove_tree(building)
            unpack(mar, building)
            base = _read_archive(building, mar)
            base.add(found)
            found = base
        text, fault = _compose(found, name, folder)
        paths = [] if dry_run else list(_write(folder, text, building if mar else None))
        return Written(text, tuple(found.lines), tuple(paths), fault)
    except OSError as error:
        what = f"cannot write the project: {error.strerror}"
        hint = "Give yourself permission to write there, or choose another folder."
        raise ConfigError(what, where=str(error.filename), hint=hint) from error
    finally:
        remove_tree(building)
        with suppress(OSError):
            building.parent.rmdir()  # if it is empty
            if new:
                folder.rmdir()


def _read_properties(path: Path, mar: Path | None) -> Found:
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", where="--properties") from error
    return read_properties(text, mar.name if mar else "")


def _read_archive(unpacked: Path, mar: Path) -> Found:
    """Return the keys of `[model]` for an unpacked archive; leave only the user's files there."""
    found = Found()
    manifest = read_manifest(unpacked)
    model = read_model(manifest, unpacked, mar)
    kept = {name for name, _ in files_of(unpacked)}
    for entry in list(walk(unpacked)):
        if Path(entry.path).relative_to(unpacked).as_posix() not in kept:
            Path(entry.path).unlink()
    remove_tree(unpacked / "MAR-INF")
    named = {file for key, value in model.items() if (file := _file_of(key, value)) in kept}
    for key, value in model.items():
        found.set(("model", key), f"{FILES}/{value}" if _file_of(key, value) in named else value)
    if kept - named:
        found.set(("model", "extra-files"), [FILES])
    packed = {name for name, _ in ExtraFiles(unpacked.parent).find([FILES])}
    for name in sorted(kept - packed - named):
        reason = "it looks like a secret or a cache; to pack it, name it in model.extra-files"
        found.note(f"file {name}", "left out", reason)
    for key in sorted(manifest.keys() - _OF_MANIFEST) + sorted(manifest["model"].keys() - _OF_MODEL):
        reason = "kdeploy writes the manifest; `kdeploy push --mar` keeps this key"
        found.note(f"MANIFEST.json: {key}", "left out", reason)
    return found


def _file_of(key: str, value: str) -> str:
    if key not in _FILE_KEYS:
        return ""
    file = value.partition(":")[0] if key == "handler" else value
    return file if key != "handler" or file.endswith(".py") else f"{file}.py"


def _compose(found: Found, name: str | None, folder: Path) -> tuple[str, ConfigError | None]:
    """Return the content of kdeploy.toml, and what the program finds wrong in it."""
    tables = found.tables
    service = tables.get("service", {}).get("name")
    own = {"name": service} if service else {}
    model = {**_WITHOUT, **own, **tables.pop("model", {})}
    model |= {"name": name} if name else {}
    if service == model["name"]:
        tables.pop("service")
    elif not service and not is_service_name(model["name"]) and (ours := to_service_name(model["name"])):
        tables["service"] = {"name": ours}
    clusters = tables.pop("targets", {})
    namespaces = {key: value for one in clusters.values() for key, value in one.items() if key == "namespace"}
    targets = {**clusters, "local": {"kind": "local", **namespaces}}
    ordered = {"model": model} | {key: tables[key] for key in _ORDER if key in tables} | {"targets": targets}
    head = {"default-target": TARGET} if clusters else {}
    text = "\n".join([_HEAD, *encode_toml({**head, **ordered})]) + "\n"
    probe = folder / ".kdeploy" / "checked.toml"
    probe.write_text(text, "utf-8")
    try:
        load_settings(probe, environment={}, flags={}, folder=folder)
    except ConfigError as error:
        error.where = error.where and error.where.replace(str(probe), FILE_NAME)
        return text, error
    finally:
        probe.unlink()
    return text, None


def _write(folder: Path, text: str, unpacked: Path | None) -> Iterator[Path]:
    """Write the project, the kdeploy.toml last; yield the paths."""
    if unpacked:
        yield unpacked.rename(folder / FILES)
    if not exists(folder / ".gitignore"):
        (folder / ".gitignore").write_text(IGNORED, "utf-8")
        yield folder / ".gitignore"
    (folder / FILE_NAME).write_text(text, "utf-8")
    yield folder / FILE_NAME
