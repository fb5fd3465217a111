"""Encodes the headers and the directory of a .mar, a zip file in the only form that kdeploy writes.

Sorted members without gaps, sizes before the data, no comments, a fixed date, mode 0644, and zip64 records
only for numbers that need them. The same members give the same bytes. Source: PKWARE's APPNOTE.TXT, 4.3 and
4.5.3.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Sequence

from msgspec import Struct

STORED, DEFLATED = 0, 8

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_RECORDS64 = _END64.size + _LOCATOR64.size

_UTF8 = 0x800  # the flag of a name that is not ASCII
_ZIP64_EXTRA = 1
_WIDEST_EXTRA = 4 + 3 * 8  # bytes of a zip64 field with all three numbers
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_FROM = _MAX32  # the first number that needs zip64
_PLAIN, _ZIP64 = 20, 45  # "version needed to extract"
_UNIX = 3 << 8
_TIME, _DATE = 0, 0x21  # midnight of 1 January 1980, the earliest date in a zip file
_MODE = (stat.S_IFREG | 0o644) << 16


class Packed(Struct, frozen=True):
    """A member in the file: `packed_size` bytes after the local header at `offset`."""

    name: str
    method: int
    size: int
    offset: int
    crc: int = 0
    packed_size: int = 0


def local_header(entry: Packed) -> bytes:
    """Return the header before a member's data. Its length depends only on name, method and size."""
    name, extra = entry.name.encode(), b""
    size, packed_size, version = entry.size, entry.packed_size, _PLAIN
    if _wide(entry):
        extra = struct.pack("<HHQQ", _ZIP64_EXTRA, 16, size, packed_size)
        size, packed_size, version = _MAX32, _MAX32, _ZIP64
    fixed = _LOCAL.pack(
        b"PK\x03\x04", version, _flags(name), entry.method, _TIME, _DATE,
        entry.crc, packed_size, size, len(name), len(extra),
    )  # fmt: skip
    return fixed + name + extra


def _flags(name: bytes) -> int:
    return 0 if name.isascii() else _UTF8


def _wide(entry: Packed) -> bool:
    """Whether the local header has 64-bit sizes. Decided before the packed size is known."""
    growth = 0 if entry.method == STORED else entry.size // 1000 + 64  # of data that cannot be deflated
    return entry.size + growth >= _ZIP64_FROM


def directory(entries: Sequence[Packed], start: int) -> bytes:
    """Return the bytes after the last member's data, which ends at `start`."""
    headers = b"".join(map(_central_header, entries))
    count, size, records = len(entries), len(headers), b""
    if count >= _MAX16 or size >= _ZIP64_FROM or start >= _ZIP64_FROM:
        records = _END64.pack(
            b"PK\x06\x06", _END64.size - 12, _UNIX | _ZIP64, _ZIP64, 0, 0, count, count, size, start
        )
        records += _LOCATOR64.pack(b"PK\x06\x07", 0, start + size, 1)
        count, size, start = min(count, _MAX16), _short(size), _short(start)
    return headers + records + _END.pack(b"PK\x05\x06", 0, 0, count, count, size, start, 0)


def _central_header(entry: Packed) -> bytes:
    numbers = [entry.size, entry.packed_size, entry.offset]
    large = [number for number in numbers if number >= _ZIP64_FROM]
    size, packed_size, offset = map(_short, numbers)
    extra = struct.pack(f"<HH{len(large)}Q", _ZIP64_EXTRA, 8 * len(large), *large) if large else b""
    version = _ZIP64 if large or _wide(entry) else _PLAIN
    name = entry.name.encode()
    fixed = _CENTRAL.pack(
        b"PK\x01\x02", _UNIX | version, version, _flags(name), entry.method, _TIME, _DATE,
        entry.crc, packed_size, size, len(name), len(extra), 0, 0, 0, _MODE, offset,
    )  # fmt: skip
    return fixed + name + extra


def _short(number: int) -> int:
    return number if number < _ZIP64_FROM else _MAX32


def directory_size(names: Iterable[str]) -> int:
    """Return the maximum size of `directory` for members of these names, in bytes."""
    records = sum(_CENTRAL.size + len(name.encode()) + _WIDEST_EXTRA for name in names)
    return records + _RECORDS64 + _END.size


def parse_directory(tail: bytes, size: int) -> tuple[list[Packed], int, bytes]:
    """Return the entries of a .mar of `size` bytes, the end of its last data, and its directory's bytes.

    `tail` is the end of the file. Checks nothing: the caller compares the bytes with those of `directory`.
    Raises `struct.error` if bytes are missing or a number is too large.
    """
    start = _END.unpack(tail[-_END.size :])[6]
    if start == _MAX32:
        start = _END64.unpack(tail[-_RECORDS64 - _END.size :][: _END64.size])[9]
    content = tail[max(start - (size - len(tail)), 0) :]
    entries: list[Packed] = []
    at, position = 0, 0
    while content.startswith(b"PK\x01\x02", at):
        _, _, _, _, method, _, _, crc, *sizes, name_length, extra_length, _, _, _, _, _ = (
            _CENTRAL.unpack_from(content, at)
        )
        extra = at + _CENTRAL.size + name_length
        name = content[at + _CENTRAL.size : extra].decode(errors="replace")
        at = extra + extra_length
        wide = struct.iter_unpack("<Q", content[extra + 4 : at])
        packed_size, full_size = sizes
        if full_size == _MAX32:
            (full_size,) = next(wide, (_MAX32,))
        if packed_size == _MAX32:
            (packed_size,) = next(wide, (_MAX32,))
        entries.append(Packed(name, method, full_size, position, crc, packed_size))
        position += len(local_header(entries[-1])) + packed_size
    return entries, position, content
