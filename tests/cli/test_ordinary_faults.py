"""Ordinary faults of files, names and responses are not reported as bugs in kdeploy."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployer.cli.main import main
from deployer.release import Release
from deployer.store.folder import FolderStore

from .conftest import Project

# An echo handler: the adapter passes one V1 instance per row.
HANDLER = "def handle(data, context):\n    return [{'shown': row} for row in data or []]\n"
CONFIG = '[model]\nname = "echo"\nversion = "1.0"\nhandler = "handler.py"\n'


@pytest.fixture
def bare(tmp_path: Path) -> Project:
    return make(tmp_path / "project")


def make(folder: Path) -> Project:
    folder.mkdir()
    (folder / "kdeploy.toml").write_text(CONFIG)
    (folder / "handler.py").write_text(HANDLER)
    return Project(folder)


def run_invalid(project: Project, *arguments: str, code: int, says: str) -> None:
    ended = project.run(*arguments, code=code)
    assert ended.stdout == ""
    assert says in ended.stderr
    assert "bug in kdeploy" not in ended.stderr


def test_symbolic_links_in_a_cycle(bare: Project) -> None:
    (bare.folder / "x").mkdir()
    (bare.folder / "x" / "a").symlink_to("b")
    (bare.folder / "x" / "b").symlink_to("a")
    for pattern in ("x", "x/*", "**/a", "x/a"):
        run_invalid(bare, "push", "--set", f'model.extra-files=["{pattern}"]', code=4, says="symbolic links")


def test_a_folder_1200_levels_deep(bare: Project) -> None:
    script = "import os\nos.chdir('x')\nfor _ in range(1200): os.mkdir('d'); os.chdir('d')\nopen('f', 'w')"
    (bare.folder / "x").mkdir()
    subprocess.run([sys.executable, "-c", script], cwd=bare.folder, check=True)
    try:
        assert bare.run("push", "--set", 'model.extra-files=["x"]').stdout.startswith("1.0-")
        # A release folder as deep.
        (place,) = (bare.folder / "model-store" / "echo").iterdir()
        subprocess.run(["mv", bare.folder / "x", place / "x"], check=True)
        run_invalid(bare, "verify", code=6, says="does not belong to the release")
    finally:
        subprocess.run(["rm", "-rf", bare.folder], check=True)


def test_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    project = make(Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xff")))
    assert project.run("push").stdout.startswith("1.0-")
    assert project.run("releases", "-o", "name").stdout.startswith("1.0-")
    for command in (("rollout",), ("local", "start"), ("plan",)):
        run_invalid(project, *command, code=3, says="not UTF-8")
    run_invalid(project, "config", "-c", os.fsdecode(b"\xff.toml"), code=3, says="\\udcff.toml")
    run_invalid(project, "push", "--store", os.fsdecode(b"\xff"), code=3, says="not UTF-8")


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", "."])
def test_devices_pipes_and_folders_are_not_files(bare: Project, name: str) -> None:
    os.mkfifo(bare.folder / "pipe")
    run_invalid(bare, "push", "-c", name, code=3, says=name)
    run_invalid(bare, "push", "--set", f"model.serialized-file={name}", code=4, says="model.serialized-file")
    run_invalid(
        bare, "push", "--set", f"model.requirements-file={name}", code=4, says="model.requirements-file"
    )


def test_a_release_json_that_is_not_a_file(bare: Project) -> None:
    release = bare.run("push").stdout.strip()
    record = bare.folder / "model-store" / "echo" / release / "release.json"
    for make_it in (
        lambda: record.symlink_to("release.json"),
        record.mkdir,
        lambda: record.symlink_to("/dev/zero"),
    ):
        record.rmdir() if record.is_dir() else record.unlink()
        make_it()
        run_invalid(bare, "releases", code=5, says=str(record))
    record.unlink()


def test_verify_skips_a_release_that_is_pruned_meanwhile(
    bare: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    releases = [
        bare.run("push", "--set", f"model.version={version}").stdout.strip() for version in ("1", "2", "3")
    ]
    verify = FolderStore.verify

    def prune_first(store: FolderStore, release: Release) -> None:
        if release.id == releases[1]:
            store.delete(release)
        verify(store, release)

    monkeypatch.setattr(FolderStore, "verify", prune_first)
    monkeypatch.chdir(bare.folder)
    with pytest.raises(SystemExit) as ended:
        main(["verify"])
    assert ended.value.code == 0
    shown = capfd.readouterr().err
    assert [release in shown for release in releases] == [True, False, True]


def test_a_broken_pipe_other_than_stdout_is_an_error(
    bare: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(FolderStore, "dated", broken)
    monkeypatch.chdir(bare.folder)
    with pytest.raises(SystemExit) as ended:
        main(["releases"])
    assert ended.value.code == 16
    assert "Broken pipe" in capfd.readouterr().err


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = make(tmp_path_factory.mktemp("echo") / "project")
    project.run("rollout")
    yield project
    project.run("local", "stop")
    assert project.processes() == []


HOSTILE = {
    "a.json": '{"instances": ["a"]}',
    "esc.json": '{"instances": ["\\u001b]0;owned\\u0007\\u009b31m\\r\\u202e"]}',
    "half.json": '{"instances": ["\\ud800"]}',
    "z.json": '{"instances": ["z"]}',
}
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@pytest.mark.torchserve
def test_control_characters_in_predictions_are_escaped(echo: Project) -> None:
    for name, text in HOSTILE.items():
        (echo.folder / name).write_text(text)
    names = list(HOSTILE)
    table = echo.run("predict", "--kserve", *names)
    assert [line.split()[0] for line in table.stdout.splitlines()] == names
    assert not CONTROLS.search(table.stdout + table.stderr)
    wanted = [json.loads(text)["instances"][0] for text in HOSTILE.values()]
    for line, value in zip(table.stdout.splitlines(), wanted, strict=True):
        assert json.dumps(value) in json.dumps(json.loads(line.split(maxsplit=1)[1]))
    answers = json.loads(echo.run("predict", "--kserve", *names, "-o", "json").stdout)
    for answer, value in zip(answers, wanted, strict=True):
        assert json.dumps(value) in json.dumps(answer["prediction"])


@pytest.mark.torchserve
def test_control_characters_are_escaped_on_a_terminal(echo: Project) -> None:
    (echo.folder / "esc.json").write_text(HOSTILE["esc.json"])
    shown = bytearray()

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 1024)
        shown.extend(data)
        return b" "

    before = Path.cwd()
    os.chdir(echo.folder)
    try:
        pty.spawn([sys.executable, "-m", "deployer", "predict", "--kserve", "esc.json"], read)
    finally:
        os.chdir(before)
    text = shown.decode().replace("\r\n", "\n")
    assert "owned" in text
    assert not CONTROLS.search(text)


def test_a_deleted_project(bare: Project) -> None:
    shutil.rmtree(bare.folder)
    bare.folder.mkdir()
    run_invalid(bare, "push", code=3, says="kdeploy init")
