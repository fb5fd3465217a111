"""Compares a .mar with the record of its members.

No byte of the file is trusted. Its directory holds the CRC-32 and the packed size of each member; with these,
every byte outside of the members' content is generated again and compared.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from deployer.archive import layout
from deployer.archive.layout import DEFLATED, STORED, Packed
from deployer.archive.members import NAME_BYTES, MemberRecord
from deployer.archive.stream import Sums, drop, open_source, pump, unreadable
from deployer.errors import IntegrityError

_FEED = 1 << 16  # deflated bytes per read
_DAMAGED = "the zip directory differs from the one that kdeploy wrote"


def verify_archive(path: Path, members: Iterable[MemberRecord]) -> None:
    """Check that a .mar is, byte for byte, the one that `write_archive` writes of these members.

    The compressed bytes of a deflated member can differ if they inflate to the same content.
    `IntegrityError` names the first member that differs, and how.
    """
    members = tuple(members)
    hint = "Do not load this archive. Download or build it again."
    try:
        with open_source(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - outline_size(members), 0))
            for entry, member in zip(_outline(file.read(), size, members), members, strict=True):
                _compare(file, entry, member)
    except OSError as error:
        raise IntegrityError(unreadable(path.name, error), where=str(path), hint=hint) from error
    except IntegrityError as error:
        raise IntegrityError(error.what, where=str(path), hint=hint) from error


def outline_size(members: Iterable[MemberRecord]) -> int:
    """Return the number of bytes at the end of a .mar with these members that `check_outline` needs."""
    # The last name is room for an unexpected member, so that the error can name it.
    return layout.directory_size([*(member.name for member in members), NAME_BYTES * "x"])


def check_outline(tail: bytes, size: int, members: Iterable[MemberRecord]) -> None:
    """Check that a .mar of `size` bytes has exactly these members, without reading their content.

    `tail` is its end: at least `outline_size` bytes, or all. Raises IntegrityError.
    """
    _outline(tail, size, tuple(members))


def _outline(tail: bytes, size: int, members: tuple[MemberRecord, ...]) -> list[Packed]:
    """Return the directory's entries, in the order of `members`."""
    try:
        entries, end, directory = layout.parse_directory(tail, size)
        generated = layout.directory(entries, end)
    except struct.error as error:
        raise IntegrityError(_DAMAGED) from error
    if members and not entries:
        raise IntegrityError("not a .mar, or truncated, or bytes were added to it")
    expected = {member.name: member.size for member in members}
    for name in sorted(expected.keys() ^ {entry.name for entry in entries}):
        what = "missing" if name in expected else "not in the archive that was pushed"
        raise IntegrityError(f"{name}: {what}")
    for entry in entries:
        if entry.size != expected[entry.name]:
            raise IntegrityError(f"{entry.name}: {entry.size:,} bytes instead of {expected[entry.name]:,}")
        plain = entry.method == STORED and entry.packed_size == entry.size
        if not plain and entry.method != DEFLATED:
            raise IntegrityError(_DAMAGED)
    in_order = [entry.name for entry in entries] == [member.name for member in members]
    if not in_order or directory != generated or end + len(directory) != size:
        raise IntegrityError(_DAMAGED)
    return entries


def _compare(file: io.BufferedReader, entry: Packed, member: MemberRecord) -> None:
    header = layout.local_header(entry)
    file.seek(entry.offset)
    if file.read(len(header)) != header:
        raise IntegrityError(f"{member.name}: the header differs from the one that kdeploy wrote")
    sums = pump(file.readinto, drop, entry.size) if entry.method == STORED else _inflate(file, entry)
    if sums != Sums(entry.size, entry.crc, member.sha256):
        raise IntegrityError(f"{member.name}: the content differs from the pushed file")


def _inflate(file: io.BufferedReader, entry: Packed) -> Sums:
    """Inflate a member, in bounded memory, up to one byte more than its declared size."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    left, pending = entry.packed_size, b""

    def read(view: memoryview) -> int:
        nonlocal left, pending
        while not inflate.eof:
            if not pending:
                pending = file.read(min(_FEED, left))
                left -= len(pending)
            fed = len(pending)
            content = inflate.decompress(pending, len(view))
            pending = inflate.unconsumed_tail
            if content or not fed:
                view[: len(content)] = content
                return len(content)
        return 0

    try:
        sums = pump(read, drop, entry.size + 1)
    except zlib.error as error:
        raise IntegrityError(f"{entry.name}: damaged: {error}") from error
    if not inflate.eof or left or inflate.unused_data:
        raise IntegrityError(f"{entry.name}: damaged: the compressed data has the wrong length")
    return sums
