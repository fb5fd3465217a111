"""Caches the digests of files, so that unchanged weights are not read again.

As in git's index, a digest is used only while the file's size, times and inode are the same, and it is kept
only if no later change could leave them so. A file system stamps changes with a clock that ticks: two writes
within one tick leave the same stamp. So a file that changed within the last tick before it was read is read
again next time. `ctime` counts, since no program can set it. If it has a fraction of a second, the ticks are
those of a modern file system (at most 10 ms); otherwise they can be as long as FAT's 2 s.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

import msgspec
from msgspec import Meta, Struct

from deployer.files import read_bytes

ENTRIES = 4096
_AT_MOST = 64 << 20  # bytes

_SECOND = 1_000_000_000
_FINE_TICK = _SECOND // 10
_COARSE_TICK = 3 * _SECOND


class _Known(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    files: dict[str, _Known]
    format: Literal["kdeploy digests 1"] = "kdeploy digests 1"


class DigestCache:
    """The digests of files by their absolute path, in one JSON file. Losing it costs only time."""

    def __init__(self, path: Path, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self.clock = clock  # nanoseconds since the epoch
        self._changes: dict[str, _Known | None] = {}  # None: forget it

    def lookup(self, file: Path, stat: os.stat_result) -> str | None:
        """Return the file's sha256 as hex, or None if `stat` differs from when the file was read."""
        path = str(file.absolute())
        known = self._changes[path] if path in self._changes else self._saved.get(path)
        return known.sha256 if known and known == _stamp(stat, known.sha256) else None

    def record(self, file: Path, stat: os.stat_result, sha256: str, *, read_at: int) -> None:
        """Remember the digest of a file. Its reading began at `read_at`, with the status `stat`."""
        tick = _FINE_TICK if stat.st_ctime_ns % _SECOND else _COARSE_TICK
        if stat.st_ctime_ns + tick <= read_at:
            self._changes[str(file.absolute())] = _stamp(stat, sha256)

    def forget(self, file: Path) -> None:
        """Drop the digest of a file."""
        self._changes[str(file.absolute())] = None

    def save(self) -> None:
        """Write the changes. A cache that cannot be written is not an error: the next run reads more.

        Keeps the changes of other processes. Of two that save at the same moment, one can lose its changes.
        """
        if not self._changes:
            return
        merged = self._load()
        for path, known in self._changes.items():
            merged.pop(path, None)
            if known is not None:
                merged[path] = known  # at the end: the oldest entries are at the front
        kept = dict(list(merged.items())[-ENTRIES:])
        temporary = self._path.with_name(f".{self._path.name}.{uuid4().hex}")
        with contextlib.suppress(OSError, UnicodeEncodeError):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(msgspec.json.encode(_File(kept)))
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        self._saved, self._changes = kept, {}

    @functools.cached_property
    def _saved(self) -> dict[str, _Known]:
        return self._load()

    def _load(self) -> dict[str, _Known]:
        try:
            return msgspec.json.decode(read_bytes(self._path, _AT_MOST), type=_File).files
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return {}  # missing, damaged or another program's: `save` replaces it


def _stamp(stat: os.stat_result, sha256: str) -> _Known:
    return _Known(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, sha256)
