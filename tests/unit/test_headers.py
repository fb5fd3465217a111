"""Sources of headers, tokens and cookies. An error never contains a value."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from deployer.cli.headers import read_headers
from deployer.errors import ConfigError

SECRET = "s3cr3t"


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return str(path)


def test_a_token_from_a_file_stdin_or_the_environment(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"Authorization": f"Bearer {SECRET}"}
    assert read_headers([], f"@{file}", [], {"KDEPLOY_TOKEN": "another"}) == wanted
    assert read_headers([], None, [], {"KDEPLOY_TOKEN": SECRET}) == wanted
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{SECRET}\n"))
    assert read_headers([], "-", [], {}) == wanted


def test_cookies(file: str, tmp_path: Path) -> None:
    jar = tmp_path / "jar"
    jar.write_text("a=1\n\nb=2\n")
    options = [f"authservice_session=@{file}", f"@{jar}"]
    wanted = {"Cookie": f"authservice_session={SECRET}; a=1; b=2"}
    assert read_headers([], None, options, {"KDEPLOY_COOKIE": "another"}) == wanted
    assert read_headers([], None, [], {"KDEPLOY_COOKIE": "a=1; b=2"}) == {"Cookie": "a=1; b=2"}


def test_a_header_overrides_the_token(file: str, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text("authorization: Basic x\n\nX-Y: a:b\n")
    assert read_headers([f"@{lines}"], f"@{file}", [], {}) == {"authorization": "Basic x", "X-Y": "a:b"}


@pytest.mark.parametrize(
    ("given", "token", "cookies", "what"),
    [
        ([], SECRET, [], "every user of this machine"),
        ([], None, [f"authservice_session={SECRET}"], "every user of this machine"),
        ([], None, [f"a={SECRET}=@x"], "every user of this machine"),
        ([], None, [f"{SECRET}@x"], "every user of this machine"),
        ([], "@/no/such/file", [], "cannot read the file"),
        ([], "@/dev/null", [], "empty token"),
        ([SECRET], None, [], "expected NAME: VALUE"),
    ],
)
def test_an_error_does_not_contain_the_value(
    given: list[str], token: str | None, cookies: list[str], what: str
) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        read_headers(given, token, cookies, {})
    assert SECRET not in f"{caught.value} {caught.value.hint}"


def test_an_empty_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="KDEPLOY_TOKEN: empty token"):
        read_headers([], None, [], {"KDEPLOY_TOKEN": " "})
