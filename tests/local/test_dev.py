"""`kdeploy dev` with a real TorchServe: one session, from the first load to Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.dev_session import HANDLER, Session

pytestmark = pytest.mark.torchserve


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
        r"^serving default/demo-service on (http://127\.0\.0\.1:\d+), with the header Host: (\S+):"
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


def test_a_second_session_is_refused_and_predict_reaches_the_first(session: Session):
    session.wait(r'sample\.txt .*"answer": 1')
    predict = [sys.executable, "-m", "deployer", "predict", "sample.txt"]
    for command in (predict, [*predict, "--kserve"]):
        ended = subprocess.run(command, cwd=session.root, capture_output=True, text=True, check=False)
        assert (ended.returncode, '"answer": 1' in ended.stdout) == (0, True), ended.stderr
    other = [*predict, "--service", "other"]
    ended = subprocess.run(other, cwd=session.root, capture_output=True, text=True, check=False)
    assert (ended.returncode, "supervisor is not running" in ended.stderr) == (7, True)
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
