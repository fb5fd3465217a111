"""An archive read without a record of what it should hold, for tests of the reader."""

from __future__ import annotations

from pathlib import Path

from deployer.archive import Entry, read


def read_members(path: Path) -> tuple[Entry, ...]:
    """Return the members of a .mar, sorted by name, having read every byte. Raises IntegrityError."""
    with read._opened(path) as file:
        found, _, _ = read._survey(file)
        entries = [Entry(one.packed.name, one.packed.size, read._digest(file, one)) for one in found]
    return tuple(sorted(entries, key=lambda entry: entry.name))
