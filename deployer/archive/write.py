"""Writes an archive: each member is read, packed and digested in one pass.

The destination appears when it is complete. If it cannot be completed, no file is left behind.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec.structs import replace

from deployer.archive.digests import DigestCache
from deployer.archive.layout import DEFLATED, STORED, Packed, directory, local_header
from deployer.archive.members import Archive, Member
from deployer.archive.partial import partial
from deployer.archive.stream import Sums, Take, drop, open_source, pump, sums_of, unreadable
from deployer.errors import ArchiveError, DiskFullError

_LEVEL = 6  # zlib's default, fixed

_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "file too large for the file system",
}

Progress = Callable[[int], None]


def digest_archive(archive: Archive, digests: DigestCache) -> Archive:
    """Return the archive with all digests. Reads the files whose digest is not known.

    `ArchiveError` if a file cannot be read or changes meanwhile.
    """
    reader = _Reader(digests, lambda _: None)
    try:
        for member in archive.members:
            if member.sha256 is None:
                reader.copy(member, drop)
    finally:
        digests.save()
    return reader.sealed(archive)


def write_archive(
    archive: Archive, destination: Path, digests: DigestCache, *, progress: Progress = lambda _: None
) -> Archive:
    """Write the archive to exactly `destination`, and return it with all digests. Reads each file once.

    `progress` gets the number of bytes packed since its last call. An existing file is replaced atomically;
    an existing folder (format `no-archive`) is an error. `ArchiveError` if a member's file cannot be read,
    differs from the plan or changes while it is read, or if the destination cannot be written;
    `DiskFullError` if the disk is full.
    """
    folder = archive.format == "no-archive"
    if folder and os.path.lexists(destination):
        raise ArchiveError(
            "folder already exists, and kdeploy does not replace folders",
            where=str(destination),
            hint="Remove the folder, or choose another destination.",
        )
    reader = _Reader(digests, progress)
    try:
        with partial(destination, folder=folder) as (temporary, descriptor):
            if folder:
                _write_folder(archive, temporary, reader)
            else:
                with os.fdopen(descriptor, "wb", closefd=False) as file:
                    (_write_tgz if archive.format == "tgz" else _write_zip)(archive, file, reader)
    except OSError as error:
        raise _unwritable(error, archive, destination) from error
    finally:
        digests.save()
    return reader.sealed(archive)


class _Reader:
    """Reads members, each once, compares them with the plan, and remembers their digests."""

    def __init__(self, digests: DigestCache, progress: Progress) -> None:
        self._digests = digests
        self._progress = progress
        self._found: dict[str, str] = {}

    def copy(self, member: Member, take: Take) -> Sums:
        """Pass a member's bytes to `take`, and report progress."""

        def take_and_report(view: memoryview) -> None:
            take(view)
            self._progress(len(view))

        if isinstance(member.source, bytes):
            sums = sums_of(member.source)
            take_and_report(memoryview(member.source))
        else:
            sums = self._copy_file(member, member.source, take_and_report)
        self._found[member.name] = sums.sha256
        return sums

    def sealed(self, archive: Archive) -> Archive:
        """Return the archive with the digests of what was read."""
        members = (
            replace(member, sha256=self._found.get(member.name, member.sha256)) for member in archive.members
        )
        return replace(archive, members=tuple(members))

    def _copy_file(self, member: Member, path: Path, take: Take) -> Sums:
        read_at = self._digests.clock()
        with _readable(path):
            file = open_source(path)
        with file:
            before = os.fstat(file.fileno())

            def read(view: memoryview) -> int:
                with _readable(path):
                    return file.readinto(view)

            sums = pump(read, take, member.size)
            after = os.fstat(file.fileno())
        same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        planned = sums.size == before.st_size == member.size and member.sha256 in (None, sums.sha256)
        if not (same and planned):
            self._digests.forget(path)
            hint = "Wait until the program that writes the file has ended, then run the command again."
            raise ArchiveError(f"{path.name} changed while it was read", where=str(path), hint=hint)
        self._digests.record(path, before, sums.sha256, read_at=read_at)
        return sums


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the error of a file that cannot be read into `ArchiveError`: an `OSError` is the destination's."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(unreadable(path.name, error), where=str(path)) from error


def _write_zip(archive: Archive, file: io.BufferedWriter, reader: _Reader) -> None:
    method = DEFLATED if archive.format == "default" else STORED
    if method == STORED:
        _reserve(file.fileno(), archive.size)
    entries = []
    for member in archive.members:
        entry = Packed(member.name, method, member.size, file.tell())
        start = entry.offset + file.write(local_header(entry))
        sums = reader.copy(member, file.write) if method == STORED else _deflate(member, file, reader)
        end = file.tell()
        entries.append(replace(entry, crc=sums.crc, packed_size=end - start))
        file.seek(entry.offset)
        file.write(local_header(entries[-1]))
        file.seek(end)
    file.write(directory(entries, file.tell()))


def _deflate(member: Member, file: io.BufferedWriter, reader: _Reader) -> Sums:
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    sums = reader.copy(member, lambda view: file.write(deflate.compress(view)))
    file.write(deflate.flush())
    return sums


def _reserve(descriptor: int, size: int) -> None:
    """Reserve the space if the system can, so that a full disk is an error before the work."""
    if reserve := getattr(os, "posix_fallocate", None):
        try:
            reserve(descriptor, 0, size)
        except OSError as error:
            if error.errno in _FULL:
                raise


def _write_tgz(archive: Archive, file: io.BufferedWriter, reader: _Reader) -> None:
    import gzip
    import tarfile

    with gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as packed:
        for member in archive.members:
            header = tarfile.TarInfo(f"{archive.name}/{member.name}")
            header.size = member.size
            header.mode = 0o644
            packed.write(header.tobuf(tarfile.PAX_FORMAT, "utf-8"))
            reader.copy(member, packed.write)
            packed.write(bytes(-member.size % tarfile.BLOCKSIZE))
        packed.write(bytes(2 * tarfile.BLOCKSIZE))
        packed.write(bytes(-packed.tell() % tarfile.RECORDSIZE))


def _write_folder(archive: Archive, folder: Path, reader: _Reader) -> None:
    for member in archive.members:
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            reader.copy(member, file.write)


def _unwritable(error: OSError, archive: Archive, destination: Path) -> ArchiveError | DiskFullError:
    full = _FULL.get(error.errno or 0)
    if full is None:
        return ArchiveError(f"cannot write the archive: {error.strerror or error}", where=str(destination))
    free = shutil.disk_usage(destination.parent).free
    return DiskFullError(
        f"{full}: the archive needs {archive.size:,} bytes, {free:,} are free",
        where=str(destination),
        hint="Free some space, or write to another disk.",
    )
