"""The files of an archive that is being planned, each under the one name that it will have there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from deployer.archive.digests import DigestCache
from deployer.archive.lint import Source
from deployer.archive.members import Member, name_fault
from deployer.archive.stream import open_source, sums_of, why
from deployer.errors import ArchiveError

_READ_AT_ONCE = 256 << 10  # to read so little takes no longer than to look it up
_TEXT_AT_MOST = 8 << 20  # of what is parsed


class Files:
    """Collects members; no two of one name, no name that is not allowed."""

    def __init__(self, root: Path, digests: DigestCache, is_reserved: Callable[[str], bool]) -> None:
        self.members: dict[str, Member] = {}
        self.sources: dict[str, Source] = {}
        self._root = root
        self._digests = digests
        self._is_reserved = is_reserved
        self._came_from: dict[str, tuple[Path, str]] = {}  # path and key, of what is not kdeploy's own

    def own(self, name: str, content: bytes) -> None:
        """Add a file that kdeploy makes."""
        if name in self._came_from:
            raise _taken(name, self._came_from[name][1])
        self.replace(name, content)

    def replace(self, name: str, content: bytes) -> None:
        """Let these bytes be packed under a name, whatever file it came from."""
        self.members[name] = Member(name, len(content), sums_of(content).sha256, content)

    def add(self, key: str, file: str | Path, name: str | None = None, *, hint: str | None = None) -> str:
        """Add a file under its own name, or `name`, and return that. Adding the same file again is fine.

        `ArchiveError`, at `key`, where it cannot be read, or where its name is taken or not allowed.
        """
        path = self._root / file
        name = path.name if name is None else name
        if fault := name_fault(name):
            raise ArchiveError(f"the name {name!r} {fault}", where=key, hint="rename the file")
        if self._is_reserved(name):
            what = f"{self.shown(path)} has a name that kdeploy keeps for itself"
            raise ArchiveError(what, where=key, hint="rename the file")
        if name in self.members:
            self._check_same(key, path, name)
            return name
        size, sha256, content = self._look(key, path, hint)
        self.members[name] = Member(name, size, sha256, path)
        self._came_from[name] = (path, key)
        if content is not None and name.endswith(".py"):
            self.sources[name] = Source(self.shown(path), name, content)
        return name

    def text(self, key: str, file: str) -> tuple[str, bytes]:
        """Add a file and return its name and all its bytes, at most 8 MiB of them."""
        name = self.add(key, file)
        return name, self.content(key, self.members[name])

    def content(self, key: str, member: Member) -> bytes:
        """Return all bytes of a member, at most 8 MiB of them."""
        path = member.source
        if isinstance(path, bytes):
            return path
        if member.size > _TEXT_AT_MOST:
            what = f"{self.shown(path)} has {member.size:,} bytes; at most {_TEXT_AT_MOST:,} are read"
            raise ArchiveError(what, where=key)
        try:
            with open_source(path) as file:
                return file.read(_TEXT_AT_MOST)
        except OSError as error:
            raise ArchiveError(f"{self.shown(path)} {why(error)}", where=key) from error

    def shown(self, path: Path) -> str:
        """Return a path as people know it: from the folder of `kdeploy.toml` where it lies below that."""
        return str(path.relative_to(self._root) if path.is_relative_to(self._root) else path)

    def _check_same(self, key: str, path: Path, name: str) -> None:
        if name not in self._came_from:
            raise _taken(name, key)
        other, other_key = self._came_from[name]
        with contextlib.suppress(OSError):
            if other.samefile(path):
                return
        raise ArchiveError(
            f"two files would be {name} in the archive: {self.shown(other)} and {self.shown(path)}",
            where=key,
            hint=f"rename one of them; the first comes from {other_key.rpartition(' ')[2]}",
        )

    def _look(self, key: str, path: Path, hint: str | None) -> tuple[int, str | None, bytes | None]:
        """Return size, digest and content, the last two if they are known or quickly read."""
        try:
            with open_source(path) as file:
                status = os.fstat(file.fileno())
                at_once = _TEXT_AT_MOST if path.suffix == ".py" else _READ_AT_ONCE
                if status.st_size > at_once:
                    return status.st_size, self._digests.lookup(path, status), None
                content = file.read(at_once)
        except (OSError, ValueError) as error:
            hint = hint or f"paths are relative to {self._root}"
            raise ArchiveError(f"{self.shown(path)} {why(error)}", where=key, hint=hint) from error
        return len(content), sums_of(content).sha256, content


def _taken(name: str, key: str) -> ArchiveError:
    return ArchiveError(f"{name} is the name of a file that kdeploy adds", where=key, hint="rename it")
