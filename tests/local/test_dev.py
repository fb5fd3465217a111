"""`kdeploy dev` with a real TorchServe: one session, from the first load to Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.targets.local.processes import STATE_MARK, find_marked
from tests.children import die_with_parent

pytestmark = pytest.mark.torchserve

HANDLER = """
def handle(data, context):
    if data is None:
        print("loading")
        return None
    print("rows:", len(data))
    return [{"answer": ANSWER} for _ in data]


ANSWER = 1
"""
TOML = '[model]\nname = "demo"\nversion = "1.0"\nhandler = "handler.py"\nserialized-file = "model.pt"\n'


class Session:
    """A running `kdeploy dev`, and a project that is edited."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "kdeploy.toml").write_text(TOML)
        (root / "model.pt").write_bytes(b"w" * 300_000)
        (root / "sample.txt").write_text("hello")
        self.save(HANDLER)
        self._output = root.parent / "output"
        self._read = 0
        command = [sys.executable, "-m", "deployer", "dev", "--port", "0", "--predict", "sample.txt"]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=root, stdout=output, stderr=output, preexec_fn=die_with_parent
            )

    def save(self, handler: str) -> None:
        (self.root / "handler.py").write_text(handler)

    def wait(self, pattern: str) -> re.Match[str]:
        """Wait for the next output that matches; later calls search behind it."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            text = self._output.read_text()
            if found := re.compile(pattern, re.MULTILINE).search(text, self._read):
                self._read = found.end()
                return found
            assert self.process.poll() is None, text
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} after:\n{self._output.read_text()}")

    def processes(self) -> int:
        return len(find_marked({STATE_MARK: str(self.root.resolve() / ".kdeploy" / "dev" / "local")}))


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    root = tmp_path / "a projéct"
    root.mkdir()
    one = Session(root)
    yield one
    one.process.kill()
    one.process.wait()


def ask(url: str, host: str) -> tuple[int, dict[str, object]]:
    headers = {"Host": host, "Content-Type": "application/json"}
    body = b'{"instances": ["a", "b"]}'
    request = urllib.request.Request(f"{url}/v1/models/demo:predict", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_session_from_the_first_load_to_ctrl_c(session: Session):
    files = sorted(session.root.iterdir())
    address = session.wait(
        r"^serving default/demo on (http://127\.0\.0\.1:\d+), with the header Host: (\S+):"
    )
    session.wait(r'sample\.txt .*"answer": 1')
    assert ask(*address.groups()) == (200, {"predictions": [{"answer": 1}, {"answer": 1}]})
    session.wait(r"^rows: 2$")

    session.save(HANDLER.replace("ANSWER = 1", "ANSWER = 2"))
    session.wait(r"^Loading the model: handler\.py changed$")
    session.wait(r'sample\.txt .*"answer": 2')

    session.save(HANDLER.replace("ANSWER = 1", "ANSWER = ("))
    session.wait(r"^error: cannot parse on Python 3\.9: ")
    session.wait(r"^where: handler\.py:10$")
    session.wait(r"^waiting for the next change$")
    assert ask(*address.groups())[1] == {"predictions": [{"answer": 2}, {"answer": 2}]}

    session.save(HANDLER.replace('print("loading")', 'raise ValueError("no weights")'))
    session.wait(r'^  File "handler\.py", line 4, in handle$')
    session.wait(r"^error: the model cannot be loaded: ValueError: no weights \(handler\.py, line 4\)$")
    status, answer = ask(*address.groups())
    assert (status, answer["error"]) == (
        503,
        "the handler cannot be loaded: ValueError: no weights (handler.py, line 4)",
    )

    session.save(HANDLER.replace('print("loading")', "import os; os._exit(3)"))
    session.wait(r"^error: the model cannot be loaded: the worker process ended without an error message")

    session.save(HANDLER.replace("ANSWER = 1", "ANSWER = 5"))
    session.wait(r"^Starting TorchServe: handler\.py changed$")
    session.wait(r'sample\.txt .*"answer": 5')
    assert session.processes() > 0
    session.process.send_signal(signal.SIGINT)
    assert session.process.wait(30) == 0
    session.wait(r"^stopped$")
    assert session.processes() == 0
    assert sorted(session.root.iterdir()) == sorted([*files, session.root / ".kdeploy"])
    assert {path.name for path in (session.root / ".kdeploy").iterdir()} == {"dev"}


def test_a_second_session_of_a_project_is_refused(session: Session):
    session.wait(r"^serving default/demo")
    second = subprocess.run(
        [sys.executable, "-m", "deployer", "dev", "--port", "0"],
        cwd=session.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 12
    assert "error: another `kdeploy dev` is running for this project" in second.stderr
    assert f"kill {session.process.pid}" in second.stderr
