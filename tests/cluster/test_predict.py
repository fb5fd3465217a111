"""`kdeploy predict --kserve` against an ingress on loopback: its requests, and its errors for refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployer.cli.main import main
from deployer.targets.kserve import Cluster
from tests.cluster.calls import roll
from tests.cluster.kube import Kube
from tests.cluster.play import Play, documents
from tests.unit.predict.loopback import Asked, Reply, Server
from tests.unit.predict.proxying import proxying

SECRET = "planted-s3cr3t"
CONFIG = """
[model]
name = "digits"
version = "1.0"
handler = "handler.py"

[targets.production]
kind = "kserve"
deployment-mode = "Standard"
"""
Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def predict(
    cluster: Cluster,
    kube: Kube,
    namespace: str,
    kubeconfig: Path,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Predict:
    roll(cluster, documents(namespace))
    Play(kube, namespace).ready(url="http://digits.team.example.com/serving/digits")
    (tmp_path / "kdeploy.toml").write_text(CONFIG)
    (tmp_path / "x.json").write_text('{"instances": [1]}')
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["predict", "--kserve", "--ingress", server.url, "x.json", *arguments])
        out, err = capfd.readouterr()
        assert SECRET not in out + err
        assert "Traceback" not in err
        return int(caught.value.code or 0), out, err

    return run


def guarded(asked: Asked) -> Reply:
    """Answer as an ingress behind an authenticating proxy does."""
    if asked.headers.get("cookie") != f"authservice_session={SECRET}":
        return Reply(302, b"", {"Location": "/dex/auth?client_id=kubeflow", "Server": "istio-envoy"})
    if asked.headers.get("authorization") != f"Bearer {SECRET}":
        return Reply(401, b"Jwt is missing", {"Server": "istio-envoy"})
    if asked.headers["host"] != "digits.team.example.com":
        return Reply(404, b"", {"Server": "istio-envoy"})
    assert asked.path == "/serving/digits/v1/models/digits:predict"
    return Reply(200, json.dumps({"predictions": [7]}).encode(), {"Content-Type": "application/json"})


INPUT_REFUSED, NOT_REACHED = 17, 18  # exit codes
COOKIE, TOKEN = ("--cookie", "authservice_session=@secret"), ("--token", "@secret")


def test_a_token_or_cookie_passes_an_authenticating_proxy(
    predict: Predict, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answering = guarded
    code, _, err = predict()
    assert code == NOT_REACHED
    assert "redirected to the login page /dex/auth" in err
    assert "`--cookie authservice_session=@FILE`, or KDEPLOY_COOKIE" in err
    code, _, err = predict(*COOKIE)
    assert code == NOT_REACHED
    assert "has no valid credentials (ingress istio-envoy: Jwt is missing)" in err
    assert "`--token @FILE`, or KDEPLOY_TOKEN" in err
    assert predict(*COOKIE, *TOKEN)[:2] == (0, "x.json   [7]\n")
    monkeypatch.setenv("KDEPLOY_TOKEN", SECRET)
    monkeypatch.setenv("KDEPLOY_COOKIE", f"authservice_session={SECRET}")
    assert predict()[:2] == (0, "x.json   [7]\n")


@pytest.mark.parametrize(
    ("reply", "message", "hint"),
    [
        (Reply(403, b"RBAC: access denied"), "an Istio AuthorizationPolicy", "--token @FILE"),
        (
            Reply(403),
            "these credentials do not allow access to this model",
            "`--token @FILE`, or `--cookie NAME=@FILE`",
        ),
        (
            Reply(404, b"", {"Server": "envoy"}),
            "for the Host header digits.team.example.com",
            "kdeploy status",
        ),
        (Reply(413, b"", {"Server": "envoy"}), "the request has 18 bytes", "serving.max-request-size"),
        (Reply(503, b"no healthy upstream"), "not ready, or scales up from zero", "retry"),
    ],
    ids=lambda value: str(getattr(value, "status", "")),
)
def test_a_refusal_is_an_error_with_a_hint(
    predict: Predict, server: Server, reply: Reply, message: str, hint: str
) -> None:
    server.answering = lambda asked: reply
    code, _, err = predict(*TOKEN, *COOKIE)
    assert code == (INPUT_REFUSED if reply.status == 413 else NOT_REACHED)
    assert f"HTTP {reply.status}" in err
    assert message in err
    assert hint in err


def test_the_environments_proxy_is_used_for_predictions_only(
    predict: Predict, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answering = guarded
    with proxying() as proxy:
        proxy.routes["ingress.example:80"] = int(server.url.rpartition(":")[2])
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        ended = predict(*COOKIE, *TOKEN, "--ingress", "http://ingress.example")
    assert ended[:2] == (0, "x.json   [7]\n")
    assert [asked[:2] for asked in proxy.asked] == [("CONNECT", "ingress.example:80")]


def test_a_secret_on_the_command_line_is_refused(predict: Predict, server: Server) -> None:
    for arguments in (("--token", SECRET), ("--cookie", f"a={SECRET}")):
        code, _, err = predict(*arguments)
        assert (code, "@FILE" in err) == (3, True)
    assert server.asked == []
