"""What the commands print as JSON matches the documented schemas."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path

import jsonschema
import pytest
from typer.main import get_command

from deployer.cli.app import app
from deployer.cli.main import main
from docs.outputs import OUTPUTS, schemas
from tests.outputs import check_output
from tests.pages import PAGES, Code, code
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
        "archive --list",
        "archive",
        "releases",
        "plan",
        "render",
        "rollout --dry-run client",
        "list",
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


def test_an_error_is_what_is_documented(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KDEPLOY_DEBUG", "")  # --debug sets it for the process
    (project / "weights.pt").unlink()
    for arguments in (
        ["plan", "-o", "json"],
        ["--debug", "plan", "-o", "json"],
        ["plan", "--no", "-o", "json"],
        ["rollout", "history", "-o", "json"],
        ["status", "-o", "json"],
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        out, err = capsys.readouterr()
        assert (out, err[:1]) == ("", "{")
        check_output(arguments, out, err)


HOW_TO = [
    piece
    for page in PAGES
    if "how-to" in page.parts
    for piece in code(page)
    if piece.language == "toml" and "[targets.production]" in piece.text
]


@pytest.mark.parametrize("piece", HOW_TO, ids=lambda piece: piece.place)
def test_the_settings_of_a_how_to_page_render_without_a_cluster(
    piece: Code, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "kdeploy.toml").write_text(f"{textwrap.dedent(piece.text)}\n{PROJECT}")
    for patch in re.findall(r'patches = \["(.+?)"\]', piece.text):
        (project / patch).write_text("spec: {}\n")
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KUBECONFIG", str(project / "none"))
    monkeypatch.setenv("HOME", str(project))
    monkeypatch.setenv("KDEPLOY_TARGETS_PRODUCTION_DEPLOYMENT_MODE", "Standard")
    with pytest.raises(SystemExit) as ended:
        main(["render", "--target", "production", "-o", "name"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out.split()[-1:]) == (0, ["InferenceService/demo"]), err


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
    assert list(schemas()["properties"]) == [*OUTPUTS, "error"]
