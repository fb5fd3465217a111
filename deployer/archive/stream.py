"""Copies bytes and computes their CRC-32 and SHA-256 in one pass.

One thread reads, computes the CRC and writes; another computes the SHA-256, the slowest step, over the same
buffers. `read`, `write`, `crc32` and `sha256` all release the interpreter's lock.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from msgspec import Struct

BLOCK = 1 << 18  # bytes; larger ones do not stay in the CPU's cache and take twice as long
BUFFERS = 16

Take = Callable[[memoryview], object]


def drop(view: memoryview) -> None:
    """Ignore the bytes: only their sums are needed."""


class Sums(Struct, frozen=True):
    """The size of some bytes, their CRC-32 and their SHA-256 (hex)."""

    size: int
    crc: int
    sha256: str


def open_source(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. `OSError` for anything else: a pipe would block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"is {'a folder' if path.is_dir() else 'a device or pipe'}, not a file")
    return os.fdopen(descriptor, "rb")


def unreadable(file: str, error: OSError | ValueError) -> str:
    """Return the message for a file that could not be opened or read."""
    if isinstance(error, FileNotFoundError):
        return f"{file} not found"
    if isinstance(error, OSError) and not error.strerror:
        return f"{file} {error}"  # from `open_source`
    return f"cannot read {file}: {getattr(error, 'strerror', error)}"


def sums_of(content: bytes | memoryview) -> Sums:
    """Return the sums of bytes in memory."""
    return Sums(len(content), zlib.crc32(content), hashlib.sha256(content).hexdigest())


def pump(read: Callable[[memoryview], int], take: Take, size: int) -> Sums:
    """Read `size` bytes, or fewer if the source ends before, and pass them to `take` in order.

    `read` fills a buffer from its start and returns the number of bytes, 0 at the end. Exceptions of `read`
    and `take` pass through after the second thread has ended.
    """
    done, crc = 0, 0
    if size <= BLOCK:  # starting a thread would take longer
        whole = memoryview(bytearray(size))
        while done < size and (count := read(whole[done:])):
            done += count
        take(whole[:done])
        return sums_of(whole[:done])
    digest = hashlib.sha256()
    free: SimpleQueue[memoryview] = SimpleQueue()
    full: SimpleQueue[tuple[memoryview, int] | None] = SimpleQueue()

    def update() -> None:
        while filled := full.get():
            buffer, count = filled
            digest.update(buffer[:count])
            free.put(buffer)

    for _ in range(BUFFERS):
        free.put(memoryview(bytearray(BLOCK)))
    thread = threading.Thread(target=update, name="sha256", daemon=True)
    thread.start()
    try:
        while done < size:
            buffer = free.get()
            count = read(buffer[: size - done])
            if not count:
                break
            full.put((buffer, count))
            crc = zlib.crc32(buffer[:count], crc)
            take(buffer[:count])
            done += count
    finally:
        full.put(None)
        thread.join()
    return Sums(done, crc, digest.hexdigest())
