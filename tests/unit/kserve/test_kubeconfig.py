"""Kubeconfigs and the files that they name are read as kubectl reads them, with a size limit."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from deployer.errors import ConfigError, TargetError
from deployer.targets.kserve.client.kubeconfig import connect, connect_in_pod, read_kubeconfig

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


def test_files_are_merged_and_the_first_entry_counts(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    first = config(tokenFile="../token")
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
    assert chosen.user.folder == tmp_path / "a"
    assert read_kubeconfig(files, "two").user.fields == {"token": "others"}
    assert connect(files, None).headers() == {"Authorization": "Bearer from-a-file"}
    assert connect(files, "two").headers() == {"Authorization": "Bearer others"}


def test_connections_are_opened_in_parallel(tmp_path: Path) -> None:
    """Their keys are in temporary files, which no connection removes for another."""
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
def test_an_invalid_kubeconfig_is_an_error(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(ConfigError, match=what) as caught:
        connect(str(tmp_path / "config"), None)
    assert str(tmp_path / "config") in (caught.value.where or "")
    assert MARK not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("what", ["endless", "pipe", "folder", "loop", "bytes"])
@pytest.mark.parametrize(
    "key", ["kubeconfig", "tokenFile", "client-certificate", "client-key", "certificate-authority"]
)
def test_an_unreadable_or_endless_file_is_an_error(key: str, what: str, tmp_path: Path) -> None:
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
    else:  # a pipe without a writer is empty; a key without a certificate is not used
        assert what == "pipe" or key == "client-key"


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
def test_a_plugin_that_cannot_run_is_an_error(spec: object, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="the kubeconfig's exec plugin"):
        connect(write(tmp_path / "config", config(exec=spec)), None)


def test_an_auth_provider_gives_the_token(tmp_path: Path) -> None:
    claims = base64.urlsafe_b64encode(b'{"exp": 9999999999}').decode().rstrip("=")
    provider = {"name": "oidc", "config": {"id-token": f"e30.{claims}.x"}}
    connection = connect(write(tmp_path / "config", config(**{"auth-provider": provider})), None)
    assert connection.headers() == {"Authorization": f"Bearer e30.{claims}.x"}


@pytest.mark.parametrize(
    "provider", [{"name": "oidc", "config": {"id-token": MARK}}, {"name": "gcp", "config": MARK}, None, "x"]
)
def test_an_auth_provider_without_a_valid_token_is_an_error(provider: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="auth provider") as caught:
        connect(write(tmp_path / "config", config(**{"auth-provider": provider})), None)
    assert MARK not in str(caught.value)
    assert "exec plugin" in (caught.value.hint or "")


def test_a_password_is_sent_as_basic_authentication(tmp_path: Path) -> None:
    connection = connect(write(tmp_path / "config", config(username="ada", password="x")), None)
    assert connection.headers() == {"Authorization": f"Basic {base64.b64encode(b'ada:x').decode()}"}


def test_data_that_is_not_base64_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "config", config(**{"client-key-data": "x"}))
    with pytest.raises(ConfigError, match="invalid client-key-data: it is not base64"):
        connect(path, None)


def test_a_pod_uses_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "namespace").write_text("team")
    (tmp_path / "token").write_text("first\n")
    connection = connect_in_pod(tmp_path)
    assert (connection.host, connection.namespace) == ("https://[fd00::1]:6443", "team")
    assert connection.headers() == {"Authorization": "Bearer first"}
    (tmp_path / "token").write_text("second")
    assert connection.headers() == {"Authorization": "Bearer second"}
    (tmp_path / "token").unlink()
    with pytest.raises(ConfigError, match="cannot read the pod's account"):
        connect_in_pod(tmp_path)
