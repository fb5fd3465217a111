"""What is read of the answers of a shell in a volume: whole ones, broken ones, and refusals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from deployer.errors import DiskFullError, StoreError
from deployer.store.volume_shell import BrokenError, ExitError, ask, refused

WHERE = "pvc://models/"


class Answers:
    """A shell whose scripts write these pieces, and then fail with the error if there is one."""

    def __init__(self, *pieces: bytes, error: StoreError | None = None) -> None:
        self.pieces, self.error = pieces, error
        self.asked: list[tuple[str, tuple[str, ...], bytes]] = []

    def run(self, script: str, *arguments: str, source: Iterable[bytes] = ()) -> Iterator[bytes]:
        self.asked.append((script, arguments, b"".join(source)))
        yield from self.pieces
        if self.error:
            raise self.error

    def close(self) -> None:
        """Hold nothing."""


@pytest.mark.parametrize("pieces", [(b"one\ntwo\n.\n",), (b"one\nt", b"wo\n.", b"\n")])
def test_an_answer_is_whole_whatever_pieces_it_comes_in(pieces: tuple[bytes, ...]) -> None:
    shell = Answers(*pieces)
    assert ask(shell, WHERE, 'cat -- "$1"', "a $(b)", source=[b"x", b"y"]) == b"one\ntwo\n"
    [(script, arguments, sent)] = shell.asked
    assert (arguments, sent) == (("a $(b)",), b"xy")
    assert script.startswith("set -eu\n"), "the first command that fails ends the script"
    assert script.endswith('cat -- "$1"\necho .')
    assert "a $(b)" not in script


@pytest.mark.parametrize("pieces", [(), (b"one\n",), (b"one\n.",)])
def test_an_answer_without_its_last_line_is_not_taken_for_a_whole_one(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(BrokenError, match="broke off") as caught:
        ask(Answers(*pieces), WHERE, "ls")
    assert caught.value.where == WHERE


def test_a_shell_that_breaks_is_no_refusal() -> None:
    broken = BrokenError("the line broke")
    with pytest.raises(BrokenError) as caught:
        ask(Answers(b"one\n.\n", error=broken), WHERE, "ls")
    assert caught.value is broken


def test_a_script_that_fails_is_refused_in_our_words() -> None:
    failed = ExitError(1, "dd: x: Permission denied")
    with pytest.raises(StoreError, match="it may not be written") as caught:
        ask(Answers(b"one\n.\n", error=failed), WHERE, "ls")
    assert caught.value.__cause__ is failed


@pytest.mark.parametrize(
    ("code", "said", "kind", "what", "hint"),
    [
        (1, "dd: x: No space left on device", DiskFullError, "the volume is full: dd: x: No space", "prune"),
        (1, "Disk quota exceeded", DiskFullError, "the volume is full: Disk quota exceeded", "prune"),
        (1, "x: Read-only\nfile system", StoreError, "it is mounted read-only: x: Read-only", "access mode"),
        (1, "mkdir: x: Operation not permitted", StoreError, "it may not be written: mkdir", "group 1000"),
        (127, "sha256sum: not found", StoreError, "lacks a program: sha256sum", "store.helper-image"),
        (9, "odd", StoreError, "the volume cannot be used: exit code 9: odd", "run this again"),
    ],
)
def test_what_a_volume_refuses(code: int, said: str, kind: type, what: str, hint: str) -> None:
    error = refused(ExitError(code, said), WHERE)
    assert type(error) is kind
    assert what in error.what
    assert error.where == WHERE
    assert hint in (error.hint or "")


def test_of_what_a_script_says_the_end_is_kept() -> None:
    assert ExitError(1, "first " + "x" * 1000 + " last").said == "x" * 495 + " last"
