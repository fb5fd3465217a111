"""Private folders to build releases in, and the removal of those that killed processes left."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from deployer.errors import DiskFullError
from deployer.files import remove_tree
from deployer.store.interface import Staging
from deployer.store.store_errors import disk_error

STAGING = Path(".kdeploy", "staging")  # where a release is built that is stored elsewhere


@contextmanager
def staged(parent: Path, store: str) -> Iterator[Staging]:
    """Open a new folder below `parent`; whatever is still in it at the end is removed.

    Raises StoreError or DiskFullError, which name the `store`.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_new(parent)
        place = Path(lock.name).with_suffix("")
        (place / "model-store").mkdir(parents=True)
    except OSError as error:
        raise disk_error("the model store cannot be written", store, error) from error
    with lock:
        try:
            yield Staging(place)
        finally:
            remove_tree(place)
            Path(lock.name).unlink(missing_ok=True)


def require_room(folder: Path, size: int) -> None:
    """Raise DiskFullError where an archive of so many bytes cannot be downloaded for a check."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DiskFullError(
            f"checking the archive needs {size:,} bytes, {free:,} are free",
            where=str(folder),
            hint="make room there",
        )


def debris_of(staging: Staging) -> Path:
    """Return where something is moved that is to vanish with a staging folder, or with its dead process."""
    return staging.folder.with_name(f"{staging.folder.name}.debris")


def _lock_new(parent: Path) -> IO[str]:
    """Remove what killed processes left, then open and lock the lock of a new staging folder.

    A staging folder's lock lies beside it, so that it does not move into the store, and is held
    as long as its process lives. Both steps are one for other processes: none sees a lock that
    is not held yet and takes it for a dead one.
    """
    with (parent / "sweep").open("w") as sweep:
        fcntl.flock(sweep, fcntl.LOCK_EX)
        for lock in parent.glob("*.lock"):
            _sweep(lock)
        new = (parent / f"{uuid.uuid4().hex}.lock").open("w")
        fcntl.flock(new, fcntl.LOCK_EX)
    return new


def _sweep(lock: Path) -> None:
    """Remove a staging folder and its lock, unless the process that made them lives."""
    # A living one may remove them itself at any moment.
    with contextlib.suppress(FileNotFoundError, BlockingIOError), lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_tree(lock.with_suffix(""))
        remove_tree(lock.with_suffix(".debris"))
        lock.unlink()
