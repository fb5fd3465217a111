"""The curl lines that `status` and `rollout` print work as printed, and hold no secret."""

from __future__ import annotations

import json
import shlex
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from deployer.cli import next_steps
from deployer.config import KServeTarget, LocalTarget
from deployer.predict.codecs import Protocol
from deployer.targets.protocols import Endpoint
from tests.unit.predict.loopback import Asked, Reply, Server

HOST = "digits.team.example.com"


def answer(asked: Asked) -> Reply:
    body = json.loads(asked.body)
    found = [asked.headers["host"], asked.path, asked.headers["content-type"], len(body)]
    return Reply(200, json.dumps({"predictions": found}).encode())


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    running.answering = answer
    yield running
    running.close()


def run(line: str, **environment: str) -> Any:
    path = subprocess.run(
        ["bash", "-c", line],
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert path.returncode == 0, path.stderr
    return json.loads(path.stdout)["predictions"]


@pytest.mark.parametrize(
    ("protocol", "path"), [("v1", "/v1/models/digits:predict"), ("v2", "/v2/models/digits/infer")]
)
def test_curl_through_an_ingress(server: Server, protocol: Protocol, path: str) -> None:
    endpoint = Endpoint(f"{server.url}/serving/digits", HOST)
    (line,) = next_steps.request_lines(endpoint, LocalTarget(), "digits", protocol)
    assert run(line) == [HOST, f"/serving/digits{path}", "application/json", 1]


def test_curl_names_the_service_to_tls(server: Server, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    endpoint = Endpoint(server.url.replace("http:", "https:"), HOST)
    (line,) = next_steps.request_lines(endpoint, LocalTarget(), "digits", "v1")
    host, *rest = run(line, CURL_CA_BUNDLE=str(tmp_path / "ca.pem"))
    assert (host.partition(":")[0], rest[0]) == (HOST, "/v1/models/digits:predict")


class Tunnel:
    """A way to a pod that has no address here. Implements deployer.targets.protocols.Tunnel."""

    pod = ("istio-system", "ingress gateway", 8081)
    fault = None

    def open(self) -> Any:
        raise AssertionError("nothing is sent")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_ingress_without_an_address_is_reached_by_kubectl(scheme: str) -> None:
    config = KServeTarget(kubeconfig="my config", context="eu")
    endpoint = Endpoint(f"{scheme}://{HOST}/serving", HOST, Tunnel())
    forward, curl = map(shlex.split, next_steps.request_lines(endpoint, config, "digits", "v1"))
    assert forward == [
        "kubectl",
        "--kubeconfig=my config",
        "--context=eu",
        "port-forward",
        "--namespace=istio-system",
        "pod/ingress gateway",
        "8080:8081",
    ]
    if scheme == "http":
        assert f"Host: {HOST}" in curl
        assert "http://localhost:8080/serving/v1/models/digits:predict" in curl
    else:
        assert f"{HOST}:443:localhost:8080" in curl
        assert f"https://{HOST}/serving/v1/models/digits:predict" in curl


def test_an_address_of_ipv6() -> None:
    endpoint = Endpoint("http://[2001:db8::1]:31380/serving", HOST)
    (line,) = next_steps.request_lines(endpoint, LocalTarget(), "digits", "v1")
    assert "'http://[2001:db8::1]:31380/serving/v1/models/digits:predict'" in line


def test_a_command_keeps_the_options_that_say_where() -> None:
    where: dict[str, Any] = {"target": "eu", "config": Path("a b.toml"), "sets": ["x=1"], "namespace": None}
    assert next_steps.command("rollout", **where) == (
        "`kdeploy rollout --target=eu '--config=a b.toml' --set=x=1`"
    )
