"""Processes that write an archive: a killed one, and two concurrent ones."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from deployer.archive import write_archive
from deployer.archive.stream import BLOCK
from tests.unit.archive.test_write import FORMATS, written

CHILD = """
import sys, time
from pathlib import Path
from deployer.archive import *
source = Path(sys.argv[1])
archive = Archive(name="m", version="1", format=sys.argv[3], members=(
    Member("a", 3, None, b"one"), Member("w.pt", source.stat().st_size, None, source)))
def progress(count):
    if count > 3:
        print("in the middle", flush=True)
        time.sleep(600)
write_archive(archive, Path(sys.argv[2]), DigestCache(source.with_name("digests.json")), progress=progress)
"""


@pytest.mark.parametrize("archive_format", FORMATS)
def test_the_next_writer_removes_the_file_of_a_killed_one(tmp_path, archive, digests, archive_format):
    source, destination = tmp_path / "w.pt", tmp_path / "out" / "m"
    destination.parent.mkdir()
    source.write_bytes(os.urandom(3 * BLOCK))
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(destination), archive_format], stdout=subprocess.PIPE
    ) as child:
        try:
            assert child.stdout.readline() == b"in the middle\n"
            (abandoned,) = destination.parent.iterdir()
            planned = archive({"w.pt": source}, archive_format)
            other = destination.with_name("other")
            write_archive(planned, other, digests)  # keeps the temporary of a running writer
            if archive_format != "no-archive":
                write_archive(planned, destination, digests)
                destination.unlink()
            assert abandoned.exists()
        finally:
            os.kill(child.pid, signal.SIGKILL)
    assert not destination.exists()
    write_archive(planned, destination, digests)
    assert sorted(destination.parent.iterdir()) == [destination, other]
    assert written(destination) == {"w.pt": source.read_bytes()}


def test_two_concurrent_writers(tmp_path):
    contents, destination = [os.urandom(5 * BLOCK) for _ in range(2)], tmp_path / "m.mar"
    script = CHILD.replace("time.sleep(600)", "sys.stdin.readline(); count = 0")
    children = []
    with contextlib.ExitStack() as stack:
        for number, content in enumerate(contents):
            (tmp_path / f"{number}").mkdir()
            source = tmp_path / f"{number}" / "w.pt"
            source.write_bytes(content)
            command = [sys.executable, "-c", script, str(source), str(destination), "zip-store"]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            children.append(stack.enter_context(child))
        for child in children:
            assert child.stdout.readline() == b"in the middle\n"
        for number, child in enumerate(children):
            child.communicate(b"\n" * 100)
            assert child.returncode == 0
            assert written(destination) == {"a": b"one", "w.pt": contents[number]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "m.mar"]
