"""A client of a local target for tests: rolls out releases, and sends single requests or load."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from deployer.bundle import Bundle
from deployer.journal import Provenance, plan_entry
from deployer.observed import Live, Observed, Phase, Reference
from deployer.targets.local import OneNode
from deployer.targets.local.processes import STATE_MARK, find_marked
from tests.local.releases import make_bundle


class Client:
    """A local target, and requests to its ingress."""

    def __init__(self, node: OneNode, state: Path) -> None:
        self.node = node
        self.target = node.target
        self.state = state

    def apply(self, bundle: Bundle, who: str = "", *, expect: int | None = None) -> int:
        """Apply a bundle without waiting for it."""
        entry = plan_entry(bundle, Provenance(who=who))
        return self.target.services.apply(bundle, entry, expect=expect)

    def live(self, reference: Reference) -> Live:
        """Return a service that must exist."""
        live = self.target.services.get(reference)
        assert live
        return live

    def rollout(self, name: str, release: str, folder: Path, **more: Any) -> Observed:
        """Apply a release, and wait until it is ready or has failed."""
        bundle = make_bundle(name, release, folder, **more)
        self.apply(bundle)
        return self.wait(bundle.reference)

    def wait(self, reference: Reference, timeout: float = 60.0) -> Observed:
        """Wait until a service is ready or has failed."""
        status: Observed | None = None
        for status in self.target.services.watch(reference, timeout):
            if status.phase in (Phase.READY, Phase.FAILED):
                return status
        raise AssertionError(f"neither ready nor failed: {status}")

    def ask(
        self, path: str, body: object = None, *, host: str = "demo.default.example.com"
    ) -> tuple[int, Any]:
        """Send a request to the ingress; return the HTTP status and the JSON."""
        url = self.node.info().ingress
        assert url
        address, port = url.removeprefix("http://").rsplit(":", 1)
        connection = http.client.HTTPConnection(address, int(port), timeout=60)
        try:
            connection.request(
                "POST", path, json.dumps(body or {}), {"Host": host, "Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data else None
        finally:
            connection.close()

    def processes(self) -> list[psutil.Process]:
        """Return every running process that the local target started."""
        return find_marked({STATE_MARK: str(self.state.resolve() / "local")})

    def java(self) -> list[psutil.Process]:
        """Return the JVMs among these processes."""
        return [p for p in self.processes() if "org.pytorch.serve.ModelServer" in p.cmdline()]


class Load:
    """Sends 50 requests a second to the ingress until the `with` block ends."""

    def __init__(self, client: Client, rate: float = 50.0) -> None:
        self.answers: list[tuple[int, Any]] = []
        url = client.node.info().ingress
        assert url
        self._address, self._port = url.removeprefix("http://").rsplit(":", 1)
        self._rate = rate
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(5)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def statuses(self) -> Counter[int]:
        """Return how many requests had which HTTP status; 0 is a broken connection."""
        return Counter(status for status, _ in self.answers)

    def wait_for(self, count: int, timeout: float = 30.0) -> None:
        """Wait until `count` more requests have been answered."""
        goal, end = len(self.answers) + count, time.monotonic() + timeout
        while len(self.answers) < goal:
            assert time.monotonic() < end, "too few requests are answered"
            time.sleep(0.02)

    def _run(self, index: int) -> None:
        pause = len(self._threads) / self._rate
        connection = http.client.HTTPConnection(self._address, int(self._port), timeout=60)
        while not self._end.wait(pause):
            try:
                connection.request(
                    "POST",
                    "/v1/models/demo:predict",
                    b'{"instances": [1]}',
                    {"Host": "demo.default.example.com", "Content-Type": "application/json"},
                )
                answer = connection.getresponse()
                self.answers.append((answer.status, json.loads(answer.read())))
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.answers.append((0, repr(error)))
                connection.close()
