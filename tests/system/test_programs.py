"""Programs run with a limit for their time and their output."""

from __future__ import annotations

import sys

import pytest

from deployer.processes import DEVNULL, EndlessError, ask_program


def python(code: str, seconds: float = 60) -> tuple[int, bytes]:
    return tuple(ask_program([sys.executable, "-c", code], seconds=seconds, stdin=DEVNULL, stderr=DEVNULL))


def test_the_output_of_a_program() -> None:
    assert python("print('x' * 1000)") == (0, b"x" * 1000 + b"\n")
    assert python("import sys; print(1); sys.exit(3)") == (3, b"1\n")
    with pytest.raises(OSError):
        ask_program(["/no/such/program"], seconds=1)
    with pytest.raises(OSError):
        ask_program(["a\0b"], seconds=1)


@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 1000)",
        "import time; time.sleep(600)",
        "import os, time; os.close(1); time.sleep(600)",
        "import subprocess; subprocess.Popen(['sleep', '30'])",
    ],
)
def test_an_endless_program_is_killed(code: str) -> None:
    with pytest.raises(EndlessError, match=r"^(prints more than|does not end within)"):
        python(code, seconds=2)
