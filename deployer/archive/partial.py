"""Writes a file or folder under a temporary name, and renames it when it is complete.

The temporary is beside the destination and is locked while its writer lives. The next writer removes
temporaries without a lock: their writers were killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from deployer.files import remove_tree


@contextlib.contextmanager
def partial(destination: Path, *, folder: bool = False) -> Iterator[tuple[Path, int]]:
    """Yield a new file or folder beside `destination`, and its descriptor; rename it at the end.

    A file replaces an existing file; a folder replaces only an empty folder. The temporary is removed on any
    exception. `OSError` if it cannot be created or renamed.
    """
    _remove_abandoned(destination)
    temporary, descriptor = _create(destination, folder=folder)
    try:
        yield temporary, descriptor
        temporary.replace(destination)
    except BaseException:
        _remove(temporary)
        raise
    finally:
        os.close(descriptor)


def _create(destination: Path, *, folder: bool) -> tuple[Path, int]:
    while True:
        temporary = destination.with_name(f".{destination.name}.{uuid4().hex}.partial")
        if folder:
            temporary.mkdir()
            flags = os.O_RDONLY
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        descriptor = os.open(temporary, flags | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # without locks on this file system, no temporary seems abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)  # another writer removed it between its creation and its lock


def _remove_abandoned(destination: Path) -> None:
    ours = re.compile(rf"\.{re.escape(destination.name)}\.[0-9a-f]{{32}}\.partial")
    with contextlib.suppress(OSError):
        for entry in os.scandir(destination.parent):
            if ours.fullmatch(entry.name):
                _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # gone, locked or another user's
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(temporary)
        finally:
            os.close(descriptor)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        remove_tree(temporary)
    else:
        temporary.unlink(missing_ok=True)
