"""What the commands print as JSON matches the documented schemas."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
from typer.main import get_command

from deployer.cli.app import app
from deployer.cli.main import main
from docs.outputs import OUTPUTS, schemas
from tests.outputs import check_output
from tests.unit.projects import Folder

PROJECT = """
[model]
name = "demo"
version = "1.0"
handler = "handler.py"
serialized-file = "weights.pt"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Folder(tmp_path)
    (tmp_path / "kdeploy.toml").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "config",
        "push",
        "releases",
        "plan",
        "render",
        "rollout --dry-run client",
        "list",
        "rollout history",
        "local status",
    ],
)
def test_a_command_prints_what_is_documented(
    command: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command.split(), "-o", "json"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, bool(out)) == (0, True), err
    check_output(arguments, out)


def test_another_output_is_found_out() -> None:
    for out in ("{}", '[{"name": "Java", "status": "good", "detail": "", "where": "", "remedy": ""}]'):
        with pytest.raises(jsonschema.ValidationError):
            check_output(["doctor", "-o", "json"], out)


def test_every_command_with_an_output_format_is_documented() -> None:
    def named(command: object, path: str = "") -> list[str]:
        inner = getattr(command, "commands", {})
        found = [name for child, one in inner.items() for name in named(one, f"{path} {child}".strip())]
        options = [option for one in getattr(command, "params", []) for option in one.opts]
        return [*found, *([path] if "--output" in options else [])]

    assert sorted(named(get_command(app))) == sorted(name for name in OUTPUTS if "--" not in name)
    assert list(schemas()["properties"]) == list(OUTPUTS)
