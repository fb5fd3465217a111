"""Compares writing a model archive with SHA-256, `cp` and torch-model-archiver.

One SHA-256 stream is the floor: every byte must pass through it. Reading, CRC-32 and writing can overlap.

Each tool runs as a separate command, including its start, on the same incompressible weights. The tools take
turns, and the median of the ratios within a turn counts. A first write of the same size warms up the memory.
Exits with 1 if a bar is missed. `--over-4-gib` instead writes and verifies an archive of 4.2 GiB.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AT_LEAST = {"sha256": 1 / 1.25, "default": 20.0}  # seconds, relative to kdeploy
PEAK_AT_MOST = 60  # MB of memory

OURS = """
import sys
from pathlib import Path
from deployer.archive import DigestCache, plan_archive, write_archive
from deployer.config import Model
root, out = Path(sys.argv[1]), Path(sys.argv[2])
digests = DigestCache(out.with_name("digests.json"))
model = Model(name="bench", version="1", handler="base_handler", serialized_file="weights.pt")
archive = plan_archive(model, root, digests)
write_archive(archive, out, digests) if sys.argv[3] == "write" else archive.digest
"""
SHA256 = """
import hashlib, sys
digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
with open(sys.argv[1], "rb", buffering=0) as file:
    while count := file.readinto(buffer):
        digest.update(buffer[:count])
"""
PEAK = """
import os, resource, sys
status = os.waitpid(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)[1]
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def make_weights(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))


def seconds(command: list[str], folder: Path) -> float:
    """Return the seconds of a command that writes below `folder`, which does not exist before and after."""
    folder.mkdir()
    (folder / "tmp").mkdir()
    started = time.perf_counter()
    subprocess.run(
        command, check=True, capture_output=True, env={**os.environ, "TMPDIR": str(folder / "tmp")}
    )
    taken = time.perf_counter() - started
    shutil.rmtree(folder)
    return taken


def commands(root: Path, out: Path) -> dict[str, list[str]]:
    archiver = [
        sys.executable,
        "-m",
        "model_archiver.model_packaging",
        "--model-name",
        "bench",
        "--version",
        "1",
    ]
    archiver += ["--handler", "base_handler", "--serialized-file", str(root / "weights.pt")]
    archiver += ["--export-path", str(out), "--archive-format"]
    return {
        "sha256": [sys.executable, "-c", SHA256, str(root / "weights.pt")],
        "cp": ["cp", str(root / "weights.pt"), str(out / "copy")],
        "kdeploy": [sys.executable, "-c", OURS, str(root), str(out / "bench.mar"), "write"],
        "zip-store": [*archiver, "zip-store"],
        "default": [*archiver, "default"],
    }


def measure(root: Path, out: Path, runs: int) -> dict[str, list[float]]:
    ways = commands(root, out)
    seconds(ways["cp"], out)
    seconds(ways["kdeploy"], out)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, command in ways.items():
            taken[way].append(seconds(command, out))
    return taken


def peak_mb(command: list[str], out: Path) -> float:
    """Return a command's peak memory in MB. Its parent is small: a child inherits the parent's peak."""
    out.mkdir()
    run = subprocess.run(
        [sys.executable, "-S", "-c", PEAK, *command], check=True, capture_output=True, text=True
    )
    shutil.rmtree(out)
    return int(run.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e6


def plan_seconds(root: Path, out: Path) -> tuple[float, float]:
    """Return the seconds to plan an unchanged model: as a command, and in a running process."""
    from deployer.archive import DigestCache, plan_archive
    from deployer.config import Model

    out.mkdir()
    write = commands(root, out)["kdeploy"]
    subprocess.run(write, check=True)
    (out / "bench.mar").unlink()
    started = time.perf_counter()
    subprocess.run([*write[:-1], "plan"], check=True)
    command = time.perf_counter() - started
    model = Model(name="bench", version="1", handler="base_handler", serialized_file="weights.pt")
    started = time.perf_counter()
    archive = plan_archive(model, root, DigestCache(out / "digests.json"))
    inside = time.perf_counter() - started
    if not archive.sealed:
        raise SystemExit("the digest of the unchanged weights is not in the cache")
    shutil.rmtree(out)
    return command, inside


def side_by_side(folder: Path, mib: int, runs: int) -> bool:
    make_weights(folder / "weights.pt", mib)
    out = folder / "out"
    taken = measure(folder, out, runs)
    print(f"{mib} MiB of incompressible weights, median of {runs}\n")
    print(f"{'':12}{'seconds':>9}{'MB/s':>8}{'/ kdeploy':>12}   bar")
    passed = True
    for way, values in taken.items():
        median = statistics.median(values)
        ratio = statistics.median(
            theirs / ours for theirs, ours in zip(values, taken["kdeploy"], strict=True)
        )
        bar = f">= {AT_LEAST[way]}" if way in AT_LEAST else ""
        kept = ratio >= AT_LEAST.get(way, 0)
        passed = passed and kept
        mark = "" if kept else "  MISSED"
        print(f"{way:12}{median:9.3f}{mib * 1.048576 / median:8.0f}{ratio:11.2f}x   {bar}{mark}")
    peak = peak_mb(commands(folder, out)["kdeploy"], out)
    command, inside = plan_seconds(folder, out)
    mark = "" if peak < PEAK_AT_MOST else "  MISSED"
    print(f"\nkdeploy's peak memory: {peak:.0f} MB   < {PEAK_AT_MOST}{mark}")
    print(f"plan of unchanged weights: {inside * 1000:.0f} ms; as a command: {command * 1000:.0f} ms")
    return passed and peak < PEAK_AT_MOST


def over_4_gib(folder: Path) -> bool:
    import zipfile

    from deployer.archive import Archive, DigestCache, Member, verify_archive, write_archive

    weights, out = folder / "weights.pt", folder / "bench.mar"
    with weights.open("wb") as file:
        file.truncate(4300 << 20)  # sparse: takes no disk space
        file.write(b"first")
        file.seek(-4, os.SEEK_END)
        file.write(b"last")
    members = (Member("weights.pt", weights.stat().st_size, None, weights), Member("z", 1, None, b"z"))
    archive = Archive(name="bench", version="1", format="zip-store", members=members)
    started = time.perf_counter()
    sealed = write_archive(archive, out, DigestCache(folder / "digests.json"))
    wrote = time.perf_counter()
    verify_archive(out, sealed.records)
    verified = time.perf_counter()
    with zipfile.ZipFile(out) as made, made.open("z") as last:
        agrees = last.read() == b"z" and made.getinfo("weights.pt").file_size == weights.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{out.stat().st_size:,} bytes")
    print(
        f"written in {wrote - started:.1f} s, verified in {verified - wrote:.1f} s, peak memory {peak:,} KiB"
    )
    print(f"zipfile {'agrees' if agrees else 'does not agree'}")
    return agrees


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="folder for the files (default: the system's temporary folder)"
    )
    parser.add_argument("--over-4-gib", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name).resolve()
        if options.over_4_gib:
            return 0 if over_4_gib(folder) else 1
        return 0 if side_by_side(folder, options.size_mib, options.runs) else 1


if __name__ == "__main__":
    sys.exit(main())
