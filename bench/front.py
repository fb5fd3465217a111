"""Measures the cost of the front: requests to one TorchServe through it, and to the port behind it.

One client alternates between two persistent connections, so that load affects both equally. Small requests
show the time per request, requests of 4 MiB the cost of a large body. Then 16 clients send requests
concurrently. Exits with 1 if the front adds more than 0.3 ms to the median of a small request.

usage: python bench/front.py [--requests 2000]
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from deployer.config import Store, load_settings
from deployer.observed import Reference
from deployer.project import Project
from deployer.properties import decode_properties
from deployer.rollouts import Rollouts
from deployer.store.open import open_store
from deployer.targets.local import OneNode

BAR = 0.3  # milliseconds
CLIENTS = 16
SERVICE = Reference("default", "bare")
HANDLER = "def handle(data, context):\n    return data and [b'ok' for _ in data]\n"
JSON = {"Content-Type": "application/json"}


def roll_out(folder: Path, node: OneNode) -> None:
    (folder / "handler.py").write_text(HANDLER)
    flags = {
        "model.name": SERVICE.name,
        "model.version": "1.0",
        "model.handler": "handler.py",
        "serving.batch-size": "8",
        "serving.max-batch-delay": "1",
    }
    settings = load_settings(None, environment={}, flags=flags, folder=folder)
    project, store = Project(settings, lambda _: None), open_store(Store(uri="store"), folder)
    Rollouts(project, store, node.target, lambda _: None).rollout(timeout=60)


def ports(node: OneNode) -> tuple[psutil.Process, int, int]:
    """Return the first process, the port of its front, and TorchServe's port."""
    [revision] = node.info().services[0].revisions
    first = psutil.Process(revision.pid)
    [launcher] = first.children()
    copy = Path(launcher.environ()["TS_CONFIG_FILE"]).read_text()
    behind = int(decode_properties(copy)["inference_address"].rpartition(":")[2])
    return first, int((revision.inference or "").rpartition(":")[2]), behind


def ask(connection: http.client.HTTPConnection, body: bytes) -> float:
    """Send a request and return its milliseconds."""
    began = time.perf_counter()
    connection.request("POST", f"/predictions/{SERVICE.name}", body, JSON)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"ok")
    return (time.perf_counter() - began) * 1000


def compare(front: int, behind: int, body: bytes, requests: int) -> tuple[float, float]:
    """Return the medians through the front and behind it, in milliseconds."""
    ways = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for port in (front, behind)]
    times: list[list[float]] = [[], []]
    for number in range(requests):
        for way in (0, 1) if number % 2 else (1, 0):
            times[way].append(ask(ways[way], body))
    return statistics.median(times[0]), statistics.median(times[1])


def rate(port: int, requests: int) -> float:
    """Return answers per second for many clients."""

    def work(count: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(count):
            ask(connection, b"{}")

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, [requests // CLIENTS] * CLIENTS))
    return requests / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    requests = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        state = folder / "state"
        node = OneNode(state=state, namespace="default", ingress_host="127.0.0.1", ingress_port=0)
        try:
            roll_out(folder, node)
            first, front, behind = ports(node)
            compare(front, behind, b"{}", 200)  # warms up
            through, direct = compare(front, behind, b"{}", requests)
            large = json.dumps({"data": "x" * (4 << 20)}).encode()
            large_through, large_direct = compare(front, behind, large, 30)
            rates = {"front": rate(front, requests), "behind": rate(behind, requests)}
            memory = first.memory_info().rss / (1 << 20)
        finally:
            node.stop()
    added = through - direct
    print(
        f"small request, median   {through:6.2f} ms, without the front {direct:6.2f} ms: {added:.2f} ms added"
    )
    print(f"4 MiB request, median   {large_through:6.1f} ms, without the front {large_direct:6.1f} ms")
    print(
        f"{CLIENTS} clients              {rates['front']:6.0f} answers/s, without it {rates['behind']:6.0f}"
    )
    print(f"memory of the first process {memory:6.0f} MiB")
    print(f"bar: at most {BAR} ms added to a small request: {'met' if added <= BAR else 'MISSED'}")
    return 0 if added <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
