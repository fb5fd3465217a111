"""The bytes of a .mar around its members: a zip file in the one form that kdeploy writes.

Sorted members without gaps, sizes in front of the data, no comments, one fixed date, mode 0644, and zip64
records exactly where a number needs them: the same members give the same bytes. (PKWARE, APPNOTE.TXT, 4.3
and 4.5.3.)
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence

from msgspec import Struct

STORED, DEFLATED = 0, 8
UTF8 = 0x800  # the only flag in use: the name is not plain ASCII

LOCAL = struct.Struct("<4s5H3L2H")
CENTRAL = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR64 = struct.Struct("<4sLQL")

LOCAL_MARK = b"PK\x03\x04"
CENTRAL_MARK = b"PK\x01\x02"
END_MARK = b"PK\x05\x06"
END64_MARK = b"PK\x06\x06"
LOCATOR64_MARK = b"PK\x06\x07"

MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF
ZIP64_EXTRA = 1

_ZIP64_FROM = MAX32  # the first number that needs zip64
_PLAIN, _ZIP64 = 20, 45  # "version needed to extract"
_UNIX = 3 << 8
_TIME, _DATE = 0, 0x21  # midnight of 1 January 1980, the earliest there is
_MODE = (stat.S_IFREG | 0o644) << 16


class Packed(Struct, frozen=True):
    """A member as it lies in the file: `packed_size` bytes of it behind the local header at `offset`."""

    name: str
    method: int
    size: int
    offset: int
    crc: int = 0
    packed_size: int = 0


def local_header(entry: Packed) -> bytes:
    """Return the header in front of a member's data; its length depends on name, method and size alone."""
    name, extra = entry.name.encode(), b""
    size, packed_size, version = entry.size, entry.packed_size, _PLAIN
    if _wide(entry):
        extra = struct.pack("<HHQQ", ZIP64_EXTRA, 16, size, packed_size)
        size, packed_size, version = MAX32, MAX32, _ZIP64
    flags = 0 if entry.name.isascii() else UTF8
    return (
        LOCAL.pack(
            LOCAL_MARK, version, flags, entry.method, _TIME, _DATE,
            entry.crc, packed_size, size, len(name), len(extra),
        )
        + name
        + extra
    )  # fmt: skip


def _wide(entry: Packed) -> bool:
    """Whether the local header has 64-bit sizes, which is settled before the packed size is known."""
    growth = 0 if entry.method == STORED else entry.size // 1000 + 64  # of data that cannot be deflated
    return entry.size + growth >= _ZIP64_FROM


def central_header(entry: Packed) -> bytes:
    """Return a member's record in the directory at the end of the file."""
    numbers = [entry.size, entry.packed_size, entry.offset]
    large = [number for number in numbers if number >= _ZIP64_FROM]
    size, packed_size, offset = map(_short, numbers)
    extra = struct.pack(f"<HH{len(large)}Q", ZIP64_EXTRA, 8 * len(large), *large) if large else b""
    version = _ZIP64 if large or _wide(entry) else _PLAIN
    name = entry.name.encode()
    flags = 0 if entry.name.isascii() else UTF8
    return (
        CENTRAL.pack(
            CENTRAL_MARK, _UNIX | version, version, flags, entry.method, _TIME, _DATE,
            entry.crc, packed_size, size, len(name), len(extra), 0, 0, 0, _MODE, offset,
        )
        + name
        + extra
    )  # fmt: skip


def directory(entries: Sequence[Packed], start: int) -> bytes:
    """Return everything behind the last member's data, which ends at `start`."""
    headers = b"".join(map(central_header, entries))
    count, size, records = len(entries), len(headers), b""
    if count >= MAX16 or size >= _ZIP64_FROM or start >= _ZIP64_FROM:
        records = END64.pack(
            END64_MARK, END64.size - 12, _UNIX | _ZIP64, _ZIP64, 0, 0, count, count, size, start
        )
        records += LOCATOR64.pack(LOCATOR64_MARK, 0, start + size, 1)
        count, size, start = min(count, MAX16), _short(size), _short(start)
    return headers + records + END.pack(END_MARK, 0, 0, count, count, size, start, 0)


def _short(number: int) -> int:
    return number if number < _ZIP64_FROM else MAX32
