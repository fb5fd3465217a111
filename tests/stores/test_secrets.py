"""A secret of any source is in nothing that kdeploy prints, writes or raises."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from deployer.config import Store
from tests.stores import azurite as azure
from tests.stores import swift as s3

CONFIG = """
[model]
name = "digits"
version = "1.0"
handler = "handler.py"
serialized-file = "weights.pt"
[store]
uri = "{uri}"
endpoint = "{endpoint}"
{more}
"""
EVERY = (
    ("push",),
    ("plan", "-o", "json"),
    ("render",),
    ("releases", "-o", "json"),
    ("verify",),
    ("prune", "--keep", "1", "--yes"),
)


class Project:
    """A project, `kdeploy` in it, and everything that this has said so far."""

    def __init__(self, folder: Path, config: Store) -> None:
        self.folder = folder
        self.said = ""
        self.environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "KDEPLOY_DEBUG": "1"}
        (folder / "tmp").mkdir(parents=True)
        (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
        (folder / "weights.pt").write_bytes(b"w" * 1000)
        more = f'account = "{config.account}"' if config.account else ""
        text = CONFIG.format(uri=config.uri, endpoint=config.endpoint, more=more)
        (folder / "kdeploy.toml").write_text(text)

    def run(self, *arguments: str) -> int:
        done = subprocess.run(
            [sys.executable, "-m", "deployer", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.said += done.stdout + done.stderr
        return done.returncode

    def holds(self, *secrets: str) -> list[str]:
        """Return every place that holds a secret in any of the forms that it travels in."""
        forms = {form for one in secrets for form in (one, quote(one, safe=""), repr(one)[1:-1])}
        forms |= {base64.b64encode(one.encode()).decode() for one in secrets}
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        texts = {str(path): path.read_bytes().decode("latin-1") for path in files} | {"said": self.said}
        return [place for place, text in texts.items() if any(form in text for form in forms)]


@pytest.fixture
def project(tmp_path: Path) -> Callable[[Store], Project]:
    return lambda config: Project(tmp_path / "project", config)


def test_of_s3s_variables(s3_config: Store, project: Callable[[Store], Project]) -> None:
    here = project(s3_config)
    assert [here.run(*command) for command in EVERY] == [0] * len(EVERY)
    assert here.holds(s3.SECRET) == []
    assert "1.0-" in here.said


def test_of_s3s_files_and_of_refusals(
    s3_config: Store, bare: Path, project: Callable[[Store], Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (bare / ".aws").mkdir()
    lines = f"[default]\naws_access_key_id = {s3.KEY}\naws_secret_access_key = {s3.SECRET}\n"
    (bare / ".aws" / "credentials").write_text(lines)
    here = project(s3_config)
    assert here.run("push") == 0
    (bare / ".aws" / "credentials").write_text(lines + "aws_session_token = planted-token\n")
    here.run("releases")
    (bare / ".aws" / "credentials").write_text(lines.replace(s3.SECRET, "planted-other"))
    assert here.run("push") == 5
    assert "credentials are not the right ones" in here.said
    (bare / ".aws" / "credentials").write_text("planted-line\n" + lines)
    assert here.run("push") == 3
    assert here.holds(s3.SECRET, "planted-token", "planted-other", "planted-line") == []


def test_of_azure(
    azure_config: Store, project: Callable[[Store], Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project(azure_config)
    assert [here.run(*command) for command in EVERY] == [0] * len(EVERY)
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    here.environment.pop("AZURE_STORAGE_KEY")
    text = f"AccountName={azure.ACCOUNT};AccountKey={azure.KEY}"
    here.environment["AZURE_STORAGE_CONNECTION_STRING"] = text
    assert here.run("releases") == 0
    here.environment["AZURE_STORAGE_CONNECTION_STRING"] = ""
    here.environment["AZURE_STORAGE_SAS_TOKEN"] = "sv=2021-08-06&se=2030-01-01&sig=planted%2Fsignature%3D"
    assert here.run("releases") == 5
    assert here.holds(azure.KEY, "planted/signature=", "planted%2Fsignature%3D", "AccountKey") == []


def test_a_local_rollout_of_objects_is_refused_before_a_push(
    s3_config: Store, project: Callable[[Store], Project]
) -> None:
    here = project(s3_config)
    assert here.run("rollout") == 3
    assert "this machine's disk, not from s3://" in here.said
    assert "--store model-store" in here.said
    here.said = ""
    assert here.run("releases", "-o", "name") == 0
    assert "1.0-" not in here.said
