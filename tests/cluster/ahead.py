"""Starts commands without the time for imports: forks each from a process that has imported everything.

`python -m tests.cluster.ahead` reads commands as lines of JSON from stdin. For each command it writes the
process id, and later the exit code and the time of the monotonic clock, as lines of JSON to stdout. The
output of a command goes to files.
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
    """A running `kdeploy` command; its stdout and stderr are in files of this name."""

    def __init__(self, files: Path) -> None:
        self.out, self.err = Path(f"{files}.out"), Path(f"{files}.err")
        self.began: Future[int] = Future()  # its process id
        self.ended: Future[tuple[int, float]] = Future()  # exit code and time


class Ahead:
    """The process from which commands are forked. They end with the `with` at the latest."""

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
            number, *report = json.loads(line)
            if len(report) == 1:
                self._commands[number].began.set_result(*report)
            else:
                self._commands[number].ended.set_result(tuple(report))


def _say(*words: object) -> None:
    os.write(sys.stdout.fileno(), json.dumps(words).encode() + b"\n")


def _run(arguments: list[str], files: str, environment: dict[str, str]) -> None:
    """Run the command in this process."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, number in ((".out", 1), (".err", 2)):
        os.dup2(os.open(files + name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.update(environment)
    from deployer.cli import main

    main(arguments)


def _supervise(number: int, arguments: list[str], files: str, environment: dict[str, str]) -> None:
    """Run the command in a child process, and report its id and its end."""
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

    # Let typer build the commands, which every command needs.
    with Path(os.devnull).open("w") as sink, redirect_stdout(sink), suppress(SystemExit):
        main(["config"])
    for line in sys.stdin:
        given = json.loads(line)
        if os.fork() == 0:
            _supervise(*given)


if __name__ == "__main__":
    _serve()
