"""A .mar read as if an enemy had made it.

Its members must lie one behind the other from the first byte to the directory and the directory must reach
to the last; every number that is written twice must agree; nothing is inflated beyond the size that is
declared.
"""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from deployer.archive import layout
from deployer.archive.layout import (
    CENTRAL,
    DEFLATED,
    END,
    END64,
    LOCAL,
    LOCATOR64,
    MAX16,
    MAX32,
    STORED,
    Packed,
)
from deployer.archive.members import Entry, Member, name_fault, names_fault
from deployer.archive.stream import open_source, pump, why
from deployer.errors import IntegrityError

_DIRECTORY_BYTES = 16 << 20  # some 200,000 members
_WIDEST_EXTRA = 4 + 3 * 8  # bytes of a zip64 field with all three numbers
_FEED = 1 << 16  # deflated bytes that are inflated at a time

_LIMITS = (MAX16, MAX32, MAX32)  # what stands where the zip64 record has the number
_FLAWS = {0x0001: "is encrypted", 0x0008: "has its sizes behind its data", 0x0020: "is a patch"}


class _Found(Struct, frozen=True):
    """A member as the directory declares it, and where its packed bytes lie."""

    packed: Packed
    start: int
    header: bytes


def verify_archive(path: Path, members: Iterable[Entry | Member]) -> None:
    """See that a .mar is, byte for byte, what `write_archive` made of these members.

    Of a deflated archive the compressed bytes may differ as long as they inflate to the same.
    `IntegrityError` names the first member that differs, and how; `ValueError` if the digest of a member is
    not known.
    """
    expected = {member.name: member for member in members}
    with _opened(path) as file:
        found, start, end = _survey(file)
        _compare_names(expected, [member.packed.name for member in found])
        for member in found:
            _compare(file, member, expected[member.packed.name])
        packed = [member.packed for member in found]
        if [entry.name for entry in packed] != sorted(expected) or end != layout.directory(packed, start):
            raise IntegrityError("the directory is not the one that kdeploy wrote")


def outline_size(members: Iterable[Entry]) -> int:
    """Return how many bytes at the end of a .mar with these members hold its directory, at most."""
    records = (CENTRAL.size + len(member.name.encode()) + _WIDEST_EXTRA for member in members)
    return sum(records) + END64.size + LOCATOR64.size + END.size


def check_outline(tail: bytes, size: int, members: Iterable[Entry]) -> None:
    """See that a .mar of `size` bytes that ends in `tail` has just these members, whatever is in them.

    The tail is at least `outline_size` bytes of it, or all. Raises IntegrityError.
    """
    expected = {member.name: member for member in members}
    file = _Tail(tail, size)
    count, start, length = _end(file, size)
    end = _at(file, start, size - start)
    packed = list(_directory(end[:length], count))
    _compare_names(expected, [entry.name for entry in packed])
    at = 0
    for entry in packed:
        _compare_size(entry, expected[entry.name])
        at = at + len(layout.local_header(entry)) + entry.packed_size if entry.offset == at else -1
    if at != start or len(packed) != len(expected) or end != layout.directory(packed, start):
        raise IntegrityError("the directory is not the one that kdeploy wrote")


class _Readable(Protocol):
    def seek(self, offset: int, /) -> int: ...

    def read(self, size: int, /) -> bytes | None: ...


class _Tail:
    """The end of a file, read by positions in the whole; what lies before it counts as missing."""

    def __init__(self, tail: bytes, size: int) -> None:
        self._tail = io.BytesIO(tail)
        self._start = size - len(tail)

    def seek(self, offset: int, /) -> int:
        if offset < self._start:
            raise IntegrityError("the directory is not the one that kdeploy wrote")
        return self._tail.seek(offset - self._start)

    def read(self, size: int, /) -> bytes:
        return self._tail.read(size)


def _compare_names(expected: Iterable[str], found: Sequence[str]) -> None:
    if missing := sorted(set(expected) - set(found)):
        raise IntegrityError(f"{missing[0]}: is missing")
    if strange := sorted(set(found) - set(expected)):
        raise IntegrityError(f"{strange[0]}: was not in the archive that was pushed")


def _compare(file: io.FileIO, found: _Found, expected: Entry | Member) -> None:
    if expected.sha256 is None:
        raise ValueError(f"the digest of {expected.name} is not known")
    _compare_size(found.packed, expected)
    if found.header != layout.local_header(found.packed):
        raise IntegrityError(f"{expected.name}: its header is not the one that kdeploy wrote")
    if _digest(file, found) != expected.sha256:
        raise IntegrityError(f"{expected.name}: its content is not the one that was pushed")


def _compare_size(found: Packed, expected: Entry | Member) -> None:
    if found.size != expected.size:
        raise IntegrityError(f"{expected.name}: has {found.size:,} bytes, not {expected.size:,}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    """Open an archive, and say of every failure in which one it was."""
    hint = "take it once more from where it was made; do not load this one"
    try:
        with open_source(path) as file:
            yield file
    except OSError as error:
        raise IntegrityError(f"the archive {why(error)}", where=str(path), hint=hint) from error
    except IntegrityError as error:
        raise IntegrityError(error.what, where=str(path), hint=hint) from error


def _survey(file: io.FileIO) -> tuple[list[_Found], int, bytes]:
    """Return the members as they lie in the file, where the directory starts, and all bytes from there on."""
    size = file.seek(0, io.SEEK_END)
    count, start, length = _end(file, size)
    if length > _DIRECTORY_BYTES:
        raise IntegrityError(f"its directory of {length:,} bytes is too large")
    end = _at(file, start, size - start)
    packed = sorted(_directory(end[:length], count), key=lambda entry: entry.offset)
    if fault := names_fault(entry.name for entry in packed):
        raise IntegrityError(fault)
    return list(_placed(file, packed, start)), start, end


def _at(file: _Readable, offset: int, count: int) -> bytes:
    """Read exactly `count` bytes."""
    file.seek(offset)
    content = bytearray()
    while len(content) < count:
        piece = file.read(count - len(content))
        if not piece:
            raise IntegrityError("is cut short")
        content += piece
    return bytes(content)


def _end(file: _Readable, size: int) -> tuple[int, int, int]:
    """Return the number of members, and where the directory starts and how long it is."""
    if size < END.size:
        raise IntegrityError("is no .mar, or cut short")
    at = size - END.size
    mark, disk, first_disk, here, count, length, start, comment = END.unpack(_at(file, at, END.size))
    if mark != layout.END_MARK or comment:
        raise IntegrityError("is no .mar, or cut short, or something was appended to it")
    if disk or first_disk or here != count:
        raise IntegrityError("is spread over several files")
    short = (count, length, start)
    if (
        at >= (both := END64.size + LOCATOR64.size)
        and _at(file, at - LOCATOR64.size, 4) == layout.LOCATOR64_MARK
    ):
        at -= both
        count, length, start = _end64(_at(file, at, both), at)
        if any(
            few not in (many, limit)
            for few, many, limit in zip(short, (count, length, start), _LIMITS, strict=True)
        ):
            raise IntegrityError("its two end records do not agree")
    if start + length != at:
        raise IntegrityError("holds bytes that belong to no member")
    return count, start, length


def _end64(records: bytes, at: int) -> tuple[int, int, int]:
    """Read the zip64 end record and its locator, which lie at `at`."""
    mark, rest, _, _, disk, first_disk, here, count, length, start = END64.unpack_from(records)
    locator = LOCATOR64.unpack_from(records, END64.size)
    if (mark, rest) != (layout.END64_MARK, END64.size - 12) or locator != (layout.LOCATOR64_MARK, 0, at, 1):
        raise IntegrityError("its zip64 end record is damaged")
    if disk or first_disk or here != count:
        raise IntegrityError("is spread over several files")
    return count, length, start


def _directory(content: bytes, count: int) -> Iterator[Packed]:
    """Read the records of all members."""
    at = 0
    for _ in range(count):
        if len(content) - at < CENTRAL.size or content[at : at + 4] != layout.CENTRAL_MARK:
            raise IntegrityError("its directory is damaged")
        _, _, _, flags, method, _, _, *fields = CENTRAL.unpack_from(content, at)
        crc, packed_size, size, name_length, extra_length, comment, disk, _, mode, offset = fields
        at += CENTRAL.size
        name = _name(content[at : at + name_length], flags)
        at += name_length
        extra = content[at : at + extra_length]
        at += extra_length
        _refuse(name, flags, method, mode >> 16)
        if comment or disk or len(extra) != extra_length:
            raise IntegrityError(f"{name}: its record in the directory is damaged")
        size, packed_size, offset = _widened(name, extra, [size, packed_size, offset])
        if method == STORED and size != packed_size:
            raise IntegrityError(f"{name}: is stored, but in {packed_size:,} bytes instead of {size:,}")
        yield Packed(name, method, size, offset, crc, packed_size)
    if at != len(content):
        raise IntegrityError("its directory is damaged")


def _name(encoded: bytes, flags: int) -> str:
    try:
        name = encoded.decode("utf-8" if flags & layout.UTF8 else "ascii")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{encoded!r}: the name of a member is not UTF-8") from error
    if fault := name_fault(name):
        raise IntegrityError(f"{name!r}: the name of a member {fault}")
    return name


def _refuse(name: str, flags: int, method: int, mode: int) -> None:
    for flag, flaw in _FLAWS.items():
        if flags & flag:
            raise IntegrityError(f"{name}: {flaw}")
    if flags & ~layout.UTF8 & ~0x6:  # 0x6: how hard the deflater tried
        raise IntegrityError(f"{name}: has unknown flags")
    if method not in (STORED, DEFLATED):
        raise IntegrityError(f"{name}: is compressed in an unknown way")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise IntegrityError(f"{name}: is a link or another thing that is no file")


def _widened(name: str, extra: bytes, numbers: list[int]) -> list[int]:
    """Replace the numbers that are too large for 32 bits by those of the zip64 field."""
    fields, at = b"", 0
    while at < len(extra):
        if len(extra) - at < 4:
            raise IntegrityError(f"{name}: its extra field is damaged")
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == layout.ZIP64_EXTRA:
            fields = extra[at + 4 : at + 4 + length]
        at += 4 + length
    wide = numbers.count(MAX32)  # none: some write the field all the same, and it says nothing
    if at != len(extra) or (wide and len(fields) != 8 * wide):
        raise IntegrityError(f"{name}: its extra field is damaged")
    large = iter(struct.unpack_from(f"<{wide}Q", fields))
    return [next(large) if number == MAX32 else number for number in numbers]


def _placed(file: io.FileIO, entries: Sequence[Packed], end: int) -> Iterator[_Found]:
    """See that the members follow one another without gap or overlap, each behind a header that agrees."""
    at = 0
    for entry in entries:
        if entry.offset != at:
            raise IntegrityError(
                f"{entry.name}: overlaps another member, or bytes in front of it belong to none"
            )
        if end - at < LOCAL.size:
            raise IntegrityError(f"{entry.name}: its header is cut short")
        fixed = _at(file, at, LOCAL.size)
        mark, _, flags, method, _, _, crc, packed_size, size, name_length, extra_length = LOCAL.unpack(fixed)
        header = fixed + _at(file, at + LOCAL.size, name_length + extra_length)
        name, extra = header[LOCAL.size :][:name_length], header[LOCAL.size + name_length :]
        if mark != layout.LOCAL_MARK or name != entry.name.encode():
            raise IntegrityError(f"{entry.name}: its header is not where the directory says")
        _refuse(entry.name, flags, method, 0)
        size, packed_size = _widened(entry.name, extra, [size, packed_size])
        if (method, crc, size, packed_size) != (entry.method, entry.crc, entry.size, entry.packed_size):
            raise IntegrityError(f"{entry.name}: its header and the directory do not agree")
        start = at + len(header)
        at = start + packed_size
        if at > end:
            raise IntegrityError(f"{entry.name}: is cut short, or overlaps the directory")
        yield _Found(entry, start, header)
    if at != end:
        raise IntegrityError("holds bytes that belong to no member")


def _digest(file: io.FileIO, found: _Found) -> str:
    """Read a member and return its sha256, having seen that size and CRC-32 are as declared."""
    entry = found.packed
    if entry.method == STORED:
        file.seek(found.start)
        sums = pump(lambda view: file.readinto(view) or 0, None, entry.size)
    else:
        inflating = _Inflating(file, found)
        sums = pump(inflating.read, None, entry.size)
        inflating.finish()
    if sums.size != entry.size or sums.crc != entry.crc:
        raise IntegrityError(f"{entry.name}: is damaged: its size or CRC-32 is not the one declared")
    return sums.sha256


class _Inflating:
    """Inflates a member, never holding more than one buffer of it, and never more than was declared."""

    def __init__(self, file: io.FileIO, found: _Found) -> None:
        self._file = file
        self._name = found.packed.name
        self._at = found.start
        self._left = found.packed.packed_size
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._pending = b""

    def read(self, view: memoryview) -> int:
        """Fill the front of `view`; 0 when the deflated data ends."""
        while not self._inflate.eof:
            content = self._some(len(view))
            if content:
                view[: len(content)] = content
                return len(content)
        return 0

    def finish(self) -> None:
        """See that the data ended where it was declared to."""
        while not self._inflate.eof:
            if self._some(1):
                raise IntegrityError(f"{self._name}: inflates to more than is declared")
        if self._left or self._pending or self._inflate.unused_data:
            raise IntegrityError(f"{self._name}: has bytes behind its data")

    def _some(self, at_most: int) -> bytes:
        if not self._pending:
            self._pending = _at(self._file, self._at, min(_FEED, self._left))
            self._at += len(self._pending)
            self._left -= len(self._pending)
        try:
            content = self._inflate.decompress(self._pending, at_most)
        except zlib.error as error:
            raise IntegrityError(f"{self._name}: is damaged: {error}") from error
        if not content and not self._inflate.eof and not self._inflate.unconsumed_tail and not self._left:
            raise IntegrityError(f"{self._name}: is damaged: its data is cut short")
        self._pending = self._inflate.unconsumed_tail
        return content
