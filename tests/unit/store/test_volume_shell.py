"""Scripts in a volume: complete output, incomplete output, and errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from deployer.errors import DiskFullError, StoreError
from deployer.store.volume_shell import BrokenError, ExitError, run_script, volume_error

WHERE = "pvc://models/"


class Answers:
    """A shell whose scripts print these pieces, and then raise the error if there is one."""

    def __init__(self, *pieces: bytes, error: StoreError | None = None) -> None:
        self.pieces, self.error = pieces, error
        self.ran: list[tuple[str, tuple[str, ...], bytes]] = []

    def run(self, script: str, *arguments: str, source: Iterable[bytes] = ()) -> Iterator[bytes]:
        self.ran.append((script, arguments, b"".join(source)))
        yield from self.pieces
        if self.error:
            raise self.error

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("pieces", [(b"one\ntwo\n.\n",), (b"one\nt", b"wo\n.", b"\n")])
def test_output_is_joined_from_its_pieces(pieces: tuple[bytes, ...]) -> None:
    shell = Answers(*pieces)
    assert run_script(shell, WHERE, 'cat -- "$1"', "a $(b)", source=[b"x", b"y"]) == b"one\ntwo\n"
    [(script, arguments, sent)] = shell.ran
    assert (arguments, sent) == (("a $(b)",), b"xy")
    assert script.startswith("set -eu\n"), "the first command that fails stops the script"
    assert script.endswith('cat -- "$1"\necho .')
    assert "a $(b)" not in script


@pytest.mark.parametrize("pieces", [(), (b"one\n",), (b"one\n.",)])
def test_output_without_its_last_line_is_incomplete(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(BrokenError, match="is incomplete") as caught:
        run_script(Answers(*pieces), WHERE, "ls")
    assert caught.value.where == WHERE


def test_a_broken_connection_is_raised_unchanged() -> None:
    broken = BrokenError("the line broke")
    with pytest.raises(BrokenError) as caught:
        run_script(Answers(b"one\n.\n", error=broken), WHERE, "ls")
    assert caught.value is broken


def test_a_failed_script_raises_our_error() -> None:
    failed = ExitError(1, "dd: x: Permission denied")
    with pytest.raises(StoreError, match="permission denied in the volume") as caught:
        run_script(Answers(b"one\n.\n", error=failed), WHERE, "ls")
    assert caught.value.__cause__ is failed


@pytest.mark.parametrize(
    ("code", "stderr", "kind", "what", "hint"),
    [
        (1, "dd: x: No space left on device", DiskFullError, "the volume is full: dd: x: No space", "prune"),
        (1, "Disk quota exceeded", DiskFullError, "the volume is full: Disk quota exceeded", "prune"),
        (
            1,
            "x: Read-only\nfile system",
            StoreError,
            "the volume is mounted read-only: x: Read-only",
            "access mode",
        ),
        (
            1,
            "mkdir: x: Operation not permitted",
            StoreError,
            "permission denied in the volume: mkdir",
            "group 1000",
        ),
        (127, "sha256sum: not found", StoreError, "lacks a program: sha256sum", "store.helper-image"),
        (9, "odd", StoreError, "cannot use the volume: odd", "Retry"),
    ],
)
def test_an_error_of_a_volume_has_a_reason_and_a_hint(
    code: int, stderr: str, kind: type, what: str, hint: str
) -> None:
    error = volume_error(ExitError(code, stderr), WHERE)
    assert type(error) is kind
    assert what in error.what
    assert error.where == WHERE
    assert hint in (error.hint or "")


def test_the_end_of_a_long_stderr_is_kept() -> None:
    assert ExitError(1, "first " + "x" * 1000 + " last").stderr == "x" * 495 + " last"
