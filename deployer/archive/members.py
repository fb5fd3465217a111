"""What a model archive is made of: its members, the names they may have, and the digest of them all."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

NAME_BYTES = 4096  # what a path may have on Linux
PART_BYTES = 255  # what one file name may have there

SUFFIXES = {"zip-store": ".mar", "default": ".mar", "tgz": ".tar.gz", "no-archive": ""}


class Entry(Struct, frozen=True):
    """A member as it is recorded with a release and found again in an archive."""

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
        return self.name + SUFFIXES[self.format]

    @property
    def size(self) -> int:
        """Bytes of all members, unpacked."""
        return sum(member.size for member in self.members)

    @property
    def sealed(self) -> bool:
        """Whether the digest of every member is known."""
        return all(member.sha256 is not None for member in self.members)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The members as they are recorded with a release. `ValueError` unless the archive is sealed."""
        return tuple(Entry(member.name, member.size, _known(member)) for member in self.members)

    @property
    def digest(self) -> str:
        """`sha256:` and the digest of all members, whatever the format. `ValueError` unless sealed."""
        return digest_entries(self.entries)


def digest_entries(entries: Iterable[Entry]) -> str:
    """Digest what an archive is made of: `sha256:` and the SHA-256 of the list of its members."""
    listing = "".join(f"{entry.sha256} {entry.size} {entry.name}\n" for entry in entries)
    return "sha256:" + hashlib.sha256(listing.encode()).hexdigest()


def _known(member: Member) -> str:
    if member.sha256 is None:
        raise ValueError(f"the digest of {member.name} is not known yet")
    return member.sha256


def name_fault(name: str) -> str | None:
    """Say what makes a name unfit for a member, or None: members are relative paths that stay inside."""
    if any(_unprintable(character) for character in name):
        return "holds a control character or bytes that are no UTF-8"
    if "\\" in name:
        return "holds a backslash"
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return "leads out of the archive"
    if "" in parts or "." in parts:
        return "has an empty part"
    if len(name.encode()) > NAME_BYTES or any(len(part.encode()) > PART_BYTES for part in parts):
        return "is too long"
    return None


def _unprintable(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f" or "\ud800" <= character <= "\udfff"


def names_fault(names: Iterable[str]) -> str | None:
    """Say which of the names cannot be in one archive together, or None."""
    ordered = sorted(
        names, key=lambda name: name.replace("/", "\0")
    )  # a folder's members follow its own name
    for name, following in itertools.pairwise(ordered):
        if name == following:
            return f"{name}: is there twice"
        if following.startswith(f"{name}/"):
            return f"{name}: is a file and a folder at once"
    return None
