"""Completion in the shell: names of targets, services and releases."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from pathlib import Path

import pytest

from deployer.cli import complete_for_kubectl, completion
from deployer.cli.main import main
from deployer.config import load_settings
from deployer.project import Project
from deployer.store.folder import FolderStore
from deployer.targets.local.state import State
from tests.local.releases import make_bundle, want
from tests.unit.projects import Folder

TOML = """
[model]
name = "demo"
version = "1.0"
handler = "handler.py"

[targets.laptop]
kind = "local"

[targets.live]
kind = "kserve"
kubeconfig = "config"
"""
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: a, user: a}}]
clusters: [{name: a, cluster: {server: "http://127.0.0.1:%d"}}]
users: [{name: a, user: {token: b}}]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Folder(tmp_path)
    (tmp_path / "kdeploy.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    state = State(tmp_path / ".kdeploy")
    state.create()
    for name in ("demo", "detector", "other"):
        state.write_record(want(None, make_bundle(name, "1.0-aaaaaaaaaaaa", tmp_path)))
    return tmp_path


def complete(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str) -> list[str]:
    """Return the completions of a command line, whose last word can be incomplete, as bash gets them."""
    words = line.split(" ")
    monkeypatch.setenv("_KDEPLOY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", shlex.join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setattr(sys, "argv", ["kdeploy"])
    with pytest.raises(SystemExit) as ended:
        main([])
    out, err = capfd.readouterr()
    assert (ended.value.code, err) == (0, "")
    return out.split()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("kdeploy rollout --target ", ["laptop", "live"]),
        ("kdeploy status -t la", ["laptop"]),
        ("kdeploy status --target laptop de", ["demo", "detector"]),
        ("kdeploy logs --target laptop ", ["demo", "detector", "other"]),
        ("kdeploy predict --target laptop --service o", ["other"]),
        ("kdeploy status --target laptop x", []),
        ("kdeploy status --target laptop --namespace elsewhere ", []),
        ("kdeploy status --target absent ", []),
    ],
)
def test_names_are_completed(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    line: str,
    names: list[str],
) -> None:
    assert complete(monkeypatch, capfd, line) == names


def test_releases_are_completed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(project / "kdeploy.toml", environment={}, flags={}, folder=project)
    release = Project(settings, lambda _: None).push(FolderStore(project / "model-store"))
    for line in ("kdeploy rollout --release ", "kdeploy verify 1.0"):
        assert complete(monkeypatch, capfd, line) == [release.id]
    assert complete(monkeypatch, capfd, "kdeploy verify --store elsewhere ") == []


@pytest.mark.parametrize("text", ["[model", TOML + "[serving]\nbatch-size = 0\n", TOML + "[unknown]\n"])
def test_an_invalid_project_completes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    (project / "kdeploy.toml").write_text(text)
    assert complete(monkeypatch, capfd, "kdeploy status --target ") == []


def test_a_cluster_that_does_not_answer_completes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(completion, "SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (project / "config").write_text(KUBECONFIG % silent.getsockname()[1])
        began = time.monotonic()
        assert complete(monkeypatch, capfd, "kdeploy status --target live ") == []
    assert time.monotonic() - began < 60  # the limit of a request, which is not reached


def test_a_store_in_a_claim_is_not_asked(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deployer.workspace.Workspace.store", property(lambda _: pytest.fail("asked")))
    line = "kdeploy rollout --target laptop --store pvc://claim/models --release "
    assert complete(monkeypatch, capfd, line) == []


def test_kubectl_gets_completions_and_a_directive(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("_KDEPLOY_COMPLETE", "COMP_WORDS", "COMP_CWORD"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # restored afterwards
    for words, shown in (
        (["status", "--target", "laptop", "d"], ["demo", "detector", ":0"]),
        (["roll"], ["rollout", ":0"]),
        (["status", "--target", ""], ["laptop", "live", ":0"]),
    ):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/kubectl_complete-kdeploy", *words])
        with pytest.raises(SystemExit) as ended:
            complete_for_kubectl()
        out, err = capfd.readouterr()
        assert (ended.value.code, out.split(), err) == (0, shown, "")


def test_the_usage_of_the_kubectl_plugin_names_kubectl(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kubectl-kdeploy", "status", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "Usage: kubectl kdeploy status" in capfd.readouterr().out
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kubectl-kdeploy", "status", "--absent"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Run `kubectl kdeploy status --help`" in capfd.readouterr().err
