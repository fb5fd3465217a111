"""A small project on a real cluster, whose model answers with a marker or fails."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from deployer.config import KServeTarget
from deployer.errors import PredictError
from deployer.observed import Reference
from deployer.patience import Patience, Retry
from deployer.predict.connection import Connection
from deployer.targets.kserve import Cluster
from deployer.targets.kserve.client.api import Api
from deployer.targets.protocols import Endpoint

CONFIG = """
[model]
name = "e2e"
version = "{version}"
handler = "handler.py"
{requirements}
[serving]
{image}cpu = "{cpu}"
memory = "{memory}"
response-timeout = 60

[store]
uri = "{store}"
{endpoint}
[targets.e2e]
kind = "kserve"
context = "{context}"
namespace = "{namespace}"
deployment-mode = "{mode}"
"""
ANSWERS = """
import time


class Handler:
    def initialize(self, context):
        {initialize}

    def handle(self, data, context):
        for row in data:
            value = row.get("data") or row.get("body")
            if isinstance(value, dict) and "sleep" in value:
                time.sleep(value["sleep"])
        return [{{"marker": "{marker}"}} for _ in data]
"""


class Ended(Struct):
    """The result of a command."""

    code: int
    out: str
    err: str
    seconds: float


class Project:
    """The project's folder and its service."""

    def __init__(self, folder: Path, namespace: str, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.reference = Reference(namespace, "e2e")
        self._environment = environment
        self._target = KServeTarget(
            namespace=namespace,
            context=environment["KDEPLOY_E2E_CONTEXT"],
            ingress=environment.get("KDEPLOY_E2E_GATEWAY"),
        )
        self.cluster = Cluster(self._target)
        self.mode = self.cluster.services.capabilities().deployment_mode
        self.timeout = environment.get("KDEPLOY_E2E_TIMEOUT", "5m")

    @property
    def api(self) -> Api:
        return self.cluster.api

    def write(
        self,
        version: str,
        *,
        initialize: str = "pass",
        requirements: str = "",
        **serving: str,
    ) -> None:
        """Write the project; its model answers with its version."""
        named = self._environment.get
        image, endpoint = named("KDEPLOY_E2E_IMAGE"), named("KDEPLOY_E2E_STORE_ENDPOINT")
        seen_by_pods = named("KDEPLOY_E2E_STORE_CLUSTER_ENDPOINT")
        where = f'endpoint = "{endpoint}"\n' if endpoint else ""
        where += f'cluster-endpoint = "{seen_by_pods}"\n' if seen_by_pods else ""
        config = CONFIG.format(
            version=version,
            requirements='requirements-file = "requirements.txt"' if requirements else "",
            image=f'image = "{image}"\n' if image else "",
            cpu=serving.get("cpu", named("KDEPLOY_E2E_CPU", "500m")),
            memory=serving.get("memory", named("KDEPLOY_E2E_MEMORY", "1Gi")),
            store=named("KDEPLOY_E2E_STORE"),
            endpoint=where + self._claim(),
            context=self._target.context,
            namespace=self.reference.namespace,
            mode=self.mode,
        )
        (self.folder / "kdeploy.toml").write_text(config)
        (self.folder / "handler.py").write_text(ANSWERS.format(initialize=initialize, marker=version))
        (self.folder / "requirements.txt").write_text(requirements)

    def _claim(self) -> str:
        """Return the settings of a claim as the model store; the first push creates it in the namespace."""
        if not self._environment["KDEPLOY_E2E_STORE"].startswith("pvc://"):
            return ""
        return 'create-claim = "2Gi"\nclaim-access-mode = "ReadWriteOnce"\nhelper-image = "busybox:1.36"\n'

    def run(self, *arguments: str, folder: Path | None = None) -> Ended:
        """Run kdeploy in another process, in the project's folder or another one."""
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "deployer", *arguments],
            cwd=folder or self.folder,
            env={**self._environment, "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=1100,
            check=False,
        )
        assert "Traceback" not in ended.stderr
        return Ended(ended.returncode, ended.stdout, ended.stderr, time.monotonic() - began)

    def rollout(self, *arguments: str) -> Ended:
        return self.run("rollout", "--timeout", self.timeout, *arguments)

    def endpoint(self) -> Endpoint:
        return self.cluster.reach.endpoint(self.reference)

    def outcomes(self) -> list[str]:
        """Return the outcome of each rollout in the journal."""
        return [entry.outcome.value for entry in self.cluster.journal.entries(self.reference)]


class Load:
    """Sends requests through the ingress until the `with` block ends, on kept and on new connections."""

    def __init__(
        self, endpoint: Endpoint, *, clients: int = 4, rate: float = 40.0, most: int = 60_000
    ) -> None:
        self._endpoint = endpoint
        self._clients, self._rate, self._most = clients, rate, most
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answers: list[Any] = []
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        self._threads = [
            threading.Thread(target=self._ask, args=[number % 2 == 0]) for number in range(self._clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def markers(self) -> set[str]:
        return {str(answer["predictions"][0]["marker"]) for answer in self.answers}

    def _ask(self, keeps_alive: bool) -> None:
        connection = connect(self._endpoint)
        while not self._stop.wait(self._clients / self._rate):
            with self._lock:
                if len(self.answers) + len(self.failures) >= self._most:
                    return
            try:
                status, answer = send(connection, "x")
                failure = "" if status == 200 else f"{status}: {answer}"
            except PredictError as error:
                failure = str(error)
            with self._lock:
                if failure:
                    self.failures.append(failure)
                else:
                    self.answers.append(answer)
            if not keeps_alive:
                connection.close()
                connection = connect(self._endpoint)


def connect(endpoint: Endpoint, seconds: float = 30.0) -> Connection:
    """Connect to the service without retries."""
    return Connection(
        endpoint, failure=PredictError, timeout=seconds, patience=Patience(retry=Retry(attempts=1))
    )


def send(connection: Connection, body: Any) -> tuple[int, Any]:
    """Send one V1 request with one instance; return the status and the response's JSON, or its text."""
    data = json.dumps({"instances": [body]}).encode()
    answer = connection.send("POST", "/v1/models/e2e:predict", body=data, content_type="application/json")
    try:
        return answer.status, json.loads(answer.body)
    except ValueError:
        return answer.status, answer.body.decode(errors="replace")[:200]


def predict(project: Project, body: Any, *, seconds: float = 30.0) -> tuple[int, Any]:
    """Send one V1 request through the ingress."""
    return send(connect(project.endpoint(), seconds), body)


@contextlib.contextmanager
def until(seconds: float) -> Iterator[Any]:
    """Yield a function that returns whether there is time left. The second and later calls wait 1 s."""
    end, called = time.monotonic() + seconds, False

    def again() -> bool:
        nonlocal called
        if called:
            time.sleep(1)
        called = True
        return time.monotonic() < end

    yield again
