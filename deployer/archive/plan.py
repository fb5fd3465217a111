"""Plans the members of an archive from `[model]`. Every file is checked; only small ones are read.

The members and the manifest are torch-model-archiver's, plus the handler adapter, and `useVenv` if there are
requirements. torch-model-archiver's own code makes the manifest.
"""

from __future__ import annotations

import difflib
import io
import json
import posixpath
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deployer.archive.digests import DigestCache
from deployer.archive.extra_files import KEY as EXTRA_FILES_KEY
from deployer.archive.extra_files import ExtraFiles
from deployer.archive.files import OURS, Files
from deployer.archive.left_out import warn_of_secrets
from deployer.archive.lint import HANDLER_KEY, check_sources
from deployer.archive.members import Archive, file_name, names_fault
from deployer.archive.model_config import MODEL_CONFIG, USE_VENV, with_use_venv
from deployer.archive.requirement_files import add_requirements
from deployer.archive.serving_files import add_serving_files
from deployer.archive.stream import unreadable
from deployer.config import Model, Serving
from deployer.errors import ArchiveError
from deployer.shipped import shipped

ADAPTER = "kdeploy_handler.py"
SETTINGS = "kdeploy_handler.json"
MANIFEST = "MAR-INF/MANIFEST.json"

MODEL_FILE_KEY = "kdeploy.toml: model.model-file"
WEIGHTS_KEY = "kdeploy.toml: model.serialized-file"
CONFIG_KEY = "kdeploy.toml: model.config-file"

_CREATED_ON = "01/01/1980 00:00:00"  # a fixed date, so that the same inputs give the same bytes
_ARCHIVES = (".mar", ".war")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ZIP_START, _ZIP_END, _ZIP_END_WITHIN = b"PK\x03\x04", b"PK\x05\x06", 22 + 0xFFFF


class _Handler(NamedTuple):
    """What `model.handler` means: the text for the adapter, and the file; None for TorchServe's own."""

    written: str
    file: str | None
    function: str | None = None


class Packed(NamedTuple):
    """A finished archive in place of the model's files: its folder, its names and files, and its manifest."""

    folder: Path
    files: Sequence[tuple[str, Path]]
    manifest: Mapping[str, Any]


def plan_archive(
    model: Model,
    root: Path,
    digests: DigestCache,
    *,
    serving: Serving | None = None,
    outputs: Collection[Path] = (),
    packed: Packed | None = None,
) -> Archive:
    """Plan the archive of a model whose paths are relative to the folder `root`. Writes nothing.

    `serving` can name files, too.
    `outputs` are paths that kdeploy writes, such as the model store: no folder or glob packs them.
    With `packed`, the model's paths are relative to that folder.
    Files above 256 KiB are not read: their digest comes from `digests`, or stays unknown. Raises
    `ArchiveError`, at the key of `kdeploy.toml` or the file and line, for errors that packing or TorchServe
    would certainly run into. The archive's `warnings` name likely ones.
    """
    handler = _parse_handler(model.handler)
    files = Files(packed.folder if packed else root, digests)
    if handler.file is not None:
        near = difflib.get_close_matches(handler.written, _builtin_handlers(), n=1)
        files.add(HANDLER_KEY, handler.file, hint=f"Did you mean TorchServe's {near[0]}?" if near else None)
    if model.model_file is not None:
        files.add(MODEL_FILE_KEY, model.model_file)
    if model.serialized_file is not None:
        _add_weights(files, model.serialized_file)
    archives = [file_name(model.name, kind) for kind in ("zip-store", "tgz")]
    extras = ExtraFiles(root, outputs, archives)
    for name, path in packed.files if packed else extras.find(model.extra_files):
        files.add(EXTRA_FILES_KEY, path, name)
    add_serving_files(files, serving or Serving(), root)
    requirements = add_requirements(files, model.requirements_file, int(model.python.partition(".")[2]))
    config_file = _add_config(files, model)
    for name, content in _adapter().items():
        files.add_own(name, content)
    files.add_own(SETTINGS, _settings(model, handler.written))
    files.add_own(MANIFEST, _manifest(model, config_file, packed.manifest if packed else {}))
    if fault := names_fault(files.members):
        raise ArchiveError(fault, where=EXTRA_FILES_KEY)
    entry = (posixpath.basename(handler.file) if handler.file else None, handler.function)
    sources = [source for _, source in sorted(files.sources.items())]
    return Archive(
        name=model.name,
        version=model.version,
        format=model.archive_format,
        members=tuple(member for _, member in sorted(files.members.items())),
        warnings=(
            *extras.warnings(),
            *warn_of_secrets(packed.files if packed else ()),
            *requirements.warnings,
            *check_sources(sources, files.members, model, entry, requirements, root),
        ),
        notes=tuple(extras.notes()),
    )


def _settings(model: Model, handler: str) -> bytes:
    """Return what the adapter reads: the handler, and the settings that are not its defaults."""
    settings = {"handler": handler}
    if model.body != "adapter":
        settings["body"] = model.body
    if model.v2_rows != "tensor":
        settings["v2_rows"] = model.v2_rows
    return json.dumps(settings).encode() + b"\n"


def _builtin_handlers() -> Collection[str]:
    from model_archiver.model_packaging_utils import model_handlers

    return list(model_handlers)


def _parse_handler(value: str) -> _Handler:
    if value.endswith(_ARCHIVES):
        raise _is_archive(value, HANDLER_KEY)
    if value in _builtin_handlers():
        return _Handler(value, None)
    folder, written = posixpath.split(value)
    file, colon, function = written.partition(":")
    if colon and not function.isidentifier():
        raise ArchiveError(
            f"invalid function name {function!r}",
            where=HANDLER_KEY,
            hint="Write a file, `file.py:function`, or the name of a TorchServe handler.",
        )
    module = file.removesuffix(".py")
    if not module or "." in module:
        raise ArchiveError(
            f"cannot import {file!r} as a module",
            where=HANDLER_KEY,
            hint="Name a Python file without another dot in its name.",
        )
    return _Handler(written, posixpath.join(folder, f"{module}.py"), function or None)


def _is_archive(file: str, key: str) -> ArchiveError:
    hint = f"Run `kdeploy push --mar {file}` to release it, or `kdeploy init --from-mar {file}` to unpack it."
    return ArchiveError(f"{file} is a model archive", where=key, hint=hint)


def _add_weights(files: Files, file: str) -> None:
    if file.endswith(_ARCHIVES):
        raise _is_archive(file, WEIGHTS_KEY)
    name = files.add(WEIGHTS_KEY, file)
    if files.members[name].size == 0:
        raise ArchiveError(f"{file} is empty", where=WEIGHTS_KEY, hint="Save the weights again.")
    with files.open(WEIGHTS_KEY, files.root / file) as weights:
        start = weights.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            hint = "Run `git lfs pull`, then run the command again."
            raise ArchiveError(
                f"{file} is a pointer of Git LFS, not the weights", where=WEIGHTS_KEY, hint=hint
            )
        if start.startswith(_ZIP_START):  # torch.save writes a zip
            weights.seek(max(0, weights.seek(0, io.SEEK_END) - _ZIP_END_WITHIN))
            end = weights.read(_ZIP_END_WITHIN)
            if MANIFEST.encode() in end:
                raise _is_archive(file, WEIGHTS_KEY)
            if _ZIP_END not in end:
                hint = "Save or copy the weights again."
                raise ArchiveError(f"{file} is truncated", where=WEIGHTS_KEY, hint=hint)


def _add_config(files: Files, model: Model) -> str | None:
    """Add TorchServe's model-config.yaml, if there is one or `useVenv` needs one, and return its name."""
    has_requirements = model.requirements_file is not None
    if model.config_file is None:
        if not has_requirements:
            return None
        files.add_own(MODEL_CONFIG, USE_VENV)
        return MODEL_CONFIG
    name = files.add(CONFIG_KEY, model.config_file)
    content = files.content(CONFIG_KEY, name)
    files.replace(name, with_use_venv(content, model.config_file, wanted=has_requirements))
    return name


def _adapter() -> dict[str, bytes]:
    """Return the modules of the handler adapter by their names in the archive."""
    folder = shipped("handler")
    try:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.match(f"{OURS}*.py")}
    except OSError as error:
        what = unreadable("handler adapter", error)
        raise ArchiveError(what, where=str(folder), hint="Reinstall kdeploy.") from error


def _manifest(model: Model, config_file: str | None, before: Mapping[str, Any]) -> bytes:
    """Return MANIFEST.json as torch-model-archiver makes it, except for the date, and other keys `before`."""
    from model_archiver.model_archiver_config import ModelArchiverConfig
    from model_archiver.model_packaging_utils import ModelExportUtils

    text = ModelExportUtils.generate_manifest_json(
        ModelArchiverConfig(
            model_name=model.name,
            handler=ADAPTER,
            version=model.version,
            serialized_file=model.serialized_file,
            model_file=model.model_file,
            runtime=model.runtime,
            requirements_file=model.requirements_file,
            config_file=config_file,
        )
    )
    made = json.loads(text)
    described = {**before.get("model", {}), **made["model"]}
    return json.dumps({**before, **made, "model": described, "createdOn": _CREATED_ON}, indent=2).encode()
