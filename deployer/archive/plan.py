"""From `[model]` to the members of an archive: everything is looked at, and only what is small is read.

What torch-model-archiver does with the same inputs is done here too, and its own code makes the manifest.
Added are the handler adapter, and `useVenv` where there are requirements.
"""

from __future__ import annotations

import difflib
import io
import json
import posixpath
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import msgspec

from deployer.archive import model_config
from deployer.archive.digests import DigestCache
from deployer.archive.extra_files import KEY as EXTRA_FILES_KEY
from deployer.archive.extra_files import extra_files
from deployer.archive.files import Files
from deployer.archive.lint import HANDLER_KEY, check_sources
from deployer.archive.members import Archive, names_fault
from deployer.archive.requirements import Requirements, read_requirements, refuse_credentials
from deployer.archive.stream import open_source, why
from deployer.config import NAME_MAX, NAME_PATTERN, Model
from deployer.errors import ArchiveError
from deployer.shipped import shipped

OURS = "kdeploy_"  # how the names of kdeploy's own members begin
ADAPTER = "kdeploy_handler.py"
SETTINGS = "kdeploy_handler.json"
MANIFEST = "MAR-INF/MANIFEST.json"

REQUIREMENTS_KEY = "kdeploy.toml: model.requirements-file"

_CREATED_ON = "01/01/1980 00:00:00"  # the manifest's date, so that the same inputs give the same bytes
_LSP_HANDLERS = ("BaseHandler", "TorchScriptHandler")  # of which torch-model-archiver packs no library
_ZIP_START, _ZIP_END, _ZIP_END_WITHIN = b"PK\x03\x04", b"PK\x05\x06", 22 + 0xFFFF


class _Handler(NamedTuple):
    """What `model.handler` means: `written` is what a manifest says, `file` is None for TorchServe's own."""

    written: str
    file: str | None
    function: str | None = None


def plan_archive(model: Model, root: Path, digests: DigestCache) -> Archive:
    """Plan the archive of a model whose paths are relative to the folder `root`; nothing is written.

    Files above 256 KiB are not read: their digest comes from `digests` or stays unknown. `ArchiveError`,
    with the key of `kdeploy.toml` or the file and line in `where`, for what would fail while packing or in
    TorchServe; doubtful things are in the archive's `warnings`.
    """
    _check_model(model)
    python = model.runtime != "LSP"
    handler = _python_handler(model.handler) if python else _lsp_handler(model.handler)
    files = Files(root, digests, _keeps_for_itself if python else _is_of_the_manifest)
    if handler.file is not None:
        near = difflib.get_close_matches(handler.written, _builtin_handlers(), n=1)
        hint = f"did you mean TorchServe's own {near[0]}?" if near else None
        files.add(HANDLER_KEY, handler.file, hint=hint)
    if model.model_file is not None:
        files.add("kdeploy.toml: model.model-file", model.model_file)
    if model.serialized_file is not None:
        _add_weights(files, root, model.serialized_file)
    requirements = _add_requirements(files, model)
    config_file = _add_config(files, model, use_venv=python and model.requirements_file is not None)
    for name, path in extra_files(model.extra_files, root):
        files.add(EXTRA_FILES_KEY, path, name)
    if python:
        for name, content in _adapter().items():
            files.own(name, content)
        files.own(SETTINGS, json.dumps({"handler": handler.written}).encode() + b"\n")
    files.own(MANIFEST, _manifest(model, ADAPTER if python else handler.written, config_file))
    if fault := names_fault(files.members):
        raise ArchiveError(fault, where=EXTRA_FILES_KEY)
    _check_included(requirements, files, model)
    warnings: tuple[str, ...] = ()
    if python:
        entry = (posixpath.basename(handler.file) if handler.file else None, handler.function)
        sources = [source for _, source in sorted(files.sources.items())]
        warnings = check_sources(sources, files.members, model, entry, requirements)
    return Archive(
        name=model.name,
        version=model.version,
        format=model.archive_format,
        members=tuple(member for _, member in sorted(files.members.items())),
        warnings=warnings,
    )


def _check_model(model: Model) -> None:
    """See that the values keep the rules that `kdeploy.toml` is read by, wherever the struct was made."""
    if not re.fullmatch(NAME_PATTERN, model.name) or len(model.name) > NAME_MAX:
        raise ArchiveError(
            f"KServe would refuse the name {model.name!r}",
            where="kdeploy.toml: model.name",
            hint=f"use at most {NAME_MAX} lower-case letters, digits and hyphens, "
            "a letter first and no hyphen last",
        )
    try:
        msgspec.convert(msgspec.to_builtins(model), Model)
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at `$.")
        raise ArchiveError(what, where=f"kdeploy.toml: model.{key.rstrip('`')}") from error


def _keeps_for_itself(name: str) -> bool:
    # Any file or folder of such a name: a folder would hide a module of the adapter.
    return name.startswith(OURS) or _is_of_the_manifest(name)


def _is_of_the_manifest(name: str) -> bool:
    return name.partition("/")[0].upper() == "MAR-INF"  # one folder where case does not count


def _builtin_handlers() -> Collection[str]:
    from model_archiver.model_packaging_utils import model_handlers

    return list(model_handlers)


def _python_handler(value: str) -> _Handler:
    if value in _builtin_handlers():
        return _Handler(value, None)
    folder, written = posixpath.split(value)
    file, colon, function = written.partition(":")
    if colon and not function.isidentifier():
        raise ArchiveError(
            f"{function!r} is not the name of a function",
            where=HANDLER_KEY,
            hint="write a file, `file.py:function`, or the name of one of TorchServe's handlers",
        )
    module = file.removesuffix(".py")
    if not module or "." in module:
        raise ArchiveError(
            f"{file!r} cannot be imported as a module",
            where=HANDLER_KEY,
            hint="name a Python file without another dot in its name",
        )
    return _Handler(written, posixpath.join(folder, f"{module}.py"), function or None)


def _lsp_handler(value: str) -> _Handler:
    if value in _LSP_HANDLERS:
        return _Handler(value, None)
    folder, written = posixpath.split(value)
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return _Handler(written, posixpath.join(folder, written.partition(":")[0] + suffix))


def _add_weights(files: Files, root: Path, file: str) -> None:
    key = "kdeploy.toml: model.serialized-file"
    name = files.add(key, file)
    if files.members[name].size == 0:
        raise ArchiveError(f"{file} is empty", where=key, hint="save the weights again")
    try:
        with open_source(root / file) as weights:
            cut_short = _is_cut_short(weights)
    except OSError as error:
        raise ArchiveError(f"{file} {why(error)}", where=key) from error
    if cut_short:
        raise ArchiveError(f"{file} is cut short", where=key, hint="save or copy the weights again")


def _is_cut_short(file: io.BufferedReader) -> bool:
    """Whether a file begins as `torch.save` writes it, as a zip, and lacks what a zip ends with."""
    if file.read(len(_ZIP_START)) != _ZIP_START:
        return False
    file.seek(max(0, file.seek(0, io.SEEK_END) - _ZIP_END_WITHIN))
    return _ZIP_END not in file.read(_ZIP_END_WITHIN)


def _add_requirements(files: Files, model: Model) -> Requirements:
    if model.requirements_file is None:
        return Requirements()
    _, content = files.text(REQUIREMENTS_KEY, model.requirements_file)
    return read_requirements(content, model.requirements_file)


def _check_included(requirements: Requirements, files: Files, model: Model) -> None:
    """See that the files that a requirements file names lie beside it in the archive, where pip will look."""
    for line, file in requirements.included:
        if "://" in file or file.startswith("/") or "$" in file:
            continue
        found = files.members.get(posixpath.normpath(file))
        if not found:
            raise ArchiveError(
                f"names {file}, which is not in the archive",
                where=f"{model.requirements_file}:{line}",
                hint=f"add {file} to model.extra-files",
            )
        content = files.content(REQUIREMENTS_KEY, found)
        refuse_credentials(content.decode("utf-8", "replace"), file)


def _add_config(files: Files, model: Model, *, use_venv: bool) -> str | None:
    """Add TorchServe's model-config.yaml where there is one or has to be, and return its name."""
    if model.config_file is None:
        if not use_venv:
            return None
        files.own(model_config.NAME, model_config.USE_VENV)
        return model_config.NAME
    name, content = files.text("kdeploy.toml: model.config-file", model.config_file)
    packed = model_config.model_config(content, model.config_file, use_venv=use_venv)
    if packed != content:
        files.replace(name, packed)
    return name


def _adapter() -> dict[str, bytes]:
    """Return the modules of the handler adapter by their names in the archive."""
    folder = shipped("handler")
    try:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.match(f"{OURS}*.py")}
    except OSError as error:
        raise ArchiveError(
            f"kdeploy's own handler adapter {why(error)}", where=str(folder), hint="install kdeploy again"
        ) from error


def _manifest(model: Model, handler: str, config_file: str | None) -> bytes:
    """Return MANIFEST.json as torch-model-archiver makes it, but for the date."""
    from model_archiver.model_archiver_config import ModelArchiverConfig
    from model_archiver.model_packaging_utils import ModelExportUtils

    text = ModelExportUtils.generate_manifest_json(
        ModelArchiverConfig(
            model_name=model.name,
            handler=handler,
            version=model.version,
            serialized_file=model.serialized_file,
            model_file=model.model_file,
            runtime=model.runtime,
            requirements_file=model.requirements_file,
            config_file=config_file,
        )
    )
    manifest = {**json.loads(text), "createdOn": _CREATED_ON}
    return json.dumps(manifest, indent=2).encode()
