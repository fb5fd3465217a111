"""Runs a program for its output, with limits for its time and size."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

DEVNULL = subprocess.DEVNULL
ANSWER_MAX = 1 << 20  # bytes


class EndlessError(Exception):
    """The program runs too long or prints too much. The text is a predicate: "does not end within 5 s"."""


class Ended(NamedTuple):
    """The exit status and the output of a program."""

    code: int
    output: bytes


def ask_program(command: Sequence[str], *, seconds: float, **options: Any) -> Ended:
    """Run a program and return its output on stdout; `options` are those of `subprocess.Popen`.

    Kills a program that exceeds the time or prints more than 1 MiB, with its whole process group. A program
    that reads our stdin stays in our group, and only its own process is killed. Raises EndlessError, OSError.
    """
    end = time.monotonic() + seconds
    own_group = options.get("stdin") is not None
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=own_group, **options)
    except ValueError as error:  # a NUL byte in the command
        raise OSError(str(error)) from error
    with child:
        try:
            output = _read(child, end, seconds)
            code = child.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            _kill(child, own_group=own_group)
            raise _late(seconds) from None
        except BaseException:
            _kill(child, own_group=own_group)
            raise
    return Ended(code, output)


def _kill(child: subprocess.Popen[bytes], *, own_group: bool) -> None:
    if own_group:  # before `wait`, no other process can get its pid
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()


def _read(child: subprocess.Popen[bytes], end: float, seconds: float) -> bytes:
    """Read to the end of the output. The program's children can keep it open after the program has ended."""
    assert child.stdout
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(end - time.monotonic(), 0)):
                raise _late(seconds)
            data = os.read(child.stdout.fileno(), 65536)
            if not data:
                return bytes(output)
            output += data
            if len(output) > ANSWER_MAX:
                raise EndlessError(f"prints more than {ANSWER_MAX:,} bytes")


def _late(seconds: float) -> EndlessError:
    return EndlessError(f"does not end within {seconds:g} s")
