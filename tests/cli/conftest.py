"""The example, trained, in a project folder of its own, and `kdeploy` run on it as people do."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.outputs import check_output
from tests.stores.planted import MARK

ROOT = Path(__file__).parents[2]
# What TorchServe's own environment may hold, whatever starts it, and nobody may find elsewhere.
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": MARK,
    "AZURE_STORAGE_KEY": MARK,
    "PIP_TOKEN": MARK,
}


class Project:
    """A project folder, and `kdeploy` as a command in it."""

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
        """Run a command whose stdout and stderr are a terminal, and return what it shows."""
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
        ):  # EIO is the end of a terminal
            while data := terminal.read(65536):
                shown += data
        assert child.wait(180) == 0, shown.decode()
        return shown.decode().replace("\r\n", "\n")

    def processes(self) -> list[psutil.Process]:
        """Every process that serves this project: by the state folder in its environment."""
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
    """The example, rolled out once for every test that only asks it."""
    project = Project(tmp_path_factory.mktemp("a project ü") / "digits")
    project.environment |= PLANTED
    shutil.copytree(trained, project.folder)
    project.run("rollout")
    yield project
    project.run("local", "stop")
    assert project.processes() == []


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Iterator[Project]:
    """The example, with nothing done yet; whatever a test starts is stopped."""
    project = Project(tmp_path / "digits")
    shutil.copytree(trained, project.folder)
    yield project
    project.run("local", "stop")
    assert project.processes() == []
