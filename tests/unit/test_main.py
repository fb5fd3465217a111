"""The entry point, in this process."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import typer

from deployer.cli import deps, main


@pytest.mark.parametrize("arguments", [[], ["rollout", "--", "x"], ["-o"]])
def test_a_command_line_without_a_command_is_a_usage_error(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "Traceback" not in capfd.readouterr().err


def test_without_arguments_the_commands_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "Roll out a release" in capfd.readouterr().err


def test_a_declined_question_ends_the_command_with_one_message(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()
    app.command()(lambda: deps.confirm("delete it"))
    monkeypatch.setattr(sys.modules["deployer.cli.main"], "_commands", lambda: typer.main.get_command(app))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: False)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert (ended.value.code, *capfd.readouterr()) == (130, "", "canceled: nothing was changed\n")
