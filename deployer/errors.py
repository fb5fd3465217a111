"""Every foreseen failure: one class per exit code, and one shape for all.

An error has a message (what is wrong), a place (a file, a field, an object) and a hint (what to do next).
The code that calls a library or a server turns its exceptions into these and chains them.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import ClassVar

DIFFERENT = 15  # not a failure: `kdeploy diff` found changes


class KdeployError(Exception):
    """A foreseen failure. `code` names its kind in JSON; the exit code and the code do not change."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "internal-error"
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class ConfigError(KdeployError):
    """Invalid configuration: `kdeploy.toml`, a `KDEPLOY_*` variable or the value of a flag."""

    exit_code = 3
    code = "invalid-config"


class ArchiveError(KdeployError):
    """The model archive cannot be built from the files named in the configuration."""

    exit_code = 4
    code = "invalid-model"


class StoreError(KdeployError):
    """The model store cannot be read or written."""

    exit_code = 5
    code = "store-error"
    retryable = True


class IntegrityError(KdeployError):
    """Stored data differs from what was pushed, or an archive is unsafe."""

    exit_code = 6
    code = "integrity-error"


class TargetError(KdeployError):
    """The target cannot be reached, or lacks something that the command needs."""

    exit_code = 7
    code = "target-error"
    retryable = True


class RefusedError(TargetError):
    """The target forbids the request or does not support it. A retry cannot help."""

    code = "target-refused"
    retryable = False


class RolloutFailedError(KdeployError):
    """The release cannot become ready. For `kdeploy status`: the service has failed or is stopped."""

    exit_code = 8
    code = "rollout-failed"


class RolloutTimeoutError(KdeployError):
    """The release was not ready before the timeout; it can still become ready."""

    exit_code = 9
    code = "rollout-timeout"
    retryable = True


class PredictError(KdeployError):
    """A prediction request failed: the model or its server answered with an error, or with nothing usable."""

    exit_code = 10
    code = "prediction-failed"


class InputRefusedError(PredictError):
    """The model or its server refused an input: it is invalid or too large."""

    exit_code = 17
    code = "input-refused"


class NotReachedError(PredictError):
    """A prediction request did not reach the model."""

    exit_code = 18
    code = "not-reached"
    retryable = True


class NotFoundError(KdeployError):
    """The named release or service does not exist."""

    exit_code = 11
    code = "not-found"


class ConflictError(KdeployError):
    """Conflict with another rollout, or with another manager of a field."""

    exit_code = 12
    code = "conflict"
    retryable = True


class DiskFullError(KdeployError):
    """The disk is full, or a quota is exceeded."""

    exit_code = 13
    code = "disk-full"
    retryable = True


class DoctorError(KdeployError):
    """`kdeploy doctor` found a problem that would make a rollout fail."""

    exit_code = 14
    code = "check-failed"


class MachineError(KdeployError):
    """The operating system refused an operation on a file, a process or memory."""

    exit_code = 16
    code = "system-error"


def read_fault(error: OSError | UnicodeError | RecursionError | MemoryError) -> KdeployError:
    """Turn an unhandled error of the operating system or of a file's content into one of ours."""
    if isinstance(error, OSError):
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else MachineError
        name = error.filename
        if isinstance(name, bytes):
            name = name.decode(errors="surrogateescape")
        where = None if name is None else str(name)
        what = error.strerror or str(error) or type(error).__name__
        return kind(what, where=where, hint=_FAULT_HINTS.get(error.errno or 0))
    if isinstance(error, UnicodeError):
        return MachineError(f"invalid name or text: {error}", hint="Rename the file, or save it as UTF-8.")
    what = "out of memory" if isinstance(error, MemoryError) else "a value is nested too deeply"
    return MachineError(what, hint="Run the command with `--debug` to see where.")


_FAULT_HINTS = {
    errno.EACCES: "Check the permissions with `ls -l`.",
    errno.EPERM: "Check the permissions with `ls -l`.",
    errno.EMFILE: "Raise the limit of open files with `ulimit -n`.",
    errno.ENFILE: "Raise the limit of open files with `ulimit -n`.",
    errno.EAGAIN: "Raise the limit of processes with `ulimit -u`.",
    errno.ENOMEM: "Free some memory.",
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space.",
    errno.ELOOP: "Remove the symbolic link that points to itself.",
    errno.ENAMETOOLONG: "Use a shorter path.",
    errno.EROFS: "Use a folder of a file system that is not read-only.",
}


def use_one_of(value: str, choices: Collection[str]) -> str:
    """Return the hint for a wrong value of a closed set: all values, and the nearest one."""
    return f"Use one of: {', '.join(choices)}.{did_you_mean(value, choices)}"


def did_you_mean(value: str, choices: Collection[str]) -> str:
    """Return ` Did you mean X?` with the nearest value of a closed set, or nothing if none is near."""
    import difflib

    known, typed = {choice.lower(): choice for choice in choices}, value.lower()
    near = difflib.get_close_matches(typed, known, n=1)
    near = near or [choice for choice in known if len(typed) > 1 and choice.startswith(typed)]
    return f" Did you mean {known[near[0]]}?" if near else ""
