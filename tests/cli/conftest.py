"""Runs `kdeploy` as a command on the trained example, in a separate project folder."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.outputs import check_output
from tests.stores.planted import MARK

ROOT = Path(__file__).parents[2]
# Secrets in the environment of TorchServe: tests search for them in every file, log and response.
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": MARK,
    "AZURE_STORAGE_KEY": MARK,
    "PIP_TOKEN": MARK,
}


class Project:
    """A project folder, and the command `kdeploy` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "KDEPLOY_TARGETS_LOCAL_INGRESS_PORT": "0",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *arguments: str, sets: Sequence[str] = ()) -> subprocess.Popen[str]:
        flags = [word for item in sets for word in ("--set", item)]
        return subprocess.Popen(
            [sys.executable, "-m", "deployer", *arguments, *flags],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, sets: Sequence[str] = (), code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        child = self.start(*arguments, sets=sets)
        out, err = child.communicate(timeout=180)
        assert child.returncode == code, (
            f"kdeploy {' '.join(arguments)} ended with {child.returncode}:\n{out}{err}"
        )
        assert "Traceback" not in err
        check_output(arguments, out, err)
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)

    def on_terminal(self, *arguments: str) -> str:
        """Run a command with a terminal as stdout and stderr, and return the output."""
        master, slave = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-m", "deployer", *arguments],
            cwd=self.folder,
            env={**self.environment, "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        shown = bytearray()
        with (
            os.fdopen(master, "rb", buffering=0) as terminal,
            suppress(OSError),
        ):  # a closed terminal raises EIO
            while data := terminal.read(65536):
                shown += data
        assert child.wait(180) == 0, shown.decode()
        return shown.decode().replace("\r\n", "\n")

    def processes(self) -> list[psutil.Process]:
        """Return the processes of this project: the environment of each names the state folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.folder) in process.environ().get("KDEPLOY_LOCAL_STATE", ""):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "digits"
    ignore = shutil.ignore_patterns(".kdeploy", "model-store", "*.pt", "__pycache__")
    shutil.copytree(ROOT / "examples" / "digits", folder, ignore=ignore)
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Roll out the example once, for the tests that do not change it."""
    project = Project(tmp_path_factory.mktemp("a project ü") / "digits")
    project.environment |= PLANTED
    shutil.copytree(trained, project.folder)
    _add_wheel(project.folder)
    project.run("rollout")
    yield project
    project.run("local", "stop")
    assert project.processes() == []


def _add_wheel(folder: Path) -> None:
    """Add a wheel to the project, which pip must find in the archive: no index has it."""
    (folder / "wheels").mkdir()
    info = "ofourown-1.0.dist-info"
    with zipfile.ZipFile(folder / "wheels" / "ofourown-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ofourown.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: ofourown\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    with (folder / "requirements.txt").open("a") as requirements:
        requirements.write("./wheels/ofourown-1.0-py3-none-any.whl\n")
    toml = folder / "kdeploy.toml"
    toml.write_text(toml.read_text("utf-8").replace("[model]", '[model]\nextra-files = ["wheels/"]'), "utf-8")


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Iterator[Project]:
    """Copy the example into a project; stop the processes that a test starts."""
    project = Project(tmp_path / "digits")
    shutil.copytree(trained, project.folder)
    yield project
    project.run("local", "stop")
    assert project.processes() == []
