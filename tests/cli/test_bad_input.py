"""Invalid input ends in one error with an exit code and no traceback, and changes no file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import Project

HANDLER = "def handle(data, context):\n    return [1] * len(data or [])\n"
CONFIG = """
[model]
name = "digits"
version = "1.0"
handler = "handler.py"
serialized-file = "weights.pt"
"""


@pytest.fixture
def bare(tmp_path: Path) -> Project:
    """Write a small valid project that needs no training."""
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    (project.folder / "kdeploy.toml").write_text(CONFIG)
    (project.folder / "handler.py").write_text(HANDLER)
    (project.folder / "weights.pt").write_bytes(b"w" * 1000)
    return project


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".kdeploy" not in path.parts and path.name != "sweep"
    }


def run_invalid(project: Project, *arguments: str, code: int, says: str, sets: tuple[str, ...] = ()) -> str:
    before = snapshot(project.folder)
    ended = project.run(*arguments, code=code, sets=sets)
    assert ended.stdout == ""
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in ended.stderr
    assert snapshot(project.folder) == before
    return ended.stderr


def replace(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


MODEL_FILES = [
    pytest.param(lambda folder: (folder / "weights.pt").unlink(), "model.serialized-file", id="missing"),
    pytest.param(replace("weights.pt", Path.touch), "model.serialized-file", id="empty"),
    pytest.param(replace("weights.pt", Path.mkdir), "model.serialized-file", id="a folder"),
    pytest.param(replace("weights.pt", os.mkfifo), "model.serialized-file", id="a pipe"),
    pytest.param(
        replace("weights.pt", lambda path: path.symlink_to("missing")),
        "model.serialized-file",
        id="a dead link",
    ),
    pytest.param(
        replace("weights.pt", lambda path: path.symlink_to(path)),
        "model.serialized-file",
        id="an endless link",
    ),
    pytest.param(
        lambda folder: (folder / "handler.py").write_text("def handle(:\n"),
        "handler.py:1",
        id="invalid Python",
    ),
    pytest.param(
        lambda folder: (folder / "handler.py").write_text("match 1:\n    case 1: pass\n" + HANDLER),
        "Python 3.9: Pattern matching",
        id="newer Python",
    ),
    pytest.param(
        lambda folder: (folder / "handler.py").write_bytes(b"\xff\xfe\x00"), "handler.py", id="not text"
    ),
]


@pytest.mark.parametrize(("spoil", "says"), MODEL_FILES)
def test_an_invalid_model_file_names_its_key(bare: Project, spoil: Callable[[Path], None], says: str) -> None:
    spoil(bare.folder)
    if (bare.folder / "weights.pt").is_fifo():
        assert says in bare.run("push", code=4).stderr
    else:
        run_invalid(bare, "push", code=4, says=says)


@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [
        ('model.extra-files=["../../../etc/no-such"]', 4, "model.extra-files"),
        ('model.extra-files=["no-such-*.txt"]', 4, "model.extra-files"),
        ("model.name=../x", 3, "model.name"),
        ("model.name=x; rm -rf", 3, "model.name"),
        ("model.version=1.0/../..", 3, "model.version"),
        ("model.handler=no_such_file.py", 4, "model.handler"),
        ("model.handler=handler.py:nothing", 4, "nothing"),
        ("model.requirements-file=handler.py", 4, "handler.py:1"),
        ("store.uri=ftp://host/models", 3, "ftp"),
        ("store.uri=weights.pt", 5, "a file is in the place of a folder"),
        ("nonsense", 3, "--set"),
        ("torchserve.model_store=/etc", 3, "torchserve.model_store"),
    ],
)
def test_an_invalid_setting_is_an_error(bare: Project, setting: str, code: int, says: str) -> None:
    run_invalid(bare, "push", sets=(setting,), code=code, says=says)


def test_an_unknown_release(bare: Project) -> None:
    run_invalid(bare, "rollout", "--release", "1.0-0123456789ab", code=11, says="kdeploy releases")
    run_invalid(bare, "rollout", "--release", "../../../etc", code=11, says="invalid release ID")


def test_an_unknown_target(bare: Project) -> None:
    shown = run_invalid(bare, "status", "--target", "production", code=3, says="where: --target")
    assert "Use one of: local." in shown
    bare.environment["KDEPLOY_TARGET"] = "production"
    run_invalid(bare, "status", code=3, says="where: KDEPLOY_TARGET")


def test_an_unknown_service(bare: Project) -> None:
    for command in ("status", "logs"):
        run_invalid(bare, command, code=11, says="service default/digits not found")


def test_predict_without_a_running_supervisor(bare: Project) -> None:
    (bare.folder / "image.png").write_bytes(b"x")
    run_invalid(bare, "predict", "--kserve", "image.png", code=7, says="kdeploy local start")


def test_a_changed_archive_is_an_integrity_error(bare: Project) -> None:
    release = bare.run("push").stdout.strip()
    archive = bare.folder / "model-store" / "digits" / release / "model-store" / "digits.mar"
    data = bytearray(archive.read_bytes())
    data[data.index(b"wwww")] ^= 1
    archive.write_bytes(data)
    for command in (("verify",), ("rollout", "--release", release)):
        run_invalid(bare, *command, code=6, says="weights.pt")
    assert bare.run("local", "stop").returncode == 0


def test_an_archive_with_a_path_outside_it_is_an_integrity_error(bare: Project) -> None:
    release = bare.run("push").stdout.strip()
    archive = bare.folder / "model-store" / "digits" / release / "model-store" / "digits.mar"
    data = archive.read_bytes()
    archive.write_bytes(data.replace(b"weights.pt", b"../../x.pt"))
    run_invalid(bare, "verify", code=6, says="../../x.pt")
    other = bare.run("push", "--set", "model.version=2.0").stdout.strip()
    (archive.parents[2] / other / "config" / "config.properties").unlink()
    last = bare.run("push", "--set", "model.version=3.0").stdout.strip()
    ended = run_invalid(bare, "verify", code=6, says="../../x.pt")
    assert f"{other}/: config/config.properties is missing" in ended
    assert f"verified {last}" in ended


def test_a_changed_release_json_is_an_integrity_error(bare: Project) -> None:
    release = bare.run("push").stdout.strip()
    record = bare.folder / "model-store" / "digits" / release / "release.json"
    record.write_text(record.read_text().replace('"memory": "2Gi"', '"memory": "9Gi"'))
    run_invalid(bare, "rollout", "--release", release, code=6, says="release.json")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        pytest.skip("a small tmpfs can be mounted by root only")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_no_files(bare: Project, small: Path) -> None:
    (bare.folder / "weights.pt").write_bytes(os.urandom(2_000_000))
    says = run_invalid(bare, "push", "--store", str(small / "store"), code=13, says=str(small))
    assert "hint: " in says
    assert snapshot(small) == {}
    (bare.folder / "weights.pt").write_bytes(os.urandom(1000))
    assert bare.run("push", "--store", str(small / "store")).stdout


def test_a_port_in_use_is_named(bare: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = bare.run("rollout", code=7, sets=(f"targets.local.ingress-port={port}",))
    assert str(port) in ended.stderr
    assert "ingress-port" in ended.stderr
    bare.run("local", "stop")
    assert bare.processes() == []


@pytest.mark.parametrize("command", ["push", "plan", "rollout", "status", "config", "releases", "doctor"])
def test_a_config_that_is_too_large_is_not_read(bare: Project, command: str) -> None:
    os.truncate(bare.folder / "kdeploy.toml", 1 << 40)
    assert "more than 1,048,576 bytes" in bare.run(command, code=3).stderr


@pytest.mark.torchserve
def test_the_error_names_why_the_handler_cannot_be_loaded(bare: Project) -> None:
    (bare.folder / "handler.py").write_text("import no_such_module\n" + HANDLER)
    ended = bare.run("rollout", code=8)
    assert "No module named 'no_such_module'" in ended.stderr
    assert "hint: Add the line `no_such_module` to the file of model.requirements-file" in ended.stderr
    assert "no_such_module" in bare.run("logs").stdout
    # With a valid handler, the same command succeeds.
    (bare.folder / "handler.py").write_text(HANDLER)
    bare.run("rollout")
    bare.run("delete", "--yes")
    bare.run("local", "stop")
    assert bare.processes() == []
    shutil.rmtree(bare.folder)
