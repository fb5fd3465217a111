"""Times `kdeploy --help`, compared with `import typer`, and a push of an unchanged model.

usage: python bench/commands.py [--runs 7]
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

HELP_BAR = 1.5  # times `python -c "import typer"`
PUSH_BAR = 0.25  # seconds, for 1 GiB of weights
GIB = 1 << 30
CONFIG = """
[model]
name = "large"
version = "1.0"
handler = "handler.py"
serialized-file = "weights.pt"
"""


def seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    kdeploy = [sys.executable, "-m", "deployer"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kdeploy.toml").write_text(CONFIG)
        (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
        weights = folder / "weights.pt"
        with weights.open("wb") as file:
            for _ in range(GIB >> 24):
                file.write(os.urandom(1 << 24))
        os.utime(weights, (1_700_000_000, 1_700_000_000))
        seconds([*kdeploy, "push"], folder)
        commands = {
            "import typer": [sys.executable, "-c", "import typer"],
            "kdeploy --help": [*kdeploy, "--help"],
            "kdeploy push, unchanged": [*kdeploy, "push"],
        }
        times: dict[str, list[float]] = {what: [] for what in commands}
        for _ in range(runs):  # in turns, so that load affects all equally
            for what, command in commands.items():
                times[what].append(seconds(command, folder))
    medians = {what: statistics.median(values) for what, values in times.items()}
    for what, median in medians.items():
        print(f"{what:26} {median:6.3f} s   {median / medians['import typer']:5.2f} x import typer")
    ratio = medians["kdeploy --help"] / medians["import typer"]
    good = ratio <= HELP_BAR and medians["kdeploy push, unchanged"] <= PUSH_BAR
    print(f"bars: --help at most {HELP_BAR} x, push at most {PUSH_BAR} s: {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
