"""kdeploy never prints, writes or raises a secret, from any source."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from deployer.cli.main import main
from deployer.config import Store
from tests.stores import azurite as azure
from tests.stores import swift as s3
from tests.stores.planted import MARK, contents, holders, quoting_server, uploaded

__all__ = ["quoting_server"]

CONFIG = """
[model]
name = "digits"
version = "1.0"
handler = "handler.py"
serialized-file = "weights.pt"
[store]
uri = "{uri}"
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
CODES = [3 if command[0] == "plan" else 0 for command in EVERY]  # the local target does not read such a store


class Project:
    """A project, and the output of every `kdeploy` command in it."""

    def __init__(self, folder: Path, config: Store) -> None:
        self.folder = folder
        self.output = ""
        self.environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "KDEPLOY_DEBUG": "1"}
        (folder / "tmp").mkdir(parents=True)
        (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
        (folder / "weights.pt").write_bytes(b"w" * 1000)
        keys = {"endpoint": config.endpoint, "account": config.account}
        more = "\n".join(f'{key} = "{value}"' for key, value in keys.items() if value)
        (folder / "kdeploy.toml").write_text(CONFIG.format(uri=config.uri, more=more))

    def run(self, *arguments: str) -> int:
        done = subprocess.run(
            [sys.executable, "-m", "deployer", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.output += done.stdout + done.stderr
        return done.returncode

    def holds(self, *secrets: str) -> list[str]:
        """Return every place that contains a secret in any encoding."""
        return holders(contents(self.folder) | {"output": self.output.encode()}, *secrets)


@pytest.fixture
def project(tmp_path: Path) -> Callable[[Store], Project]:
    return lambda config: Project(tmp_path / "project", config)


def test_secrets_in_variables_of_s3_are_hidden(s3_config: Store, project: Callable[[Store], Project]) -> None:
    here = project(s3_config)
    assert [here.run(*command) for command in EVERY] == CODES
    assert here.holds(s3.SECRET) == []
    assert "1.0-" in here.output
    objects = uploaded(s3_config, here.folder)
    assert len(objects) == 3
    assert holders(objects, s3.SECRET, s3.KEY) == []


def test_secrets_in_files_of_s3_are_hidden_in_errors(
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
    assert "credentials are invalid" in here.output
    (bare / ".aws" / "credentials").write_text("planted-line\n" + lines)
    assert here.run("push") == 3
    assert here.holds(s3.SECRET, "planted-token", "planted-other", "planted-line") == []


def test_secrets_of_azure_are_hidden(
    azure_config: Store, project: Callable[[Store], Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project(azure_config)
    assert [here.run(*command) for command in EVERY] == CODES
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    here.environment.pop("AZURE_STORAGE_KEY")
    text = f"AccountName={azure.ACCOUNT};AccountKey={azure.KEY}"
    here.environment["AZURE_STORAGE_CONNECTION_STRING"] = text
    assert here.run("releases") == 0
    here.environment["AZURE_STORAGE_CONNECTION_STRING"] = ""
    here.environment["AZURE_STORAGE_SAS_TOKEN"] = "sv=2021-08-06&se=2030-01-01&sig=planted%2Fsignature%3D"
    assert here.run("releases") == 5
    assert here.holds(azure.KEY, "planted/signature=", "planted%2Fsignature%3D", "AccountKey") == []


def test_a_local_rollout_from_a_bucket_is_refused_before_the_push(
    s3_config: Store, project: Callable[[Store], Project]
) -> None:
    here = project(s3_config)
    assert here.run("rollout") == 3
    assert "this machine's disk, not from s3://" in here.output
    assert "--store model-store" in here.output
    here.output = ""
    assert here.run("releases", "-o", "name") == 0
    assert "1.0-" not in here.output


def aws_files(home: Path, *lines: str) -> dict[str, str]:
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text("\n".join(["[default]", *lines]))
    return {}


def google_file(home: Path, content: Mapping[str, str]) -> dict[str, str]:
    (home / "google.json").write_text(json.dumps(content))
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(home / "google.json")}


def token_file(home: Path) -> str:
    (home / "token").write_text(f"{MARK}/token+\n")
    return str(home / "token")


KEYS = {"AWS_ACCESS_KEY_ID": f"AKIA{MARK}", "AWS_SECRET_ACCESS_KEY": f"{MARK}/key+"}
PRINCIPAL = {"AZURE_CLIENT_ID": "id", "AZURE_TENANT_ID": "tenant"}
SOURCES: dict[str, tuple[str, Callable[[Path], dict[str, str]]]] = {
    "keys": ("s3", lambda home: KEYS),
    "session": ("s3", lambda home: {**KEYS, "AWS_SESSION_TOKEN": f"{MARK}/token+=="}),
    "with a line break": ("s3", lambda home: {**KEYS, "AWS_SESSION_TOKEN": f"{MARK}\n{MARK}"}),
    "profile": (
        "s3",
        lambda home: aws_files(home, f"aws_access_key_id={MARK}", f"aws_secret_access_key={MARK}"),
    ),
    "half a profile": ("s3", lambda home: aws_files(home, f"aws_secret_access_key={MARK}")),
    "a broken profile": ("s3", lambda home: aws_files(home, MARK)),
    "web identity": (
        "s3",
        lambda home: {"AWS_ROLE_ARN": "arn:x", "AWS_WEB_IDENTITY_TOKEN_FILE": token_file(home)},
    ),
    "account key": ("az", lambda home: {"AZURE_STORAGE_KEY": f"{MARK}a"}),
    "an invalid account key": ("az", lambda home: {"AZURE_STORAGE_KEY": f"{MARK}!"}),
    "connection string": ("az", lambda home: {"AZURE_STORAGE_CONNECTION_STRING": f"AccountKey={MARK}a"}),
    "SAS": ("az", lambda home: {"AZURE_STORAGE_SAS_TOKEN": f"?sv=2021-08-06&sig={MARK}%2Fx%3D"}),
    "principal": ("az", lambda home: {**PRINCIPAL, "AZURE_CLIENT_SECRET": f"{MARK}/secret~ x"}),
    "federated": ("az", lambda home: {**PRINCIPAL, "AZURE_FEDERATED_TOKEN_FILE": token_file(home)}),
    "bearer": ("az", lambda home: {"AZURE_STORAGE_TOKEN": MARK}),
    "service account": (
        "gs",
        lambda home: google_file(
            home, {"type": "service_account", "private_key": MARK, "client_email": MARK}
        ),
    ),
    "personal login": (
        "gs",
        lambda home: google_file(
            home, {"type": "authorized_user", "client_id": "x", "client_secret": MARK, "refresh_token": MARK}
        ),
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_secrets_of_every_source_are_hidden_if_the_server_quotes_the_request(
    source: str,
    quoting_server: tuple[str, list[str]],
    bare: Path,
    project: Callable[[Store], Project],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url, _ = quoting_server
    scheme, plant = SOURCES[source]
    here = project(Store(uri=f"{scheme}://models/team", endpoint=url, account="account"))
    # Requests stay on loopback, and the proxy has a password.
    proxy = url.replace("//", f"//user:{MARK}@")
    for name, value in {
        "AZURE_AUTHORITY_HOST": url,
        "HTTPS_PROXY": proxy,
        "https_proxy": proxy,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "KDEPLOY_DEBUG": "1",
        **plant(bare),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(here.folder)
    monkeypatch.setattr(tempfile, "tempdir", str(here.folder / "tmp"))
    for command in (("push",), ("plan", "-o", "json"), ("prune", "--keep", "1", "--yes"), ("config",)):
        with pytest.raises(SystemExit):
            main(list(command))
    here.output = "".join(capfd.readouterr())
    assert "Traceback" in here.output
    assert here.holds(MARK) == []


@pytest.mark.parametrize("source", ["session", "account key", "SAS"])
def test_a_killed_push_leaves_no_secret(source: str, bare: Path, project: Callable[[Store], Project]) -> None:
    scheme, plant = SOURCES[source]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        here = project(Store(uri=f"{scheme}://models/team", endpoint=url, account="account"))
        here.environment |= plant(bare)
        child = subprocess.Popen(
            [sys.executable, "-m", "deployer", "push"],
            cwd=here.folder,
            env=here.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while True:
            client = listener.accept()[0]
            with client:
                if client.recv(65536).startswith(b"PUT"):
                    child.kill()
                    break
                client.sendall(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        here.output = child.communicate()[0]
    assert any("digits.mar" in name for name in contents(here.folder))
    assert here.holds(MARK) == []


def test_passwords_in_requirements_and_remotes_are_hidden(
    project: Callable[[Store], Project], bare: Path
) -> None:
    here = project(Store(uri="models"))
    here.environment["PIP_INDEX_URL"] = f"https://user:{MARK}@pypi.example.org/simple"
    subprocess.run(["git", "init", "--quiet"], cwd=here.folder, check=True)
    remote = f"https://user:{MARK}@git.example.org/models.git"
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=here.folder, check=True)
    requirements = here.folder / "requirements.txt"
    sets = ("--set", "model.requirements-file=requirements.txt", "--set", "store.uri=models")
    for line in (
        f"--index-url https://user:{MARK}@pypi.example.org/simple",
        f"# -i https://user:{MARK}@pypi.example.org/simple",
        f"thing @ git+https://{MARK}{MARK}@git.example.org/thing.git",
    ):
        requirements.write_text(f"numpy\n{line}\n")
        assert here.run("push", *sets) == 4
        assert "requirements.txt:2" in here.output
    requirements.write_text("--index-url https://${PIP_USER}:${PIP_TOKEN}@pypi.example.org/simple\nnumpy\n")
    assert here.run("push", *sets) == 0
    (here.folder / ".git" / "config").unlink()
    assert here.holds(MARK) == []
