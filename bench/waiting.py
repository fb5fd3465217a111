"""Compares waiting for a service with KServe's SDK.

The tests' API server has simulated statuses: a service that is ready, one that becomes ready after a second,
and one that failed permanently. kdeploy watches until Ready has lasted for its window of 2 s;
`KServeClient.wait_isvc_ready` polls every 10 s. Imports are not measured. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deployer.config import KServeTarget  # noqa: E402
from deployer.errors import KdeployError  # noqa: E402
from deployer.targets.kserve import Cluster  # noqa: E402
from tests.cluster.calls import roll, watch_rollout  # noqa: E402
from tests.cluster.kube import ADMIN, Kube  # noqa: E402
from tests.cluster.play import A, Play, documents  # noqa: E402
from tests.stores.installed import SDK, environment  # noqa: E402

TIMEOUT = 20  # seconds
AFTER_READY = 0.5  # maximum after the window, in seconds
AFTER_FAILURE = 3.0  # maximum, in seconds
SERVER = """
import json, sys, time
from kserve import KServeClient
client = KServeClient(config_file=sys.argv[1])
print("waiting", flush=True)
for line in sys.stdin:
    namespace, timeout = json.loads(line)
    began = time.monotonic()
    try:
        client.wait_isvc_ready("digits", namespace=namespace, timeout_seconds=timeout)
        well = True
    except RuntimeError:
        well = False
    print(json.dumps([time.monotonic() - began, well]), flush=True)
"""

Wait = Callable[[str], tuple[float, bool]]  # namespace -> seconds, and whether it succeeded

Taken = dict[str, dict[str, list[float]]]  # case -> way -> seconds


def ready(play: Play) -> None:
    play.replica_set(A, available=1)
    play.ready()


def later(play: Play) -> None:
    threading.Timer(1.0, ready, [play]).start()


def failed(play: Play) -> None:
    play.invalid(reason="NoSupportingRuntime", message="out of memory")


CASES: dict[str, tuple[Callable[[Play], None], bool]] = {
    "ready": (ready, True),
    "ready after 1 s": (later, True),
    f"failed, timeout {TIMEOUT} s": (failed, False),
}


def measure(
    kube: Kube, cluster: Cluster, ways: dict[str, Wait], runs: int
) -> dict[str, dict[str, list[float]]]:
    taken: dict[str, dict[str, list[float]]] = {case: {way: [] for way in ways} for case in CASES}
    for run in range(runs):
        for number, (case, (happens, well)) in enumerate(CASES.items()):
            for way, wait in ways.items():  # in turns, so that load affects both equally
                namespace = f"run-{run}-{number}-{list(ways).index(way)}"
                kube.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
                roll(cluster, documents(namespace))
                happens(Play(kube, namespace))
                seconds, ended_well = wait(namespace)
                assert ended_well is well, f"{way}: {case}"
                taken[case][way].append(seconds)
    return taken


def side_by_side(kube: Kube, folder: Path, runs: int) -> bool:
    config = folder / "kubeconfig"
    config.write_text(yaml.safe_dump(kube.kubeconfig(ADMIN)))
    sdk = subprocess.Popen(
        [environment(*SDK), "-c", SERVER, config],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert sdk.stdin
    assert sdk.stdout
    answers, questions = sdk.stdout, sdk.stdin
    assert answers.readline() == "waiting\n"
    target = KServeTarget(kubeconfig=str(config))

    def ours(namespace: str) -> tuple[float, bool]:
        began, well = time.monotonic(), True
        try:
            list(watch_rollout(cluster, Play(kube, namespace).reference, A, TIMEOUT))
        except KdeployError:
            well = False
        return time.monotonic() - began, well

    def theirs(namespace: str) -> tuple[float, bool]:
        questions.write(json.dumps([namespace, TIMEOUT]) + "\n")
        questions.flush()
        seconds, well = json.loads(answers.readline())
        return seconds, well

    try:
        with Cluster(target) as cluster:
            taken = measure(kube, cluster, {"kdeploy": ours, "KServe's SDK": theirs}, runs)
    finally:
        sdk.kill()
        sdk.communicate()
    return report(taken, target.wait_window, runs)


def report(taken: Taken, window: float, runs: int) -> bool:
    print(f"waiting for a service, median of {runs}, seconds\n")
    print(f"{'':26}{'kdeploy':>10}{'KServe SDK':>13}{'ratio':>10}")
    bars = dict(zip(CASES, (window + AFTER_READY, 1 + window + AFTER_READY, AFTER_FAILURE), strict=True))
    kept = True
    for case, ways in taken.items():
        ours, theirs = (statistics.median(seconds) for seconds in ways.values())
        good = ours <= bars[case]
        kept = kept and good
        missed = "" if good else "  MISSED"
        print(f"{case:26}{ours:10.2f}{theirs:13.2f}{theirs / ours:9.1f}x   <= {bars[case]}{missed}")
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        try:
            with Kube(Path(name)) as kube:
                return 0 if side_by_side(kube, Path(name), options.runs) else 1
        except (LookupError, pytest.skip.Exception) as missing:  # a server or the SDK cannot be installed
            print(missing)
            return 0


if __name__ == "__main__":
    sys.exit(main())
