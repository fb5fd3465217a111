"""Runs a program for its output, within bounds of time and size."""

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
    """The program takes too long, or prints too much; the text says which, as in `… does not end`."""


class Ended(NamedTuple):
    """How a program ended, and what it printed."""

    code: int
    output: bytes


def ask_program(command: Sequence[str], *, seconds: float, **options: Any) -> Ended:
    """Run a program and return what it prints to stdout; `options` are those of `subprocess.Popen`.

    A program that is not done in time, or prints more than 1 MiB, is killed with all that it started; one
    that has our stdin, and so may talk to a person, is killed alone. Raises EndlessError, OSError.
    """
    end = time.monotonic() + seconds
    alone = options.get("stdin") is None
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=not alone, **options)
    except ValueError as error:  # a NUL byte in the command
        raise OSError(str(error)) from error
    with child:
        try:
            output = _read(child, end, seconds)
            code = child.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            _kill(child, alone=alone)
            raise _late(seconds) from None
        except BaseException:
            _kill(child, alone=alone)
            raise
    return Ended(code, output)


def _kill(child: subprocess.Popen[bytes], *, alone: bool) -> None:
    if alone:
        child.kill()
    else:  # until it is waited for, nobody else can have its number
        os.killpg(child.pid, signal.SIGKILL)


def _read(child: subprocess.Popen[bytes], end: float, seconds: float) -> bytes:
    """Read to the end of the output. What the program has started may hold it open for longer than itself."""
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
