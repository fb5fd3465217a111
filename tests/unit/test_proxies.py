"""The proxy for a URL: the one that kubectl would use."""

from __future__ import annotations

import base64
import ssl

import pytest

from deployer.errors import ConfigError, TargetError
from deployer.proxies import address_of, find_proxy
from deployer.targets.kserve.client.connection import Connection

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
        ("https://A.Example.", "a.EXAMPLE", None, None),
        ("https://a.example", ".a.example", None, TLS),
        ("https://b.a.example", "*.a.example", None, None),
        ("https://b.a.example", "other a.example.", None, None),
        ("https://a.example:6443", "a.example:443", None, TLS),
        ("https://a.example", "b.a.example:443,a.example:443", None, None),
        ("https://10.1.2.3:6443", "10.1.2.3:6443", None, None),
        ("https://10.1.2.3:6443", "10.1.2.3:443", None, TLS),
        ("https://[fd00::7]:6443", "fd00::/8", None, None),
        ("https://[fd00::7]:6443", "[fd00:0::7]:6443", None, None),
        ("https://[fd00::7]:6443", "fd00::8,10.0.0.0/8,not/a/net,[", None, TLS),
        ("https://localhost.example", "", None, TLS),
        ("https://127.0.0.1.nip.io", "", None, TLS),
        ("https://[::ffff:127.0.0.1]", "", None, None),
        ("https://0.0.0.0:1", "", None, None),
        ("https://kind.localhost", "", None, None),
        ("https://a.example", "*", "https://theirs:1", "https://theirs:1"),
        ("https://localhost", "", "http://theirs:1", "http://theirs:1"),
    ],
)
def test_the_proxy_is_the_one_that_go_would_use(
    monkeypatch: pytest.MonkeyPatch, host: str, no_proxy: str, named: str | None, found: str | None
) -> None:
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert find_proxy(host, named) == found


def test_the_lower_case_variable_wins_even_if_it_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://lower:1")
    assert find_proxy("https://a.example") == "http://lower:1"
    monkeypatch.setenv("https_proxy", "")
    assert find_proxy("https://a.example") is None
    monkeypatch.setenv("no_proxy", "a.example")
    assert find_proxy("http://a.example") is None
    assert find_proxy("http://b.example") == PLAIN
    monkeypatch.setenv("REQUEST_METHOD", "GET")  # under CGI, a header of the client sets HTTP_PROXY
    assert find_proxy("http://b.example") is None


def test_the_login_is_removed_from_the_address() -> None:
    assert address_of("http://proxy:1") == ("http://proxy:1", {})
    address, headers = address_of("http://me:p%40ss%2F%C3%BC@proxy:1/")
    assert address == "http://proxy:1"
    assert base64.b64decode(headers["Proxy-Authorization"].split()[1]).decode() == "me:p@ss/ü"


def test_a_proxy_without_a_scheme_uses_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3128")
    assert find_proxy("https://a.example", None) == "http://proxy:3128"
    monkeypatch.delenv("HTTPS_PROXY")
    assert find_proxy("https://a.example", None) is None


def test_an_unsupported_proxy_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="socks5://") as caught:
        find_proxy("https://a.example", "socks5://me:secret@theirs:1080")
    assert "proxy-url" in str(caught.value.where)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("HTTPS_PROXY", "socks5h://theirs")
    with pytest.raises(ConfigError) as caught:
        find_proxy("https://a.example", None)
    assert caught.value.where == "HTTPS_PROXY"


def test_a_websocket_does_not_support_an_https_proxy() -> None:
    tls = ssl.create_default_context()
    connection = Connection(
        "https://a.example", namespace="default", where="a.example", tls=tls, proxy="https://theirs:1"
    )
    with pytest.raises(TargetError, match="HTTPS proxies are not supported for WebSockets"):
        connection.open_websocket("/", "create pods/exec a/b")
