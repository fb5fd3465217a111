"""Bytes on their way: read once, given to whoever takes them, their CRC-32 and SHA-256 known at the end.

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

BLOCK = 1 << 20
BUFFERS = 8

Read = Callable[[memoryview], int]
Take = Callable[[memoryview], object]


class Sums(Struct, frozen=True):
    """What went through: bytes, CRC-32 and SHA-256 (hex)."""

    size: int
    crc: int
    sha256: str


def open_source(path: Path) -> io.FileIO:
    """Open a regular file for reading, and nothing else: a pipe would block. `OSError` if it is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"is {_kind(path)}, not a file")
    return io.FileIO(descriptor, "rb")


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "a device or pipe"


def why(error: OSError | ValueError) -> str:
    """Say in a few words why a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "may not be read"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error)


def sums_of(content: bytes) -> Sums:
    """Return the sums of bytes at hand."""
    return Sums(len(content), zlib.crc32(content), hashlib.sha256(content).hexdigest())


def pump(read: Read, take: Take | None, size: int) -> Sums:
    """Read `size` bytes, or less where the source ends before, and hand them to `take` in order.

    `read` fills a buffer from its start and returns how much it put there, 0 at the end. What it or `take`
    raises comes out of here, after the second thread has ended.
    """
    digest = hashlib.sha256()
    if size <= BLOCK:  # a thread would take longer to start
        buffer = bytearray(size)
        done, crc = _drain(read, take, size, lambda: buffer, lambda _, view: digest.update(view))
        return Sums(done, crc, digest.hexdigest())
    free: SimpleQueue[bytearray] = SimpleQueue()
    full: SimpleQueue[tuple[bytearray, memoryview] | None] = SimpleQueue()
    for _ in range(BUFFERS):
        free.put(bytearray(BLOCK))

    def update() -> None:
        while (filled := full.get()) is not None:
            digest.update(filled[1])
            free.put(filled[0])

    thread = threading.Thread(target=update, name="sha256", daemon=True)
    thread.start()
    try:
        done, crc = _drain(read, take, size, free.get, lambda buffer, view: full.put((buffer, view)))
    finally:
        full.put(None)
        thread.join()
    return Sums(done, crc, digest.hexdigest())


def _drain(
    read: Read,
    take: Take | None,
    size: int,
    spare: Callable[[], bytearray],
    hand_over: Callable[[bytearray, memoryview], None],
) -> tuple[int, int]:
    """Return the bytes read and their CRC-32."""
    done, crc = 0, 0
    while done < size:
        buffer = spare()
        count = read(memoryview(buffer)[: size - done])
        if not count:
            break
        view = memoryview(buffer)[:count]
        hand_over(buffer, view)
        crc = zlib.crc32(view, crc)
        if take is not None:
            take(view)
        done += count
    return done, crc
