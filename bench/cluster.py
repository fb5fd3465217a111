"""Times two commands that do not wait for a cluster, as whole processes: an unchanged rollout, and a list.

They run against the tests' API server with 1,000 services, and a model store in OpenStack Swift. The
comparison is the import of the official Kubernetes client. Counts each command's requests to the API server.
Exits with 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


from deployer.config import Store  # noqa: E402
from deployer.targets.kserve.state.kinds import INFERENCE_SERVICE  # noqa: E402
from tests.cluster.faults import S3_KEYS, Controller  # noqa: E402
from tests.cluster.kube import ADMIN, Kube  # noqa: E402
from tests.cluster.play import documents  # noqa: E402
from tests.cluster.project import write_project  # noqa: E402
from tests.cluster.proxy import Proxy  # noqa: E402
from tests.stores.swift import Swift  # noqa: E402

KDEPLOY = [sys.executable, "-m", "deployer"]
SERVICES = 1000
PEER = "import kubernetes.client"
COMMANDS = {  # arguments, and the limits for seconds and requests
    "rollout, unchanged": (("rollout",), 1.5, 5),
    f"list -A, {SERVICES} services": (("list", "-A"), 3.0, 2),
}


def seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def measure(proxy: Proxy, folder: Path, runs: int) -> bool:
    taken: dict[str, list[float]] = {what: [] for what in (PEER, *COMMANDS)}
    requests: dict[str, list[tuple[str, str]]] = {}
    for _ in range(runs):  # in turns, so that load affects all equally
        taken[PEER].append(seconds([sys.executable, "-c", PEER], folder))
        for what, (command, _bar, _limit) in COMMANDS.items():
            proxy.requests.clear()
            taken[what].append(seconds([*KDEPLOY, *command], folder))
            requests[what] = list(proxy.requests)
    peer = statistics.median(taken[PEER])
    print(f"commands on a cluster, median of {runs}\n\n{PEER:26}{peer:8.2f} s")
    kept = True
    for what, (_command, bar, limit) in COMMANDS.items():
        median = statistics.median(taken[what])
        writes = sum(method != "GET" for method, _ in requests[what])
        good = median <= bar and len(requests[what]) <= limit and writes == 0
        kept = kept and good
        counts = f"{len(requests[what])} requests, {writes} writes   <= {bar} s, {limit} requests"
        print(f"{what:26}{median:8.2f} s{median / peer:7.1f}x   {counts}{'' if good else '  MISSED'}")
    return kept


def run(folder: Path, runs: int) -> bool:
    os.environ.update(S3_KEYS)
    (folder / "swift").mkdir()
    (folder / "kube").mkdir()
    swift = Swift(folder / "swift").start()
    try:
        store = Store(uri="s3://models/bench", endpoint=swift.url)
        swift.make_bucket("models")
        project = write_project(folder / "project", store)
        with Kube(folder / "kube") as kube, Proxy(kube) as proxy:
            config = folder / "kubeconfig"
            config.write_text(yaml.safe_dump(kube.kubeconfig(ADMIN, server=proxy.url)))
            os.environ["KUBECONFIG"] = str(config)
            with Controller(kube):
                seconds([*KDEPLOY, "rollout"], project)
            service = documents("default").service
            for number in range(SERVICES - 1):
                named = {**service, "metadata": {**service["metadata"], "name": f"s{number}"}}
                kube.create(INFERENCE_SERVICE.path("default"), named)
            return measure(proxy, project, runs)
    finally:
        swift.stop()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        try:
            return 0 if run(Path(name), options.runs) else 1
        except (LookupError, pytest.skip.Exception) as missing:  # a server cannot be installed
            print(missing)
            return 0


if __name__ == "__main__":
    sys.exit(main())
