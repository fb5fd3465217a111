"""Reads and walks the files that users name. Every read has a limit."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

TEXT_MAX = 1 << 20  # bytes of a config, a token, a certificate, a record

# Unlike the methods of Path, these return False without permission to look.
exists, is_file, is_folder = os.path.exists, os.path.isfile, os.path.isdir


def read_bytes(path: str | Path, at_most: int = TEXT_MAX) -> bytes:
    """Return all bytes of a file or pipe. Raises OSError, also if there are more than `at_most`.

    A pipe without a writer is empty.
    """
    try:
        with open(path, "rb", opener=open_nonblocking) as file:
            os.set_blocking(file.fileno(), True)
            content = file.read(at_most + 1)
    except ValueError as error:
        raise OSError(errno.EINVAL, "the name contains a NUL byte", str(path)) from error
    if len(content) > at_most:
        raise OSError(errno.EFBIG, f"more than {at_most:,} bytes", str(path))
    return content


def open_nonblocking(path: str, flags: int) -> int:
    """Open a file: an `opener` for `open` that does not block on a pipe without a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(path: str | Path, at_most: int = TEXT_MAX) -> str:
    """Return the text of a file or pipe, in UTF-8. Raises OSError as `read_bytes` does."""
    try:
        return read_bytes(path, at_most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, f"not UTF-8 at byte {error.start}", str(path)) from error


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk. Raises OSError."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Flush a file or folder to the disk: after a power cut, a rename must not be there without its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Remove a folder and its contents as far as possible."""
    with suppress(RecursionError):  # a folder too deep for Python: a part of it is left
        shutil.rmtree(folder, ignore_errors=True)


def walk(
    folder: str | Path, enter: Callable[[os.DirEntry[str]], bool] = lambda _: True
) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder except folders, in an order that depends only on names.

    Does not follow links; skips a folder that `enter` refuses. Raises OSError.
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
    """Return the user's home folder, or the root folder for a user without one, as in many containers."""
    try:
        return Path(environment.get("HOME") or Path.home())
    except RuntimeError:
        return Path("/")


def expanded(path: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return a path with the user's home folder for a leading `~/`."""
    return home(environment) / path[2:] if path.startswith("~/") else Path(path)
