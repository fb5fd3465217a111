"""The commands that run without a TorchServe: archive, doctor, local."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest

from .conftest import Project

HANDLER = "def handle(data, context):\n    return data\n"


@pytest.fixture
def folder(tmp_path: Path) -> Project:
    project = Project(tmp_path / "project")
    project.folder.mkdir()
    (project.folder / "handler.py").write_text(HANDLER)
    (project.folder / "weights.pt").write_bytes(b"w" * 100)
    (project.folder / "labels.json").write_text("{}")
    return project


FLAGS = ["--model-name", "digits", "--version", "2.0", "--handler", "handler.py"]
MORE = ["--serialized-file", "weights.pt", "--extra-files", "labels.json,weights.pt.txt,assets/"]


def test_archive_accepts_the_flags_of_torch_model_archiver(folder: Project) -> None:
    (folder.folder / "weights.pt.txt").write_text("x")
    (folder.folder / "assets" / "deep").mkdir(parents=True)
    (folder.folder / "assets" / "deep" / "y.txt").write_text("y")
    (folder.folder / "theirs").mkdir()
    path = Path(folder.run("archive", *FLAGS, *MORE).stdout.strip())
    theirs = [
        sys.executable,
        "-m",
        "model_archiver.model_packaging",
        *FLAGS,
        *MORE,
        "--export-path",
        "theirs",
    ]
    environment = {**os.environ, "TMPDIR": str(folder.folder / "theirs")}
    subprocess.run(theirs, cwd=folder.folder, env=environment, check=True)
    with (
        zipfile.ZipFile(folder.folder / path) as ours,
        zipfile.ZipFile(folder.folder / "theirs" / "digits.mar") as other,
    ):
        added = set(ours.namelist()) - set(other.namelist())
        assert {"kdeploy_handler.py", "kdeploy_handler.json"} < added
        assert all(name.startswith("kdeploy_") for name in added)
        for name in set(other.namelist()) - {"MAR-INF/MANIFEST.json"}:
            assert ours.read(name) == other.read(name)


def test_archive_overwrites_only_with_force(folder: Project) -> None:
    folder.run("archive", *FLAGS)
    assert "--force" in folder.run("archive", *FLAGS, code=4).stderr
    folder.run("archive", *FLAGS, "-f")
    assert "model.version is not set" in folder.run("archive", "--model-name", "digits", code=3).stderr


def test_doctor_succeeds_on_this_machine_and_reports_a_port_in_use(folder: Project) -> None:
    findings = json.loads(folder.run("doctor", "-o", "json").stdout)
    assert {finding["name"]: finding["status"] for finding in findings}["torchserve"] == "ok"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        folder.environment["KDEPLOY_TARGETS_LOCAL_INGRESS_PORT"] = str(taken.getsockname()[1])
        (folder.folder / "kdeploy.toml").write_text(
            '[model]\nname = "digits"\nversion = "1"\nhandler = "handler.py"\n'
        )
        ended = folder.run("doctor", code=14)
    assert "ingress-port" in ended.stderr


def test_doctor_checks_the_release_of_the_project(folder: Project) -> None:
    config = '[model]\nname = "digits"\nversion = "1"\nhandler = "%s"\n'
    (folder.folder / "kdeploy.toml").write_text(config % "handler.py")
    findings = {one["name"]: one for one in json.loads(folder.run("doctor", "-o", "json").stdout)}
    assert findings["admission"]["status"] == "ok"
    assert not (folder.folder / "model-store").exists()
    (folder.folder / "kdeploy.toml").write_text(config % "gone.py")
    ended = folder.run("doctor", "-o", "json", code=14)
    findings = {one["name"]: one for one in json.loads(ended.stdout)}
    assert "admission" not in findings
    release = findings["release"]
    assert (release["status"], "gone.py" in release["detail"]) == ("failure", True)
    assert "model.handler" in release["where"]
    assert release["remedy"]
    assert json.loads(ended.stderr)["code"] == "check-failed"
    ended = folder.run("doctor", code=14)
    assert "model.handler" in ended.stdout
    assert release["remedy"] in ended.stderr


def test_doctor_reports_a_model_store_that_cannot_be_written(folder: Project) -> None:
    (folder.folder / "kdeploy.toml").write_text(
        '[model]\nname = "digits"\nversion = "1"\nhandler = "handler.py"\n[store]\nuri = "/proc/store"\n'
    )
    ended = folder.run("doctor", "-o", "json", code=14)
    (found,) = [one for one in json.loads(ended.stdout) if one["name"] == "model store"]
    assert (found["status"], found["where"]) == ("failure", "/proc/store")


def test_doctor_reports_an_invalid_model_store(folder: Project) -> None:
    (folder.folder / "kdeploy.toml").write_text(
        '[model]\nname = "digits"\nversion = "1"\nhandler = "handler.py"\n[store]\nuri = "s3://models"\n'
    )
    folder.environment["AWS_ENDPOINT_URL"] = "not a URL"
    ended = folder.run("doctor", "-o", "json", code=14)
    findings = {one["name"]: one["status"] for one in json.loads(ended.stdout)}
    assert (findings["torchserve"], "failure" in findings.values()) == ("ok", True)


def test_diff_warns_that_the_first_release_gets_all_requests(folder: Project) -> None:
    (folder.folder / "kdeploy.toml").write_text(
        '[model]\nname = "digits"\nversion = "1"\nhandler = "handler.py"\n'
    )
    assert "it gets all requests, not 10%" in folder.run("diff", "--canary", "10", code=15).stderr


def test_render_warns_if_the_cluster_gets_no_credentials(folder: Project) -> None:
    (folder.folder / "kdeploy.toml").write_text(
        '[model]\nname = "digits"\nversion = "1"\nhandler = "handler.py"\n[store]\nuri = "gs://models"\n'
        '[targets.cluster]\nkind = "kserve"\nnamespace = "n"\ndeployment-mode = "Standard"\n'
    )
    folder.environment |= {"HOME": str(folder.folder), "NO_GCE_CHECK": "true"}
    folder.environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
    ended = folder.run("render", "--target", "cluster", "-o", "name")
    assert "InferenceService/digits" in ended.stdout
    assert "no credentials found that a cluster could use" in ended.stderr


def test_verify_reports_an_empty_model_store(folder: Project) -> None:
    (folder.folder / "kdeploy.toml").write_text(
        '[model]\nname = "digits"\nversion = "1"\nhandler = "handler.py"\n'
    )
    ended = folder.run("verify", "--store", "gone")
    assert ended.stderr == "no releases of digits in gone\n"


def test_local_starts_and_stops_the_supervisor(folder: Project) -> None:
    (folder.folder / "kdeploy.toml").write_text(
        '[model]\nname = "digits"\nversion = "1"\nhandler = "handler.py"\n'
    )
    assert "not running" in folder.run("local", "stop").stderr
    assert "not running" in folder.run("local", "status").stderr
    assert "the ingress listens on http://127.0.0.1:" in folder.run("local", "start").stderr
    info = json.loads(folder.run("local", "status", "-o", "json").stdout)
    assert info["services"] == []
    supervisor = psutil.Process(info["pid"])
    assert "stopped" in folder.run("local", "stop").stderr
    assert not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE
    assert folder.run("list", "-A", "-o", "json").stdout == "[]\n"
    folder.run("local", "logs")


def test_a_header_is_read_from_a_file_and_never_printed(folder: Project) -> None:
    (folder.folder / "kdeploy.toml").write_text(
        '[model]\nname = "digits"\nversion = "1"\nhandler = "handler.py"\n'
    )
    (folder.folder / "secret").write_text("not a header but s3cr3t\n")
    ended = folder.run("predict", "--header", "@secret", "weights.pt", code=7)
    assert "s3cr3t" not in ended.stdout + ended.stderr
