"""The provenance of a rollout, in real checkouts."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from deployer.provenance import find_provenance


def git(folder: Path, *arguments: str) -> str:
    named = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    ended = subprocess.run(
        ["git", *named, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return ended.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if not shutil.which("git"):
        pytest.skip("git not found: install it")
    git(tmp_path, "init", "-q")
    (tmp_path / "kdeploy.toml").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag is not a commit")
    return tmp_path


def test_the_commit_and_whether_the_checkout_is_dirty(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (checkout / "weights.pt").write_text("not of the commit, as weights are")
    assert find_provenance(checkout, archive="sha256:0").commit == commit
    (checkout / "kdeploy.toml").write_text("changed")
    assert find_provenance(checkout, archive="sha256:0").commit == f"{commit}-dirty"


def test_without_a_checkout_or_git_there_is_no_commit(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_provenance(tmp_path_factory.mktemp("plain"), archive="").commit == ""
    monkeypatch.setenv("PATH", "")
    assert find_provenance(checkout, archive="").commit == ""


def test_the_user_and_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = find_provenance(tmp_path, archive="sha256:0")
    assert (origin.who, origin.archive) == (f"{getpass.getuser()}@{socket.gethostname()}", "sha256:0")

    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert find_provenance(tmp_path, archive="").who == f"{os.getuid()}@{socket.gethostname()}"
