"""Reads and walks files that users name; every read has a limit, whatever the name leads to."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

TEXT_MAX = 1 << 20  # bytes of a config, a token, a certificate, a record


def read_bytes(path: str | Path, at_most: int = TEXT_MAX) -> bytes:
    """Return all bytes of a file or pipe. Raises OSError, also where there are more than `at_most`.

    A pipe that nobody writes to is empty.
    """
    try:
        with open(path, "rb", opener=open_at_once) as file:
            os.set_blocking(file.fileno(), True)
            content = file.read(at_most + 1)
    except ValueError as error:
        raise OSError(errno.EINVAL, "its name holds a NUL byte", str(path)) from error
    if len(content) > at_most:
        raise OSError(errno.EFBIG, f"it has more than {at_most:,} bytes", str(path))
    return content


def open_at_once(path: str, flags: int) -> int:
    """Open a file, for `open`: a pipe without a writer does not block."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(path: str | Path, at_most: int = TEXT_MAX) -> str:
    """Return the text of a file or pipe, in UTF-8. Raises OSError as `read_bytes` does."""
    try:
        return read_bytes(path, at_most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, f"it is not UTF-8 at byte {error.start}", str(path)) from error


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder; False without permission to look."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether a path leads to a regular file; False without permission to look."""
    try:
        return path.is_file()
    except OSError:
        return False


def exists(path: Path) -> bool:
    """Whether a path exists; False without permission to look."""
    try:
        return path.exists()
    except OSError:
        return False


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and bring it to the disk. Raises OSError."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring a file or folder to the disk, so that no rename outlives a power cut that its bytes do not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Remove a folder and its content as far as possible."""
    with suppress(RecursionError):  # of a folder that is deeper than Python can remove, a part is left
        shutil.rmtree(folder, ignore_errors=True)


def walk(
    folder: str | Path, enter: Callable[[os.DirEntry[str]], bool] = lambda _: True
) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder except folders, in an order that depends on names alone.

    Links are not followed; a folder that `enter` refuses is skipped. Raises OSError.
    """
    pending = [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        folders = []
        for entry in found:
            if not entry.is_dir(follow_symlinks=False):
                yield entry
            elif enter(entry):
                folders.append(entry.path)
        pending += reversed(folders)


def home(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the user's home folder; the root folder for a user without one, as in many containers."""
    try:
        return Path(environment.get("HOME") or Path.home())
    except RuntimeError:
        return Path("/")


def expanded(path: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return a path with the user's home folder in place of a leading `~/`."""
    return home(environment) / path[2:] if path.startswith("~/") else Path(path)
