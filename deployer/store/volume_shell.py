"""A shell in the folder of a volume: what a model store needs of the Pod that mounts the volume.

Every script is POSIX and gets names as arguments, never in its text. Each prints a last line, so that output
without its end is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Protocol

from deployer.errors import DiskFullError, StoreError
from deployer.store.store_errors import PRUNE

_END = b".\n"
_PREAMBLE = """set -eu
LC_ALL=C
umask 022
for program in sha256sum dd head tail stat find; do
  command -v $program >/dev/null || { echo "$program: not found" >&2; exit 127; }
done
"""
_STDERR_MAX = 500  # characters in an error


class ExitError(StoreError):
    """A script exited with a code other than 0; `stderr` is the end of its stderr."""

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(f"exit code {code}: {stderr}")
        self.stderr = " ".join(stderr.split())[-_STDERR_MAX:]


class BrokenError(StoreError):
    """The connection to the shell broke. What the script did is unknown; running it again can help."""


class Shell(Protocol):
    """Runs scripts in the folder that the volume is mounted at."""

    def run(self, script: str, *arguments: str, source: Iterable[bytes] = ()) -> Iterator[bytes]:
        """Run `sh -c SCRIPT sh ARGUMENT…`, write the source to its stdin, yield its stdout.

        stdin has no end: a script reads a number of bytes. Raises ExitError, BrokenError.
        """

    def close(self) -> None:
        """Release the volume; the next run mounts it again."""


def run_script(shell: Shell, where: str, script: str, *arguments: str, source: Iterable[bytes] = ()) -> bytes:
    """Run a script and return its whole output. Raises BrokenError, and StoreError that names `where`."""
    try:
        output = b"".join(shell.run(f"{_PREAMBLE}{script}\necho .", *arguments, source=source))
    except ExitError as error:
        raise volume_error(error, where) from error
    if not output.endswith(_END):
        raise BrokenError("the output of a script in the volume is incomplete", where=where, hint="Retry.")
    return output[: -len(_END)]


_REASONS = (
    (r"Read-only file system", "the volume is mounted read-only", "Use a claim with a writable access mode."),
    (
        r"Permission denied|Operation not permitted",
        "permission denied in the volume",
        "Let group 1000 read and write there: some volumes ignore a Pod's fsGroup.",
    ),
    (
        r"(sh|sha256sum|dd|head|tail|stat|find)\W.*not found",
        "the image of the Pod that mounts the volume lacks a program",
        "Set `store.helper-image` to an image with sh, find and coreutils of GNU or BusyBox.",
    ),
    ("", "cannot use the volume", "Retry."),
)


def volume_error(error: ExitError, where: str) -> StoreError | DiskFullError:
    """Return our error for a script that failed."""
    if re.search(r"No space left|[Qq]uota exceeded", error.stderr):
        hint = f"{PRUNE}, or enlarge the claim."
        return DiskFullError(f"the volume is full: {error.stderr}", where=where, hint=hint)
    what, hint = next((what, hint) for pattern, what, hint in _REASONS if re.search(pattern, error.stderr))
    return StoreError(f"{what}: {error.stderr or error}", where=where, hint=hint)
