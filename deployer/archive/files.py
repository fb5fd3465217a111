"""Collects the files of a planned archive under their names in the archive."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

from deployer.archive.digests import DigestCache
from deployer.archive.members import Member, Source, name_fault
from deployer.archive.stream import open_source, sums_of, unreadable
from deployer.errors import ArchiveError
from deployer.files import is_file

OURS = "kdeploy_"  # the prefix of kdeploy's own members

_SMALL = 256 << 10  # bytes; reading a smaller file is as fast as a lookup in the cache
_TEXT_AT_MOST = 8 << 20  # bytes of a file that is parsed


class Files:
    """Collects members with unique, valid names."""

    def __init__(self, root: Path, digests: DigestCache) -> None:
        self.members: dict[str, Member] = {}
        self.sources: dict[str, Source] = {}
        self.root = root
        self._digests = digests
        self._origins: dict[str, tuple[Path, str]] = {}  # path and key of each file of the user's

    def add_own(self, name: str, content: bytes) -> None:
        """Add a file that kdeploy makes. `ArchiveError` if a file of the user's has its name."""
        if name in self._origins:
            what = f"{name} is the name of a file that kdeploy adds"
            raise ArchiveError(what, where=self._origins[name][1], hint="Rename the file.")
        self.replace(name, content)

    def replace(self, name: str, content: bytes) -> None:
        """Set the content of a member, instead of its file's."""
        self.members[name] = Member(name, len(content), sums_of(content).sha256, content)

    def add(
        self,
        key: str,
        file: str | Path,
        name: str | None = None,
        *,
        hint: str | None = None,
        ours: bool = False,
    ) -> str:
        """Add a file under its own name, or `name`, and return that. A file can be added twice.

        `ArchiveError`, at `key`, if the file cannot be read, or its name is invalid or another file's.
        """
        path = self.root / file
        name = path.name if name is None else name
        if fault := name_fault(name):
            raise ArchiveError(f"invalid file name {name!r}: {fault}", where=key, hint="Rename the file.")
        # A folder of a reserved name would hide a module of the adapter.
        if (name.startswith(OURS) and not ours) or name.partition("/")[0].upper() == "MAR-INF":
            what = f"kdeploy reserves the name of {self._shown(path)}"
            raise ArchiveError(what, where=key, hint="Rename the file.")
        if name in self.members:
            self._check_same(key, path, name)
            return name
        with self.open(key, path, hint) as opened:
            status = os.fstat(opened.fileno())
            if status.st_size > (_TEXT_AT_MOST if name.endswith(".py") else _SMALL):
                size, sha256 = status.st_size, self._digests.lookup(path, status)
            else:
                content = opened.read(status.st_size)
                size, sha256 = len(content), sums_of(content).sha256
                if name.endswith(".py"):
                    self.sources[name] = Source(self._shown(path), name, content)
        self.members[name] = Member(name, size, sha256, path)
        self._origins[name] = (path, key)
        return name

    def shown(self, name: str) -> str:
        """Return the path of an added file as the user knows it."""
        return self._shown(self._origins[name][0])

    def content(self, key: str, name: str) -> bytes:
        """Return the bytes of an added file. `ArchiveError`, at `key`, if there are more than 8 MiB."""
        path, size = self._origins[name][0], self.members[name].size
        if size > _TEXT_AT_MOST:
            what = f"{self._shown(path)} has {size:,} bytes; the limit is {_TEXT_AT_MOST:,}"
            raise ArchiveError(what, where=key)
        with self.open(key, path) as file:
            return file.read(_TEXT_AT_MOST)

    @contextlib.contextmanager
    def open(self, key: str, path: Path, hint: str | None = None) -> Iterator[io.BufferedReader]:
        """Open a file. `ArchiveError`, at `key`, if it cannot be opened or read."""
        try:
            with open_source(path) as opened:
                yield opened
        except (OSError, ValueError) as error:
            what = unreadable(self._shown(path), error)
            hint = hint or f"Correct the path. It is relative to {self.root}."
            if path.is_symlink() and isinstance(error, FileNotFoundError):
                what = f"{self._shown(path)} is a broken link to {path.readlink()}"
                hint = "Fetch the file, for example with `dvc pull` or `git annex get`, or remove the link."
            elif isinstance(error, OSError) and not error.strerror and not path.is_dir():  # a device or pipe
                hint = "Name a file, or move this out of the folder."
            raise ArchiveError(what, where=key, hint=hint) from error

    def _shown(self, path: Path) -> str:
        """Return a path as the user knows it: relative to the folder of `kdeploy.toml` if it is inside."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def _check_same(self, key: str, path: Path, name: str) -> None:
        other, other_key = self._origins[name]
        with contextlib.suppress(OSError):
            if other.samefile(path):
                return
        what = f"two files would have the name {name}: {self._shown(other)} and {self._shown(path)}"
        hint = f"Rename one of them. {other_key.rpartition(' ')[2]} names the first."
        if key == other_key:
            shown = [f'"{self._shown(package_folder(one))}/"' for one in (other, path)]
            folders = " and ".join(dict.fromkeys(shown))
            hint = f"Rename one of them, or write {folders}: a / at the end keeps the folder in the archive."
        raise ArchiveError(what, where=key, hint=hint)


def package_folder(file: Path) -> Path:
    """Return the folder of a file, or of the outermost Python package that it is part of."""
    folder = file.parent
    while is_file(folder / "__init__.py") and is_file(folder.parent / "__init__.py"):
        folder = folder.parent
    return folder
