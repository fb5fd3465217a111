"""Times reading the events of one pod in a namespace with 10,000 events of other objects.

Against the tests' API server: all events of the namespace, compared with those selected by the pod's
uid. Seconds are medians of alternating runs. Exits with 1 if the selection is slower.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from deployer.targets.kserve.client.api import Api  # noqa: E402
from deployer.targets.kserve.client.kubeconfig import connect  # noqa: E402
from deployer.targets.kserve.client.resources import EVENT  # noqa: E402
from tests.cluster.kube import ADMIN, Kube  # noqa: E402

EVENTS = 10_000
MINE = "7d0f0d6e-3c1c-4c1b-9f0a-2f6f0a1b2c3d"


def create(kube: Kube, number: int) -> None:
    about = {"kind": "Pod", "name": f"other-{number}", "namespace": "default", "uid": f"other-{number}"}
    if number % (EVENTS // 5) == 0:
        about["uid"] = MINE
    kube.create(
        "/api/v1/namespaces/default/events",
        {
            "metadata": {"name": f"e{number}"},
            "involvedObject": about,
            "type": "Warning",
            "reason": "Unhealthy",
            "message": "Readiness probe failed: model digits has no READY worker",
        },
    )


def seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kube").mkdir()
        try:
            with Kube(folder / "kube") as kube:
                config = folder / "kubeconfig"
                config.write_text(yaml.safe_dump(kube.kubeconfig(ADMIN)))
                with ThreadPoolExecutor(4) as pool:
                    list(pool.map(lambda number: create(kube, number), range(EVENTS)))
                api = Api(connect(str(config), None))
                selector = {"fieldSelector": f"involvedObject.uid={MINE}"}
                every: list[float] = []
                mine: list[float] = []
                for _ in range(options.runs):
                    every.append(seconds(lambda: api.list(EVENT, "default")))
                    mine.append(seconds(lambda: api.list(EVENT, "default", selector)))
                found = len(api.list(EVENT, "default", selector)[0])
        except LookupError as missing:
            print(missing)
            return 0
    all_of_them, one = statistics.median(every), statistics.median(mine)
    print(f"events about one pod among {EVENTS:,}, median of {options.runs}")
    print(f"all events of the namespace {all_of_them:8.3f} s   {EVENTS:6,} objects")
    print(f"selected by the pod's uid   {one:8.3f} s   {found:6,} objects   {all_of_them / one:.1f}x faster")
    return 0 if one < all_of_them else 1


if __name__ == "__main__":
    sys.exit(main())
