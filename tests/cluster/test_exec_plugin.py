"""Runs exec plugins of a kubeconfig, each a real program, as kubectl does and with time limits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from deployer.errors import TargetError
from deployer.patience import PATIENCE, Patience
from deployer.targets.kserve.client.exec_plugin import ExecPlugin
from deployer.targets.kserve.client.kubeconfig import connect
from tests.unit.kserve.test_kubeconfig import MARK, VERSION, config, write

PROGRAMS = {
    "prints endlessly": ("while True: print('x' * 1000)", "prints more than"),
    "prints bytes endlessly": ("import os\nwhile True: os.write(1, bytes(65536))", "prints more than"),
    "never ends": ("import time; time.sleep(600)", "does not end within"),
    "leaves a process behind": (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])",
        "does not end within",
    ),
    "fails": (f"import sys; sys.exit('{MARK}')", "ended with exit code 1"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "ended with exit code -9"),
    "prints nothing": ("", "returned no credentials"),
    "prints bytes": ("import os; os.write(1, bytes([255, 254]))", "returned no credentials"),
    "prints a list": (f"print(['{MARK}'])", "returned no credentials"),
    "prints depth": ("print('[' * 100000)", "returned no credentials"),
    "prints no status": (f"print('{json.dumps({'apiVersion': VERSION})}')", "returned no credentials"),
    "returns a key only": (
        f"print('{json.dumps({'apiVersion': VERSION, 'status': {'clientKeyData': MARK}})}')",
        "returned no credentials",
    ),
    "answers in another version": (
        f"print('{json.dumps({'apiVersion': MARK, 'status': {}})}')",
        "another API version",
    ),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_plugin_without_credentials_is_an_error(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program, what = PROGRAMS[kind]
    limit = Patience(program=2.0 if "end within" in what else 60.0)
    spec = {"apiVersion": VERSION, "command": sys.executable, "args": ["-c", program]}
    with pytest.raises(TargetError, match=what) as caught:
        connect(write(tmp_path / "config", config(exec=spec)), None, limit)
    assert "Log in" in (caught.value.hint or "")
    assert MARK not in f"{caught.value} {caught.value.hint}"
    assert capfd.readouterr() == ("", "")


def plugin(folder: Path, status: dict[str, Any], **more: Any) -> ExecPlugin:
    """Return a plugin that records each run and its input."""
    (folder / "answer").write_text(json.dumps({"apiVersion": VERSION, "status": status}))
    (folder / "plugin").write_text(
        "#!/usr/bin/env python3\nimport os\n"
        "open('runs', 'a').write(os.environ['KUBERNETES_EXEC_INFO'] + '\\n')\n"
        "print(open('answer').read().replace('EXTRA', os.environ.get('EXTRA', '')))\n"
    )
    (folder / "plugin").chmod(0o755)
    cluster = {
        "server": "https://a",
        "extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"audience": "x"}}],
    }
    return ExecPlugin(
        {"apiVersion": VERSION, "command": "./plugin", **more},
        cluster,
        folder=folder,
        where="x",
        patience=PATIENCE,
    )


def inputs(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "runs").read_text().splitlines()]


def test_a_plugin_runs_again_when_its_token_has_expired(tmp_path: Path) -> None:
    for expires, times in (("2020-01-01T00:00:00Z", 3), ("2999-01-01T00:00:00Z", 1), (None, 1), ("soon", 1)):
        (tmp_path / "runs").unlink(missing_ok=True)
        one = plugin(
            tmp_path,
            {"token": "aEXTRA", "expirationTimestamp": expires},
            env=[{"name": "EXTRA", "value": "b"}],
        )
        assert [one.credential().token for _ in range(3)] == ["ab"] * 3
        assert len(inputs(tmp_path)) == times
    assert inputs(tmp_path)[0] == {
        "apiVersion": VERSION,
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }


def test_a_plugins_certificate_is_kept(tmp_path: Path) -> None:
    status = {
        "clientCertificateData": "CERT",
        "clientKeyData": "KEY",
        "expirationTimestamp": "2020-01-01T00:00:00Z",
    }
    one = plugin(tmp_path, status, provideClusterInfo=True)
    assert (one.credential().certificate, one.credential().key) == ("CERT", "KEY")
    (given,) = inputs(tmp_path)  # open connections already use it
    assert given["spec"]["cluster"] == {"server": "https://a", "config": {"audience": "x"}}
