"""Bytes on their way: read once, handed on, their CRC-32 and SHA-256 known at the end.

One thread reads, sums and writes while another computes the SHA-256, which is the slowest step, over the same
buffers: `read`, `write`, `crc32` and `sha256` all let go of the interpreter's lock.
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

BLOCK = 1 << 18  # bytes: of larger ones each pass finds less in the cache, and takes twice as long
BUFFERS = 16

Take = Callable[[memoryview], object]


def drop(view: memoryview) -> None:
    """Take bytes of which only the sums are wanted."""


class Sums(Struct, frozen=True):
    """What went through: bytes, CRC-32 and SHA-256 (hex)."""

    size: int
    crc: int
    sha256: str


def open_source(path: Path) -> io.BufferedReader:
    """Open a regular file for reading, and nothing else: a pipe would block. `OSError` if it is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"is {'a folder' if path.is_dir() else 'a device or pipe'}, not a file")
    return os.fdopen(descriptor, "rb")


def why(error: OSError | ValueError) -> str:
    """Say in a few words why a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "may not be read"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error)


def sums_of(content: bytes | memoryview) -> Sums:
    """Return the sums of bytes at hand."""
    return Sums(len(content), zlib.crc32(content), hashlib.sha256(content).hexdigest())


def pump(read: Callable[[memoryview], int], take: Take, size: int) -> Sums:
    """Read `size` bytes, or less where the source ends before, and hand them to `take` in order.

    `read` fills a buffer from its start and returns how much it put there, 0 at the end. What it or `take`
    raises comes out of here, after the second thread has ended.
    """
    done, crc = 0, 0
    if size <= BLOCK:  # a thread would take longer to start
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
