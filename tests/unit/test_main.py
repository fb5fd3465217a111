"""The entry point, in this process."""

from __future__ import annotations

import pytest

from deployer.cli import main


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
