"""Secrets of the cluster's user, the model store and a request are only in the live Secret."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployer.cli.main import main
from deployer.config import Store
from deployer.errors import TargetError
from deployer.targets.kserve.client.kubeconfig import connect
from tests.cluster.kube import ADMIN, Kube
from tests.cluster.play import Play
from tests.cluster.project import write_project
from tests.cluster.proxy import Proxy
from tests.stores.planted import MARK, contents, holders, quoting_server, uploaded
from tests.stores.swift import KEY, SECRET

__all__ = ["quoting_server"]

COMMANDS = (
    ("push", "-o", "json"),
    ("plan", "-o", "json"),
    ("render",),
    ("render", "--rbac", "-o", "json"),
    ("rollout", "--dry-run", "client", "-o", "json"),
    ("rollout", "--dry-run", "server", "-o", "json"),
    ("rollout", "--no-wait", "-o", "json"),
    ("rollout", "--timeout", "200ms"),
    ("status", "-o", "json"),
    ("list", "-o", "json"),
    ("logs",),
    ("doctor", "-o", "json"),
    ("config", "-o", "json"),
    ("predict", "--kserve", "--header", "@headers", "-o", "json", "weights.json"),
    ("releases", "-o", "json"),
    ("verify",),
    ("prune", "--keep", "1", "--yes"),
)
Say = Callable[..., str]


@pytest.fixture
def project(s3_config: Store, tmp_path: Path) -> Path:
    folder = write_project(tmp_path / "project", s3_config)
    (folder / "tmp").mkdir()
    (folder / "weights.json").write_text("{}")
    return folder


@pytest.fixture
def say(
    project: Path, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Say:
    """Run a command and return its output, tracebacks included."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setattr(tempfile, "tempdir", str(project / "tmp"))

    def say(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["--debug", *arguments])
        out, err = capfd.readouterr()
        return f"{' '.join(arguments)} ends with {caught.value.code}: {out}{err}"

    monkeypatch.setenv("KDEPLOY_DEBUG", "")  # --debug sets it for the process
    return say


def test_no_command_writes_or_prints_a_secret(
    say: Say,
    project: Path,
    quoting_server: tuple[str, list[str]],
    s3_config: Store,
    kube: Kube,
    namespace: str,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, _ = quoting_server
    (project / "headers").write_text(f"Authorization: Bearer {MARK}\nX-Key: {MARK}\n")
    monkeypatch.setenv("KDEPLOY_INGRESS", url)
    output = {" ".join(command): say(*command).encode() for command in COMMANDS}
    assert b"ends with 0" in output["rollout --no-wait -o json"]
    assert b"ends with 9" in output["rollout --timeout 200ms"]
    secret = kube.get(f"/api/v1/namespaces/{namespace}/secrets/digits-model-store")
    output["delete --yes"] = say("delete", "--yes").encode()
    assert base64.b64decode(secret["data"]["AWS_SECRET_ACCESS_KEY"]).decode() == SECRET
    output["rollout again"] = say("rollout", "--no-wait", "-o", "json").encode()
    (project / "headers").unlink()
    everything = output | contents(project) | uploaded(s3_config, project)
    assert holders(everything, SECRET, KEY, ADMIN, MARK) == []
    # A webhook quotes the Secret that it rejects, decoded and encoded.
    quoted = f"no {SECRET} nor {base64.b64encode(SECRET.encode()).decode()}"
    with proxy.fault("PATCH .*/secrets/", status=400, message=quoted, times=9):
        refused = say("rollout", "--no-wait")
    assert "no *** nor ***" in refused
    assert holders({"refused": refused.encode()}, SECRET) == []


def test_a_refusal_that_quotes_the_request_is_printed_without_secrets(
    say: Say,
    project: Path,
    quoting_server: tuple[str, list[str]],
    play: Play,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, heard = quoting_server
    (project / "headers").write_text(f"Authorization: Bearer {MARK}\nCookie: session={MARK}; a=b\n")
    monkeypatch.setenv("KDEPLOY_INGRESS", url)
    say("rollout", "--no-wait")
    play.ready()
    output = say("predict", "--kserve", "--header", "@headers", "weights.json")
    assert MARK in heard[0]
    assert "Bearer ***" in output
    assert MARK not in output


def user(kind: str, folder: Path) -> dict[str, Any]:
    """Return a kubeconfig user whose credentials contain the mark."""
    version = "client.authentication.k8s.io/v1"
    credential = {"apiVersion": version, "kind": "ExecCredential", "status": {"token": MARK}}
    programs = {
        "plugin": f"print({json.dumps(credential)!r})",
        "plugin that fails": f"import sys; print('{MARK}'); sys.exit('{MARK}')",
        "plugin that prints other text": f"print('{MARK}')",
        "plugin of another version": f"print({json.dumps(credential | {'apiVersion': MARK})!r})",
    }
    if kind in programs:
        arguments = ["-c", programs[kind]]
        return {"exec": {"apiVersion": version, "command": sys.executable, "args": arguments}}
    (folder / "token").write_text(f"{MARK}\n")
    data = base64.b64encode(MARK.encode()).decode()
    return {
        "token": {"token": MARK},
        "token over two lines": {"token": f"{MARK}\n{MARK}"},
        "token file": {"tokenFile": str(folder / "token")},
        "password": {"username": "a", "password": MARK},
        "broken key": {"token": "x", "client-key-data": data, "client-certificate-data": data},
        "missing plugin": {"exec": {"apiVersion": version, "command": f"/no/{MARK}"}},
        "plugin without a version": {"exec": {"command": MARK}},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("token", "rejected the credentials"),
        ("token over two lines", "an invalid character"),
        ("token file", "rejected the credentials"),
        ("password", ""),
        ("broken key", "cannot use a certificate of the kubeconfig"),
        ("plugin", "rejected the credentials"),
        ("plugin that fails", "exec plugin ended with exit code 1"),
        ("plugin that prints other text", "exec plugin returned no credentials"),
        ("plugin of another version", "exec plugin answered in another API version"),
        ("missing plugin", "exec plugin is not installed"),
        ("plugin without a version", "exec plugin returned no credentials"),
    ],
)
def test_no_error_shows_the_users_credentials(
    kind: str, what: str, say: Say, kubeconfig: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"][0]["user"] = user(kind, tmp_path)
    kubeconfig.write_text(yaml.safe_dump(config))
    for command in (("doctor",), ("rollout", "--no-wait")):
        output = say(*command)
        assert what in output
        assert "bug in kdeploy" not in output
        if "plugin" in kind:
            assert "Log in to the cluster again" in output
        assert holders({"output": output.encode()} | contents(tmp_path / "project"), MARK) == []


def test_a_plugin_that_fails_after_its_token_expired(
    kubeconfig: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    version = "client.authentication.k8s.io/v1"
    status = {"token": MARK, "expirationTimestamp": "2020-01-01T00:00:00Z"}
    credential = json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})
    (tmp_path / "credential").write_text(credential)
    program = "import os, sys; print(open(sys.argv[1]).read()); os.remove(sys.argv[1])"
    arguments = ["-c", program, str(tmp_path / "credential")]
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"][0]["user"] = {
        "exec": {"apiVersion": version, "command": sys.executable, "args": arguments}
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    connection = connect(str(kubeconfig), None)
    with pytest.raises(TargetError, match="exec plugin ended with exit code 1") as caught:
        connection.headers()
    assert "Log in" in (caught.value.hint or "")
    assert capfd.readouterr() == ("", "")
