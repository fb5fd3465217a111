"""Every failure that kdeploy foresees: one tree, one exit code per kind, one sentence that helps.

An error says *what* is wrong, *where* (a file, a key, an object), and in its *hint* what to do next.
Foreign errors are turned into these at the edge of the room that meets them, chained.
"""

from __future__ import annotations

import errno
from typing import ClassVar

DIFFERENT = 15  # no failure: how `kdeploy diff` ends where a rollout would change something


class KdeployError(Exception):
    """A failure with an exit code of its own, foreseen and explained."""

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class ConfigError(KdeployError):
    """`kdeploy.toml`, a `KDEPLOY_*` variable or a flag says something that cannot be."""

    exit_code = 3


class ArchiveError(KdeployError):
    """The model archive cannot be built from the files that the config names."""

    exit_code = 4


class StoreError(KdeployError):
    """The model store cannot be read or written."""

    exit_code = 5
    retryable = True


class IntegrityError(KdeployError):
    """Stored bytes are not the ones that were pushed, or an archive is hostile."""

    exit_code = 6


class TargetError(KdeployError):
    """The target cannot be reached, or what it needs is not there."""

    exit_code = 7
    retryable = True


class RefusedError(TargetError):
    """The target does not let this user do it, or cannot do it: trying again would not help."""

    retryable = False


class RolloutFailedError(KdeployError):
    """The release cannot become ready, and waiting does not help; `status`: it failed or is stopped."""

    exit_code = 8


class RolloutTimeoutError(KdeployError):
    """The time is over and the release is not ready yet; it may still become ready."""

    exit_code = 9
    retryable = True


class PredictError(KdeployError):
    """A prediction was asked for and not given."""

    exit_code = 10


class NotFoundError(KdeployError):
    """The release or service that was named does not exist."""

    exit_code = 11


class ConflictError(KdeployError):
    """Somebody else holds what this command would change."""

    exit_code = 12
    retryable = True


class DiskFullError(KdeployError):
    """No space left, or a quota reached, while writing."""

    exit_code = 13
    retryable = True


class DoctorError(KdeployError):
    """`kdeploy doctor` found something that would make a deployment fail."""

    exit_code = 14


class MachineError(KdeployError):
    """This machine refused something that no command foresees: a file, a process, memory."""

    exit_code = 16


def read_fault(error: OSError | UnicodeError | RecursionError | MemoryError) -> KdeployError:
    """Return what an error that nobody caught says of the machine or its files, and not of kdeploy."""
    if isinstance(error, OSError):
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else MachineError
        name = error.filename
        if isinstance(name, bytes):
            name = name.decode(errors="surrogateescape")
        where = None if name is None else str(name)
        what = error.strerror or str(error) or type(error).__name__
        return kind(what, where=where, hint=_FAULT_HINTS.get(error.errno or 0))
    if isinstance(error, UnicodeError):
        return MachineError(f"a name or text is not valid: {error}", hint="rename it, or save it as UTF-8")
    what = "out of memory" if isinstance(error, MemoryError) else "something is nested too deeply"
    return MachineError(what, hint="`kdeploy --debug …` shows where")


_FAULT_HINTS = {
    errno.EACCES: "check who may read and write there: `ls -l`",
    errno.EPERM: "check who may read and write there: `ls -l`",
    errno.EMFILE: "raise the limit of open files: `ulimit -n`",
    errno.ENFILE: "raise the limit of open files: `ulimit -n`",
    errno.EAGAIN: "raise the limit of processes: `ulimit -u`",
    errno.ENOMEM: "free some memory",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.ELOOP: "a link leads to itself: remove it",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.EROFS: "the file system is mounted read-only",
}
