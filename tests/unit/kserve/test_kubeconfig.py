"""Kubeconfigs, files that they name, and exec plugins: read as kubectl does, and never without end."""

from __future__ import annotations

import base64
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from deployer.errors import ConfigError, TargetError
from deployer.patience import PATIENCE, Patience
from deployer.targets.kserve.client.connection import connect
from deployer.targets.kserve.client.exec_plugin import ExecPlugin
from deployer.targets.kserve.client.kubeconfig import read_kubeconfig

VERSION = "client.authentication.k8s.io/v1"
MARK = "planted-s3cr3t"


def config(**user: Any) -> dict[str, Any]:
    return {
        "current-context": "one",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
    }


def write(path: Path, document: object) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_files_are_merged_and_the_first_counts(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    first = config(tokenFile="../token")
    first["users"][0]["user"]["client-key"] = "../token"
    second = config(token="second")
    second["current-context"] = "two"
    second["contexts"].append({"name": "two", "context": {"cluster": "c", "user": "other"}})
    second["users"].append({"name": "other", "user": {"token": "others"}})
    files = os.pathsep.join(
        [
            str(tmp_path / "missing"),
            write(tmp_path / "a" / "config", first),
            write(tmp_path / "b" / "config", second),
        ]
    )
    chosen = read_kubeconfig(files, None)
    assert chosen.name == "one"
    assert chosen.user["token"] == "from-a-file"
    assert base64.b64decode(chosen.user["client-key-data"]) == b"from-a-file\n"
    assert chosen.folder == tmp_path / "a"
    assert read_kubeconfig(files, "two").user == {"token": "others"}
    assert connect(files, None).headers() == {"Authorization": "Bearer from-a-file"}


def test_many_connections_at_once(tmp_path: Path) -> None:
    """Their keys are in files for a moment, and none takes another's away."""
    document = config(token="x")
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca")
    document["clusters"][0]["cluster"]["certificate-authority"] = "ca"
    path = write(tmp_path / "config", document)
    with ThreadPoolExecutor(8) as pool:
        for connection in pool.map(lambda _: connect(path, None), range(64)):
            assert connection.headers() == {"Authorization": "Bearer x"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "it is not a kubeconfig"),
        ("hello", "it is not a kubeconfig"),
        ("clusters: {}\nusers: x", "it is not a kubeconfig"),
        ("clusters: [a]", "it is not a kubeconfig"),
        ("users: [{name: a, user: [1]}]", "it is not a kubeconfig"),
        ("contexts: [{name: [1]}]", "it is not a kubeconfig"),
        ("{}", "it has no current context"),
        ("current-context: x", "it has no context x"),
        ("current-context: x\ncontexts: [{name: x}]", "it has no cluster"),
        ("current-context: x\ncontexts: [{name: x, context: {cluster: c}}]", "it has no cluster c"),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\nclusters: [{name: c}]",
            "its cluster c has no server",
        ),
        (f"users: [{{token: {MARK}\n : :", "it is not valid YAML"),
        ("[" * 100_000, "it is not valid YAML"),
        ("\0", "it is not valid YAML"),
        ("!!python/object:os.system {}", "it is not valid YAML"),
    ],
)
def test_what_is_no_kubeconfig(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(ConfigError, match=what) as caught:
        connect(str(tmp_path / "config"), None)
    assert str(tmp_path / "config") in (caught.value.where or "")
    assert MARK not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("what", ["endless", "pipe", "folder", "loop", "bytes"])
@pytest.mark.parametrize(
    "key", ["kubeconfig", "tokenFile", "client-certificate", "client-key", "certificate-authority"]
)
def test_a_file_that_cannot_be_read_or_has_no_end(key: str, what: str, tmp_path: Path) -> None:
    named = {name: tmp_path / name for name in ("pipe", "folder", "loop", "bytes")}
    named["endless"] = Path("/dev/zero")
    os.mkfifo(named["pipe"])
    named["folder"].mkdir()
    named["loop"].symlink_to("loop")
    named["bytes"].write_bytes(b"\xff\xfe")
    document = config()
    user, cluster = document["users"][0]["user"], document["clusters"][0]["cluster"]
    place = cluster if key.startswith("certificate") else user
    place[key] = str(named[what])
    path = str(named[what]) if key == "kubeconfig" else write(tmp_path / "config", document)
    try:
        connect(path, None).headers()
    except (ConfigError, TargetError) as error:
        assert error.where
        assert error.hint
    else:  # a pipe that nobody writes to is empty; a key without a certificate is not used
        assert what == "pipe" or key == "client-key"


PROGRAMS = {
    "prints without an end": ("while True: print('x' * 1000)", "prints more than"),
    "prints no line without an end": ("import os\nwhile True: os.write(1, bytes(65536))", "prints more than"),
    "never ends": ("import time; time.sleep(600)", "does not end within"),
    "leaves somebody behind": (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])",
        "does not end within",
    ),
    "fails": (f"import sys; sys.exit('{MARK}')", "ended with exit code 1"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "ended with exit code -9"),
    "prints nothing": ("", "gave no credentials"),
    "prints bytes": ("import os; os.write(1, bytes([255, 254]))", "gave no credentials"),
    "prints a list": (f"print(['{MARK}'])", "gave no credentials"),
    "prints depth": ("print('[' * 100000)", "gave no credentials"),
    "prints no status": (f"print('{json.dumps({'apiVersion': VERSION})}')", "gave no credentials"),
    "gives nothing": (
        f"print('{json.dumps({'apiVersion': VERSION, 'status': {'clientKeyData': MARK}})}')",
        "gave no credentials",
    ),
    "speaks otherwise": (f"print('{json.dumps({'apiVersion': MARK, 'status': {}})}')", "another version"),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_plugin_that_gives_nothing(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program, what = PROGRAMS[kind]
    limit = Patience(program=2.0 if "end within" in what else 60.0)
    spec = {"apiVersion": VERSION, "command": sys.executable, "args": ["-c", program]}
    with pytest.raises(TargetError, match=what) as caught:
        connect(write(tmp_path / "config", config(exec=spec)), None, limit)
    assert "log in" in (caught.value.hint or "")
    assert MARK not in f"{caught.value} {caught.value.hint}"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "spec",
    [
        {},
        "text",
        {"command": "x"},
        {"apiVersion": VERSION},
        {"apiVersion": VERSION, "command": "x", "args": 3},
        {"apiVersion": VERSION, "command": "x", "env": [{"name": "A"}]},
        {"apiVersion": VERSION, "command": "no-such-plugin"},
        {"apiVersion": VERSION, "command": "./config"},
        {"apiVersion": VERSION, "command": "a\0b"},
    ],
)
def test_a_plugin_that_cannot_be_run(spec: object, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="the kubeconfig's exec plugin"):
        connect(write(tmp_path / "config", config(exec=spec)), None)


def plugin(folder: Path, status: dict[str, Any], **more: Any) -> ExecPlugin:
    """Return a plugin that counts how often it is asked, and notes what it is told."""
    (folder / "told").write_text(json.dumps({"apiVersion": VERSION, "status": status}))
    (folder / "plugin").write_text(
        "#!/usr/bin/env python3\nimport os\n"
        "open('asked', 'a').write(os.environ['KUBERNETES_EXEC_INFO'] + '\\n')\n"
        "print(open('told').read().replace('EXTRA', os.environ.get('EXTRA', '')))\n"
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


def asked(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "asked").read_text().splitlines()]


def test_a_plugin_is_asked_again_when_its_token_is_over(tmp_path: Path) -> None:
    for expires, times in (("2020-01-01T00:00:00Z", 3), ("2999-01-01T00:00:00Z", 1), (None, 1), ("soon", 1)):
        (tmp_path / "asked").unlink(missing_ok=True)
        one = plugin(
            tmp_path,
            {"token": "aEXTRA", "expirationTimestamp": expires},
            env=[{"name": "EXTRA", "value": "b"}],
        )
        assert [one.credential().token for _ in range(3)] == ["ab"] * 3
        assert len(asked(tmp_path)) == times
    assert asked(tmp_path)[0] == {
        "apiVersion": VERSION,
        "kind": "ExecCredential",
        "spec": {"interactive": False},
    }


def test_a_plugin_that_gives_a_certificate(tmp_path: Path) -> None:
    status = {
        "clientCertificateData": "CERT",
        "clientKeyData": "KEY",
        "expirationTimestamp": "2020-01-01T00:00:00Z",
    }
    one = plugin(tmp_path, status, provideClusterInfo=True)
    assert (one.credential().certificate, one.credential().key) == ("CERT", "KEY")
    (told,) = asked(tmp_path)  # connections that are open have it already
    assert told["spec"]["cluster"] == {"server": "https://a", "config": {"audience": "x"}}
