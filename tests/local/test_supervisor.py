"""The supervisor: at most one per state folder, which replaces a killed one and its processes."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deployer.errors import TargetError
from deployer.observed import NOT_RUNNING, Phase, Reference
from deployer.targets.local import OneNode
from deployer.targets.local.connection import call
from tests.local.client import Client
from tests.local.releases import make_bundle

pytestmark = pytest.mark.long
DEMO = Reference("default", "demo")
A, B = "1.0-aaaaaaaaaaaa", "1.0-bbbbbbbbbbbb"


def kill(client: Client) -> None:
    pid = client.node.info().pid
    assert pid
    supervisor = psutil.Process(pid)
    supervisor.kill()
    supervisor.wait(10)


def open_node(state: Path, port: int = 0) -> OneNode:
    return OneNode(state=state, namespace="default", ingress_host="127.0.0.1", ingress_port=port)


def test_importing_the_target_loads_no_heavy_modules() -> None:
    heavy = "aiohttp", "psutil", "torch", "asyncio", "typer", "rich"
    code = f"import sys, deployer.targets.local; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_reading_starts_and_writes_nothing(tmp_path: Path) -> None:
    node = open_node(tmp_path / ".kdeploy")
    services = node.target.services
    assert services.get(DEMO) is None
    assert services.list_all() == []
    assert node.info().pid is None
    assert services.releases_in_use() == frozenset()
    assert node.target.journal.entries(DEMO) == []
    assert not node.stop()
    assert services.delete(DEMO) is None
    assert list(tmp_path.iterdir()) == []


def test_concurrent_starts_make_one_supervisor(open_node: Callable[[], Client]) -> None:
    client = open_node()
    pids: list[int | None] = []
    threads = [threading.Thread(target=lambda: pids.append(client.node.start().pid)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 4
    assert len(set(pids)) == 1
    root = client.state / "local"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    [found] = root.rglob("supervisor.sock")
    assert stat.S_IMODE(found.stat().st_mode) == 0o600
    assert client.node.stop()
    assert client.node.info().pid is None
    assert not client.node.stop()


def test_the_ingress_keeps_its_port_moves_with_its_config_and_names_the_key_of_a_taken_port(
    tmp_path: Path,
) -> None:
    state = tmp_path / ".kdeploy"
    node = open_node(state)
    try:
        first = node.start().ingress
        node.stop()
        assert node.start().ingress == first
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(TargetError) as caught:
                open_node(state, port).start()
            assert caught.value.where == "targets.local.ingress-port"
            assert node.info().ingress == first
            with pytest.raises(TargetError, match=str(port)):
                open_node(tmp_path / "other", port).start()
            assert open_node(tmp_path / "other").info().pid is None
        assert open_node(state, port).start().ingress == f"http://127.0.0.1:{port}"
    finally:
        node.stop()


def test_the_fixed_port_can_be_added_moved_and_removed(tmp_path: Path) -> None:
    state = tmp_path / ".kdeploy"

    def start(port: int | None) -> str | None:
        node = OneNode(
            state=state, namespace="default", ingress_host="127.0.0.1", ingress_port=0, torchserve_port=port
        )
        return node.start().torchserve

    def status(url: str) -> int:
        with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)) as client:
            client.request("GET", "/predictions/demo", headers={"Host": "any.example.org"})
            return client.getresponse().status

    first, second = free_ports(2)
    try:
        assert start(None) is None
        for port in (first, second):
            assert start(port) == f"http://127.0.0.1:{port}"
            assert status(f"http://127.0.0.1:{port}") == 404  # there is no service
        with pytest.raises(ConnectionError):
            status(f"http://127.0.0.1:{first}")
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(TargetError) as caught:
            start(taken.getsockname()[1])
        assert caught.value.where == "targets.local.torchserve-port"
        assert start(None) is None
        with pytest.raises(ConnectionError):
            status(f"http://127.0.0.1:{second}")
    finally:
        open_node(state).stop()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


@pytest.mark.parametrize("host", ["192.0.2.1", "999.1.1.1", "unknown.invalid"])
def test_an_address_of_another_machine_is_an_error_with_its_key(tmp_path: Path, host: str) -> None:
    node = OneNode(state=tmp_path / ".kdeploy", namespace="default", ingress_host=host, ingress_port=0)
    with pytest.raises(TargetError, match=f"cannot listen on {host}") as caught:
        node.start()
    assert caught.value.where == "targets.local.ingress-host"
    assert "address of this machine" in (caught.value.hint or "")


def test_a_state_folder_with_a_long_path_has_sockets(tmp_path: Path) -> None:
    node = open_node(tmp_path / ("förder" * 20) / ".kdeploy")
    try:
        assert node.start().pid
        alias = node._state.run.parent
        assert stat.S_IMODE(alias.stat().st_mode) == 0o700
    finally:
        assert node.stop()
    assert node.info().pid is None
    assert not alias.exists()


def test_a_service_is_kept_if_its_record_cannot_be_removed(tmp_path: Path) -> None:
    node = open_node(tmp_path / ".kdeploy")
    try:
        Client(node, tmp_path / ".kdeploy").apply(make_bundle("demo", A, tmp_path / "no-release"))
        [record] = node._state.services.iterdir()
        kept = record.rename(tmp_path / "record")
        record.mkdir()
        with pytest.raises(TargetError, match="cannot write the supervisor's state"):
            call(node._state, "DELETE", "/services/default/demo")
        record.rmdir()
        kept.rename(record)
        services = node.target.services
        assert [status.reference for status in services.list_all()] == [DEMO]
        assert services.delete(DEMO) == ()
        assert services.list_all() == []
    finally:
        node.stop()


def test_a_supervisor_ends_when_its_folder_is_removed(tmp_path: Path) -> None:
    node = open_node(tmp_path / ".kdeploy")
    pid = node.start().pid
    assert pid
    supervisor = psutil.Process(pid)
    shutil.rmtree(tmp_path / ".kdeploy")
    supervisor.wait(10)
    assert node.info().pid is None


def test_a_supervisor_that_cannot_start_reports_its_last_log_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aiohttp.py").write_text("raise RuntimeError('this aiohttp is broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TargetError, match="this aiohttp is broken"):
        open_node(tmp_path / ".kdeploy").start()


@pytest.mark.parametrize("text", ["[]", "{}", '{"port": 70000}', '{"port": "x"}', "\0"])
def test_an_invalid_remembered_port_is_ignored(tmp_path: Path, text: str) -> None:
    node = open_node(tmp_path / ".kdeploy")
    (tmp_path / ".kdeploy" / "local").mkdir(parents=True)
    (tmp_path / ".kdeploy" / "local" / "ingress.json").write_text(text)
    try:
        assert node.start().ingress
    finally:
        assert node.stop()


def test_malformed_requests_log_a_few_lines_without_secrets(tmp_path: Path) -> None:
    node = open_node(tmp_path / ".kdeploy")
    try:
        address = node.start().ingress
        assert address
        port = int(address.rpartition(":")[2])
        for _ in range(500):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall(b"GET /hunter2" + b"\x01" * 8000 + b" HTTP/1.1\r\n\r\n")
                assert connection.recv(1000).split()[1] == b"400"
    finally:
        node.stop()
    log = "\n".join(node.supervisor_log())
    assert "malformed request" in log
    assert "more of these are not logged" in log
    assert len(log) < 4000
    assert "Traceback" not in log
    assert "hunter2" not in log


def test_the_supervisors_log_is_truncated_while_it_runs(tmp_path: Path) -> None:
    node = open_node(tmp_path / ".kdeploy")
    log = tmp_path / ".kdeploy" / "local" / "supervisor.log"
    try:
        assert node.start().pid
        with log.open("ab") as file:
            file.write(b"a line of log\n" * 400_000)
        for _ in range(500):
            if log.stat().st_size < 1000:
                break
            time.sleep(0.02)
        assert log.stat().st_size < 1000
        assert log.with_name("supervisor.log.1").stat().st_size > 5_000_000
    finally:
        node.stop()


def test_a_hanging_supervisor_is_reported_and_can_be_stopped(tmp_path: Path) -> None:
    node = open_node(tmp_path / ".kdeploy")
    pid = node.start().pid
    assert pid
    supervisor = psutil.Process(pid)
    supervisor.suspend()
    try:
        with pytest.raises(TargetError, match=rf"\(pid {pid}\) has not answered") as caught:
            node.info()
        assert "kdeploy local stop" in (caught.value.hint or "")
        assert node.stop()
        supervisor.wait(10)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor.kill()
    assert node.info().pid is None
    assert node.start().pid not in (None, pid)
    assert node.stop()


@pytest.mark.torchserve
def test_predictions_and_commands_work_with_thousands_of_idle_connections(
    open_node: Callable[[], Client], store: Path
) -> None:
    client = open_node()
    local = client.state / "local"
    local.mkdir(parents=True)
    # The supervisor cannot raise a hard limit. Requests on loopback must ignore the proxies.
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    daemon = [sys.executable, "-m", "deployer.targets.local", str(client.state)]
    daemon.append('{"host": "127.0.0.1", "port": 0}')
    supervisor = subprocess.Popen(
        ["sh", "-c", 'ulimit -n 1024 && exec "$@"', "sh", *daemon],
        env={**os.environ, **proxies},
        stdout=subprocess.PIPE,
        stderr=(local / "supervisor.log").open("ab"),
    )
    assert supervisor.stdout
    assert supervisor.stdout.readline() == b"{}\n"
    assert client.rollout("demo", A, store / "a").phase is Phase.READY
    address, _, port = (client.node.info().ingress or "").removeprefix("http://").partition(":")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    try:
        with contextlib.ExitStack() as stack:
            for number in range(3000):
                idle = stack.enter_context(socket.create_connection((address, int(port)), timeout=30))
                if number % 3 == 0:
                    idle.sendall(b"POST /predictions/demo HTTP/1.1\r\n")  # an incomplete head
                if number % 300 == 0:
                    assert client.ask("/predictions/demo")[0] == 200
            assert client.node.info().pid == supervisor.pid
            assert client.wait(DEMO).phase is Phase.READY
            assert {client.ask("/predictions/demo")[0] for _ in range(20)} == {200}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (local / "supervisor.log").stat().st_size < 10_000
    assert client.node.stop()
    supervisor.wait(20)


@pytest.mark.torchserve
def test_a_new_supervisor_ends_the_processes_of_a_killed_one(
    open_node: Callable[[], Client], store: Path
) -> None:
    client = open_node()
    bundle = make_bundle("demo", A, store / "a")
    # Killed while the first release loads: the next command starts over.
    client.apply(bundle)
    while not client.java():
        time.sleep(0.05)
    orphans = client.processes()
    kill(client)
    live = client.live(DEMO)
    assert (live.status.phase, live.status.reason, live.status.traffic) == (Phase.STOPPED, NOT_RUNNING, ())
    assert client.target.services.releases_in_use() == {f"demo/{A}"}
    client.apply(bundle)
    assert not set(orphans) & set(client.processes())
    assert client.wait(DEMO).phase is Phase.READY
    # Killed while it serves, with the first process: `start` restores the service at the same address.
    address, orphans = client.node.info().ingress, client.processes()
    [revision] = client.node.info().services[0].revisions
    kill(client)
    psutil.Process(revision.pid).kill()
    assert client.node.start().ingress == address
    assert not set(orphans) & set(client.processes())
    assert client.wait(DEMO).phase is Phase.READY
    assert client.ask("/predictions/demo")[1]["release"] == "a"
    # Killed during a canary's rollout: both releases start again, and the traffic becomes the wanted one.
    client.apply(make_bundle("demo", B, store / "b", canary=20))
    kill(client)
    client.node.start()
    status = client.wait(DEMO)
    assert [(share.release, share.percent) for share in status.traffic] == [(B, 20), (A, 80)]
    assert len(client.java()) == 2
    # Killed, and then stopped: the stop finds the processes that are left.
    kill(client)
    assert client.processes()
    assert client.node.stop()
    assert client.processes() == []
    assert not client.node.stop()


@pytest.mark.torchserve
def test_a_terminated_supervisor_ends_its_processes(open_node: Callable[[], Client], store: Path) -> None:
    client = open_node()
    client.apply(make_bundle("demo", A, store / "a"))
    while not client.java():
        time.sleep(0.05)
    pid = client.node.info().pid
    assert pid
    supervisor = psutil.Process(pid)
    supervisor.terminate()
    supervisor.wait(20)
    assert client.processes() == []
    assert list((client.state / "local" / "run").iterdir()) == []
