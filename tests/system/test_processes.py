from __future__ import annotations

import time
from pathlib import Path

import pytest

from deployer.processes import DEVNULL, EndlessError, ask_program


@pytest.mark.parametrize("stream", ["1", "2"])
def test_the_children_of_an_endless_program_are_killed_with_it(stream: str, tmp_path: Path) -> None:
    script = f"sleep 60 >&{stream} & echo $! > pid; wait"
    command = ["sh", "-c", script]
    with pytest.raises(EndlessError, match="does not end within"):
        ask_program(command, seconds=2, stdin=DEVNULL, stderr=DEVNULL, cwd=tmp_path)
    pid, end = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < end
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
