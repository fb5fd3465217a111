"""A shell in the folder of a volume: the one seam between a model store and what mounts the volume.

Every script here is POSIX and gets names as arguments, never in its text. Each says a last line when it has
come to its end, so that an answer which lost its tail is not taken for a whole one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Protocol

from deployer.errors import DiskFullError, StoreError

_END = b".\n"
_PREAMBLE = """set -eu
LC_ALL=C
umask 022
for program in sha256sum dd head tail stat find; do
  command -v $program >/dev/null || { echo "$program: not found" >&2; exit 127; }
done
"""
_SAID_MAX = 500


class ExitError(StoreError):
    """A script ended with a code that is not 0; `said` is what it wrote to stderr."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"exit code {code}: {said}")
        self.said = " ".join(said.split())[-_SAID_MAX:]


class BrokenError(StoreError):
    """The way to the shell broke: what the script did is not known, and asking again may help."""


class Shell(Protocol):
    """Runs scripts in the folder that the volume is mounted at."""

    def run(self, script: str, *arguments: str, source: Iterable[bytes] = ()) -> Iterator[bytes]:
        """Run `sh -c SCRIPT sh ARGUMENT…`, feed it the source, yield what it writes to stdout.

        stdin has no end: a script takes as many bytes as it is told. Raises ExitError, BrokenError.
        """

    def close(self) -> None:
        """Let go of the volume; the next run takes hold of it again."""


def ask(shell: Shell, where: str, script: str, *arguments: str, source: Iterable[bytes] = ()) -> bytes:
    """Run a script and return its whole answer. Raises BrokenError, and StoreError naming `where`."""
    try:
        answer = b"".join(shell.run(f"{_PREAMBLE}{script}\necho .", *arguments, source=source))
    except ExitError as error:
        raise refused(error, where) from error
    if not answer.endswith(_END):
        raise BrokenError("the answer from the volume broke off", where=where, hint="run this again")
    return answer[: -len(_END)]


_MEANINGS = (
    (r"Read-only file system", "it is mounted read-only", "the claim's access mode must allow to write"),
    (
        r"Permission denied|Operation not permitted",
        "it may not be written",
        "group 1000 must be able to write there: not every volume follows a Pod's fsGroup",
    ),
    (
        r"(sh|sha256sum|dd|head|tail|stat|find)\W.*not found",
        "the image of the Pod that mounts it lacks a program",
        "name one with sh, GNU's or BusyBox's coreutils and find in store.helper-image",
    ),
)


def refused(error: ExitError, where: str) -> StoreError | DiskFullError:
    """Return what a script that failed stands for."""
    if re.search(r"No space left|[Qq]uota exceeded", error.said):
        return DiskFullError(
            f"the volume is full: {error.said}",
            where=where,
            hint="`kdeploy prune --keep 5` removes old releases; or give the claim more",
        )
    for pattern, meaning, hint in _MEANINGS:
        if re.search(pattern, error.said):
            return StoreError(f"{meaning}: {error.said}", where=where, hint=hint)
    return StoreError(f"the volume cannot be used: {error}", where=where, hint="run this again")
