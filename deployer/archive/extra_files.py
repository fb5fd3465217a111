"""Finds the files of `model.extra-files`: paths, globs, and folders.

As with torch-model-archiver, files go to the top of the archive, and so do the contents of a folder, with
its subfolders; links are followed. Unlike there, a folder with a `/` at the end keeps its name, and no file
overwrites another.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from deployer.archive.left_out import is_left_out, is_secret
from deployer.errors import ArchiveError
from deployer.files import is_folder

KEY = "kdeploy.toml: model.extra-files"

_MAGIC = set("*?[")
_AT_MOST = 100_000  # files and folders of one folder; links can make a small folder endless


class ExtraFiles:
    """Finds extra files. A folder or glob leaves out `outputs`, paths that kdeploy writes, and `archives`.

    `archives` are file names of the model's archive, which can be in any folder.

    `secrets` are the files that were left out because they can contain secrets. `leading_out` maps a pattern
    to the links below it that lead out of the project. `key` is the key of the patterns, for errors.
    """

    def __init__(
        self,
        root: Path,
        outputs: Collection[Path] = (),
        archives: Collection[str] = (),
        key: str = KEY,
    ) -> None:
        self.secrets: list[Path] = []
        self.leading_out: dict[str, list[Path]] = {}
        self._root, self._archives, self._key = root, archives, key
        self._outputs = set(map(os.path.realpath, outputs))
        self._output_names = {Path(output).name for output in self._outputs}

    def find(self, patterns: Iterable[str]) -> Iterator[tuple[str, Path]]:
        """Yield the name in the archive and the path of each extra file.

        `ArchiveError` if a pattern matches nothing, or a folder cannot be listed or contains a circular link.
        """
        try:
            for pattern in patterns:
                for found in self._matches(pattern):
                    if is_folder(found):
                        prefix = f"{found.name}/" if pattern.endswith("/") and self._has_name(found) else ""
                        for path in self._contents(found, pattern):
                            yield prefix + path.relative_to(found).as_posix(), path
                    else:
                        yield found.name, found
        except OSError as error:
            raise ArchiveError(
                f"cannot list {error.filename}: {error.strerror}",
                where=self._key,
                hint="Check its permissions with `ls -ld`, or name the files that the model needs.",
            ) from error

    def _has_name(self, folder: Path) -> bool:
        return folder.name not in ("", "..") and folder != self._root

    def _matches(self, pattern: str) -> list[Path]:
        if not pattern.strip() or "\0" in pattern:
            raise ArchiveError(f"invalid path {pattern!r}", where=self._key)
        path = self._root / pattern
        if os.path.lexists(path):
            return [path]
        hint = f"Correct the path. It is relative to {self._root}."
        if not _MAGIC.intersection(pattern):
            raise ArchiveError(f"{pattern} not found", where=self._key, hint=hint)
        matches = sorted(_glob(pattern, self._root, self._is_entered))
        found = [match for match in matches if self._is_packed(match)]
        for match in found:
            if match.is_symlink() and not is_folder(match):
                self._check_link(match, pattern, [*_homes(match.parent), os.path.realpath(self._root)])
        if matches and not found:
            hint = f"Name the files that the model needs, such as {self._shown(matches[0])}."
            raise ArchiveError(f"{pattern} matches only files that are left out", where=self._key, hint=hint)
        if not found:
            raise ArchiveError(f"{pattern} matches no file", where=self._key, hint=hint)
        return found

    def _is_packed(self, path: Path) -> bool:
        """Whether a file or folder that the config does not name by its path is packed."""
        folder = is_folder(path)
        if is_left_out(path, folder) or self._is_output(path):
            return False
        if folder or not is_secret(path):
            return True
        self.secrets.append(path)
        return False

    def _is_entered(self, path: Path) -> bool:
        """Whether a glob searches a folder. It enters a hidden one only if the pattern says so."""
        return not self._is_output(path) and (path.name.startswith(".") or not is_left_out(path, folder=True))

    def _is_output(self, path: Path) -> bool:
        if path.name in self._archives:
            return True
        possible = path.name in self._output_names or path.is_symlink()
        return possible and os.path.realpath(path) in self._outputs

    def _contents(self, folder: Path, pattern: str) -> Iterator[Path]:
        """Yield the files below a folder, in an order that depends only on names. Follows links."""
        start = os.path.realpath(folder)
        pending: list[tuple[Path, tuple[str, ...]]] = [(folder, (start,))]  # with the targets of its links
        homes, count = [*_homes(folder), os.path.realpath(self._root)], 0
        while pending:
            place, way = pending.pop()
            with os.scandir(place) as entries:
                names = sorted(entry.name for entry in entries)
            folders = []
            for path in (place / name for name in names):
                count += 1
                if not self._is_packed(path):
                    continue
                if path.is_symlink():
                    self._check_link(path, pattern, [*homes, *way])
                if not is_folder(path):
                    yield path
                else:
                    folders.append(
                        (path, (*way, _entered(path, way, self._key)) if path.is_symlink() else way)
                    )
            if count > _AT_MOST:
                hint = "Name the files that the model needs."
                raise ArchiveError(f"{pattern} has more than {_AT_MOST:,} files", where=self._key, hint=hint)
            pending += reversed(folders)

    def _check_link(self, link: Path, pattern: str, homes: Collection[str]) -> None:
        target = Path(os.path.realpath(link))
        if not any(target.is_relative_to(home) for home in homes):
            self.leading_out.setdefault(pattern, []).append(link)

    def warnings(self) -> Iterator[str]:
        """Yield a warning for each pattern with links that lead out of the project."""
        for pattern, links in self.leading_out.items():
            first = f"{self._shown(links[0])} -> {os.path.realpath(links[0])}"
            more = f", and {len(links) - 1} more links" if len(links) > 1 else ""
            yield (
                f"model.extra-files: {pattern} contains a link that leads out of the project, and kdeploy "
                f"packs what it leads to: {first}{more}"
            )

    def notes(self) -> Iterator[str]:
        """Yield a note about the files that were left out because they can contain secrets."""
        if self.secrets:
            names = ", ".join(map(self._shown, dict.fromkeys(self.secrets)))
            yield f"left out as possible secrets: {names}. To pack one, add its path to model.extra-files"

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self._root) if path.is_relative_to(self._root) else path)


def _homes(folder: Path) -> list[str]:
    """Return the folders that links in a folder can lead to without a warning.

    In Hugging Face's cache, the links of `NAME/snapshots/REVISION` lead to `NAME/blobs`.
    """
    real = Path(os.path.realpath(folder))
    return [str(real)] + [str(one.parent) for one in (real, *real.parents) if one.name == "snapshots"]


def _entered(link: Path, way: Collection[str], key: str) -> str:
    """Return the folder that a link leads to. `ArchiveError` if that contains the link."""
    target = os.path.realpath(link)
    if target in way or Path(os.path.realpath(link.parent)).is_relative_to(target):
        hint = "Remove the link, or name the files that the model needs."
        raise ArchiveError(f"{link} is a link to a folder that contains it", where=key, hint=hint)
    return target


def _glob(pattern: str, root: Path, enter: Callable[[Path], bool] = lambda _: True) -> Iterator[Path]:
    """Yield what a pattern matches, as Python's `glob`, except that `**` follows no link and has no limit.

    Searches no folder below a wildcard that `enter` refuses.
    """
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
        following = [step for step in _steps(place, parts[done], done, enter) if step not in seen]
        seen.update(following)
        pending += following


def _steps(place: Path, part: str, done: int, enter: Callable[[Path], bool]) -> Iterator[tuple[Path, int]]:
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
            path = Path(entry.path)
            if is_folder(path) and not enter(path):
                continue
            yield path, done + 1
            if part == "**" and entry.is_dir(follow_symlinks=False):
                yield path, done
