"""What must outlive the one-node target's processes: one private folder, written atomically.

    local/lock              held by the one supervisor while it lives; contains its pid
    local/services/*.json   the services that are wanted, and their revisions
    local/ingress.json      the ingress's port, so that it stays the same where it was a free one
    local/supervisor.log    the supervisor's log, and `.1`, the part before
    local/logs/             a log per revision, and TorchServe's own
    local/run/              sockets and temporary folders; worth nothing without their processes

A process that is killed between any two lines leaves the old document or the new one, never a part. What
the operating system refuses here is a TargetError that says what to do.
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
_LOOK_TIMEOUT = 5.0  # seconds; a look at the lock takes microseconds
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY = (errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)
_REMEDIES = {
    **dict.fromkeys(_FULL, "Free some space"),
    **dict.fromkeys(_IN_THE_WAY, "Move it out of the way"),
    errno.EROFS: "Mount the file system writable",
}


class State:
    """The folder of one one-node target. Creates nothing until it is told to."""

    def __init__(self, folder: Path) -> None:
        self.root = Path(os.path.realpath(folder)) / "local"
        self.services = self.root / "services"
        self.logs = self.root / "logs"
        self.lock_path = self.root / "lock"
        self.supervisor_log = self.root / "supervisor.log"
        self.ingress_path = self.root / "ingress.json"

    def create(self) -> None:
        """Make the folders, readable by this user alone. Raises TargetError."""
        for folder in (self.root, self.services, self.logs, self.root / "run"):
            with explained(folder, "the supervisor's state folder cannot be made"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)

    @property
    def run(self) -> Path:
        """The folder of sockets and temporary files, by a path short enough for a unix socket."""
        path = self.root / "run"
        return path if len(os.fsencode(path)) <= _RUN_PATH_MAX else self._alias(path)

    @property
    def socket(self) -> Path:
        """The supervisor's unix socket."""
        return self.run / "supervisor.sock"

    def remove_alias(self) -> None:
        """Remove the short way to `run`, if there is one; the caller holds the lock."""
        run = self.run
        if run != self.root / "run":
            with contextlib.suppress(OSError):
                run.unlink()
                run.parent.rmdir()

    def acquire(self) -> int | None:
        """Take the supervisor's lock; returns its file descriptor, or None where another process holds it.

        Raises TargetError where the file cannot be locked.
        """
        with explained(self.lock_path, "the supervisor's lock cannot be taken"):
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
        """Return the pid of the process that holds the lock; None where none does, 0 where it is not known.

        Raises TargetError where the file cannot be read.
        """
        with explained(self.lock_path, "the supervisor's lock cannot be read"):
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
        """Say whether a lock that was taken is still this folder's: the folder may have been removed."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.lock_path.stat())
        except OSError:
            return False

    def read_records(self) -> dict[Reference, Record]:
        """Return every wanted service. Raises TargetError for a document that cannot be read."""
        with explained(self.services, "the supervisor's records cannot be read"):
            try:
                paths = sorted(self.services.iterdir())
            except FileNotFoundError:
                return {}
        records = (self._read(path) for path in paths if path.suffix == ".json")
        return {record.reference: record for record in records if record}

    def read_record(self, reference: Reference) -> Record | None:
        """Return one wanted service, or None. Raises TargetError."""
        return self._read(self._record_path(reference))

    def write_record(self, record: Record) -> None:
        """Make a record the wanted one, durably."""
        self.write(self._record_path(record.reference), msgspec.json.encode(record))

    def remove_record(self, reference: Reference) -> None:
        """Forget a service. Raises TargetError."""
        path = self._record_path(reference)
        with explained(path, "the supervisor's state cannot be written"):
            path.unlink(missing_ok=True)
            sync(self.services)

    def write(self, path: Path, data: bytes) -> None:
        """Replace a file of this folder atomically and durably. Raises TargetError or DiskFullError."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with explained(path, "the supervisor's state cannot be written"):
            try:
                write_durably(temporary, data)
                temporary.replace(path)
                sync(path.parent)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise

    def log_path(self, reference: Reference, revision: str) -> Path:
        """Return the log file of a revision's TorchServe."""
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
        with explained(path, "the supervisor's record of a service cannot be read"):
            try:
                return msgspec.json.decode(path.read_bytes(), type=Record)
            except FileNotFoundError:
                return None
            except msgspec.MsgspecError as error:
                raise TargetError(
                    f"the supervisor's record of a service cannot be read: {error}",
                    where=str(path),
                    hint="remove the file and roll the service out again",
                ) from error

    def _alias(self, path: Path) -> Path:
        """Return a short symbolic link to `path`, in a folder that nobody else can write to."""
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        # The shorter of the two: a TMPDIR may itself be too long for a socket.
        temporary = min(tempfile.gettempdir(), "/tmp", key=len)  # noqa: S108
        folder = Path(temporary) / f"kdeploy-{os.getuid()}-{digest}"
        with explained(folder, "the folder for sockets cannot be made"):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                raise TargetError(
                    "the folder for sockets is not this user's alone",
                    where=str(folder),
                    hint="remove it, or set targets.local.state to a shorter path",
                )
            link = folder / "run"
            if not link.is_symlink():
                with contextlib.suppress(FileExistsError):  # another command was quicker
                    link.symlink_to(path)
        return link


@contextlib.contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Turn what the operating system refuses into a TargetError or DiskFullError with what to do about it."""
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
        remedy = f"Run kdeploy as {owner}, who owns it" if owner else "Allow yourself to read and write it"
    another = "set targets.local.state to another folder"
    return f"{remedy}, or {another}." if remedy else f"{another.capitalize()}."


def _other_owner(path: Path) -> str:
    """Return the name of the user that a file, or the folder that hides it, belongs to, if it is another."""
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
    # Whatever else may lie there, such as a pipe, must not make us wait for it.
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file")
    return descriptor


def _lock(descriptor: int) -> bool:
    """Take a lock, unless another process holds it; wait while others only look at it."""
    end = time.monotonic() + _LOOK_TIMEOUT
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
