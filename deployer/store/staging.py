"""Private folders to build releases in, and the removal of those that killed processes left."""

from __future__ import annotations

import contextlib
import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from deployer.files import remove_tree
from deployer.store.interface import Staging
from deployer.store.store_errors import disk_errors


@contextmanager
def staged(parent: Path, store: str) -> Iterator[Staging]:
    """Open a new folder in `parent`, which is removed with its content at the end.

    Raises StoreError or DiskFullError, which name the `store`.
    """
    with disk_errors("cannot write the model store", store):
        parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_new(parent)
        place = Path(lock.name).with_suffix("")
        (place / "model-store").mkdir(parents=True)
    with lock:
        try:
            yield Staging(place)
        finally:
            remove_tree(place)
            Path(lock.name).unlink(missing_ok=True)


def _lock_new(parent: Path) -> IO[str]:
    """Remove what killed processes left, then create and lock the lock file of a new staging folder.

    The lock file is beside its folder, so that it does not move into the store, and is held as long as its
    process lives. `sweep` locks both steps: no process sees a new lock file before it is held.
    """
    with (parent / "sweep").open("w") as sweep:
        fcntl.flock(sweep, fcntl.LOCK_EX)
        for lock in parent.glob("*.lock"):
            _sweep(lock)
        new = (parent / f"{uuid.uuid4().hex}.lock").open("w")
        fcntl.flock(new, fcntl.LOCK_EX)
    return new


def _sweep(lock: Path) -> None:
    """Remove a staging folder and its lock file, unless the process that created them lives."""
    # A living process can remove both at any moment.
    with contextlib.suppress(FileNotFoundError, BlockingIOError), lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_tree(lock.with_suffix(""))
        lock.unlink()
