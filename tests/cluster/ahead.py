"""Commands that need no start-up: each a process of its own, forked from one that has imported everything.

`python -m tests.cluster.ahead` reads commands as lines of JSON from stdin, and says in lines of JSON on
stdout which process each became, and how that ended and when, by the machine's monotonic clock. What a
command says goes to files of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import redirect_stdout, suppress
from pathlib import Path

from tests.children import die_with_parent

ROOT = Path(__file__).parents[2]


class Command:
    """`kdeploy` with some arguments, which runs already; its stdout and stderr go to files of this name."""

    def __init__(self, files: Path) -> None:
        self.out, self.err = Path(f"{files}.out"), Path(f"{files}.err")
        self.began: Future[int] = Future()  # its process id
        self.ended: Future[tuple[int, float]] = Future()  # exit code, when


class Ahead:
    """What commands are forked from; they end at the latest when the `with` does."""

    def __init__(self, folder: Path) -> None:
        self._commands: list[Command] = []
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.ahead"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._reader.join()
        self._process.communicate()

    def start(
        self, arguments: Sequence[str], files: Path, environment: Mapping[str, str] | None = None
    ) -> Command:
        command = Command(files)
        with self._lock:
            number = len(self._commands)
            self._commands.append(command)
            assert self._process.stdin
            self._process.stdin.write(json.dumps([number, arguments, str(files), environment or {}]) + "\n")
            self._process.stdin.flush()
        return command

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            number, *said = json.loads(line)
            if len(said) == 1:
                self._commands[number].began.set_result(*said)
            else:
                self._commands[number].ended.set_result(tuple(said))


def _say(*words: object) -> None:
    os.write(sys.stdout.fileno(), json.dumps(words).encode() + b"\n")


def _run(arguments: list[str], files: str, environment: dict[str, str]) -> None:
    """Be the command."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, number in ((".out", 1), (".err", 2)):
        os.dup2(os.open(files + name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.update(environment)
    from deployer.cli import main

    main(arguments)


def _watch_over(number: int, arguments: list[str], files: str, environment: dict[str, str]) -> None:
    """Be the parent of the command, and say how it fares."""
    die_with_parent()
    child = os.fork()
    if child == 0:
        die_with_parent()
        _run(arguments, files, environment)
    _say(number, child)
    _, status = os.waitpid(child, 0)
    _say(number, os.waitstatus_to_exitcode(status), time.monotonic())
    os._exit(0)


def _serve() -> None:
    import jinja2  # noqa: F401
    import obstore.store  # noqa: F401
    import websocket  # noqa: F401
    import yaml  # noqa: F401
    from model_archiver import model_archiver  # noqa: F401

    import deployer.rollouts
    import deployer.store.objects
    import deployer.targets.kserve  # noqa: F401
    from deployer.cli import main

    # What a command of any kind makes once: the commands, and how their options are read.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), suppress(SystemExit):
        main(["config"])
    for line in sys.stdin:
        given = json.loads(line)
        if os.fork() == 0:
            _watch_over(*given)


if __name__ == "__main__":
    _serve()
