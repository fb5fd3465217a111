"""Compares uploading 1 GiB to S3 with `aws s3 cp`: time and memory.

The server is OpenStack Swift behind TLS on loopback. It shares the processors with both clients and
reads with large buffers, so that the clients limit the speed. Each client runs as a command, including
its start. The two alternate, and the median counts. The CPU seconds are the client's. Exits with 1 if
a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import resource
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
from tests.stores import installed, swift  # noqa: E402
from tests.stores.certificates import make_certificates  # noqa: E402

PEAK_AT_MOST = 60  # MB of memory more than for one byte
FASTER = 1.2  # times as fast as aws s3 cp
AWSCLI = ("awscli", "1.45.11")
OURS = """
import sys
from pathlib import Path
from deployer.config import Store
from deployer.store.open import open_store
store = open_store(Store(uri=sys.argv[2], endpoint=sys.argv[3], ca_bundle=sys.argv[4]), Path("/"))
store._put_file("digits/bench.mar", Path(sys.argv[1]), "digest")
"""


def commands(file: Path, server: swift.Swift, authority: Path, run: str) -> dict[str, list[str]]:
    aws = installed.environment(*AWSCLI)
    copy = [str(aws), str(aws.with_name("aws")), "s3", "cp", "--quiet", "--ca-bundle", str(authority)]
    there = [f"s3://models/{run}/aws/bench.mar", "--endpoint-url", server.url]
    return {
        "kdeploy": [sys.executable, "-c", OURS, str(file), f"s3://models/{run}", server.url, str(authority)],
        "aws s3 cp": [*copy, str(file), *there],
    }


def measure(
    file: Path, server: swift.Swift, authority: Path, runs: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    taken: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    client = server.client(authority)
    for run in range(runs + 1):  # the first warms up and does not count
        for way, command in commands(file, server, authority, str(run)).items():
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, check=True, cwd=ROOT)
            seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
            if run:
                taken.setdefault(way, []).append(seconds)
                used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
                processor.setdefault(way, []).append(used)
            for item in client.list_objects_v2(Bucket="models")["Contents"]:
                client.delete_object(Bucket="models", Key=item["Key"])
    return taken, processor


def peak_mb(file: Path, server: swift.Swift, authority: Path) -> float:
    command = commands(file, server, authority, "peak")["kdeploy"]
    done = subprocess.run(
        [sys.executable, "-S", "-c", PEAK, *command], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e6


def side_by_side(folder: Path, mib: int, runs: int) -> bool:
    file, small = folder / "bench.mar", folder / "small.mar"
    make_weights(file, mib)
    small.write_bytes(b"x")
    (folder / "swift").mkdir()
    authority, *certificate = make_certificates(folder, "127.0.0.1")
    server = swift.Swift(folder / "swift", certificate).start()
    try:
        server.make_bucket("models", authority)
        taken, processor = measure(file, server, authority, runs)
        peak = peak_mb(file, server, authority) - peak_mb(small, server, authority)
    finally:
        server.stop()
    medians = {way: statistics.median(values) for way, values in taken.items()}
    print(f"{mib} MiB of incompressible bytes to S3 over TLS on loopback, median of {runs}\n")
    for way, median in medians.items():
        runs_text = " ".join(f"{value:.2f}" for value in taken[way])
        cpu = statistics.median(processor[way])
        print(f"{way:12}{median:8.2f} s{mib * 1.048576 / median:7.0f} MB/s{cpu:7.2f} s CPU   {runs_text}")
    faster = medians["aws s3 cp"] / medians["kdeploy"]
    for what, value, bar, kept in (
        ("times as fast as aws s3 cp", f"{faster:.2f}", f">= {FASTER}", faster >= FASTER),
        ("MB of memory more than for one byte", f"{peak:.0f}", f"< {PEAK_AT_MOST}", peak < PEAK_AT_MOST),
    ):
        print(f"{value:>8} {what:40}{bar}{'' if kept else '  MISSED'}")
    return faster >= FASTER and peak < PEAK_AT_MOST


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="folder for the files (default: the system's temporary folder)"
    )
    options = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID=swift.KEY, AWS_SECRET_ACCESS_KEY=swift.SECRET, AWS_REGION="us-east-1")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        try:
            return 0 if side_by_side(Path(name).resolve(), options.size_mib, options.runs) else 1
        except pytest.skip.Exception as missing:  # the server cannot be installed
            print(missing)
            return 0


if __name__ == "__main__":
    sys.exit(main())
