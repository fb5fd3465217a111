"""Reads the pages that a reader follows, and runs their blocks as that reader would.

In a page, a `sh` block holds commands, one per line. A `python` block whose first line is `# NAME.py` is the
content of that file. Other blocks show output or fragments.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """One fenced block of a page: its language and its text."""

    language: str
    text: str


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of Markdown text, in order."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(block[1], block[2]) for block in found]


def section(text: str, title: str) -> str:
    """Return the text below a heading, up to the next heading of the same level or a higher one."""
    masked = re.sub(r"^```.*?^```$", lambda block: "`" * len(block[0]), text, flags=re.MULTILINE | re.DOTALL)
    heading = re.search(rf"^(#+) {re.escape(title)}$", masked, re.MULTILINE)
    assert heading, f"no heading {title!r}"
    after = re.compile(rf"^#{{1,{len(heading[1])}}} ", re.MULTILINE).search(masked, heading.end())
    return text[heading.end() : after.start() if after else None]


class Reader:
    """A reader in a shell: follows blocks, and stays in the folder that a command changed to."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.commands: list[str] = []

    def follow(self, found: list[Block]) -> str:
        """Write the files and run the commands of blocks in order; return all output."""
        output = ""
        for block in found:
            name = re.match(r"# (\w+\.py)\n", block.text)
            if block.language == "python" and name:
                (self.folder / name[1]).write_text(block.text, "utf-8")
            elif block.language == "sh":
                output += "".join(self.run(line) for line in block.text.splitlines() if line.strip())
        return output

    def run(self, command: str) -> str:
        """Run one line of shell and return its output; fail the test if the command fails."""
        self.commands.append(command)
        script = f'{command}\nstatus=$?\nenv -0 > "$STATE"\npwd > "$STATE.folder"\nexit $status'
        state = self.folder.parent / ".state"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env={**self.environment, "STATE": str(state)},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        kept = (pair.partition("=") for pair in state.read_text().split("\0") if pair)
        self.environment = {name: value for name, _, value in kept}
        self.folder = Path(Path(f"{state}.folder").read_text().strip())
        return done.stdout + done.stderr


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what would reach kdeploy or Python."""
    hidden = ("KDEPLOY_", "PYTHON", "VIRTUAL_ENV", "COV")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)} | more
