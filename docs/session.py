"""Draws `session.svg`, the terminal in README.md, from a real run of the digits example: `make docs`."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

FOLDER = Path(__file__).parent
EXAMPLE = FOLDER.parent / "examples" / "digits"
COMMANDS = ("kdeploy push", "kdeploy rollout", "kdeploy predict --kserve samples/3-0.png")


def record(project: Path) -> list[tuple[str, str]]:
    """Run the commands in a copy of the example; return each with what it printed."""
    environment = {**os.environ, "KDEPLOY_TARGETS_LOCAL_INGRESS_PORT": "0", "PYTHONPATH": str(FOLDER.parent)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        return done.stdout.replace(str(project), "/home/you/digits")

    run("train.py")
    try:
        return [(command, run("-m", "deployer", *command.split()[1:])) for command in COMMANDS]
    finally:
        run("-m", "deployer", "local", "stop")


def draw(session: list[tuple[str, str]]) -> str:
    """Return the session as SVG that loads nothing from the network."""
    console = Console(record=True, width=110, file=io.StringIO())
    for command, output in session:
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        console.print(Text(output.rstrip("\n")), soft_wrap=True)
    drawn = console.export_svg(title="kdeploy", unique_id="session")
    return re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as name:
        project = Path(name).resolve() / "digits"
        shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("model-store", ".kdeploy", "*.pt"))
        (FOLDER / "session.svg").write_text(draw(record(project)), "utf-8")


if __name__ == "__main__":
    main()
