"""Keeps a folder equal to the members of a planned archive, for a TorchServe that loads it unpacked.

Python files and small files are copied, so that a half-saved file reaches no worker. Large files are linked.
Files that others create in the folder stay.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from deployer.archive.members import Archive, Member
from deployer.archive.stream import open_source, unreadable
from deployer.errors import ArchiveError

COPIED = 256 << 10  # bytes; a larger file is linked unless it is a Python file


class Mirror:
    """A folder with the members of an archive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamps: dict[str, object] | None = None

    def update(self, archive: Archive) -> frozenset[str]:
        """Make the folder equal to an archive, and return the names of the members that changed.

        The first update removes everything else in the folder. A large file counts as changed if its path,
        size, time or inode changed. Raises ArchiveError if a file cannot be read.
        """
        if self._stamps is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._stamps = {}
        held = self._stamps
        wanted = {member.name: member for member in archive.members}
        stamps = {name: _stamp(member) for name, member in wanted.items()}
        changed = {name for name in stamps.keys() | held if stamps.get(name) != held.get(name)}
        for name in changed:
            held.pop(name, None)
        for name in changed - stamps.keys():
            self._remove(name)
        for name in sorted(changed & stamps.keys()):
            self._put(wanted[name])
            held[name] = stamps[name]
        return frozenset(changed)

    def _put(self, member: Member) -> None:
        path = self.folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        temporary = path.with_name(f".{path.name[:200]}.kdeploy")
        temporary.unlink(missing_ok=True)
        if linked := _linked(member):
            temporary.symlink_to(linked)
        else:
            temporary.write_bytes(_content(member.source))
        temporary.replace(path)

    def _remove(self, name: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            for parent in path.relative_to(self.folder).parents[:-1]:
                (self.folder / parent).rmdir()


def _stamp(member: Member) -> object:
    if not (source := _linked(member)):
        return member.sha256
    with contextlib.suppress(OSError):
        status = source.stat()
        return str(source), status.st_size, status.st_mtime_ns, status.st_ino
    return None


def _linked(member: Member) -> Path | None:
    """Return the file that the folder links to; None for a member that it copies."""
    if isinstance(member.source, bytes) or member.size <= COPIED or member.name.endswith(".py"):
        return None
    return member.source.absolute()


def _content(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        with open_source(source) as file:
            return file.read()
    except OSError as error:
        raise ArchiveError(unreadable(str(source), error)) from error
