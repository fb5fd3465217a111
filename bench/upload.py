"""How fast 1 GiB comes to S3, side by side with `aws s3 cp`, and how much memory that takes.

The server is OpenStack Swift on loopback, which shares the processors with both. Each way is a command of its
own, its start included; they take turns, and the median counts. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.archive import PEAK, make_weights  # noqa: E402
from deployer.config import Store  # noqa: E402
from deployer.store.credentials import find_credentials  # noqa: E402
from deployer.store.location import locate  # noqa: E402
from deployer.store.s3_requests import Bucket  # noqa: E402
from tests.stores import swift  # noqa: E402

PEAK_AT_MOST = 200  # MB of memory
OURS = """
import sys
from pathlib import Path
from deployer.config import Store
from deployer.store import open_store
store = open_store(Store(uri=sys.argv[2], endpoint=sys.argv[3]), Path(sys.argv[1]).parent)
store._put_file("digits/bench.mar", Path(sys.argv[1]), "digest")
"""


def commands(file: Path, server: swift.Swift, run: str) -> dict[str, list[str]]:
    ways = {
        "kdeploy": [sys.executable, "-c", OURS, str(file), f"s3://models/{run}/kdeploy", server.url],
    }
    if aws := shutil.which("aws"):
        copy = [aws, "s3", "cp", "--quiet", str(file), f"s3://models/{run}/aws/bench.mar"]
        ways["aws s3 cp"] = [*copy, "--endpoint-url", server.url]
    return ways


def measure(file: Path, server: swift.Swift, bucket: Bucket, runs: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {}
    for run in range(runs + 1):  # the first warms up and does not count
        for way, command in commands(file, server, str(run)).items():
            started = time.perf_counter()
            subprocess.run(command, check=True, cwd=ROOT)
            seconds = time.perf_counter() - started
            if run:
                taken.setdefault(way, []).append(seconds)
            key = "kdeploy/digits" if way == "kdeploy" else "aws"
            bucket.ask("DELETE", f"{run}/{key}/bench.mar")
    return taken


def peak_mb(file: Path, server: swift.Swift) -> float:
    command = commands(file, server, "peak")["kdeploy"]
    done = subprocess.run(
        [sys.executable, "-S", "-c", PEAK, *command], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e6


def side_by_side(folder: Path, mib: int, runs: int) -> bool:
    file = folder / "bench.mar"
    make_weights(file, mib)
    (folder / "swift").mkdir()
    server = swift.Swift(folder / "swift").start()
    try:
        location = locate(Store(uri="s3://models", endpoint=server.url), {})
        bucket = Bucket(location, find_credentials("s3", os.environ), None)
        bucket.ask("PUT")
        taken = measure(file, server, bucket, runs)
        peak = peak_mb(file, server)
    finally:
        server.stop()
    medians = {way: statistics.median(values) for way, values in taken.items()}
    print(f"{mib} MiB of incompressible bytes to S3 on loopback, median of {runs}\n")
    for way, median in medians.items():
        runs_text = " ".join(f"{value:.2f}" for value in taken[way])
        print(f"{way:12}{median:8.2f} s{mib * 1.048576 / median:7.0f} MB/s   {runs_text}")
    if "aws s3 cp" not in medians:
        print("aws s3 cp is not measured: there is no `aws` on the PATH")
    kept = medians["kdeploy"] <= medians.get("aws s3 cp", medians["kdeploy"])
    print(f"\nno slower than aws s3 cp{'' if kept else '  MISSED'}")
    print(
        f"peak memory of kdeploy: {peak:.0f} MB   < {PEAK_AT_MOST}{'' if peak < PEAK_AT_MOST else '  MISSED'}"
    )
    return kept and peak < PEAK_AT_MOST


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where to write; the system's temporary folder if left out"
    )
    options = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID=swift.KEY, AWS_SECRET_ACCESS_KEY=swift.SECRET, AWS_REGION="us-east-1")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        try:
            return 0 if side_by_side(Path(name).resolve(), options.size_mib, options.runs) else 1
        except pytest.skip.Exception as missing:  # the server could not be installed
            print(missing)
            return 0


if __name__ == "__main__":
    sys.exit(main())
