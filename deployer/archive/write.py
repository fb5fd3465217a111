"""An archive's bytes: every member is read once, packed, and its digest known when it has gone through.

Nothing appears under the destination's name before it is whole, and nothing is left behind where it cannot
be.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from deployer.archive.digests import DigestCache
from deployer.archive.layout import DEFLATED, STORED, Packed, directory, local_header
from deployer.archive.members import Archive, Member
from deployer.archive.partial import partial
from deployer.archive.stream import Sums, Take, open_source, pump, sums_of, why
from deployer.errors import ArchiveError, DiskFullError

_LEVEL = 6  # zlib's default, fixed
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, no system

_FULL = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is reached",
    errno.EFBIG: "no file may be as large",
}

Progress = Callable[[int], None]


def digest_archive(archive: Archive, digests: DigestCache) -> Archive:
    """Return the archive sealed, having read those files whose digest was not known.

    `ArchiveError` if one cannot be read or changes meanwhile.
    """
    copying = _Copying(digests, None)
    try:
        for member in archive.members:
            if member.sha256 is None:
                copying(member, None)
    finally:
        digests.save()
    return copying.sealed(archive)


def write_archive(
    archive: Archive, destination: Path, digests: DigestCache, *, progress: Progress | None = None
) -> Archive:
    """Write the archive to exactly `destination` and return it sealed; each file is read once.

    `progress` is called with the number of bytes packed since it was last called. A file that is there is
    replaced at once by the whole new one; of a folder (format `no-archive`) nothing may be there.
    `ArchiveError` if a member's file cannot be read, or is not what was planned or changes while it is
    read, or if the destination cannot be written; `DiskFullError` if there is no room.
    """
    folder = archive.format == "no-archive"
    if folder and os.path.lexists(destination):
        raise ArchiveError(
            "is there already, and kdeploy replaces no folder",
            where=str(destination),
            hint="remove it, or name another place",
        )
    copying = _Copying(digests, progress)
    try:
        with partial(destination, folder=folder) as (temporary, descriptor):
            _pack(archive, temporary, descriptor, copying)
    except OSError as error:
        raise _unwritable(error, archive, destination) from error
    finally:
        digests.save()
    return copying.sealed(archive)


def _pack(archive: Archive, temporary: Path, descriptor: int, copying: _Copying) -> None:
    if archive.format == "no-archive":
        _write_folder(archive, temporary, copying)
    elif archive.format == "tgz":
        _write_tgz(archive, _Output(descriptor), copying)
    else:
        method = DEFLATED if archive.format == "default" else STORED
        if method == STORED:
            _reserve(descriptor, _stored_size(archive))
        _write_zip(archive, _Output(descriptor), copying, method)


class _Copying:
    """Reads members, each once, sees that they are what was planned, and remembers their digests."""

    def __init__(self, digests: DigestCache, progress: Progress | None) -> None:
        self._digests = digests
        self._progress = progress
        self._found: dict[str, str] = {}

    def __call__(self, member: Member, take: Take | None) -> Sums:
        """Hand a member's bytes to `take`."""
        if isinstance(member.source, bytes):
            sums = sums_of(member.source)
            if take is not None:
                self._watched(take)(memoryview(member.source))
        else:
            sums = self._copy_file(member, member.source, take and self._watched(take))
        self._found[member.name] = sums.sha256
        return sums

    def deflated(self, member: Member, take: Take) -> Sums:
        """Hand a member's bytes to `take`, compressed; the sums are those of the plain ones."""
        deflate = _deflater()
        sums = self(member, lambda view: take(memoryview(deflate.compress(view))))
        take(memoryview(deflate.flush()))
        return sums

    def sealed(self, archive: Archive) -> Archive:
        """Return the archive with the digests that were found."""
        members = (
            replace(member, sha256=self._found.get(member.name, member.sha256)) for member in archive.members
        )
        return replace(archive, members=tuple(members))

    def _copy_file(self, member: Member, path: Path, take: Take | None) -> Sums:
        read_at = self._digests.now()
        try:
            file = open_source(path)
        except OSError as error:
            raise ArchiveError(f"the file {why(error)}", where=str(path)) from error
        with file:
            before = os.fstat(file.fileno())

            def read(view: memoryview) -> int:
                try:
                    return file.readinto(view) or 0
                except OSError as error:
                    raise ArchiveError(f"the file {why(error)}", where=str(path)) from error

            sums = pump(read, take, member.size)
            after = os.fstat(file.fileno())
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        planned = sums.size == before.st_size == member.size and member.sha256 in (None, sums.sha256)
        if not (same and planned):
            self._digests.forget(path)
            raise ArchiveError(
                "the file changed while it was being packed",
                where=str(path),
                hint="wait until whatever writes it has ended, then run the command again",
            )
        self._digests.record(path, before, sums.sha256, read_at=read_at)
        return sums

    def _watched(self, take: Take) -> Take:
        progress = self._progress
        if progress is None:
            return take

        def take_and_tell(view: memoryview) -> None:
            take(view)
            progress(len(view))

        return take_and_tell


def _deflater() -> zlib._Compress:
    return zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)


class _Output:
    """A file that is written from its start to its end, and patched where it was."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.position = 0

    def write(self, content: bytes | memoryview) -> None:
        """Append all of it."""
        view = memoryview(content)
        while view:
            count = os.write(self._descriptor, view)
            self.position += count
            view = view[count:]

    def patch(self, content: bytes, offset: int) -> None:
        """Overwrite what lies at `offset`."""
        os.pwrite(self._descriptor, content, offset)


def _write_zip(archive: Archive, output: _Output, copying: _Copying, method: int) -> None:
    entries = []
    for member in archive.members:
        entry = Packed(member.name, method, member.size, output.position)
        output.write(local_header(entry))
        start = output.position
        pack = copying if method == STORED else copying.deflated
        sums = pack(member, output.write)
        entry = replace(entry, crc=sums.crc, packed_size=output.position - start)
        output.patch(local_header(entry), entry.offset)
        entries.append(entry)
    output.write(directory(entries, output.position))


def _stored_size(archive: Archive) -> int:
    entries, position = [], 0
    for member in archive.members:
        entry = Packed(member.name, STORED, member.size, position, packed_size=member.size)
        entries.append(entry)
        position += len(local_header(entry)) + member.size
    return position + len(directory(entries, position))


def _reserve(descriptor: int, size: int) -> None:
    """Ask for the space at once, where the system can, so that a full disk is found out before the work."""
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is None:
        return
    try:
        reserve(descriptor, 0, size)
    except OSError as error:
        if error.errno in _FULL:
            raise


def _write_tgz(archive: Archive, output: _Output, copying: _Copying) -> None:
    import tarfile

    deflate = _deflater()
    crc, size = 0, 0

    def write(content: bytes | memoryview) -> None:
        nonlocal crc, size
        crc, size = zlib.crc32(content, crc), size + len(content)
        output.write(deflate.compress(content))

    output.write(_GZIP_HEADER)
    for member in archive.members:
        header = tarfile.TarInfo(f"{archive.name}/{member.name}")
        header.size = member.size
        header.mode = 0o644
        write(header.tobuf(tarfile.PAX_FORMAT, "utf-8"))
        copying(member, write)
        write(bytes(-member.size % tarfile.BLOCKSIZE))
    write(bytes(2 * tarfile.BLOCKSIZE))
    write(bytes(-size % tarfile.RECORDSIZE))
    output.write(deflate.flush() + struct.pack("<LL", crc, size & 0xFFFFFFFF))


def _write_folder(archive: Archive, folder: Path, copying: _Copying) -> None:
    for member in archive.members:
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            copying(member, _Output(descriptor).write)
        finally:
            os.close(descriptor)


def _unwritable(error: OSError, archive: Archive, destination: Path) -> ArchiveError | DiskFullError:
    full = _FULL.get(error.errno or 0)
    if full is None:
        return ArchiveError(f"cannot be written: {error.strerror or error}", where=str(destination))
    needed = _stored_size(archive) if archive.format == "zip-store" else archive.size
    try:
        free = f"{shutil.disk_usage(destination.parent).free:,}"
    except OSError:
        free = "an unknown number"
    return DiskFullError(
        f"{full}: the archive needs {needed:,} bytes, {free} are free",
        where=str(destination),
        hint="make room, or write to another disk",
    )
