"""Which proxy leads to a cluster, as kubectl finds it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deployer.errors import ConfigError, TargetError
from deployer.targets.kserve.connection import Connection, find_proxy

TLS, PLAIN = "http://of-https:3128", "http://of-http:3128"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HTTPS_PROXY": TLS, "HTTP_PROXY": PLAIN, "NO_PROXY": ""}.items():
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("host", "no_proxy", "named", "found"),
    [
        ("https://a.example:6443", "", None, TLS),
        ("http://a.example", "", None, PLAIN),
        ("https://a.example", "example", None, None),
        ("https://a.example", ".example,other", None, None),
        ("https://a.example:6443", "a.example:6443", None, None),
        ("https://anexample", "example", None, TLS),
        ("https://10.1.2.3:6443", "10.0.0.0/8", None, None),
        ("https://11.1.2.3:6443", "10.0.0.0/8", None, TLS),
        ("https://a.example", "*", None, None),
        ("https://127.0.0.2:6443", "", None, None),
        ("https://[::1]:6443", "", None, None),
        ("https://localhost:6443", "", None, None),
        ("https://a.example", "*", "https://theirs:1", "https://theirs:1"),
        ("https://localhost", "", "http://theirs:1", "http://theirs:1"),
    ],
)
def test_which_one(
    monkeypatch: pytest.MonkeyPatch, host: str, no_proxy: str, named: str | None, found: str | None
) -> None:
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert find_proxy(host, named) == found


def test_none_and_one_without_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    assert find_proxy("https://a.example", None) == "http://proxy:3128"
    monkeypatch.delenv("HTTPS_PROXY")
    assert find_proxy("https://a.example", None) is None


def test_what_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="socks5://") as caught:
        find_proxy("https://a.example", "socks5://me:secret@theirs:1080")
    assert "proxy-url" in str(caught.value.where)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("HTTPS_PROXY", "socks5h://theirs")
    with pytest.raises(ConfigError) as caught:
        find_proxy("https://a.example", None)
    assert caught.value.where == "HTTPS_PROXY"


def test_a_websocket_needs_a_plain_one() -> None:
    configuration = SimpleNamespace(
        host="https://a.example",
        proxy="https://theirs:1",
        ssl_ca_cert=None,
        cert_file=None,
        verify_ssl=True,
        tls_server_name=None,
        auth_settings=dict,
    )
    with pytest.raises(TargetError, match="a WebSocket cannot go through"):
        Connection(configuration, "default", "a.example").websocket("/", "v4")
