"""A canary and the rollback, with commands only."""

from __future__ import annotations

import json
import signal

import pytest
import urllib3

from .conftest import Project

pytestmark = [pytest.mark.torchserve, pytest.mark.long]

CONFIG = """
[model]
name = "letters"
version = "1.0"
handler = "handler.py"
"""
HANDLER = 'def handle(data, context):\n    return ["%s"] * len(data or [])\n'


def predictions(project: Project, times: int) -> list[str]:
    url = json.loads(project.run("local", "status", "-o", "json").stdout)["ingress"]
    pool = urllib3.PoolManager(headers={"Host": "letters.default.example.com"})
    answers = [pool.request("POST", url + "/predictions/letters", body=b"x") for _ in range(times)]
    assert {answer.status for answer in answers} == {200}
    return [answer.data.decode() for answer in answers]


def test_a_canary_gets_its_percentage_and_one_command_rolls_back(project: Project) -> None:
    (project.folder / "kdeploy.toml").write_text(CONFIG)
    (project.folder / "handler.py").write_text(HANDLER % "A")
    first = project.run("rollout").stdout.strip()
    assert set(predictions(project, 20)) == {"A"}

    (project.folder / "handler.py").write_text(HANDLER % "B")
    second = project.run("rollout", "--canary", "20").stdout.strip()
    assert second != first
    assert f"20% {second}, 80% {first}" in project.run("status").stdout
    assert predictions(project, 100).count("B") == 20
    seen = json.loads(project.run("status", "-o", "json").stdout)
    assert (seen["wanted"], seen["candidate"], seen["stable"], seen["percent"]) == (second, second, first, 20)
    assert project.run("releases").stdout.count("yes") == 2

    # Promote: the same release with all traffic. Undo: the other release.
    project.run("rollout")
    assert set(predictions(project, 20)) == {"B"}
    project.run("rollout", "--release", first)
    assert set(predictions(project, 20)) == {"A"}
    assert project.run("status", "-o", "name").stdout == "letters\n"
    assert "1 of 1 ready" in project.run("status").stdout
    entries = json.loads(project.run("rollout", "history", "-o", "json").stdout)
    assert [(entry["release"], entry["percent"], entry["outcome"]) for entry in entries] == [
        (first, 100, "Ready"),
        (second, 20, "Ready"),
        (second, 100, "Ready"),
        (first, 100, "Ready"),
    ]
    assert f'+    kdeploy.dev/release: "{second}"\n' in project.run("diff", code=15).stdout
    assert project.run("diff", "--release", first).stdout == ""

    follower = project.start("logs", "--follow")
    assert follower.stdout is not None
    assert follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=30)
    assert follower.returncode == 130
    assert err == ""

    project.run("delete", "--yes")
    assert project.run("list", "-o", "json").stdout == "[]\n"
    assert project.processes() == []
