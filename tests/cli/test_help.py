"""The command line itself: help, version, streams and the files of `init`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from deployer.cli.app import app

ROOT = Path(__file__).parents[2]
HEAVY = {
    "kubernetes",
    "torch",
    "kserve",
    "obstore",
    "jinja2",
    "aiohttp",
    "PIL",
    "yaml",
    "urllib3",
    "msgspec",
    "rich",
}


def kdeploy(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deployer", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_help_imports_no_large_library(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom deployer.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    loaded = {name.split(".")[0] for name in ended.stderr.split()}
    assert "typer" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("command", sorted(getattr(get_command(app), "commands", {})))
def test_every_command_has_a_help_text(command: str, tmp_path: Path) -> None:
    ended = kdeploy(command, "--help", folder=tmp_path)
    assert ended.returncode == 0
    assert ended.stdout.startswith("Usage: kdeploy")


def test_wrong_usage_is_exit_code_2(tmp_path: Path) -> None:
    ended = kdeploy("push", "--nonsense", folder=tmp_path)
    assert ended.returncode == 2
    assert "--nonsense" in ended.stderr
    assert ended.stdout == ""


def test_without_a_project_the_hint_is_init(tmp_path: Path) -> None:
    ended = kdeploy("push", folder=tmp_path)
    assert ended.returncode == 3
    assert ended.stderr.splitlines()[0].startswith("error: model is not set")
    assert "kdeploy init" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_debug_prints_the_traceback(tmp_path: Path) -> None:
    ended = kdeploy("--debug", "push", folder=tmp_path)
    assert ended.returncode == 3
    assert "Traceback" in ended.stderr


def test_version(tmp_path: Path) -> None:
    assert kdeploy("--version", folder=tmp_path).stdout == "kdeploy 0.1.0\n"


def test_without_a_terminal_no_command_prompts(tmp_path: Path) -> None:
    assert kdeploy("init", folder=tmp_path).returncode == 0
    ended = kdeploy("delete", folder=tmp_path)
    assert ended.returncode == 3
    assert "--yes" in ended.stderr


def test_init_writes_a_project_and_keeps_existing_files(tmp_path: Path) -> None:
    assert kdeploy("init", "My Model 2", folder=tmp_path).returncode == 0
    folder = tmp_path / "My Model 2"
    assert {path.name for path in folder.iterdir()} == {"kdeploy.toml", "handler.py", ".gitignore"}
    assert kdeploy("config", "-o", "json", folder=folder).stdout.count('"my-model-2"') == 1
    (folder / "handler.py").write_text("mine")
    assert kdeploy("init", folder=folder).returncode == 3
    assert kdeploy("init", "--force", "--name", "other", folder=folder).returncode == 0
    assert '"other"' in (folder / "kdeploy.toml").read_text()
    assert (folder / "handler.py").read_text() == "mine"
    assert kdeploy("init", "x", "--name", "No Name", folder=tmp_path).returncode == 3
    assert not (tmp_path / "x").exists()


def test_init_names_the_files_of_a_state_dict(tmp_path: Path) -> None:
    names = ["--serialized-file", 'we"ights.pth', "--model-file", "net.py", "--handler", "own.py"]
    ended = kdeploy("init", *names, folder=tmp_path)
    assert ended.returncode == 0
    assert 'copy your weights to we"ights.pth and your network to net.py, then run' in ended.stderr
    shown = json.loads(kdeploy("config", "-o", "json", folder=tmp_path).stdout)
    keys = ("model.serialized-file", "model.model-file", "model.handler")
    assert [shown[key]["value"] for key in keys] == ['we"ights.pth', "net.py", "own.py"]


def test_config_shows_values_and_sources(tmp_path: Path) -> None:
    kdeploy("init", folder=tmp_path)
    ended = kdeploy("config", "--set", "serving.batch-size=3", folder=tmp_path, KDEPLOY_SERVING_GPU="2")
    lines = {line.split()[0]: line for line in ended.stdout.splitlines()}
    assert lines["serving.batch-size"].split()[1:] == ["3", "--set", "serving.batch-size"]
    assert lines["serving.gpu"].split()[1:] == ["2", "KDEPLOY_SERVING_GPU"]
    assert lines["model.version"].endswith("kdeploy.toml")
    assert lines["serving.cpu"].endswith("default")


def test_a_reader_that_closes_the_pipe_is_not_an_error(tmp_path: Path) -> None:
    kdeploy("init", folder=tmp_path)
    line = f"'{sys.executable}' -m deployer config --schema | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0
    assert ended.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_encoding_lacks_are_escaped(tmp_path: Path, encoding: str) -> None:
    kdeploy("init", folder=tmp_path)
    ended = kdeploy("config", "--set", "model.handler=漢.py", folder=tmp_path, PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\\u6f22.py" in ended.stdout
    ended = kdeploy("config", "-c", "漢.toml", folder=tmp_path, PYTHONIOENCODING=encoding)
    assert ended.returncode == 3
    assert ("漢" if encoding == "utf-8" else "\\u6f22") in ended.stderr


@pytest.mark.parametrize(
    ("streams", "code", "says"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 13, "No space left on device"),
    ],
)
def test_closed_and_full_streams(tmp_path: Path, streams: str, code: int, says: str) -> None:
    kdeploy("init", folder=tmp_path)
    line = f"'{sys.executable}' -m deployer config {streams}"
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr
    assert "Exception" not in ended.stderr
    line = f"'{sys.executable}' -m deployer delete {streams}"
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "bug" not in ended.stderr


def test_a_deleted_current_folder(tmp_path: Path) -> None:
    line = f"mkdir gone && cd gone && rmdir ../gone && '{sys.executable}' -m deployer config"
    ended = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "current folder" in ended.stderr


def test_the_exit_codes_page_says_that_an_interrupted_command_can_be_half_done() -> None:
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith(("| 130 |", "| 143 |"))]
    assert len(rows) == 2
    assert all("Part of the work may be done" in row for row in rows)


def test_the_generated_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.pages().items():
        assert path.read_text("utf-8") == text, f"{path} is stale: make docs"
