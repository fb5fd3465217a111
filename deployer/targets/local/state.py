"""The local target's state: one private folder, whose files are replaced atomically.

    local/lock              locked by the running supervisor; contains its pid
    local/services/*.json   the wanted services and their revisions
    local/ingress.json      the ingress's last port, which it takes again if any free port is wanted
    local/supervisor.log    the supervisor's log; `.1` is its previous part
    local/logs/             one log per revision, and TorchServe's own
    local/run/              sockets and temporary folders of running processes

A process that is killed at any time leaves the old document or the new one. An error of the operating system
becomes a TargetError with a hint.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import pwd
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from deployer.errors import DiskFullError, TargetError
from deployer.files import sync, write_durably
from deployer.observed import Reference
from deployer.targets.local.revisions import Record

# A unix socket's path holds 107 bytes on Linux and 103 on macOS. TorchServe's workers listen on
# RUN/12345678/.ts.sock.65535.
_RUN_PATH_MAX = 103 - len("/12345678/.ts.sock.65535")
_LOCK_TIMEOUT = 5.0  # seconds; another process tests the lock for microseconds
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY = (errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)
_REMEDIES = {
    **dict.fromkeys(_FULL, "Free some space"),
    **dict.fromkeys(_IN_THE_WAY, "Move it out of the way"),
    errno.EROFS: "Mount the file system writable",
}


class State:
    """The state folder of one local target. Only `create` and the writing methods create anything."""

    def __init__(self, folder: Path) -> None:
        self.root = Path(os.path.realpath(folder)) / "local"
        self.services = self.root / "services"
        self.logs = self.root / "logs"
        self.lock_path = self.root / "lock"
        self.supervisor_log = self.root / "supervisor.log"
        self.ingress_path = self.root / "ingress.json"

    def create(self) -> None:
        """Create the folders, for this user only. Raises TargetError."""
        for folder in (self.root, self.services, self.logs, self.root / "run"):
            with explained(folder, "cannot create the supervisor's state folder"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)

    @property
    def run(self) -> Path:
        """The folder of sockets and temporary files; its path is short enough for a unix socket."""
        path = self.root / "run"
        return path if len(os.fsencode(path)) <= _RUN_PATH_MAX else self._alias(path)

    @property
    def socket(self) -> Path:
        """The supervisor's unix socket."""
        return self.run / "supervisor.sock"

    def remove_alias(self) -> None:
        """Remove the short link to `run`, if there is one. The caller holds the lock."""
        run = self.run
        if run != self.root / "run":
            with contextlib.suppress(OSError):
                run.unlink()
                run.parent.rmdir()

    def acquire(self) -> int | None:
        """Take the supervisor's lock, and return its file descriptor; None if another process holds it.

        Raises TargetError if the file cannot be locked.
        """
        with explained(self.lock_path, "cannot take the supervisor's lock"):
            descriptor = _open_lock(self.lock_path, os.O_RDWR | os.O_CREAT)
            try:
                if _lock(descriptor):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                    return descriptor
            except OSError:
                os.close(descriptor)
                raise
        os.close(descriptor)
        return None

    def holder(self) -> int | None:
        """Return the pid of the process that holds the lock; None if none does, 0 if its pid is unknown.

        Raises TargetError if the file cannot be read.
        """
        with explained(self.lock_path, "cannot read the supervisor's lock"):
            try:
                descriptor = _open_lock(self.lock_path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = os.pread(descriptor, 32, 0)
                return int(text) if text.isdigit() else 0
            finally:
                os.close(descriptor)
        return None

    def holds(self, descriptor: int) -> bool:
        """Return whether a lock is still this folder's. It is not if the folder has been removed."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.lock_path.stat())
        except OSError:
            return False

    def read_records(self) -> dict[Reference, Record]:
        """Return every wanted service. Raises TargetError if a record cannot be read."""
        with explained(self.services, "cannot read the supervisor's records"):
            try:
                paths = sorted(self.services.iterdir())
            except FileNotFoundError:
                return {}
        records = (self._read(path) for path in paths if path.suffix == ".json")
        return {record.reference: record for record in records if record}

    def read_record(self, reference: Reference) -> Record | None:
        """Return a wanted service, or None. Raises TargetError."""
        return self._read(self._record_path(reference))

    def write_record(self, record: Record) -> None:
        """Write a record durably."""
        self.write(self._record_path(record.reference), msgspec.json.encode(record))

    def remove_record(self, reference: Reference) -> None:
        """Remove the record of a service. Raises TargetError."""
        path = self._record_path(reference)
        with explained(path, "cannot write the supervisor's state"):
            path.unlink(missing_ok=True)
            sync(self.services)

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file atomically and durably. Raises TargetError or DiskFullError."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with explained(path, "cannot write the supervisor's state"):
            try:
                write_durably(temporary, data)
                temporary.replace(path)
                sync(path.parent)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise

    def log_path(self, reference: Reference, revision: str) -> Path:
        """Return the path of the log of a revision's TorchServe."""
        return self.logs / f"{reference.namespace}.{revision}.log"

    def remove_logs(self, reference: Reference, revision: str) -> None:
        """Remove the logs of a revision's TorchServe."""
        log = self.log_path(reference, revision)
        shutil.rmtree(log.with_suffix(""), ignore_errors=True)
        for path in (log, log.with_suffix(".log.1")):
            path.unlink(missing_ok=True)

    def _record_path(self, reference: Reference) -> Path:
        return self.services / f"{reference.namespace}.{reference.name}.json"

    def _read(self, path: Path) -> Record | None:
        with explained(path, "cannot read a service's record"):
            try:
                return msgspec.json.decode(path.read_bytes(), type=Record)
            except FileNotFoundError:
                return None
            except msgspec.MsgspecError as error:
                raise TargetError(
                    f"cannot read a service's record: {error}",
                    where=str(path),
                    hint="Remove the file, and roll the service out again.",
                ) from error

    def _alias(self, path: Path) -> Path:
        """Return a short symbolic link to `path`, in a folder that only this user can write to."""
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        # The shorter of the two: TMPDIR itself can be too long for a socket.
        temporary = min(tempfile.gettempdir(), "/tmp", key=len)  # noqa: S108
        folder = Path(temporary) / f"kdeploy-{os.getuid()}-{digest}"
        with explained(folder, "cannot create the folder for sockets"):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise TargetError(
                    "other users have access to the folder for sockets",
                    where=str(folder),
                    hint="Remove it, or set targets.local.state to a shorter path.",
                )
            link = folder / "run"
            if not link.is_symlink():
                with contextlib.suppress(FileExistsError):  # another command has created it
                    link.symlink_to(path)
        return link


@contextlib.contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Turn an error of the operating system into a TargetError or DiskFullError with a hint."""
    try:
        yield
    except OSError as error:
        raise (DiskFullError if error.errno in _FULL else TargetError)(
            f"{what}: {error.strerror or error}", where=str(path), hint=_remedy(error, path)
        ) from error


def _remedy(error: OSError, path: Path) -> str:
    remedy = _REMEDIES.get(error.errno or 0)
    if error.errno in (errno.EACCES, errno.EPERM):
        owner = _other_owner(path)
        remedy = (
            f"Run kdeploy as {owner}, who owns it"
            if owner
            else "Give yourself permission to read and write there"
        )
    another = "set `targets.local.state` to another folder"
    return f"{remedy}, or {another}." if remedy else f"S{another[1:]}."


def _other_owner(path: Path) -> str:
    """Return the owner of a path, or of its nearest visible folder; nothing if it is this user."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            owner = place.stat().st_uid
            if owner == os.geteuid():
                return ""
            with contextlib.suppress(KeyError):
                return pwd.getpwuid(owner).pw_name
            return f"user {owner}"
    return ""


def _open_lock(path: Path, flags: int) -> int:
    # Opening a pipe would wait for its other end.
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file")
    return descriptor


def _lock(descriptor: int) -> bool:
    """Take a lock unless another process holds it; wait while other processes only test it."""
    end = time.monotonic() + _LOCK_TIMEOUT
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(0.001)
    return False
