"""The members of a model archive: their records, the digest of all of them, and which names are valid."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

NAME_BYTES = 4096  # the longest path on Linux
_PART_BYTES = 255  # the longest file name on Linux
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
_SUFFIXES = {"zip-store": ".mar", "default": ".mar", "tgz": ".tar.gz", "no-archive": ""}


class MemberRecord(Struct, frozen=True):
    """A member as a release records it: enough to verify the archive byte for byte."""

    name: str
    size: int
    sha256: str


class Member(Struct, frozen=True):
    """A member to be packed: `source` is its bytes or its file; `sha256` is None if it is not known yet."""

    name: str
    size: int
    sha256: str | None
    source: Path | bytes


class Source(Struct, frozen=True):
    """A Python file of an archive: `path` is for messages, `name` is its name as a member."""

    path: str
    name: str
    content: bytes


class Archive(Struct, frozen=True, kw_only=True):
    """A planned model archive: its members, sorted by name, and warnings and notes about them."""

    name: str
    version: str
    format: str
    members: tuple[Member, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """The name of the file or folder, as torch-model-archiver would choose it."""
        return file_name(self.name, self.format)

    @property
    def size(self) -> int:
        """Bytes of all members, unpacked."""
        return sum(member.size for member in self.members)

    @property
    def sealed(self) -> bool:
        """Whether the digest of every member is known."""
        return all(member.sha256 is not None for member in self.members)

    @property
    def records(self) -> tuple[MemberRecord, ...]:
        """The members as a release records them. `ValueError` unless the archive is sealed."""
        records = []
        for member in self.members:
            if member.sha256 is None:
                raise ValueError(f"the digest of {member.name} is not known yet")
            records.append(MemberRecord(member.name, member.size, member.sha256))
        return tuple(records)

    @property
    def digest(self) -> str:
        """`sha256:` and the digest of all members, independent of the format. `ValueError` unless sealed."""
        return digest_records(self.records)


def file_name(name: str, archive_format: str) -> str:
    """Return the name of an archive's file or folder."""
    return name + _SUFFIXES[archive_format]


def digest_records(records: Iterable[MemberRecord]) -> str:
    """Return the digest of an archive: `sha256:` and the SHA-256 of the list of its members."""
    listing = "".join(f"{record.sha256} {record.size} {record.name}\n" for record in records)
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()


def name_fault(name: str) -> str | None:
    """Return why a name is invalid for a member, or None. A valid name is a relative path inside."""
    if _UNPRINTABLE.search(name):
        return "it contains a control character or is not UTF-8"
    if "\\" in name:
        return "it contains a backslash"
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "it leads out of the archive"
    if "" in parts or "." in parts:
        return "it has an empty part"
    if len(name.encode()) > NAME_BYTES or any(len(part.encode()) > _PART_BYTES for part in parts):
        return "it is too long"
    return None


def names_fault(names: Iterable[str]) -> str | None:
    """Return why different names cannot be in one archive, or None."""
    # With `/` as the smallest character, a folder's members directly follow its name.
    ordered = sorted(names, key=lambda name: name.replace("/", "\0"))
    for name, following in itertools.pairwise(ordered):
        if following.startswith(f"{name}/"):
            return f"{name} is both a file and a folder"
    return None
