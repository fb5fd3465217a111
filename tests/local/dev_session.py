"""A running `kdeploy dev`, for tests and for bench/dev.py."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from deployer.targets.local.processes import STATE_MARK, find_marked
from tests.children import die_with_parent

HANDLER = """
def handle(data, context):
    if data is None:
        print("loading")
        return None
    print("rows:", len(data))
    return [{"answer": ANSWER} for _ in data]


ANSWER = 1
"""
TOML = '[model]\nname = "demo"\nversion = "1.0"\nhandler = "handler.py"\nserialized-file = "model.pt"\n'
TOML += '[service]\nname = "demo-service"\n'


class Session:
    """A running `kdeploy dev`, and a project that is edited."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "kdeploy.toml").write_text(TOML)
        (root / "model.pt").write_bytes(b"w" * 300_000)
        (root / "sample.txt").write_text("hello")
        self.save(HANDLER)
        self._output = root.parent / "output"
        self._read = 0
        command = [sys.executable, "-m", "deployer", "dev", "--port", "0", "--predict", "sample.txt"]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=root, stdout=output, stderr=output, preexec_fn=die_with_parent
            )

    def save(self, handler: str) -> None:
        (self.root / "handler.py").write_text(handler)

    def wait(self, pattern: str) -> re.Match[str]:
        """Wait for the next output that matches; later calls search behind it."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            text = self._output.read_text()
            if found := re.compile(pattern, re.MULTILINE).search(text, self._read):
                self._read = found.end()
                return found
            assert self.process.poll() is None, text
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} after:\n{self._output.read_text()}")

    def processes(self) -> int:
        return len(find_marked({STATE_MARK: str(self.root.resolve() / ".kdeploy" / "dev" / "local")}))
