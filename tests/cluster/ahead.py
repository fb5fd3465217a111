"""Commands that have started ahead: each a process of its own, forked from one that has imported everything.

`python -m tests.cluster.ahead JSON` runs a list of commands at once, and says in lines of JSON on stdout how
each ended and when, by the machine's monotonic clock. What a command says goes to files of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from msgspec import Struct

ROOT = Path(__file__).parents[2]


class Command(Struct, frozen=True):
    """`kdeploy` with some arguments; its stdout and stderr go to files of this name."""

    arguments: list[str]
    files: str

    @property
    def out(self) -> Path:
        return Path(self.files + ".out")

    @property
    def err(self) -> Path:
        return Path(self.files + ".err")


class Ahead:
    """Some commands that run at once, for as long as the `with` lasts."""

    def __init__(self, commands: Sequence[Command], folder: Path) -> None:
        given = json.dumps([[*command.arguments, command.files] for command in commands])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.ahead", given],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ended: dict[int, tuple[int, float]] = {}  # number of the command -> exit code, when

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self, number: int) -> tuple[int, float]:
        """Wait until a command has ended; return its exit code and when it did."""
        lines: IO[str] | None = self._process.stdout
        assert lines
        while number not in self.ended:
            line = lines.readline()
            assert line, "the commands ended without a word"
            which, code, at = json.loads(line)
            self.ended[which] = (code, at)
        return self.ended[number]


def _run(arguments: list[str], files: str) -> None:
    """Be the command."""
    for name, number in ((".out", 1), (".err", 2)):
        os.dup2(os.open(files + name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    from deployer.cli import main

    main(arguments)


def _run_all(commands: list[list[str]]) -> None:
    import jinja2  # noqa: F401
    import obstore  # noqa: F401
    from kubernetes import client, config  # noqa: F401

    import deployer.cli
    import deployer.pipeline
    import deployer.store
    import deployer.targets.kserve  # noqa: F401

    numbers = {}
    for number, (*arguments, files) in enumerate(commands):
        child = os.fork()
        if child == 0:
            _run(arguments, files)
        numbers[child] = number
    for _ in commands:
        child, status = os.wait()
        said = [numbers[child], os.waitstatus_to_exitcode(status), time.monotonic()]
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _run_all(json.loads(sys.argv[1]))
