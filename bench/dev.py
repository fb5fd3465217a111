"""Measures `kdeploy dev`: from the save of a handler to the answer of the new one.

The handler imports nothing; TorchServe's worker imports torch, which takes most of the time. Exits with 1 if
the bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.local.dev_session import HANDLER, Session  # noqa: E402

BAR = 3.0  # seconds


def measure(folder: Path, runs: int) -> tuple[float, list[float]]:
    """Return the seconds until the first answer, and those of each save."""
    root = folder / "project"
    root.mkdir()
    began = time.monotonic()
    session = Session(root)
    try:
        session.wait('"answer": 1}')
        first, taken = time.monotonic() - began, []
        for number in range(2, runs + 2):
            time.sleep(1)
            saved = time.monotonic()
            session.save(HANDLER.replace("ANSWER = 1", f"ANSWER = {number}"))
            session.wait(f'"answer": {number}}}')
            taken.append(time.monotonic() - saved)
        return first, taken
    finally:
        session.process.terminate()
        session.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        first, taken = measure(Path(name), options.runs)
    middle = statistics.median(taken)
    print(f"kdeploy dev, seconds from a save to the new answer, {options.runs} saves\n")
    print(f"first answer after the start {first:8.2f}")
    print(f"median of the saves          {middle:8.2f}   <= {BAR}{'' if middle <= BAR else '  MISSED'}")
    print(f"slowest save                 {max(taken):8.2f}")
    return 0 if middle <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
