"""Which files `model.extra-files` means: paths, globs, and folders whose contents are taken.

As torch-model-archiver does it, a file goes to the archive's top, a folder's contents too, with the folders
within it kept. Unlike there, nothing is overwritten, and a link that leads out of a folder that is taken is
an error.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from deployer.errors import ArchiveError

KEY = "kdeploy.toml: model.extra-files"

_LEFT_OUT = {"__pycache__", "__MACOSX"}
_MAGIC = set("*?[")


def extra_files(patterns: Iterable[str], root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name in the archive and the path of each extra file.

    `ArchiveError` if a pattern or path finds nothing, or a folder cannot be listed or holds a link that
    leads out.
    """
    for pattern in patterns:
        for found in _matches(pattern, root):
            if found.is_dir():
                for path in _contents(found):
                    yield path.relative_to(found).as_posix(), path
            else:
                yield found.name, found


def _matches(pattern: str, root: Path) -> list[Path]:
    if not pattern.strip() or "\0" in pattern:
        raise ArchiveError(f"{pattern!r} is no path", where=KEY)
    path = root / pattern
    if os.path.lexists(path):
        return [path]
    if not _MAGIC.intersection(pattern):
        raise ArchiveError(f"{pattern} does not exist", where=KEY, hint=f"paths are relative to {root}")
    names = glob.glob(pattern, root_dir=root, recursive=True)  # noqa: PTH207 - takes absolute ones
    found = [root / name for name in sorted(names)]
    found = [path for path in found if not _is_left_out(path)]
    if not found:
        raise ArchiveError(f"{pattern} matches no file", where=KEY, hint=f"patterns are relative to {root}")
    return found


def _is_left_out(path: Path) -> bool:
    if path.is_dir():
        return path.name in _LEFT_OUT or path.name.startswith(".")
    return path.name == ".DS_Store"


def _contents(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_unlistable):
        folders[:] = sorted(name for name in folders if not _is_left_out(Path(parent, name)))
        for name in folders:
            if Path(parent, name).is_symlink():
                raise ArchiveError(
                    f"{Path(parent, name)} is a link to a folder",
                    where=KEY,
                    hint="links to folders are not followed: copy what it leads to",
                )
        for name in sorted(files):
            path = Path(parent, name)
            if not _is_left_out(path):
                _check_link(path, folder)
                yield path


def _check_link(path: Path, folder: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise ArchiveError(
            f"{path} is a link that leads out of {folder}",
            where=KEY,
            hint="name the file that it leads to in model.extra-files, or copy it into the folder",
        )


def _unlistable(error: OSError) -> None:
    raise ArchiveError(f"{error.filename} cannot be listed: {error.strerror}", where=KEY) from error
