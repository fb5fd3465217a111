"""Reads a model archive that another program made: torch-model-archiver, or `zip`.

The file is hostile input. Its members are regular files with unique, relative names, and what they unpack to
has a limit. Formats: .mar (zip), .tar.gz, and a folder, all as torch-model-archiver writes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from deployer.archive.members import name_fault
from deployer.archive.plan import ADAPTER, MANIFEST, SETTINGS
from deployer.config import ReadyArchive
from deployer.errors import ArchiveError
from deployer.files import is_file, is_folder, read_bytes, remove_tree, walk

FILES_MAX = 100_000
# What a small archive can unpack to. Deflate packs zeros 1000 to 1, and real weights 10 to 1.
_FREE, _RATIO = 1 << 30, 100
_STALE = 3600.0  # seconds until the unpacked files of another archive are removed
_JUNK = {"__MACOSX", "__pycache__", ".DS_Store"}
_MAKE = "Make it with `torch-model-archiver`, or pack your files with `kdeploy archive`."
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)
# A key of MANIFEST.json's `model`, and the key of `[model]` with the same meaning.
_KEYS = {
    "modelName": "name",
    "modelVersion": "version",
    "handler": "handler",
    "serializedFile": "serialized-file",
    "modelFile": "model-file",
    "requirementsFile": "requirements-file",
    "configFile": "config-file",
}
_LINK = "it is a link or a device"
_VERSION = "1.0"  # of an archive without a version


class _Entry(NamedTuple):
    name: str
    size: int
    open: Any  # () -> a binary file
    fault: str = ""  # why it is not a plain file


def take_archive(path: Path, cache: Path) -> ReadyArchive:
    """Read an archive, and unpack it below the folder `cache` if it is new or has changed.

    Raises ArchiveError.
    """
    with _explained(path):
        folder = cache / _fingerprint(path)
        if not is_folder(folder):
            _remove_stale(cache)
            unpack(path, folder)
        manifest = read_manifest(folder)
        return ReadyArchive(path, folder, manifest, read_model(manifest, folder, path))


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive into `folder`, which appears complete or not at all.

    If another process unpacks the same archive meanwhile, its folder stays: it can be in use.
    """
    building = folder.with_name(f".{folder.name}.{os.getpid()}")
    remove_tree(building)
    try:
        with _explained(path):
            building.mkdir(parents=True)
            for entry, name in _checked(path):
                target = building / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with entry.open() as source, target.open("xb") as file:
                    _copy(source, file, entry)
            root = _root(building)
            _check_manifest(read_manifest(root))
            if not is_folder(folder):
                root.rename(folder)
    finally:
        remove_tree(building)


def _fingerprint(path: Path) -> str:
    """Return a name for the content of an archive: the digest of where its files are, and of their times."""
    files = [Path(found.path) for found in walk(path)] if is_folder(path) else [path]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat(follow_symlinks=file == path)
        seen = f"{os.path.realpath(file)}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\0"
        digest.update(seen.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an unpacked archive."""
    manifest: dict[str, Any] = json.loads(read_bytes(folder / MANIFEST))
    return manifest


def read_model(manifest: dict[str, Any], folder: Path, path: Path) -> dict[str, str]:
    """Return the keys of `[model]` that a manifest stands for. Raises ArchiveError."""
    where = f"{path}: {MANIFEST}"
    described = manifest["model"]
    model = {"version": _VERSION}
    for key, ours in _KEYS.items():
        value = described.get(key)
        if value is None or value == "":
            continue
        if key == "modelVersion" and type(value) in (int, float):
            value = str(value)  # TorchServe reads 1.0 as "1.0"
        if not isinstance(value, str):
            raise ArchiveError(f"{key} is not a text", where=where, hint="Correct the manifest.")
        model[ours] = value
    if isinstance(runtime := manifest.get("runtime"), str) and runtime != "python":
        model["runtime"] = runtime
    if "handler" not in model:
        raise ArchiveError("the manifest names no handler", where=where, hint="Correct the manifest.")
    if model["handler"] == ADAPTER and (folder / SETTINGS).is_file():  # kdeploy made the archive
        model |= _settings(folder)
    model["handler"] = _in_archive(model["handler"], folder)
    for ours in ("handler", "serialized-file", "model-file", "requirements-file", "config-file"):
        if ours in model and (fault := name_fault(model[ours])):
            raise ArchiveError(f"invalid file name {model[ours]!r}: {fault}", where=where)
    return model


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name in the archive and the path of each of the user's files in an unpacked archive."""
    ours = (folder / SETTINGS).is_file()
    for found in walk(folder):
        name = Path(found.path).relative_to(folder).as_posix()
        if not name.startswith("MAR-INF/") and not (ours and name.startswith("kdeploy_")):
            yield name, Path(found.path)


def _in_archive(handler: str, folder: Path) -> str:
    """Return a handler without its folder, as TorchServe imports it, unless it is only in that folder."""
    file = handler.partition(":")[0]
    base = posixpath.basename(handler)
    return handler if "/" in handler and (folder / file).is_file() and not file.startswith("/") else base


def _settings(folder: Path) -> dict[str, str]:
    """Return the keys of `[model]` that the adapter of an archive reads."""
    settings = json.loads(read_bytes(folder / SETTINGS))
    return {key.replace("_", "-"): value for key, value in settings.items() if isinstance(value, str)}


def _root(folder: Path) -> Path:
    """Return the folder with the manifest: a .tar.gz has a folder around its files."""
    for root in (folder, *folder.iterdir()):
        if is_file(root / MANIFEST):
            return root
    raise ArchiveError(f"not a model archive: {MANIFEST} is missing", hint=_MAKE)


def _check_manifest(manifest: Any) -> None:
    if isinstance(manifest, dict) and "workflow" in manifest:
        raise _workflow()
    if not isinstance(manifest, dict) or not isinstance(manifest.get("model"), dict):
        raise ArchiveError(f"{MANIFEST} describes no model", hint=_MAKE)


def _workflow() -> ArchiveError:
    return ArchiveError(
        "a workflow archive (.war) joins several models, and kdeploy serves one",
        hint="Take over the .mar of each of its models, and join them with an InferenceGraph of KServe.",
    )


def _checked(path: Path) -> Iterator[tuple[_Entry, str]]:
    """Yield the files of an archive with their names, without the folder that a .tar.gz has around them."""
    if path.suffix.lower() == ".war":
        raise _workflow()
    packed = path.stat().st_size
    limit = packed * _RATIO + _FREE
    total, seen = 0, set[str]()
    for entry in _entries(path):
        name = entry.name.removeprefix("./")
        total += entry.size
        fault = entry.fault or name_fault(name) or ("it is there twice" if name in seen else "")
        if fault:
            raise ArchiveError(f"invalid member {entry.name!r}: {fault}", hint=_MAKE)
        if len(seen) >= FILES_MAX:
            raise ArchiveError(f"more than {FILES_MAX:,} files", hint=_MAKE)
        if total > limit:
            raise ArchiveError(f"{packed:,} bytes unpack to more than {limit:,}", hint=_MAKE)
        seen.add(name)
        if not _JUNK.intersection(name.split("/")):
            yield entry, name


def _entries(path: Path) -> Iterator[_Entry]:
    """Yield each entry of an archive that is not a folder."""
    if is_folder(path):
        yield from _listed(path)
        return
    with path.open("rb") as file:
        magic = file.read(2)
        file.seek(0)
        if magic == b"PK":
            yield from _zipped(file, path.stat().st_size)
        elif magic == b"\x1f\x8b":
            yield from _tarred(file)
        else:
            raise ArchiveError("not a model archive: neither a zip nor a .tar.gz file", hint=_MAKE)


def _listed(folder: Path) -> Iterator[_Entry]:
    for found in walk(folder):
        path = Path(found.path)
        fault = "" if found.is_file(follow_symlinks=False) else _LINK
        size = found.stat(follow_symlinks=False).st_size
        yield _Entry(path.relative_to(folder).as_posix(), size, partial(path.open, "rb"), fault)


def _zipped(file: IO[bytes], size: int) -> Iterator[_Entry]:
    with zipfile.ZipFile(file) as archive:
        found = archive.infolist()
        if sum(info.compress_size for info in found) > size:
            raise ArchiveError("its members overlap", hint=_MAKE)
        for info in found:
            if info.is_dir():
                continue
            kind = info.external_attr >> 28  # S_IFMT of the Unix mode; 0 if another system made the file
            fault = "it is encrypted" if info.flag_bits & 1 else _LINK if kind not in (0, 8) else ""
            yield _Entry(info.orig_filename, info.file_size, partial(archive.open, info), fault)


def _tarred(file: IO[bytes]) -> Iterator[_Entry]:
    with tarfile.open(fileobj=file, mode="r|gz") as archive:
        for info in archive:
            if not info.isdir():
                fault = "" if info.isreg() and not info.issparse() else _LINK
                yield _Entry(info.name, info.size, partial(archive.extractfile, info), fault)


def _copy(source: IO[bytes], file: IO[bytes], entry: _Entry) -> None:
    """Copy an entry, up to its declared size."""
    shutil.copyfileobj(source, file, 1 << 20)
    if file.tell() != entry.size:
        raise ArchiveError(f"{entry.name}: {file.tell():,} bytes instead of {entry.size:,}", hint=_MAKE)


def _remove_stale(cache: Path) -> None:
    with contextlib.suppress(OSError):
        for other in list(cache.iterdir()):
            if time.time() - other.stat().st_mtime > _STALE:
                remove_tree(other)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise an ArchiveError, with the path, for all that is wrong with an archive."""
    try:
        yield
    except ArchiveError as error:
        error.where = error.where or str(path)
        raise
    except FileNotFoundError as error:
        raise ArchiveError("file not found", where=str(error.filename or path)) from error
    except OSError as error:
        raise ArchiveError(
            f"cannot unpack the archive: {error.strerror or error}", where=str(path)
        ) from error
    except ValueError as error:
        raise ArchiveError(f"{MANIFEST} is not JSON", where=str(path), hint=_MAKE) from error
    except _DAMAGED as error:
        raise ArchiveError(
            f"the archive is damaged: {error}", where=str(path), hint="Copy it again."
        ) from error
