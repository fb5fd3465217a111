"""Durations: an error names the option."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployer.cli import deps
from deployer.cli.main import main
from deployer.errors import ConfigError

CONFIG = """
[model]
name = "digits"
version = "1.0"
handler = "handler.py"
[targets.production]
kind = "kserve"
"""


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("value", ["abc", "", "-1s", "1 s", "1w", "\u0661s", "1e400"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["rollout"], "--wait-window"),
        (["rollout"], "--timeout"),
        (["predict", "image.png"], "--timeout"),
        (["prune", "--keep", "1"], "--min-age"),
    ],
)
def test_an_invalid_duration_names_its_option(
    command: list[str],
    option: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "kdeploy.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    code, err = run([*command, f"{option}={value}"], capsys)
    assert code == 3
    assert err.startswith(f"error: invalid duration {value!r}\nwhere: {option}\n")


@pytest.mark.parametrize(
    ("command", "option", "value", "what"),
    [
        (["rollout"], "--wait-window", "601s", "more than "),
        (["rollout"], "--timeout", "9999999999999999999h", "more than "),
        (["predict", "image.png"], "--timeout", "9999999999999999999h", "more than "),
        (["predict", "image.png"], "--timeout", "0s", "must not be 0"),
    ],
)
def test_a_duration_outside_its_limits(
    command: list[str],
    option: str,
    value: str,
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "kdeploy.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    code, err = run([*command, option, value], capsys)
    assert (code, what in err, f"where: {option}" in err) == (3, True, True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("200ms", 0.2), ("5m", 300), ("1h", 3600), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert deps.duration(text, "--timeout") == seconds
    with pytest.raises(ConfigError, match="more than "):
        deps.duration(text, "--timeout", longest=seconds / 2)
