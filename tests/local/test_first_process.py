"""The container's first process with a real TorchServe: its message after a failure, and its drain."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployer.targets.local.launch import plan_launch
from deployer.targets.local.processes import START_MARK, end_marked, find_marked
from deployer.targets.local.torchserve import _free_ports
from tests.local.releases import ANSWER, make_bundle, make_noisy_package, make_release, want
from tests.users import USER, as_unknown_user

pytestmark = [pytest.mark.torchserve, pytest.mark.long]

CANNOT_LOAD = 78

RAISES = """
import torch


def handle(data, context):
    key = "https://me:hunter2@host and my token is open-sesame"
    torch.nn.Linear(2, 2).load_state_dict({key: torch.ones(1)})
"""

KILLED_FOR_MEMORY = """
import os
import signal


def handle(data, context):
    with open(os.environ["KDEPLOY_CGROUP"] + "/memory.events", "w") as file:
        file.write("oom_kill 1\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""

NOISY = """
import sys


def handle(data, context):
    for _ in range(4_000 if data is None else 8_000):
        sys.stdout.write("n" * 1023 + "\\n")
    sys.stdout.write("e" * 2_000_000)
    sys.stdout.flush()
    return data and [1 for _ in data]
"""


# What handlers and their libraries do with a home, a name and temporary files.
AT_HOME = """
import getpass
import os
import tempfile
from pathlib import Path

import noisy


def handle(data, context):
    if data is None:
        return None
    cache = Path.home() / ".cache" / "weights"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "file").write_text("x")
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    return [{"name": getpass.getuser(), "ids": [os.getuid(), os.getgid()], "word": noisy.WORD} for _ in data]
"""


class Container:
    """A release's container as a process of this machine, without a supervisor."""

    def __init__(
        self, root: Path, folder: Path, env: dict[str, str], python: str | None, image: Path | None
    ) -> None:
        self.root = root
        (root / "logs").mkdir(parents=True)
        (root / "cgroup").mkdir()
        record = want(None, make_bundle("demo", "1.0-aaaaaaaaaaaa", folder, env=env))
        ports = _free_ports()
        self.port = ports.inference
        plan = plan_launch(
            record.revision(record.latest),
            ports=ports,
            temporary=root,
            logs=root / "logs",
            environment={**os.environ, "PIP_NO_INDEX": "1"},
        )
        plan.config_path.write_text(plan.properties)
        self.message_path = plan.message_path
        self.log = root / "container.log"
        self.mark = {START_MARK: root.name}
        command = [python or plan.command[0], *plan.command[1:]]
        environment = {**plan.environment, "KDEPLOY_CGROUP": str(root / "cgroup"), **self.mark}
        if image:  # an unknown user, in an image whose home belongs to another one
            command = as_unknown_user(command)
            for name in ("LOG_LOCATION", "METRICS_LOCATION", "USER", "LOGNAME"):
                environment.pop(name, None)
            environment |= {"HOME": str(image), "TEMP": str(image / "tmp")}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=image or root,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def ask(self, body: object = None, kept: http.client.HTTPConnection | None = None) -> tuple[int, Any]:
        """Send a request on a new or a kept connection; return the status and the Connection header."""
        return self.answer(body, kept)[:2]

    def answer(
        self, body: object = None, kept: http.client.HTTPConnection | None = None
    ) -> tuple[int, Any, bytes]:
        """Send a request; return the status, the Connection header and the body."""
        connection = kept or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(
            "POST", "/predictions/demo", json.dumps(body or {}), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, answer.getheader("Connection"), content

    def ready(self) -> Container:
        """Wait until the container answers."""
        end = time.monotonic() + 90
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            try:
                if self.ask()[0] == 200:
                    time.sleep(1.5)  # for the first process's next probe
                    return self
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError(self.log.read_text(errors="replace")[-3000:])

    def ended(self, timeout: float = 60.0) -> int:
        """Wait for the end, check that no process is left, and return the exit status."""
        status = self.process.wait(timeout)
        assert find_marked(self.mark) == []
        return status

    def message(self) -> str:
        return self.message_path.read_text() if self.message_path.exists() else ""


@pytest.fixture(scope="module")
def open_container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Container]]:
    containers: list[Container] = []

    def start(
        handler: str,
        *,
        env: dict[str, str] | None = None,
        python: str | None = None,
        image: Path | None = None,
        **release: Any,
    ) -> Container:
        root = tmp_path_factory.mktemp("container")
        folder = make_release(root / "release", "demo", handler, **release)
        containers.append(Container(root / f"c{time.monotonic_ns()}", folder, env or {}, python, image))
        return containers[-1]

    yield start
    for container in containers:
        end_marked(container.mark)
        container.process.wait()


def oldest_python() -> str | None:
    """Return a Python of the serving image's version, if this machine has one."""
    for name in ("python3.9", "python3.10"):
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    return None


def test_the_message_of_an_exception_has_the_handlers_line_the_last_lines_and_no_secret(
    open_container: Callable[..., Container],
) -> None:
    container = open_container(RAISES, env={"MY_TOKEN": "open-sesame"}, python=oldest_python())
    assert container.ended() == CANNOT_LOAD
    message = container.message()
    assert message.startswith("RuntimeError: Error(s) in loading state_dict for Linear: Missing key(s)")
    assert message.splitlines()[0].endswith("(handler.py, line 7)")
    assert "Traceback (most recent call last):" in message
    assert len(message.encode()) <= 4096
    assert "https://***@host and my token is ***" in message
    assert "hunter2" in container.log.read_text()  # the log is not redacted
    assert (
        container.log.read_text().splitlines()[-1].startswith("kdeploy: the model cannot be loaded: Runtime")
    )


def test_the_message_names_requirements_that_cannot_be_installed(
    open_container: Callable[..., Container],
) -> None:
    container = open_container(ANSWER.format(release="a"), requirements="no-such-package\n")
    assert container.ended() == CANNOT_LOAD
    reason = container.message().splitlines()[0]
    assert reason.startswith("pip cannot install the model's requirements; ")
    assert "No matching distribution found for no-such-package" in reason


def test_the_message_of_a_worker_killed_for_memory_has_the_limit(
    open_container: Callable[..., Container],
) -> None:
    container = open_container(KILLED_FOR_MEMORY)
    (container.root / "cgroup" / "memory.max").write_text("157286400\n")
    assert container.ended() == CANNOT_LOAD
    assert container.message().splitlines()[0] == (
        "the worker ran out of memory: the container's limit is 150Mi; raise serving.memory"
    )


def test_a_user_that_the_image_does_not_know_installs_requirements_and_serves(
    open_container: Callable[..., Container], tmp_path: Path
) -> None:
    image = tmp_path / "model-server"
    (image / "tmp").mkdir(parents=True)
    for folder in (image / "tmp", image):
        folder.chmod(0o555)
    package = make_noisy_package(tmp_path / "noisy")
    virtual = {"model-config.yaml": b"useVenv: true\n"}
    container = open_container(AT_HOME, image=image, requirements=f"{package}\n", extra=virtual).ready()
    status, _, content = container.answer({})
    assert (status, json.loads(content)) == (
        200,
        {"name": "torchserve", "ids": [USER, 0], "word": "quiet"},
    )
    container.process.send_signal(signal.SIGINT)
    assert container.ended() == 0


def test_a_signal_while_the_model_loads_ends_the_process_without_a_failure(
    open_container: Callable[..., Container],
) -> None:
    container = open_container("import time\n\n\ndef handle(data, context):\n    time.sleep(60)\n")
    while "Torch worker started" not in container.log.read_text():
        time.sleep(0.1)
    container.process.send_signal(signal.SIGTERM)
    assert container.ended(10) == 0
    assert container.message() == ""


def test_a_drain_loses_no_request_and_ends_after_the_last_one(
    open_container: Callable[..., Container],
) -> None:
    env = {"KDEPLOY_DRAIN_SECONDS": "3"}
    container = open_container(ANSWER.format(release="a"), workers=2, env=env).ready()
    # After the model was ready once, TorchServe replaces a dead worker, and the process does not end.
    assert container.ask({"die": True})[0] >= 500
    while container.log.read_text().count("MODEL_LOG - Torch worker started.") < 3:
        time.sleep(0.1)
    idle, kept = (http.client.HTTPConnection("127.0.0.1", container.port, timeout=60) for _ in range(2))
    assert container.ask(kept=idle) == container.ask(kept=kept) == (200, "keep-alive")
    with ThreadPoolExecutor(4) as pool:

        def begin(seconds: float) -> Future[tuple[int, Any]]:
            return pool.submit(container.ask, {"sleep": seconds})

        longest = begin(33)  # longer than a pod's default grace period
        others = [begin(0.5) for _ in range(3)]
        time.sleep(0.3)
        container.process.send_signal(signal.SIGTERM)
        signalled = time.monotonic()
        assert [one.result() for one in others] == [(200, "close")] * 3
        assert container.ask(kept=kept) == (200, "close")  # the kept connection is closed
        while time.monotonic() - signalled < 2.5:  # new requests arrive until routes are removed
            assert container.ask() == (200, "close")
            time.sleep(0.2)
        assert idle.sock.recv(1) == b""  # closed at the end of the drain seconds, without a request
        assert time.monotonic() - signalled > 2.9
        with pytest.raises(ConnectionError):
            container.ask()
        assert longest.result() == (200, "close")
        answered = time.monotonic()
        assert container.ended() == 0
        assert time.monotonic() - answered < 1.0
    assert container.message() == ""


def test_an_idle_process_ends_after_its_drain_seconds_and_a_second_signal_ends_it_immediately(
    open_container: Callable[..., Container],
) -> None:
    quick = open_container(ANSWER.format(release="a"), env={"KDEPLOY_DRAIN_SECONDS": "2"})
    busy = open_container(ANSWER.format(release="a"), env={"KDEPLOY_DRAIN_SECONDS": "60"})
    for container in (quick, busy):
        container.ready()
    quick.process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    assert quick.ended() == 0
    assert 2.0 <= time.monotonic() - signalled < 3.0
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(busy.ask, {"sleep": 30})
        time.sleep(0.3)
        busy.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert busy.process.poll() is None
        busy.process.send_signal(signal.SIGTERM)
        assert busy.ended(5) == 0
        assert slow.exception() or slow.result()[0] >= 500


def test_a_log_of_any_size_is_copied_unchanged_with_bounded_memory(
    open_container: Callable[..., Container],
) -> None:
    container = open_container(NOISY).ready()
    process = psutil.Process(container.process.pid)
    before = process.memory_info().rss
    assert container.ask()[0] == 200
    assert process.memory_info().rss - before < 16 << 20
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(container.ask)
        time.sleep(0.3)
        # SIGINT skips the drain seconds: the process ends when no request is in flight.
        container.process.send_signal(signal.SIGINT)
        signalled = time.monotonic()
        status, connection = request.result()
        assert (status, connection) == (200, "close")
        answered = max(signalled, time.monotonic())
        assert container.ended() == 0
        assert time.monotonic() - answered < 1.0
    model_log = (container.root / "logs" / "model_log.log").stat().st_size
    noise = container.log.read_bytes().count(b"n" * 1023)
    assert noise >= 4_000 + 2 * 8_000
    assert container.log.stat().st_size > model_log
