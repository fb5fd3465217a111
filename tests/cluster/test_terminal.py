"""`kdeploy rollout` on a terminal: a live view, one final line, and a restored terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployer.config import Store
from tests.cluster.kube import Kube
from tests.cluster.play import Play
from tests.cluster.project import write_project

# Makes this the controlling terminal, so that Ctrl-C interrupts the process.
KDEPLOY = """
import fcntl, sys, termios
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
from deployer.cli import main
main(sys.argv[1:])
"""
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]m")


class Terminal:
    """A command with a terminal as stdin and stderr."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self._master, self._slave = pty.openpty()
        self._before = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", KDEPLOY, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", **environment},
            stdin=self._slave,
            stdout=subprocess.PIPE,
            stderr=self._slave,
            text=True,
            start_new_session=True,
        )
        self.shown = ""
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while data := os.read(self._master, 65536):
            with self._more:
                self.shown += data.decode(errors="replace")
                self._more.notify_all()
            if data.endswith(b"\0"):
                return

    def until(self, words: str) -> None:
        with self._more:
            assert self._more.wait_for(lambda: words in self.shown, 30), self.shown

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> tuple[int, str, list[str]]:
        """Return the exit code, stdout, and the terminal's content after the live view."""
        out, _ = self.process.communicate(timeout=30)
        assert termios.tcgetattr(self._slave) == self._before
        self._read_all()
        assert self.shown.count(HIDE) == self.shown.count(SHOW) > 0
        assert self.shown.rindex(HIDE) < self.shown.rindex(SHOW)
        rest = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown[self.shown.rindex(SHOW) :])
        return self.process.returncode, out, rest.strip("\r\n\0").splitlines()

    def _read_all(self) -> None:
        if self._reader.is_alive():
            os.write(self._slave, b"\0")  # this ends the reader
            self._reader.join(10)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._read_all()
        os.close(self._master)
        os.close(self._slave)


Open = Callable[..., Terminal]


@pytest.fixture
def play(kube: Kube, namespace: str) -> Play:
    return Play(kube, namespace)


@pytest.fixture
def kdeploy(
    straight: Path, s3_config: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    folder = write_project(tmp_path / "project", s3_config)
    monkeypatch.setenv("KUBECONFIG", str(straight))
    monkeypatch.delenv("NO_COLOR", raising=False)
    opened: list[Terminal] = []

    def start(*arguments: str, **environment: str) -> Terminal:
        opened.append(Terminal(folder, *arguments, **environment))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_a_rollout_is_shown_interrupted_and_run_again(kdeploy: Open, play: Play) -> None:
    terminal = kdeploy("rollout")
    terminal.until("waiting for KServe to write a status")
    play.ready(ready=False)
    terminal.until(f"Progressing  {play.reference}")
    terminal.until("  1 s")  # the time changes without an event
    terminal.type(b"\x03")
    code, out, (last, *error) = terminal.end()
    assert (code, out) == (130, "")
    assert re.fullmatch(r"Progressing \(.*\); after \d+ s", last)
    assert error[0].startswith("error: interrupted: release ")
    assert COLOUR.search(terminal.shown)

    release = play.service()["metadata"]["labels"]["kdeploy.dev/release"]
    terminal = kdeploy("rollout", NO_COLOR="1")
    terminal.until("Progressing")
    play.replica_set(release, available=1)
    play.ready()
    code, out, lines = terminal.end()
    assert (code, out) == (0, f"{release}\n")
    assert re.fullmatch(rf"Ready; traffic: 100% {release}; after \d+ s", lines[0])
    assert lines[1:] == []
    assert not COLOUR.search(terminal.shown)


def test_a_terminated_rollout_restores_the_terminal(kdeploy: Open) -> None:
    terminal = kdeploy("rollout")
    terminal.until("waiting for KServe to write a status")
    terminal.process.terminate()
    code, out, (last, *error) = terminal.end()
    assert (code, out) == (143, "")
    assert last.startswith("Pending (waiting for KServe to write a status); after ")
    assert error[0].startswith("error: terminated: release ")


def test_an_error_is_printed_below_the_final_line(kdeploy: Open, play: Play) -> None:
    terminal = kdeploy("rollout")
    terminal.until("waiting for KServe to write a status")
    play.invalid(reason="NoSupportingRuntime", message="out of memory")
    code, out, (last, *error) = terminal.end()
    assert (code, out) == (8, "")
    assert re.fullmatch(r"Failed; after \d+ s", last)
    assert error[0].startswith("error: release ")
    assert "NoSupportingRuntime: KServe reports an invalid specification: out of memory" in error[0]


def test_a_dumb_terminal_gets_lines(kdeploy: Open) -> None:
    terminal = kdeploy("rollout", "--timeout", "3s", TERM="dumb")
    terminal.process.wait(30)
    terminal.until("error: ")
    assert "\x1b" not in terminal.shown
    assert "Pending (waiting for KServe to write a status)" in terminal.shown
