"""The first process with a shell script instead of TorchServe: its exit status, its message, and orphans."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployer.manifest import first_process
from manifests.first_process import CANNOT_LOAD, PORT_TAKEN


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the program with a command instead of TorchServe."""
    processes = []

    def start(*command: str, port: int = 0, **more: Any) -> subprocess.Popen[bytes]:
        configuration = tmp_path / "config.properties"
        configuration.write_text(
            f"inference_address=http://127.0.0.1:{port}\nmanagement_address=http://127.0.0.1:1\n"
        )
        environment = {
            **os.environ,
            "TMPDIR": str(tmp_path),
            "TS_CONFIG_FILE": str(configuration),
            "KDEPLOY_TERMINATION_LOG": str(tmp_path / "message"),
        }
        words = [sys.executable, "-c", first_process(), *command]
        processes.append(subprocess.Popen(words, env=environment, **more))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_the_message_has_the_reason_if_torchserve_ends_before_it_is_ready(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    assert start("sh", "-c", "echo 'Invalid configuration: password=abc'; exit 3").wait(20) == CANNOT_LOAD
    assert (tmp_path / "message").read_text().splitlines() == [
        "TorchServe ended: Invalid configuration: password=***",
        "Invalid configuration: password=***",
    ]
    assert start("no-such-program").wait(20) == CANNOT_LOAD
    assert (tmp_path / "message").read_text().startswith("cannot start TorchServe: [Errno 2]")


def test_a_taken_port_has_another_exit_status_than_a_model_that_cannot_load(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert start("sleep", "60", port=taken.getsockname()[1]).wait(20) == PORT_TAKEN
    assert "address already in use" in (tmp_path / "message").read_text()
    late = "echo 'java.io.IOException: Failed to bind to address: http://127.0.0.1:1'; sleep 60"
    assert start("sh", "-c", late).wait(20) == PORT_TAKEN
    assert "Failed to bind to address" in (tmp_path / "message").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_CHILD_SUBREAPER")
def test_process_1_reaps_orphans(start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    adopt_orphans = 36  # PR_SET_CHILD_SUBREAPER: its descendants' orphans become its children
    orphans = f"for i in 1 2 3; do (sh -c 'sleep 0.2; echo > {tmp_path}/orphan-'$i &) ; done; sleep 60"
    process = start("sh", "-c", orphans, preexec_fn=lambda: ctypes.CDLL(None).prctl(adopt_orphans, 1))
    end = time.monotonic() + 20
    while len(list(tmp_path.glob("orphan-*"))) < 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    first = psutil.Process(process.pid)
    while [child.name() for child in first.children()] != ["sh"]:
        assert time.monotonic() < end, first.children()
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 0
