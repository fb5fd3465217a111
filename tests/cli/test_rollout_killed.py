"""After `kill -9` at any step of a rollout, the next rollout succeeds and no process runs twice."""

from __future__ import annotations

import json
import signal
import time

import pytest

from .conftest import Project

pytestmark = pytest.mark.torchserve


def kill_after_line(project: Project, word: str, *, sets: list[str]) -> None:
    child = project.start("rollout", sets=sets)
    assert child.stderr is not None
    for line in child.stderr:
        if word in line:
            break
    child.send_signal(signal.SIGKILL)
    child.communicate()


def assert_serving(project: Project, release: str) -> None:
    status = json.loads(project.run("status", "-o", "json").stdout)
    shares = [share for share in status["traffic"] if share["percent"]]
    assert [(share["release"], share["percent"]) for share in shares] == [(release, 100)]
    frontends = [p for p in project.processes() if "org.pytorch.serve.ModelServer" in p.cmdline()]
    assert len(frontends) == 1


PLAIN = "def handle(data, context):\n    return [1] * len(data or [])\n"
# Without requirements, TorchServe starts seconds faster.
CONFIG = """
[model]
name = "digits"
version = "1.0"
handler = "plain_handler.py"
serialized-file = "digits.pt"
"""


def test_the_next_rollout_reaches_the_wanted_state(project: Project) -> None:
    (project.folder / "plain_handler.py").write_text(PLAIN)
    (project.folder / "kdeploy.toml").write_text(CONFIG)
    for delay in (0.05, 0.15, 0.3, 0.5):
        child = project.start("rollout")
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    for number, word in enumerate(("archiving", "pushed", "applied", "Progressing")):
        kill_after_line(project, word, sets=[f"serving.max-batch-delay={60 + number}"])
    release = project.run("rollout").stdout.strip()
    assert_serving(project, release)
    project.run("verify")
