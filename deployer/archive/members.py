"""What a model archive is made of: its members, the names they may have, and the digest of them all."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

NAME_BYTES = 4096  # the longest path on Linux
_PART_BYTES = 255  # the longest file name there
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
_SUFFIXES = {"zip-store": ".mar", "default": ".mar", "tgz": ".tar.gz", "no-archive": ""}


class MemberRecord(Struct, frozen=True):
    """A member as a release records it: enough to verify the archive byte for byte."""

    name: str
    size: int
    sha256: str


class Member(Struct, frozen=True):
    """A member to be packed: `source` is its bytes or the file that has them; `sha256` may be unknown."""

    name: str
    size: int
    sha256: str | None
    source: Path | bytes


class Archive(Struct, frozen=True, kw_only=True):
    """A model archive that is planned: its members, sorted by name, and what is doubtful about them."""

    name: str
    version: str
    format: str
    members: tuple[Member, ...]
    warnings: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """What torch-model-archiver would call the file, or the folder."""
        return self.name + _SUFFIXES[self.format]

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
        """`sha256:` and the digest of all members, whatever the format. `ValueError` unless sealed."""
        return digest_records(self.records)


def digest_records(records: Iterable[MemberRecord]) -> str:
    """Digest what an archive is made of: `sha256:` and the SHA-256 of the list of its members."""
    listing = "".join(f"{record.sha256} {record.size} {record.name}\n" for record in records)
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()


def name_fault(name: str) -> str | None:
    """Say what makes a name unfit for a member, or None: members are relative paths that stay inside."""
    if _UNPRINTABLE.search(name):
        return "holds a control character or bytes that are no UTF-8"
    if "\\" in name:
        return "holds a backslash"
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "leads out of the archive"
    if "" in parts or "." in parts:
        return "has an empty part"
    if len(name.encode()) > NAME_BYTES or any(len(part.encode()) > _PART_BYTES for part in parts):
        return "is too long"
    return None


def names_fault(names: Iterable[str]) -> str | None:
    """Say which of the names cannot be in one archive together, or None."""
    # With the least character for `/`, a folder's members follow its own name.
    ordered = sorted(names, key=lambda name: name.replace("/", "\0"))
    for name, following in itertools.pairwise(ordered):
        if name == following:
            return f"{name}: is there twice"
        if following.startswith(f"{name}/"):
            return f"{name}: is a file and a folder at once"
    return None
