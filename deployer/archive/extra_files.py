"""Which files `model.extra-files` means: paths, globs, and folders whose contents are taken.

As torch-model-archiver does it, a file goes to the archive's top, a folder's contents too, with the folders
within it kept. Unlike there, nothing is overwritten, and a link that leads out of a folder that is taken is
an error.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from deployer.errors import ArchiveError
from deployer.files import is_folder, walk

KEY = "kdeploy.toml: model.extra-files"

_LEFT_OUT = {"__pycache__", "__MACOSX"}
_MAGIC = set("*?[")


def extra_files(patterns: Iterable[str], root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name in the archive and the path of each extra file.

    `ArchiveError` if a pattern or path finds nothing, or a folder cannot be listed or holds a link that
    leads out.
    """
    try:
        for pattern in patterns:
            for found in _matches(pattern, root):
                if is_folder(found):
                    for path in _contents(found):
                        yield path.relative_to(found).as_posix(), path
                else:
                    yield found.name, found
    except OSError as error:
        raise ArchiveError(
            f"{error.filename} cannot be listed: {error.strerror}",
            where=KEY,
            hint="check who may read it: `ls -ld`; or name the files that the model needs",
        ) from error


def _matches(pattern: str, root: Path) -> list[Path]:
    if not pattern.strip() or "\0" in pattern:
        raise ArchiveError(f"{pattern!r} is no path", where=KEY)
    path = root / pattern
    if os.path.lexists(path):
        return [path]
    if not _MAGIC.intersection(pattern):
        raise ArchiveError(f"{pattern} does not exist", where=KEY, hint=f"paths are relative to {root}")
    found = sorted(path for path in _glob(pattern, root) if not _is_left_out(path.name, is_folder(path)))
    if not found:
        raise ArchiveError(f"{pattern} matches no file", where=KEY, hint=f"patterns are relative to {root}")
    return found


def _glob(pattern: str, root: Path) -> Iterator[Path]:
    """Yield what a pattern matches, as Python's `glob`; but `**` follows no link, and goes to any depth."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    start = Path("/") if pattern.startswith("/") else root
    pending = [(start, 0)]
    seen = set(pending)
    while pending:
        place, done = pending.pop()
        if done == len(parts):
            if place != start and (not pattern.endswith("/") or is_folder(place)):
                yield place
            continue
        following = [step for step in _steps(place, parts[done], done) if step not in seen]
        seen.update(following)
        pending += following


def _steps(place: Path, part: str, done: int) -> Iterator[tuple[Path, int]]:
    """Yield where one part of a pattern leads from a place, and how many parts are done there."""
    if not _MAGIC.intersection(part):
        if os.path.lexists(place / part):
            yield place / part, done + 1
        return
    if part == "**":
        yield place, done + 1
    for entry in _listed(place):
        hidden = entry.name.startswith(".") and not part.startswith(".")
        if hidden or not fnmatch.fnmatchcase(entry.name, part):
            continue
        yield Path(entry.path), done + 1
        if part == "**" and entry.is_dir(follow_symlinks=False):
            yield Path(entry.path), done


def _listed(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_left_out(name: str, folder: bool) -> bool:
    return name in _LEFT_OUT or name.startswith(".") if folder else name == ".DS_Store"


def _contents(folder: Path) -> Iterator[Path]:
    inside = Path(os.path.realpath(folder))
    for entry in walk(folder, lambda entry: not _is_left_out(entry.name, folder=True)):
        to_folder = entry.is_symlink() and is_folder(Path(entry.path))
        if _is_left_out(entry.name, to_folder):
            continue
        if to_folder:
            raise ArchiveError(
                f"{entry.path} is a link to a folder",
                where=KEY,
                hint="links to folders are not followed: copy what it leads to",
            )
        if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(inside):
            raise ArchiveError(
                f"{entry.path} is a link that leads out of {folder}",
                where=KEY,
                hint="name the file that it leads to in model.extra-files, or copy it into the folder",
            )
        yield Path(entry.path)
