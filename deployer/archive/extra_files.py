"""Finds the files of `model.extra-files`: paths, globs, and folders whose contents are taken.

As with torch-model-archiver, files go to the top of the archive, and so do the contents of a folder, with its
subfolders. Unlike there, no file overwrites another, and a link that leads out of a folder is an error.
"""

from __future__ import annotations

import contextlib
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

    `ArchiveError` if a pattern matches nothing, or a folder cannot be listed or holds a link that leads out.
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
            f"cannot list {error.filename}: {error.strerror}",
            where=KEY,
            hint="Check its permissions with `ls -ld`, or name the files that the model needs.",
        ) from error


def _matches(pattern: str, root: Path) -> list[Path]:
    if not pattern.strip() or "\0" in pattern:
        raise ArchiveError(f"invalid path {pattern!r}", where=KEY)
    path = root / pattern
    if os.path.lexists(path):
        return [path]
    hint = f"Correct the path. It is relative to {root}."
    if not _MAGIC.intersection(pattern):
        raise ArchiveError(f"{pattern} not found", where=KEY, hint=hint)
    found = sorted(path for path in _glob(pattern, root) if not _is_left_out(path.name, is_folder(path)))
    if not found:
        raise ArchiveError(f"{pattern} matches no file", where=KEY, hint=hint)
    return found


def _glob(pattern: str, root: Path) -> Iterator[Path]:
    """Yield what a pattern matches, as Python's `glob`, except that `**` follows no link and has no limit."""
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
    """Yield the paths that one part of a pattern matches in a folder, and the number of parts done there."""
    if not _MAGIC.intersection(part):
        if os.path.lexists(place / part):
            yield place / part, done + 1
        return
    if part == "**":
        yield place, done + 1
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
        for entry in entries:
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if hidden or not fnmatch.fnmatchcase(entry.name, part):
                continue
            yield Path(entry.path), done + 1
            if part == "**" and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path), done


def _is_left_out(name: str, folder: bool) -> bool:
    return name in _LEFT_OUT or name.startswith(".") if folder else name == ".DS_Store"


def _contents(folder: Path) -> Iterator[Path]:
    inside = Path(os.path.realpath(folder))
    for entry in walk(folder, lambda entry: not _is_left_out(entry.name, folder=True)):
        to_folder = entry.is_symlink() and is_folder(Path(entry.path))
        if _is_left_out(entry.name, to_folder):
            continue
        if to_folder:
            hint = "kdeploy does not follow links to folders. Copy the folder."
            raise ArchiveError(f"{entry.path} is a link to a folder", where=KEY, hint=hint)
        if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(inside):
            hint = "Name the file that it leads to in model.extra-files, or copy it into the folder."
            raise ArchiveError(f"{entry.path} is a link that leads out of {folder}", where=KEY, hint=hint)
        yield Path(entry.path)
