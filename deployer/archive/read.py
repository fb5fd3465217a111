"""A .mar compared with the record of its members.

Nothing in the file is trusted: its directory tells the CRC-32 and the packed size of each member. With these,
every byte that is not a member's content is made again and compared.
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
from deployer.archive.stream import Sums, drop, open_source, pump, why
from deployer.errors import IntegrityError

_FEED = 1 << 16  # deflated bytes that are inflated at a time
_DAMAGED = "the directory is not the one that kdeploy wrote"


def verify_archive(path: Path, members: Iterable[MemberRecord]) -> None:
    """See that a .mar is, byte for byte, what `write_archive` made of these members.

    Of a deflated archive the compressed bytes may differ as long as they inflate to the same.
    `IntegrityError` names the first member that differs, and how.
    """
    members = tuple(members)
    hint = "download or build the archive again; do not load this one"
    try:
        with open_source(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - outline_size(members), 0))
            for entry, member in zip(_outline(file.read(), size, members), members, strict=True):
                _compare(file, entry, member)
    except OSError as error:
        raise IntegrityError(f"the archive {why(error)}", where=str(path), hint=hint) from error
    except IntegrityError as error:
        raise IntegrityError(error.what, where=str(path), hint=hint) from error


def outline_size(members: Iterable[MemberRecord]) -> int:
    """Return how many bytes at the end of a .mar with these members `check_outline` needs."""
    # The last is room for a member that should not be there, so that it can be named.
    return layout.directory_size([*(member.name for member in members), NAME_BYTES * "x"])


def check_outline(tail: bytes, size: int, members: Iterable[MemberRecord]) -> None:
    """See that a .mar of `size` bytes that ends in `tail` has just these members, whatever is in them.

    The tail is at least `outline_size` bytes of it, or all. Raises IntegrityError.
    """
    _outline(tail, size, tuple(members))


def _outline(tail: bytes, size: int, members: tuple[MemberRecord, ...]) -> list[Packed]:
    """Return the members as they lie in the file, in the order of `members`."""
    try:
        entries, end, directory = layout.parse_directory(tail, size)
        made_again = layout.directory(entries, end)
    except struct.error as error:
        raise IntegrityError(_DAMAGED) from error
    if members and not entries:
        raise IntegrityError("is not a .mar, or cut short, or something was added to it")
    expected = {member.name: member.size for member in members}
    for name in sorted(expected.keys() ^ {entry.name for entry in entries}):
        what = "is missing" if name in expected else "was not in the archive that was pushed"
        raise IntegrityError(f"{name}: {what}")
    for entry in entries:
        if entry.size != expected[entry.name]:
            raise IntegrityError(f"{entry.name}: has {entry.size:,} bytes, not {expected[entry.name]:,}")
        plain = entry.method == STORED and entry.packed_size == entry.size
        if not plain and entry.method != DEFLATED:
            raise IntegrityError(_DAMAGED)
    in_order = [entry.name for entry in entries] == [member.name for member in members]
    if not in_order or directory != made_again or end + len(directory) != size:
        raise IntegrityError(_DAMAGED)
    return entries


def _compare(file: io.BufferedReader, entry: Packed, member: MemberRecord) -> None:
    header = layout.local_header(entry)
    file.seek(entry.offset)
    if file.read(len(header)) != header:
        raise IntegrityError(f"{member.name}: its header is not the one that kdeploy wrote")
    sums = pump(file.readinto, drop, entry.size) if entry.method == STORED else _inflate(file, entry)
    if sums != Sums(entry.size, entry.crc, member.sha256):
        raise IntegrityError(f"{member.name}: its content is not the one that was pushed")


def _inflate(file: io.BufferedReader, entry: Packed) -> Sums:
    """Inflate a member, holding some buffers of it at most, and one byte more than is declared."""
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
        raise IntegrityError(f"{entry.name}: is damaged: {error}") from error
    if not inflate.eof or left or inflate.unused_data:
        raise IntegrityError(f"{entry.name}: is damaged: its data does not end where it should")
    return sums
